"""The guard against loss spikes: a step whose loss jumps is left out, or the run goes back behind its samples.

Whether a loss jumps is decided from the loss of the global batch, so on all ranks alike, and on the device, so that no
step waits. What it is compared with are the losses of the last steps that were accepted: their median, and their median
absolute deviation from it, which single losses do not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.train.on_host import OnHost

SIGMA = 1.4826  # standard deviations in the median absolute deviation of a normal distribution
LEAST = 0.01  # of the median: less than this is never a deviation, however quiet the losses have been


class Verdict(NamedTuple):
    """What the guard says about a step: scalars on the device."""

    spike: Tensor  # bool: the loss jumped, and nothing has been updated
    new_level: Tensor  # bool: it jumped too, but so had those before it, so that this is what losses are now
    limit: Tensor  # the loss above which one is a spike; NaN where there are too few to tell


class Guard:
    """Judges losses, and remembers those that it accepts. ``sets``: data sets of a mixture, which are told apart.

    Half a window of losses has to be accepted before one can be a spike. After ``most_in_a_row`` spikes the next loss
    is accepted, whatever it is: where it would have been a spike too, losses have reached a new level, and the window
    begins anew.
    """

    def __init__(self, options: Mapping[str, Any], device: torch.device, sets: int = 1):
        self.factor, self.most_in_a_row = float(options["factor"]), int(options["most_in_a_row"])
        window = int(options["window"])
        self.enough = window // 2
        self.losses = torch.full((sets, window), math.inf, device=device)  # infinite where there is none yet
        self.accepted = torch.zeros(sets, dtype=torch.int64, device=device)  # since the window began
        self.in_a_row = torch.zeros(sets, dtype=torch.int64, device=device)  # spikes
        self._places = torch.arange(window, device=device)

    @torch.no_grad()
    def judge(self, loss: Tensor, bad: Tensor, data_set: int = 0) -> Verdict:
        """Is the ``loss`` of a step a spike? Never where the bool scalar ``bad`` says that it does not count."""
        losses, accepted, in_a_row = self.losses[data_set], self.accepted[data_set], self.in_a_row[data_set]
        limit = torch.where(accepted >= self.enough, self._limit(losses, accepted), math.nan)
        jumps = ~bad & (loss.float() > limit)  # False where the limit is NaN
        spike = jumps & (in_a_row < self.most_in_a_row)
        new_level = jumps & ~spike
        counts = ~bad & ~spike
        losses.copy_(torch.where(new_level, math.inf, losses))
        accepted.copy_(torch.where(new_level, 0, accepted))
        place = self._places == accepted % len(self._places)
        losses.copy_(torch.where(counts & place, loss.float(), losses))
        accepted.add_(counts)
        in_a_row.copy_(torch.where(bad, in_a_row, torch.where(spike, in_a_row + 1, 0)))
        return Verdict(spike, new_level, limit)

    def _limit(self, losses: Tensor, accepted: Tensor) -> Tensor:
        """Median + factor * deviation of the losses that there are."""
        middle = ((accepted.clamp(max=len(losses)) - 1).clamp(min=0) // 2).reshape(1)
        median = losses.sort().values.gather(0, middle)
        deviation = (losses - median).abs().sort().values.gather(0, middle)
        return (median + self.factor * torch.maximum(SIGMA * deviation, LEAST * median.abs()))[0]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).tolist() for name in ("losses", "accepted", "in_a_row")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``state`` of :meth:`state_dict`; empty, or of another window or other data sets: begin anew."""
        fits = state and [len(row) for row in state["losses"]] == [self.losses.shape[1]] * len(self.losses)
        if not fits:
            state = {"losses": math.inf, "accepted": 0, "in_a_row": 0}
        for name in ("losses", "accepted", "in_a_row"):
            own = getattr(self, name)
            own.copy_(torch.tensor(state[name], dtype=own.dtype).expand_as(own))


