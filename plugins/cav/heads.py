"""The classifier of fine-tuned CAV-MAE: one layer on five kinds of features."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from maemm.contract import Head, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegative, PositiveInt
from maemm.model.encoders.streams import Streams
from maemm.model.model import Model
from maemm.model.pooling import mean_of_tokens

#: modality -> the published name of predictions from it alone
MODES = {"audio": "audioonly", "image": "videoonly"}


class StreamHead(Head):
    """Mean of the tokens of a pass, norm, linear (CAV-MAE, fine-tuning code).

    ``multimodal`` is the joint pass, ``audioonly`` and ``videoonly`` are the single streams. ``missingaudioonly`` and
    ``missingvideoonly`` are for samples without the other modality: the mean of the single stream and of the pass
    through the joint blocks with their shared norms.

    Options
        classes: outputs
        eps: of the norm
    """

    def __init__(self, encoder_dim: int, *, classes: PositiveInt, eps: NonNegative = 1e-5):
        super().__init__()
        self.classes = classes
        self.norm = nn.LayerNorm(encoder_dim, eps=eps)
        self.linear = nn.Linear(encoder_dim, classes)

    def unused_parameters(self, model: Model, stream: str | None = None) -> list[nn.Parameter]:
        """What the pass ``stream`` leaves out: norms of other passes, and all that is the other modality's alone."""
        encoder = model.encoder
        if stream is None or not isinstance(encoder, Streams):
            return []
        single = next((name for name, mode in MODES.items() if stream.removeprefix("missing") == mode), None)
        unused: list[Any] = [part[name] for part in (encoder.own, encoder.own_norm) for name in part if name != single]
        if single is not None:
            others = [name for name in encoder.names if name != single]
            unused += [part[name] for part in (model.modalities, encoder.trunks) for name in others]
            unused.append(nn.ParameterList(encoder.vectors[name] for name in others))
            if not stream.startswith("missing"):  # which also takes the shared norms
                unused += [encoder.norm, *(norm for block in encoder.joint for norm in (block.norm1, block.norm2))]
        return [parameter for module in unused for parameter in module.parameters()]

    def features(self, model: Model, batch: dict[str, Any]) -> dict[str, Tensor]:
        """{mode: (B, D)} of all modes that the modalities of the batch allow."""
        encoder = model.encoder
        if not isinstance(encoder, Streams):
            raise MaemmError(f"head cav needs encoder streams, not {type(encoder).__name__} (encoder.type)")
        inputs = model.with_all_visible(batch)
        towers = {name: encoder.tower(name, x, model.modalities[name]) for name, x in inputs.items()}
        features: dict[str, Tensor] = {}
        for name, mode in MODES.items():
            if name in towers:
                single = _mean(encoder.join([towers[name]], name), [inputs[name]])
                shared = _mean(encoder.join([towers[name]]), [inputs[name]])
                features |= {mode: single, f"missing{mode}": (single + shared) / 2}
        if len(towers) > 1:
            features = {"multimodal": _mean(encoder.join([*towers.values()]), [*inputs.values()]), **features}
        return features

    def forward(self, model: Model, batch: dict[str, Any]) -> dict[str, Tensor]:
        return {mode: self.linear(self.norm(pooled)) for mode, pooled in self.features(model, batch).items()}


def _mean(tokens: Tensor, inputs: list[ModalityInput]) -> Tensor:
    return mean_of_tokens(tokens, [x.plan for x in inputs])
