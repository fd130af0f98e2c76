"""Steps whose loss or gradient was not finite: told once each, and the end of the run when they do not stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.train.distributed import DistContext
from maemm.train.step import StepResult

SHOWN_IDS = 8


@dataclass
class _Seen:
    step: int
    flags: Tensor  # on the host, true once ``event`` has passed: bad, then one per micro-batch
    event: Any
    ids: list[list[str]]


class Watch:
    """Looks at the flags of steps. On a GPU one step late, so that the host never waits for the step that runs.

    The update itself has been skipped on the device by then (:func:`maemm.train.step.take_step`); here it is said
    which samples were in it, and after ``limit`` such steps in a row (at least 1) :class:`MaemmError` ends the run.
    """

    def __init__(self, dist_context: DistContext, limit: int, say: Callable[[str], Any]):
        self.dist_context, self.limit, self.say = dist_context, max(limit, 1), say
        self.skipped, self._row = 0, 0
        self._pending: list[_Seen] = []

    def add(self, step: int, result: StepResult, ids: list[list[str]]) -> None:
        """Take note of a step, and look at those that are certain to be done."""
        flags = torch.cat([result.bad.reshape(1), result.bad_micro])
        event = None
        if flags.device.type == "cuda":
            host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            flags, event = host, torch.cuda.Event()
            event.record()
        self._pending.append(_Seen(step, flags, event, ids))
        self.look(late=0 if event is None else 1)

    def look(self, late: int = 0) -> None:
        """Look at all steps but the ``late`` newest. All processes look at the same step at the same time."""
        while len(self._pending) > late:
            seen = self._pending.pop(0)
            if seen.event is not None:
                seen.event.synchronize()
            bad, *micro = seen.flags.tolist()
            if bad:
                self._tell(seen, micro)
            else:
                self._row = 0

    def _tell(self, seen: _Seen, micro: list[bool]) -> None:
        own = [one for ids, flag in zip(seen.ids, micro, strict=True) if flag for one in ids]
        found = [one for ids in self.dist_context.gather(own) for one in ids]
        # A finite loss with a gradient that is not says nothing about whose it was.
        what, found = ("loss", found) if found else ("gradient", [one for ids in seen.ids for one in ids])
        more = f" and {len(found) - SHOWN_IDS} more" if len(found) > SHOWN_IDS else ""
        samples = ", ".join(found[:SHOWN_IDS]) + more
        self.skipped += 1
        self._row += 1
        if self._row >= self.limit:
            raise MaemmError(
                f"the {what} was not finite in {self._row} steps in a row, the last one step {seen.step + 1} (samples: "
                f"{samples}); look at them, lower train.lr or set train.clip_grad"
            )
        self.say(f"step {seen.step + 1} skipped: {what} not finite (samples: {samples})")
