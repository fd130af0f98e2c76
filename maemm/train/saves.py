"""The checkpoints of a run: which one it continues from, and what is written into a new one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.train import checkpoint
from maemm.train.distributed import DistContext, PeerFailed
from maemm.train.mirror import Mirror
from maemm.train.replica import Replica, on_host
from maemm.train.restore import Unusable, restore
from maemm.train.run_folder import RunFolder
from maemm.train.shards import on_host as shards_on_host
from maemm.train.shards import taken_out
from maemm.train.shards import write as write_shards
from maemm.train.state import TrainState
from maemm.weights.checkpoints import Checkpoint, latest, stamp


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


@dataclass
class Snapshot:
    """What a checkpoint is made of; models and state are those of rank 0."""

    step: int
    model: Model | None
    ema_model: Model | None
    state: dict[str, Any]  # of optimizer.pt
    shards: dict[str, Tensor]  # of this rank


class Saves:
    """Reads and writes the checkpoints of one start of a run.

    ``progress()``: what a checkpoint holds beside weights and optimisers, called on rank 0. ``mirrors``: on rank 0,
    where checkpoints are copied to.
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
        mirrors: Sequence[Mirror] = (),
    ):
        self.mirrors = mirrors
        self.recipe, self.folder, self.train_state = recipe, folder, train_state
        self.source, self.held_out, self.progress, self.log = source, held_out, progress, log
        self.step = -1  # of the newest checkpoint
        self.dist_context = train_state.dist_context
        self.running: Future[None] | None = None  # what is written in the thread
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

    @cached_property
    def writer(self) -> DistContext:
        """The ranks, for agreements in the thread."""
        return self.dist_context.with_group_of_its_own()

    @cached_property
    def replica(self) -> Replica:
        """Of which copies of the model are made."""
        sharding = self.train_state.sharding
        return Replica(self.train_state.model) if sharding is None else sharding.replica

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

    # ------------------------------------------------------------------------------------------------------- writing
    def write(self, step: int, *, wait: bool = True) -> Path:
        """Write the checkpoint after ``step`` steps, unless there is one, and return it. All ranks call this.

        With ``train.async_save`` and without ``wait`` it is written in a thread, from copies, while training goes on;
        what goes wrong there is raised on all ranks at the next call of this, or of :meth:`finish`.
        """
        path = checkpoint.path_of(self.folder.checkpoints, step)
        self.finish()
        if self.step == step:
            return path
        in_thread = self.writer if self.recipe["train"]["async_save"] and not wait else None
        with self.dist_context.explain_errors():
            snapshot = self._snapshot(step, copies=in_thread is not None)
        self.step = step
        if in_thread is not None:
            self.running = self.thread.submit(self._write, snapshot, in_thread)
        else:
            self._write(snapshot, self.dist_context)
        return path

    def finish(self) -> None:
        """Wait until what is written in the thread has been written. All ranks call this."""
        if self.running is not None:
            running, self.running = self.running, None
            self.dist_context.on_all_ranks(running.result)

    def leave(self) -> None:
        """At the end of a run, also by an error: wait until the thread has ended, whatever became of its work."""
        if self.running is not None:
            futures.wait([self.running])

    def _snapshot(self, step: int, *, copies: bool) -> Snapshot:
        """What belongs to a checkpoint; ``copies``: that training does not change."""
        train_state, rank0 = self.train_state, self.dist_context.is_rank0
        if train_state.sharding is not None or copies:
            host = torch.device("cpu")
            model, ema_model = (
                None if source is None else self.replica.filled(source, host, wanted=rank0)
                for source in (train_state.model, train_state.ema_model)
            )
        else:
            model, ema_model = train_state.model, train_state.ema_model
        optimizer, shards = taken_out(train_state.optimizer.state_dict())
        state: dict[str, Any] = {}
        if rank0:
            phases = {phase.name: phase.optimizer.state_dict() for phase in train_state.phases}
            state = {"optimizer": optimizer, "phases": phases, **self.progress()}
        if copies:
            state, shards = on_host(state), shards_on_host(shards)
        return Snapshot(step, model, ema_model, state, shards)

    def _write(self, snapshot: Snapshot, ranks: DistContext) -> None:
        """Write a snapshot; ``ranks`` agree on each part of it."""
        folder, step = self.folder.checkpoints, snapshot.step
        written: dict[str, Any] = {}
        if self.train_state.sharding is not None and any(ranks.all_gather_object(bool(snapshot.shards))):
            temporary = ranks.on_rank0(lambda: checkpoint.begin(folder, step))
            own = ranks.on_all_ranks(lambda: write_shards(temporary, snapshot.shards, ranks))
            stamps = ranks.on_all_ranks(lambda: {name: stamp(temporary / name) for name in own})
            written = {name: value for part in ranks.gather_object(stamps) for name, value in part.items()}

        def whole() -> None:
            assert snapshot.model is not None
            validation = {} if self.held_out is None else {"validation": self.held_out.fingerprint()}
            meta = {"recipe": self.recipe, "data": self.source.fingerprint(), **validation, **checkpoint.versions()}
            path = checkpoint.write(folder, step, snapshot.model, snapshot.state, meta, snapshot.ema_model, written)
            self.prune(step, later=True)
            for mirror in self.mirrors:
                mirror.put(path)

        ranks.on_rank0(whole)

    def write_after_error(self, step: int, error: Exception) -> None:
        """Save after an ``error`` between two steps, which will be raised; one of saving is suppressed.

        Without shards rank 0 does it alone; with them all ranks do, unless one is gone.
        """
        if step <= max(self.step, 0):
            return
        with suppress(MaemmError, RuntimeError):
            if self.train_state.sharding is None:
                if self.dist_context.is_rank0:
                    if self.running is not None:
                        self.running.result()
                    self._write(self._snapshot(step, copies=False), DistContext())
            elif not (isinstance(error, PeerFailed) and error.gone):
                self.write(step)
