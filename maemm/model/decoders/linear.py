"""No decoder but a head, for encoders in whose sequence hidden tokens stay (BEiT, MaskFeat)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.model.blocks import Init, init_linear, init_normal


class LinearDecoder(Decoder):
    """One linear layer per modality on the latents of hidden tokens (MaskFeat, section 3.1).

    Options
        init: initial weights of the layer: xavier, or normal with std 0.02 (BEiT, MaskFeat)
    """

    dim = None  # positions are those of the encoder
    encoder_options = {"hidden": "replace"}

    def __init__(self, outputs: dict[str, int], encoder_dim: int, prefix_count: int, *, init: Init = "xavier"):
        super().__init__()
        self.decoded_dim = encoder_dim
        self.heads = nn.ModuleDict({name: nn.Linear(encoder_dim, size) for name, size in outputs.items() if size})
        self.heads.apply(init_normal if init == "normal" else init_linear)

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        if not latents.hidden:
            raise MaemmError("decoder linear needs hidden tokens in the encoder's sequence; set encoder.hidden=replace")
        latents.decoded = {name: latents.hidden[name] for name in inputs if name in self.heads}
        return {name: self.heads[name](part) for name, part in latents.decoded.items()}
