"""Asynchronous copies to the host on the pretended GPU: what they bring is there once an event after them has passed.

Until then their memory holds NaN, or other numbers than those that come, so that what is read too early is seen.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Arrivals:
    """The copies that no event, and no wait for the device, has shown to be done."""

    def __init__(self) -> None:
        self.coming: list[tuple[Tensor, Tensor]] = []  # (memory of the host, what arrives there)

    def send(self, memory: Tensor, values: Tensor) -> Tensor:
        """Begin a copy of ``values``, which the CPU holds, to ``memory``."""
        self.coming.append((memory, values.clone()))
        if memory.is_floating_point():
            return memory.fill_(torch.nan)
        return memory.copy_(~values)

    def arrive(self, copies: list[tuple[Tensor, Tensor]] | None = None) -> None:
        """These copies are done, or all."""
        done = list(self.coming) if copies is None else copies
        for memory, values in done:
            memory.copy_(values)
        self.coming = [copy for copy in self.coming if all(copy is not other for other in done)]
