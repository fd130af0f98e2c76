"""Averages of the parameters over training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor

from maemm.model.averages import copy_all, move_averages
from maemm.model.model import Model
from maemm.model.sharded import local


class Average(ABC):
    """``average += fraction * (parameter - average)`` after a step; buffers are copied.

    ``model`` is the averaged copy, in eval mode and without gradients. Its state is all that a resumed run needs.
    """

    def __init__(self, model: Model):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._source = model

    @cached_property
    def _parameters(self) -> list[tuple[Tensor, Tensor]]:
        """(average, source) pairs. parameters() and buffers() list a shared tensor once, in both models alike."""
        pairs = zip(self.model.parameters(), self._source.parameters(), strict=True)
        return [(local(average), local(source.detach())) for average, source in pairs]

    @cached_property
    def _buffers(self) -> list[tuple[Tensor, Tensor]]:
        return list(zip(self.model.buffers(), self._source.buffers(), strict=True))

    @abstractmethod
    def fraction(self, step: int) -> float | None:
        """The weight of the parameters after ``step``, counted from 0; None: this step changes nothing."""

    @torch.no_grad()
    def update(self, bad: Tensor, step: int) -> None:
        """Average in the parameters, or nothing where the bool scalar ``bad`` is true. Never synchronises the host."""
        weight = self.fraction(step)
        if weight is None:
            return
        fraction = weight * (~bad).float()
        if bad.device.type == "cpu":  # saves no launches, and rounds once
            for average, parameter in self._parameters:
                average.lerp_(parameter, fraction.to(average.dtype))
        else:
            move_averages(self._parameters, fraction)
        copy_all(self._buffers)


class Ema(Average):
    """An exponential moving average: ``decay * average + (1 - decay) * parameter``."""

    def __init__(self, model: Model, decay: float):
        super().__init__(model)
        self.decay = decay

    def fraction(self, step: int) -> float:
        return 1 - self.decay


class EpochMean(Average):
    """The equally weighted mean of the weights at the ends of the epochs from ``first`` on, counted from 1.

    Before that, the weights at the end of the last epoch. CAV-MAE averages from epoch 3 on.
    """

    def __init__(self, model: Model, first: int, steps_per_epoch: int):
        super().__init__(model)
        self.first, self.steps_per_epoch = first, steps_per_epoch

    def fraction(self, step: int) -> float | None:
        epoch, rest = divmod(step + 1, self.steps_per_epoch)
        return None if rest else 1 / max(1, epoch - self.first + 1)
