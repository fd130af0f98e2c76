"""Augmentation of preprocessed batches in fine-tuning: mixup, CutMix and random erasing, with timm."""

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

    mixup: float  # alpha; 0: none
    cutmix: float  # alpha; 0: none
    probability: float  # of mixing a batch at all
    switch: float  # probability of CutMix where both are on

    def __call__(
        self, preprocessed: dict[str, Preprocessed], labels: Tensor, rng: Rng
    ) -> tuple[dict[str, Preprocessed], Tensor]:
        """Mix samples and their labels (B, classes) float, in the same way for all modalities of a sample.

        Raises :class:`MaemmError` for an odd number of samples and for samples of different sizes.
        """
        from timm.data import Mixup

        count = len(labels)
        if count % 2:
            raise MaemmError(
                f"mixing needs an even number of samples at a time, not {count} (train.batch, train.micro_batch); "
                "change one of them"
            )
        mixing = Mixup(self.mixup, self.cutmix, None, self.probability, self.switch, "batch", True, 0.0, count)
        result: dict[str, Preprocessed] = {}
        fractions = torch.eye(count, device=labels.device)
        for name, batch in preprocessed.items():
            planes = (planes_of if self.cutmix else whole_values)(name, batch).clone()
            with seeded(*rng.key, "mix", rng.rows[0]):
                # Each sample is a class of its own: the mixed "labels" are the fractions of all samples in each one.
                mixed, fractions = mixing(planes, torch.arange(count, device=planes.device))
            result[name] = replace(batch, x=mixed.reshape(batch.x.shape))
        return result, fractions.to(labels.dtype) @ labels


def erase(name: str, batch: Preprocessed, rng: Rng, probability: float) -> Preprocessed:
    """With ``probability``, replace a box of each sample with noise (Zhong et al. 2020, noise per pixel)."""
    from timm.data.random_erasing import RandomErasing

    planes = planes_of(name, batch)
    erasing = RandomErasing(probability, mode="pixel", device=str(planes.device))
    erased = []
    for row, plane in zip(rng.rows, planes, strict=True):
        with seeded(*rng.key, "erase", name, row):
            erased.append(erasing(plane.clone()))
    return replace(batch, x=torch.stack(erased).reshape(batch.x.shape))


def mixed_before(preprocessed: Mapping[str, Preprocessed], labels: Tensor) -> Tensor:
    """Labels (B, classes) float, mixed for samples that a modality has mixed in ``preprocess``.

    ``Preprocessed.info`` then holds ``mixed_with`` (B,) int64, the row of the partner, and ``mix_share`` (B,), the
    fraction of the sample itself.
    """
    for batch in preprocessed.values():
        if "mix_share" in batch.info:
            fraction = batch.info["mix_share"].to(labels.dtype)[:, None]
            return fraction * labels + (1 - fraction) * labels[batch.info["mixed_with"]]
    return labels


def whole_values(name: str, batch: Preprocessed) -> Tensor:
    """x (B, ...). Raises :class:`MaemmError` where samples differ in size."""
    if batch.valid is not None and not bool(batch.valid.all()):
        raise MaemmError(f"samples of {name!r} differ in size, so they cannot be mixed (objectives); set mixup to 0")
    return batch.x


def planes_of(name: str, batch: Preprocessed) -> Tensor:
    """(B, C, ..., H, W) -> (B, C * ..., H, W). Raises :class:`MaemmError` where samples have fewer than two axes."""
    x = whole_values(name, batch)
    if x.ndim < 4:
        raise MaemmError(
            f"samples of {name!r} are not images to cut boxes from (objectives); set cutmix and erase to 0"
        )
    return x.reshape(x.shape[0], -1, *x.shape[-2:])
