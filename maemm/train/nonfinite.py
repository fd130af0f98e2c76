"""Steps whose loss or gradient is not finite: each is reported, and too many in a row end the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from maemm.contract.errors import MaemmError
from maemm.train.distributed import DistContext
from maemm.train.on_host import OnHost
from maemm.train.state import StepResult

LISTED_IDS = 8


class _Pending(NamedTuple):
    """A step whose flags have not been read yet."""

    step: int
    flags: OnHost  # (1 + micro-batches,) bool: not finite, bad_micro
    ids: list[list[str]]


class NonFiniteWatch:
    """Reads the ``bad`` flags of steps; on a GPU one step late, so that the host never waits for the running step.

    By then the update has been skipped on the device (:func:`maemm.train.step.take_step`). Here the samples of such a
    step are reported, and after ``limit`` of them in a row (at least 1) :class:`MaemmError` ends the run.
    """

    def __init__(self, dist_context: DistContext, limit: int, log: Callable[[str], Any]):
        self.dist_context, self.limit, self.log = dist_context, max(limit, 1), log
        self.steps, self._in_a_row = 0, 0
        self._pending: list[_Pending] = []

    def add(self, step: int, result: StepResult, ids: list[list[str]]) -> None:
        """Register a step, and check those that are certain to be done."""
        flags = OnHost(torch.cat([result.nonfinite.reshape(1), result.bad_micro]))
        self._pending.append(_Pending(step, flags, ids))
        self.check(all_but=flags.steps_late)

    def check(self, all_but: int = 0) -> None:
        """Check all steps ``all_but`` the newest ones. All ranks check the same step at the same time."""
        while len(self._pending) > all_but:
            pending = self._pending.pop(0)
            bad, *bad_micro = pending.flags.read()
            if bad:
                self._report(pending, bad_micro)
            else:
                self._in_a_row = 0

    def _report(self, pending: _Pending, bad_micro: list[bool]) -> None:
        own_ids = [id_ for ids, bad in zip(pending.ids, bad_micro, strict=True) if bad for id_ in ids]
        bad_ids = [id_ for ids in self.dist_context.all_gather_object(own_ids) for id_ in ids]
        quantity = "loss"
        if not bad_ids:  # a gradient that is not finite, of a finite loss, does not show which samples caused it
            quantity, bad_ids = "gradient", [id_ for ids in pending.ids for id_ in ids]
        more = f" and {len(bad_ids) - LISTED_IDS} more" if len(bad_ids) > LISTED_IDS else ""
        samples = ", ".join(bad_ids[:LISTED_IDS]) + more
        self.steps += 1
        self._in_a_row += 1
        if self._in_a_row >= self.limit:
            raise MaemmError(
                f"the {quantity} was not finite in {self._in_a_row} steps in a row, the last one step "
                f"{pending.step + 1} (samples: {samples}); look at them, lower train.lr or set train.clip_grad"
            )
        self.log(f"step {pending.step + 1} skipped: {quantity} not finite (samples: {samples})")
