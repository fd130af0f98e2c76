"""The checkpoints of a run: which one it continues from, and what is written into a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.train import checkpoint
from maemm.train.restore import Unusable, restore
from maemm.train.run_folder import RunFolder
from maemm.train.step import TrainState
from maemm.weights.checkpoints import Checkpoint, latest


def latest_checkpoint(
    folder: RunFolder, source: Source, held_out: Source | None, log: Callable[[str], Any]
) -> Checkpoint | None:
    """The checkpoint to resume from, if any. Raises :class:`MaemmError` where the data have changed since."""
    newest = latest(folder.checkpoints, log)
    if newest is None:
        folder.bad.unlink(missing_ok=True)
        return None
    validation = None if held_out is None else held_out.fingerprint()
    folder.check_random_numbers(newest.meta)
    folder.check_data(newest.meta, newest.step, source.fingerprint(), validation)
    if folder.moved:
        log(f"{folder.path} reads the same data from another place ({', '.join(folder.moved.values())})")
    return newest


class Saves:
    """Reads and writes the checkpoints of one start of a run.

    ``progress()``: what a checkpoint holds beside weights and optimisers, called on rank 0.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: RunFolder,
        train_state: TrainState,
        source: Source,
        held_out: Source | None,
        progress: Callable[[], Mapping[str, Any]],
        log: Callable[[str], Any],
    ):
        self.recipe, self.folder, self.train_state = recipe, folder, train_state
        self.source, self.held_out, self.progress, self.log = source, held_out, progress, log
        self.step = -1  # of the newest checkpoint

    def resume(self, newest: Checkpoint | None) -> tuple[int, Mapping[str, Any]]:
        """(step, progress) of a checkpoint, or of one before it where that holds what this run cannot have written.

        All ranks call this. (0, {}) without a checkpoint. Raises :class:`MaemmError` where none can be used.
        """
        candidate = newest
        while candidate is not None:
            problem, state = self._try(candidate)
            if problem is None:
                self.step = candidate.step
                return candidate.step, state
            candidate = self._fall_back(candidate, problem)
        return 0, {}

    def _fall_back(self, failed: Checkpoint, problem: str) -> Checkpoint:
        """The checkpoint before one that cannot be used."""
        folder = self.folder.checkpoints
        older = self.train_state.dist_context.on_rank0(lambda: latest(folder, self.log, before=failed.step))
        if older is None:
            raise MaemmError(
                f"no checkpoint of the run can be used ({failed.path}: {problem}); choose another out=, or remove "
                f"{folder} to start from the beginning"
            )
        self.log(f"{failed.path} cannot be used ({problem}); falling back to the one before it")
        return older

    def _try(self, candidate: Checkpoint) -> tuple[str | None, dict[str, Any]]:
        """(why a checkpoint cannot be used, {}), or (None, its state); the same on every rank."""

        def read() -> tuple[str | None, dict[str, Any]]:
            try:
                return None, restore(candidate, self.train_state)
            except Unusable as error:
                return str(error), {}

        dist_context = self.train_state.dist_context
        problem, state = dist_context.on_all_ranks(read)
        return next(filter(None, dist_context.all_gather_object(problem)), None), state

    def prune(self, step: int, *, later: bool = False) -> None:
        """Remove old checkpoints as ``train.keep`` says; ``later``: those after ``step`` too."""
        checkpoint.prune(self.folder.checkpoints, self.recipe["train"]["keep"], step, later=later)

    def write(self, step: int) -> Path:
        """Write the checkpoint after ``step`` steps, unless there is one, and return it."""
        if self.step == step:
            return self.folder.checkpoints / f"step-{step:06d}"
        train_state = self.train_state
        state = {
            "optimizer": train_state.optimizer.state_dict(),
            "phases": {phase.name: phase.optimizer.state_dict() for phase in train_state.phases},
            **self.progress(),
        }
        validation = {} if self.held_out is None else {"validation": self.held_out.fingerprint()}
        meta = {"recipe": self.recipe, "data": self.source.fingerprint(), **validation, **checkpoint.versions()}
        path = checkpoint.write(self.folder.checkpoints, step, train_state.model, state, meta, train_state.ema_model)
        self.step = step
        self.prune(step, later=True)
        return path

    def write_after_error(self, step: int) -> None:
        """Save on rank 0 after an error between two steps. That error will be raised; one of saving is suppressed."""
        if self.train_state.dist_context.is_rank0 and step > max(self.step, 0):
            with suppress(MaemmError):
                self.write(step)
