"""Averages of the parameters over training."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Average(ABC):
    """``average += share * (parameter - average)`` after a step; buffers are copied.

    ``model`` is the averaged copy, in eval mode and without gradients. Resume is exact if its state is stored.
    """

    def __init__(self, model: nn.Module):
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # Each average beside what it follows. named_* lists a shared tensor once, on both sides alike.
        self._parameters = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @abstractmethod
    def fraction(self, step: int) -> float | None:
        """What the parameters weigh after ``step``; None: nothing is taken up."""

    @torch.no_grad()
    def update(self, bad: Tensor, step: int) -> None:
        """Take up the parameters, or nothing where the scalar ``bad`` is true. The host waits for nothing."""
        weight = self.fraction(step)
        if weight is None:
            return
        fraction = weight * (~bad).float()
        for average, parameter in self._parameters:
            average.lerp_(parameter.detach(), fraction.to(average.dtype))
        for average, buffer in self._buffers:
            average.copy_(buffer)


class Ema(Average):
    """An exponential moving average: ``decay * average + (1 - decay) * parameter``."""

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model)
        self.decay = decay

    def fraction(self, step: int) -> float:
        return 1 - self.decay


class EpochMean(Average):
    """The equal mean of the weights at the ends of the epochs from ``first`` on, counted from 1 (CAV-MAE: from 3).

    Until then it is the weights of the last epoch.
    """

    def __init__(self, model: nn.Module, first: int, steps_per_epoch: int):
        super().__init__(model)
        self.first, self.steps_per_epoch = first, steps_per_epoch

    def fraction(self, step: int) -> float | None:
        epoch, rest = divmod(step + 1, self.steps_per_epoch)
        return None if rest else 1 / max(1, epoch - self.first + 1)
