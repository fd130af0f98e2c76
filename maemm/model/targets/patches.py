"""The modality's own values, beside what it predicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from maemm.contract import Modality, ModalityInput, Target
from maemm.contract.errors import MaemmError
from maemm.contract.grid import VARIANCE_EPS, GridModality


class Patches(Target):
    """The patches of a modality on a grid, each with mean 0 and variance 1 or as they are: squared errors.

    For a second output beside the modality's own: MultiMAE predicts pictures as they are, and normalised by a further
    decoder (``decoder.extra``).

    Options
        normalize: patch: mean 0 and unbiased variance 1 of each, over all channels; none: raw values
    """

    def __init__(self, names: list[str], encoder_dim: int, *, normalize: Literal["patch", "none"] = "patch"):
        super().__init__()
        self.names, self.normalize = names, normalize

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        sizes = set()
        for name, modality in modalities.items():
            if not isinstance(modality, GridModality) or modality.gaps:
                raise MaemmError(
                    f"{name} has no patches without gaps, which the target patches predicts; choose another target"
                )
            sizes.add(modality.values_dim())
        if len(sizes) > 1:
            raise MaemmError(
                f"patches of {', '.join(modalities)} differ in size, so they cannot share a target (target: patches); "
                "give each its own"
            )
        (self.size,) = sizes

    def output_dim(self) -> int:
        return self.size

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        values = inputs.tokens.gather(index).float()
        if self.normalize == "none" or not values.numel():
            return values
        mean = values.mean(-1, keepdim=True)
        return (values - mean) / (values.var(-1, keepdim=True) + VARIANCE_EPS).sqrt()
