"""Classes of tokens as targets: their ids come beside the samples, or from a codebook (codebook.py)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.functional import cross_entropy

from maemm.contract import Modality, ModalityInput, Target
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.model.targets.rows import computed_of

Vocabulary = Annotated[int, Ge(2), Le(2**24)]  # more have no numbers of their own in float32


class Classes(Target):
    """Cross-entropy of the class of each token, one of ``vocab`` (BEiT, Bao et al. 2022, section 2.4).

    A target of your own is a subclass whose :meth:`ids` asks any frozen tokenizer. The baseline is the entropy of the
    classes of the batch.
    """

    vocab: int

    @abstractmethod
    def ids(self, model: Model, name: str, inputs: ModalityInput) -> Tensor:
        """The classes (B, N) int64, 0 .. vocab - 1, of all tokens of a modality; called once for all plans."""

    def output_dim(self) -> int:
        return self.vocab

    def target_dim(self) -> int:
        return 1

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        return {name: self.ids(model, name, x) for name, x in inputs.items()}

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        """(R, M, 1) float32: the number of the class; NaN, whose loss is not finite, where there is no such class."""
        ids = computed_of(inputs, index)
        return torch.where((ids >= 0) & (ids < self.vocab), ids.float(), torch.nan)[..., None]

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """Logits (R, M, vocab) and classes (R, M, 1) -> (R, M) float32."""
        classes = target[..., 0]
        loss = cross_entropy(pred.float().flatten(0, 1), _whole(classes).flatten(), reduction="none")
        return torch.where(classes.isnan(), torch.nan, loss.view_as(classes))

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor:
        """Minus the log of the share of each token's class: on average the entropy of the marginal distribution."""
        classes = _whole(target[..., 0])
        counts = counted.new_zeros(self.vocab).scatter_add_(0, classes.flatten(), counted.flatten())
        share = counts / counts.sum().clamp(min=1e-12)
        return -share.clamp(min=1e-12).log()[classes].float()


def _whole(classes: Tensor) -> Tensor:
    return classes.nan_to_num().long()


class Codes(Classes):
    """The class of each token is read beside its sample: ids that a tokenizer made once, stored in files.

    The source hands them over as the side input ``codes``, whole numbers (N,) or (*grid) in the order of the tokens:
    ``data.source: {type: beside, source: {...}, arrays: {codes: FILE}}``. They belong to the sample as it is read
    without augmentation. Ids are mirrored with pictures and clips (``flip: true``); random crops and what else moves
    samples must be off, and of a longer recording the same part is taken in each epoch. For random crops give the
    target ``codebook`` a frozen network, which sees the same crop as the model.

    Options
        vocab: number of classes
    """

    side_inputs = ("codes",)
    whole_samples = True

    def __init__(self, names: list[str], encoder_dim: int, *, vocab: Vocabulary = 8192):
        super().__init__()
        self.names, self.vocab = names, vocab

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        for name, modality in modalities.items():
            if moves := modality.moves():
                raise MaemmError(
                    f"{name!r} is cropped, moved or mixed at random, and its codes are those of whole samples "
                    f"(modalities.{name}.target: codes); set {', '.join(moves)}, or use the target codebook"
                )

    def ids(self, model: Model, name: str, inputs: ModalityInput) -> Tensor:
        ids = inputs.preprocessed.info.get("codes")
        if ids is None:
            raise MaemmError(
                f"the samples of {name!r} come without codes (modalities.{name}.target: codes); read them with "
                "data.source: {type: beside, arrays: {codes: FILE}}"
            )
        ids = ids.flatten(1)
        if ids.is_floating_point() or ids.shape[1] != inputs.tokens.count:
            raise MaemmError(
                f"the codes of {name!r} are {tuple(ids.shape[1:])} {str(ids.dtype).removeprefix('torch.')} for "
                f"{inputs.tokens.count} tokens (modalities.{name}.target: codes); store one whole number for each token"
            )
        return model.modalities[name].follow(ids.long(), inputs.tokens, inputs.preprocessed)
