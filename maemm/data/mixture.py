"""Several data sets in one run: each step takes its samples from one of them."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.rng import Rng, derive
from maemm.data.files import fingerprint
from maemm.data.order import Request, ShuffledBatches


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    source: Source
    modalities: tuple[str, ...]  # what its samples hold; whatever else they hold is left out
    passes: float = 1.0  # over it in an epoch
    aug_repeats: int = 1  # rows that each sample fills


class Mixture(Source):
    """The samples of several sources, one source behind the other; a sample is called ``SET/NAME``."""

    def __init__(self, parts: Mapping[str, Part]):
        self.parts = dict(parts)
        sources = [one.source for one in self.parts.values()]
        self._ends = np.cumsum([len(one) for one in sources]).tolist()
        same = all(one.classes == sources[0].classes for one in sources)
        self.classes = sources[0].classes if same else None
        self.multilabel = any(one.multilabel for one in sources)

    def __len__(self) -> int:
        return self._ends[-1]

    def place(self, index: int) -> tuple[str, int]:
        """(name of the set, index in it)."""
        number = bisect_right(self._ends, index)
        return [*self.parts][number], index - (self._ends[number - 1] if number else 0)

    def span(self, index: int) -> range:
        """Indices of the set to which ``index`` belongs."""
        return self.spans()[self.place(index)[0]]

    def spans(self) -> dict[str, range]:
        """Indices of each set."""
        pairs = zip(self.parts.items(), self._ends, strict=True)
        return {name: range(end - len(one.source), end) for (name, one), end in pairs}

    def modalities(self, index: int) -> tuple[str, ...]:
        """Names of what the sample ``index`` should hold."""
        return self.parts[self.place(index)[0]].modalities

    def name(self, index: int) -> str:
        name, inner = self.place(index)
        return f"{name}/{self.parts[name].source.name(inner)}"

    def label(self, index: int) -> Label | None:
        name, inner = self.place(index)
        return self.parts[name].source.label(inner)

    def read(self, index: int, rng: Rng) -> Sample:
        name, inner = self.place(index)
        part = self.parts[name]
        sample = part.source.read(inner, rng)
        raw = {key: value for key, value in sample.raw.items() if key in part.modalities}
        return Sample(raw, f"{name}/{sample.id}", sample.label)

    def files(self) -> Iterator[str | bytes | os.PathLike]:
        for one in self.parts.values():
            yield from one.source.files()

    def fingerprint(self) -> str:
        return fingerprint("mixture", *(f"{name}={one.source.fingerprint()}" for name, one in self.parts.items()))


class MixtureBatches:
    """The training order of a mixture: every step takes one set, the same in all processes.

    An epoch passes ``passes`` times over each set: as many steps as that makes, at least one of each set, in an order
    that is drawn anew in each epoch. Each set has its own shuffled order, in which it goes on from turn to turn. Which
    set a step takes, and which samples, follows from (seed, step) alone.
    """

    def __init__(self, mixture: Mixture, slots: Sequence[ShuffledBatches], seed: int):
        self.slots, self.seed = list(slots), seed
        self.starts = [span.start for span in mixture.spans().values()]
        first = self.slots[0]
        self.samples, self.batch, self.micro_batch = len(mixture), first.batch, first.micro_batch
        self.accumulation = first.accumulation
        passes = [one.passes for one in mixture.parts.values()]
        self.steps = [max(1, round(n * one.steps_per_epoch)) for n, one in zip(passes, self.slots, strict=True)]
        self.steps_per_epoch = sum(self.steps)
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch in which ``step`` lies."""
        return step // self.steps_per_epoch

    def turn(self, step: int) -> tuple[int, int]:
        """(number of the set that ``step`` takes, how many steps took it before)."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        number = int(order[place])
        return number, epoch * self.steps[number] + int((order[:place] == number).sum())

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this process in ``step``; the epoch of a request counts passes over its set."""
        number, before = self.turn(step)
        start = self.starts[number]
        found = self.slots[number].micro_batches(before)
        return [[one._replace(index=start + one.index) for one in some] for some in found]

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            sets = np.repeat(np.arange(len(self.steps)), self.steps)
            self._cached = epoch, np.random.default_rng(derive(self.seed, "turns", epoch)).permutation(sets)
        return self._cached[1]


def parts_of(source: Source) -> list[tuple[Source, tuple[str, ...] | None]]:
    """The sets of a mixture with the modalities of each; of another source itself, with all that the recipe has."""
    if not isinstance(source, Mixture):
        return [(source, None)]
    return [(one.source, one.modalities) for one in source.parts.values()]
