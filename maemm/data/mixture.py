"""Several data sets in one run: all samples of a step are from one of them."""

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
    modalities: tuple[str, ...]  # of its samples that are used
    passes: float = 1.0  # over its samples in an epoch
    aug_repeats: int = 1  # rows of a batch that each sample fills


class Mixture(Source):
    """The samples of several sources, one source after the other; the name of a sample is ``SET/NAME``."""

    def __init__(self, parts: Mapping[str, Part]):
        self.parts = dict(parts)
        sources = [part.source for part in self.parts.values()]
        self._ends: list[int] = np.cumsum([len(source) for source in sources]).tolist()
        same = all(source.classes == sources[0].classes for source in sources)
        self.classes = sources[0].classes if same else None
        self.multilabel = any(source.multilabel for source in sources)

    def __len__(self) -> int:
        return self._ends[-1]

    def locate(self, index: int) -> tuple[str, int]:
        """(name of the set, index of the sample in it)."""
        number = bisect_right(self._ends, index)
        return [*self.parts][number], index - (self._ends[number - 1] if number else 0)

    def span(self, index: int) -> range:
        """All indices of the set that contains the sample ``index``."""
        return self.spans()[self.locate(index)[0]]

    def spans(self) -> dict[str, range]:
        """{name of the set: its indices}."""
        pairs = zip(self.parts.items(), self._ends, strict=True)
        return {name: range(end - len(part.source), end) for (name, part), end in pairs}

    def modalities(self, index: int) -> tuple[str, ...]:
        """Names of the modalities that the sample ``index`` should have."""
        return self.parts[self.locate(index)[0]].modalities

    def name(self, index: int) -> str:
        name, inner = self.locate(index)
        return f"{name}/{self.parts[name].source.name(inner)}"

    def label(self, index: int) -> Label | None:
        name, inner = self.locate(index)
        return self.parts[name].source.label(inner)

    def read_ahead(self, indices: Sequence[int]) -> None:
        located = [self.locate(index) for index in indices]
        for name in dict.fromkeys(name for name, _ in located):
            self.parts[name].source.read_ahead([inner for own, inner in located if own == name])

    def read(self, index: int, rng: Rng) -> Sample:
        name, inner = self.locate(index)
        part = self.parts[name]
        sample = part.source.read(inner, rng)
        raw = {key: value for key, value in sample.raw.items() if key in part.modalities}
        return Sample(raw, f"{name}/{sample.id}", sample.label, sample.sides)

    def files(self) -> Iterator[str | bytes | os.PathLike]:
        for part in self.parts.values():
            yield from part.source.files()

    def fingerprint(self) -> str:
        return fingerprint("mixture", *(f"{name}={part.source.fingerprint()}" for name, part in self.parts.items()))


class MixtureBatches:
    """The training order of a mixture: every step uses one set, the same on all ranks.

    ``orders``: the order of each set by itself. An epoch passes ``passes`` times over each set: as many steps as that
    takes, at least one of each set, in a new random order each epoch. Each set has its own shuffled order, which
    continues from one of its steps to the next. The set and the samples of a step depend on (seed, step) alone.
    """

    def __init__(self, mixture: Mixture, orders: Sequence[ShuffledBatches], seed: int):
        self.orders, self.seed = list(orders), seed
        self.starts = [span.start for span in mixture.spans().values()]
        first = self.orders[0]
        self.samples, self.batch, self.micro_batch = len(mixture), first.batch, first.micro_batch
        self.accumulation = first.accumulation
        passes = [part.passes for part in mixture.parts.values()]
        self.steps = [max(1, round(n * order.steps_per_epoch)) for n, order in zip(passes, self.orders, strict=True)]
        self.steps_per_epoch = sum(self.steps)
        self.left_out = sum(order.left_out for order in self.orders)  # of a pass over each set
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch in which ``step`` lies."""
        return step // self.steps_per_epoch

    def set_of(self, step: int) -> tuple[int, int]:
        """(number of the set that ``step`` uses, number of earlier steps that used it)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._cached is None or self._cached[0] != epoch:
            sets = np.repeat(np.arange(len(self.steps)), self.steps)
            self._cached = epoch, np.random.default_rng(derive(self.seed, "turns", epoch)).permutation(sets)
        order = self._cached[1]
        number = int(order[position])
        return number, epoch * self.steps[number] + int((order[:position] == number).sum())

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this rank in ``step``, as in ``ShuffledBatches``; their epoch counts passes over their set."""
        number, before = self.set_of(step)
        start = self.starts[number]
        return [
            [request._replace(index=start + request.index) for request in requests]
            for requests in self.orders[number].micro_batches(before)
        ]


def parts_of(source: Source) -> list[tuple[Source, tuple[str, ...] | None]]:
    """[(source, its modalities)] of the sets of a mixture; any other source is one set, with all modalities (None)."""
    if not isinstance(source, Mixture):
        return [(source, None)]
    return [(part.source, part.modalities) for part in source.parts.values()]
