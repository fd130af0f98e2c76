"""Values of a step on their way to the host, which reads them once they have arrived and so does not wait."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class OnHost:
    """A copy of a small tensor. On a GPU it is asynchronous: read it a step later, when the device has got there."""

    def __init__(self, values: Tensor):
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    @property
    def steps_late(self) -> int:
        """How many steps later it is certain to have arrived."""
        return 0 if self._event is None else 1

    def read(self) -> list[Any]:
        """The values, once they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._values.tolist()
