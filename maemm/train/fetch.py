"""The micro-batches of the next step: waited for, bad samples counted, planned, and the first of a kind checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from maemm.data.bad_samples import BadSampleLog
from maemm.data.on_device import StepOnDevice
from maemm.model.checks import first_batch
from maemm.model.nothing_to_learn import check_plans
from maemm.train.logging import Clock
from maemm.train.state import MicroBatches, TrainState
from maemm.train.step import plan_micro_batches


class Fetch:
    """Makes the micro-batches of a step from what the loader has read. Unless weights are sharded it waits for no other
    rank.

    ``clock`` counts how long a step waited; ``log`` prints a line.
    """

    def __init__(self, train_state: TrainState, bad_samples: BadSampleLog, clock: Clock, log: Callable[[str], Any]):
        self.train_state, self.bad_samples, self.clock, self.log = train_state, bad_samples, clock, log
        self.checked: set[tuple[str, ...]] = set()  # modalities of the batches that have been checked

    def __call__(self, steps: Iterator[StepOnDevice]) -> MicroBatches:
        """The next one of ``steps``, planned. Raises :class:`~maemm.contract.errors.MaemmError`."""
        return self.plan(self.read(steps))

    def read(self, steps: Iterator[StepOnDevice]) -> StepOnDevice:
        """The next one of ``steps``, its bad samples counted."""
        start = time.monotonic()
        loaded = next(steps)
        self.clock.step(waited=time.monotonic() - start)
        for batch in loaded.host:
            if not self.bad_samples and batch.bad:
                first = batch.bad[0]
                self.log(f"unreadable: {first.id}: {first.reason}; more are listed in {self.bad_samples.path}")
            self.bad_samples.add(batch.bad)
        return loaded

    def plan(self, loaded: StepOnDevice) -> MicroBatches:
        """Its micro-batches. With sharded weights all ranks call this together: what plans ask of networks gathers."""
        micro_batches = plan_micro_batches(self.train_state, loaded.step, loaded.host, loaded.device)
        self._check(micro_batches)
        return micro_batches

    def _check(self, micro_batches: MicroBatches) -> None:
        """Once for each set of modalities, as data sets that are mixed differ."""
        names = tuple(micro_batches.inputs[0])
        if names in self.checked:
            return
        self.checked.add(names)
        for line in check_plans(self.train_state.model, micro_batches.inputs, micro_batches.counts):
            self.log(line)
        first_batch(self.train_state.model, micro_batches.inputs[0])
