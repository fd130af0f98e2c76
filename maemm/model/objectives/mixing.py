"""Augmentation of preprocessed batches in fine-tuning: mixup and CutMix, with timm, and the labels of mixed samples."""

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
        self, preprocessed: dict[str, Preprocessed], labels: Tensor, rng: Rng, sizes: SizeCheck
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
            planes = (planes_of(name, batch, rng, sizes) if self.cutmix else sizes(name, batch, rng)).clone()
            with seeded(*rng.key, "mix", rng.rows[0]):
                # Each sample is a class of its own: the mixed "labels" are the fractions of all samples in each one.
                mixed, fractions = mixing(planes, torch.arange(count, device=planes.device))
            result[name] = replace(batch, x=mixed.reshape(batch.x.shape))
        return result, fractions.to(labels.dtype) @ labels


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


class SizeCheck:
    """Refuses samples that differ in size, which are neither mixed nor erased.

    On a GPU a mask of valid places is read in the next step, when it is surely computed: the host never waits.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Rng, str, Tensor, torch.cuda.Event]] = []

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return SizeCheck, ()  # what waits belongs to this run: a copy of the model has none

    def __call__(self, name: str, batch: Preprocessed, rng: Rng) -> Tensor:
        """x (B, ...). Raises :class:`MaemmError` where samples differ in size."""
        while self._pending and self._pending[0][0].key != rng.key:
            _, earlier, whole, event = self._pending.pop(0)
            event.synchronize()
            self._check(earlier, whole)
        if batch.valid is not None:
            whole = batch.valid.all()
            if whole.device.type != "cuda":
                self._check(name, whole)
            else:
                on_host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(whole, non_blocking=True)
                event = torch.cuda.Event()
                event.record()
                self._pending.append((rng, name, on_host, event))
        return batch.x

    @staticmethod
    def _check(name: str, whole: Tensor) -> None:
        if not bool(whole):
            raise MaemmError(
                f"samples of {name!r} differ in size, so they cannot be mixed (objectives); set mixup to 0"
            )


def planes_of(name: str, batch: Preprocessed, rng: Rng, sizes: SizeCheck) -> Tensor:
    """(B, C, ..., H, W) -> (B, C * ..., H, W). Raises :class:`MaemmError` where samples have fewer than two axes."""
    x = sizes(name, batch, rng)
    if x.ndim < 4:
        raise MaemmError(
            f"samples of {name!r} are not images to cut boxes from (objectives); set cutmix and erase to 0"
        )
    return x.flatten(1, -3)
