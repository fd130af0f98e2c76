"""What fine-tuning does to a prepared batch: boxes erased, samples mixed, labels with them. timm does the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded


@dataclass(frozen=True)
class Mixing:
    """Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) with partners of the same micro-batch."""

    mixup: float
    cutmix: float
    probability: float
    switch: float

    def __call__(
        self, preprocessed: dict[str, Preprocessed], labels: Tensor, rng: Rng
    ) -> tuple[dict[str, Preprocessed], Tensor]:
        """Mixed batches, and mixed labels (B, classes) float. All modalities of a sample are mixed alike."""
        from timm.data import Mixup

        count = len(labels)
        if count % 2:
            raise MaemmError(
                f"mixing needs an even number of samples at a time, got {count} (train.batch, train.micro_batch)"
            )
        mixing = Mixup(self.mixup, self.cutmix, None, self.probability, self.switch, "batch", True, 0.0, count)
        found, shares = {}, torch.eye(count)
        for name, one in preprocessed.items():
            planes = (planes_of if self.cutmix else whole_values)(name, one).clone()
            with seeded(*rng.key, "mix", rng.rows[0]):
                # Samples as their own classes: what comes back is how much of whom each one holds.
                mixed, shares = mixing(planes, torch.arange(count, device=planes.device))
            found[name] = replace(one, x=mixed.reshape(one.x.shape))
        return found, shares.to(labels.device, labels.dtype) @ labels


def erase(name: str, one: Preprocessed, rng: Rng, probability: float) -> Preprocessed:
    """A box of each sample replaced by noise with that probability (Zhong et al. 2020, per-pixel noise)."""
    from timm.data.random_erasing import RandomErasing

    planes = planes_of(name, one)
    erasing = RandomErasing(probability, mode="pixel", device=str(planes.device))
    kept = []
    for row, plane in zip(rng.rows, planes, strict=True):
        with seeded(*rng.key, "erase", name, row):
            kept.append(erasing(plane.clone()))
    return replace(one, x=torch.stack(kept).reshape(one.x.shape))


def mixed_before(preprocessed: Mapping[str, Preprocessed], labels: Tensor) -> Tensor:
    """Labels (B, classes) float of samples that a modality has mixed itself.

    It says so in ``Preprocessed.info``: ``mixed_with`` (B,) int64, the row of the partner, and ``mix_share`` (B,), the
    share of the sample itself.
    """
    for one in preprocessed.values():
        if "mix_share" in one.info:
            fraction = one.info["mix_share"].to(labels.device, labels.dtype)[:, None]
            return fraction * labels + (1 - fraction) * labels[one.info["mixed_with"].to(labels.device)]
    return labels


def whole_values(name: str, one: Preprocessed) -> Tensor:
    """x, where all samples have one size."""
    if one.valid is not None and not bool(one.valid.all()):
        raise MaemmError(f"samples of {name!r} differ in size, so they cannot be mixed (objectives); set mixup to 0")
    return one.x


def planes_of(name: str, one: Preprocessed) -> Tensor:
    """(B, C, ..., H, W) -> (B, C * ..., H, W)."""
    x = whole_values(name, one)
    if x.ndim < 4:
        raise MaemmError(f"samples of {name!r} have no two axes to cut boxes from; set cutmix and erase to 0")
    return x.reshape(x.shape[0], -1, *x.shape[-2:])
