"""An exponential moving average of the parameters."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Ema:
    """``average = decay * average + (1 - decay) * parameter`` after each step; buffers are copied.

    ``model`` is the averaged copy, in eval mode and without gradients. Resume is exact if its state is stored.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        # Each average beside what it follows. named_* lists a shared tensor once, on both sides alike.
        self._parameters = list(zip(self.model.parameters(), model.parameters(), strict=True))
        self._buffers = list(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self, bad: Tensor) -> None:
        """Take up the parameters, or nothing where the scalar ``bad`` is true. The host waits for nothing."""
        share = (1 - self.decay) * (~bad).float()
        for average, parameter in self._parameters:
            average.lerp_(parameter.detach(), share.to(average.dtype))
        for average, buffer in self._buffers:
            average.copy_(buffer)