class Spikes:
    """Tells of spikes, counts them, and knows which samples the run has passed over. Without a guard it does nothing.

    All ranks call its methods at the same steps, and all come to the same. On a GPU verdicts are read one step late.
    """

    def __init__(self, options: Mapping[str, Any] | None, guard: Guard | None, log: Callable[[str], Any]):
        self.options, self.guard, self.log = options, guard, log
        self.skipped = 0  # steps left out, of those that count
        self.rewinds: list[list[int]] = []  # [step, offset]: from this step on the samples are those of step + offset
        self.can_go_back = False  # whether there is a checkpoint
        self.spike_at: int | None = None  # step, counted from 0, behind whose samples the run is to go on
        self._jump = ""  # what happened there
        self._pending: list[tuple[int, OnHost]] = []

    @property
    def offset(self) -> int:
        """How many steps the samples are ahead, because the run has gone back and passed over some."""
        return self.rewinds[-1][1] if self.rewinds else 0

    @property
    def counts(self) -> dict[str, int] | None:
        """For a log line."""
        return None if self.guard is None else {"skipped": self.skipped, "rewinds": len(self.rewinds)}

    def add(self, step: int, loss: Tensor, verdict: Verdict | None) -> None:
        """Register a step, and tell of those that are certain to be done."""
        if verdict is None:
            return
        values = torch.stack([verdict.spike.float(), verdict.new_level.float(), loss.float(), verdict.limit])
        self._pending.append((step, OnHost(values)))
        self.check(all_but=self._pending[-1][1].steps_late)

    def check(self, all_but: int = 0) -> None:
        """Tell of all steps ``all_but`` the newest ones; of none after one behind which the run is to go on."""
        while len(self._pending) > all_but and self.spike_at is None:
            step, values = self._pending.pop(0)
            spike, new_level, loss, limit = values.read()
            rewinds = self.options is not None and self.options["action"] == "rewind"
            if spike and rewinds and self.can_go_back:
                self.spike_at, self._jump = step, _jump(step, loss, limit)
            elif spike:
                self.skipped += 1
                why = ", as there is no checkpoint to go back to" if rewinds else ""
                self.log(f"{_jump(step, loss, limit)}: the step is skipped{why}")
            elif new_level:
                self.log(
                    f"{_jump(step, loss, limit)}, as did the steps before it (train.spikes.most_in_a_row): this is "
                    "taken as the new level"
                )

    # ------------------------------------------------------------------------------------------------- going back
    def check_limit(self, checkpoint: Any) -> None:
        """Raises :class:`MaemmError` where the run has gone back as often as it may, or there is no ``checkpoint``."""
        assert self.options is not None
        if checkpoint is None:
            raise MaemmError(f"{self._jump}, and no checkpoint is left to go back to; choose another out=")
        if len(self.rewinds) >= self.options["most_rewinds"]:
            raise MaemmError(
                f"{self._jump}, after {len(self.rewinds)} rewinds (train.spikes.most_rewinds); lower train.lr, set "
                "train.clip_grad, look at the data, or choose train.spikes.action=skip"
            )

    def go_back(self, step: int, rewinds: list[list[int]], offset: int) -> None:
        """Note that the run is at ``step`` again and goes on with the samples behind those of the spike.

        ``rewinds`` and ``offset``: what this object had before the checkpoint was read into it.
        """
        assert self.spike_at is not None
        after = self.spike_at + offset + 1  # the first step of the order that is not passed over
        count = after - step - self.offset
        self.log(
            f"{self._jump}: back to step {step}, from which the samples of {count} step{'s' * (count > 1)} are passed "
            "over"
        )
        self.rewinds = [*rewinds, [step, after - step]]
        self.spike_at = None
        self._pending.clear()

    # ------------------------------------------------------------------------------------------------ checkpoints
    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint; empty where nothing is guarded and nothing has been passed over."""
        if self.guard is None and not self.rewinds:
            return {}
        guarded = {} if self.guard is None else self.guard.state_dict()
        return {"spikes": {"skipped": self.skipped, "rewinds": self.rewinds, "guard": guarded}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What :meth:`state_dict` held under "spikes", or empty."""
        self.skipped = state.get("skipped", 0)
        self.rewinds = [list(rewind) for rewind in state.get("rewinds", [])]
        if self.guard is not None:
            self.guard.load_state_dict(state.get("guard") or {})


def is_state(state: Mapping[str, Any]) -> bool:
    """Whether it may be what :meth:`Spikes.state_dict` held under "spikes", or is empty."""
    if not state:
        return True
    guard, rewinds = state.get("guard"), state.get("rewinds")
    if not (_is_count(state.get("skipped")) and isinstance(guard, dict) and isinstance(rewinds, list)):
        return False
    if not all(isinstance(pair, list) and len(pair) == 2 and all(map(_is_count, pair)) for pair in rewinds):
        return False
    if not guard:
        return True
    losses, counts = guard.get("losses"), [guard.get("accepted"), guard.get("in_a_row")]
    if not (isinstance(losses, list) and all(isinstance(row, list) for row in losses)):
        return False
    if not all(
        isinstance(count, list) and len(count) == len(losses) and all(map(_is_count, count)) for count in counts
    ):
        return False
    return all(isinstance(loss, float) and not math.isnan(loss) for row in losses for loss in row)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _jump(step: int, loss: float, limit: float) -> str:
    return f"step {step + 1}: the loss jumped to {loss:.4g}, above {limit:.4g}"


def describe(options: Mapping[str, Any] | None) -> str | None:
    """What becomes of a spike, in words; None without ``train.spikes``."""
    if options is None:
        return None
    what = "skipped" if options["action"] == "skip" else "passed over, from the checkpoint before on"
    return (
        f"steps whose loss is {options['factor']:g} deviations above the median of the last {options['window']} are "
        f"{what} (train.spikes)"
    )
