"""Samples -> batches, in worker processes or in this one.

What a batch holds depends on its requests alone, never on the number of workers or on where iteration started.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal

import torch
from torch import Tensor

from maemm.contract import Modality, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, derive
from maemm.data import labels as labels_
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.mixture import Mixture
from maemm.data.order import BatchOrder, Request
from maemm.data.workers import Failure, Workers

Task = tuple[int, int]  # step, micro-batch
Missing = Literal["skip", "allow"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process."""

    # {modality: what its collate returned}; empty if every sample was bad and left out. Without a modality that all
    # samples lack, see ``present``.
    raw: dict[str, Any]
    ids: list[str]
    labels: Tensor | None  # (B,) int64, -1 where a sample has none, or (B, L), see labels.stack; None: nobody has one
    rows: list[int]  # place of each sample in the global batch
    bad: list[BadSample]  # met while this batch was read
    step: int
    micro: int  # number of the micro-batch within the step
    # {modality: (B,) bool} where samples may lack modalities; what fills the place of one is another sample's
    present: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; the copy is asynchronous if the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        present = _map_tensors(self.present, function)
        return replace(self, raw=_map_tensors(self.raw, function), labels=labels, present=present)


class Loader:
    """Reads, loads and collates the requests of an order.

    ``source``: where samples come from. ``modalities``: {name: unconnected modality without parameters}. ``order``:
    :class:`~maemm.data.order.ShuffledBatches` or ``SequentialBatches``. ``timeout``: seconds to wait for a batch.
    ``augment=False`` calls ``Modality.load(raw, None)``. ``substitute=False`` leaves bad samples out instead of
    replacing them, so that evaluation counts nothing twice. ``pin``: page-locked batches; None: where there is CUDA.
    ``missing``: a sample that lacks a modality is bad ("skip"), or is taken with what it has ("allow").

    Any exception in ``read`` or ``load`` except MemoryError makes a sample bad. The ``tries`` replacements of a bad
    sample depend on its index and the seed alone. :class:`MaemmError` is raised when they all fail, when a worker
    dies and when a batch takes longer than ``timeout``; it names the sample.
    """

    def __init__(
        self,
        source: Source,
        modalities: Mapping[str, Modality],
        order: BatchOrder,
        *,
        seed: int,
        workers: int = 0,
        timeout: float = 600,
        prefetch: int = 2,
        pin: bool | None = None,
        augment: bool = True,
        substitute: bool = True,
        tries: int = 20,
        missing: Missing = "skip",
    ):
        self.order, self.workers, self.timeout, self.prefetch = order, workers, timeout, prefetch
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.reader = _Reader(source, dict(modalities), order, seed, augment, substitute, tries, missing)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The micro-batches of the steps ``start_step`` .. ``stop_step`` - 1, in order.

        Close the iterator, or drop it, to stop its workers.
        """
        if self.workers:
            return self._with_workers(start_step, stop_step)
        return self._alone(start_step, stop_step)

    def steps(self, start_step: int, stop_step: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its micro-batches), for a loop that needs all of a step before its first backward."""
        with closing(self.batches(start_step, stop_step)) as batches:
            for step in range(start_step, stop_step):
                yield step, list(islice(batches, len(self.order.micro_batches(step))))

    def _alone(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for task in self._tasks(start_step, stop_step):
            yield self._pinned(self.reader(task))

    def _with_workers(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        workers = Workers(
            self.reader,
            self._tasks(start_step, stop_step),
            self.workers,
            prefetch=self.prefetch,
            timeout=self.timeout,
            name_of=partial(name_of, self.reader.source),
        )
        try:
            while (batch := workers.next()) is not None:
                if isinstance(batch, Failure):
                    raise MaemmError(batch.text)
                yield self._pinned(batch)
        finally:
            workers.close()

    def _tasks(self, start_step: int, stop_step: int) -> Iterator[Task]:
        for step in range(start_step, stop_step):
            for micro in range(len(self.order.micro_batches(step))):
                yield step, micro

    def _pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self.pin else batch


# ------------------------------------------------------------------------------------------ reading, in the worker
class _Unreadable(Exception):
    """A bad sample, which is recorded by then."""


class _Reader:
    """Turns a task into a batch."""

    def __init__(
        self,
        source: Source,
        modalities: dict[str, Modality],
        order: BatchOrder,
        seed: int,
        augment: bool,
        substitute: bool,
        tries: int,
        missing: Missing,
    ):
        self.source, self.modalities, self.order, self.seed = source, modalities, order, seed
        self.augment, self.substitute, self.tries, self.missing = augment, substitute, tries, missing
        self._step: tuple[int, list[list[Request]]] | None = None  # the last one asked of the order
        self.at = torch.tensor(-1)  # index of the sample being read; a worker has it in shared memory

    def __call__(self, task: Task) -> Batch:
        step, micro = task
        try:
            if self._step is None or self._step[0] != step:
                self._step = step, self.order.micro_batches(step)
            return self._batch(step, micro, self._step[1][micro])
        except MemoryError as error:
            where = name_of(self.source, int(self.at))
            raise MaemmError(
                f"out of memory while reading {where}; use fewer data.workers or a smaller batch"
            ) from error
        finally:
            self.at.fill_(-1)

    def _batch(self, step: int, micro: int, requests: list[Request]) -> Batch:
        bad: list[BadSample] = []
        loaded: list[dict[str, dict]] = []
        ids, labels, rows = [], [], []
        for _, group in groupby(requests, key=lambda request: (request.epoch, request.index)):
            group = list(group)
            try:
                sample, tta_views = self._readable(group, bad)
            except _Unreadable:
                continue
            loaded += tta_views
            ids += [sample.id] * len(group)
            labels += [sample.label] * len(group)
            rows += [request.row for request in group]
        raw, present = self._collate(loaded, self._shared_names(requests))
        return Batch(raw, ids, labels_.stack(labels), rows, bad, step, micro, present)

    def _shared_names(self, requests: list[Request]) -> list[str]:
        found = {tuple(self._names(request.index)) for request in requests}
        if len(found) > 1:
            raise MaemmError("samples of several data sets do not meet in one batch (data.mix); read one of them alone")
        return [*found.pop()]

    def _names(self, index: int) -> list[str]:
        """The modalities that a sample should have."""
        of_set = self.source.modalities(index) if isinstance(self.source, Mixture) else self.modalities
        return [name for name in self.modalities if name in of_set]

    def _collate(self, loaded: list[dict[str, dict]], names: list[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Raw batches, and who has what where samples may lack something: then another one's fills the place."""
        if not loaded:
            return {}, {}
        found, present = {}, {}
        try:
            for name in names:
                fill = next((tta_views[name] for tta_views in loaded if name in tta_views), None)
                if fill is not None:
                    found[name] = self.modalities[name].collate([tta_views.get(name, fill) for tta_views in loaded])
                if self.missing == "allow":
                    present[name] = torch.tensor([name in tta_views for tta_views in loaded])
            return found, present
        except (MemoryError, MaemmError):
            raise
        except Exception as error:
            raise MaemmError(f"samples do not make a batch ({reason_of(error)}); give them equal sizes") from error

    def _readable(self, group: list[Request], bad: list[BadSample]) -> tuple[Sample, list[dict[str, dict]]]:
        """A sample and its views; where the one asked for is bad, the first of its substitutes that is not."""
        index = wanted = group[0].index
        among = self.source.span(wanted) if isinstance(self.source, Mixture) else range(len(self.source))
        for attempt in range(1, self.tries + 2):
            try:
                return self._read(index, group)
            except MemoryError:
                raise
            except Exception as error:
                bad.append(BadSample(index, name_of(self.source, index), reason_of(error)))
            if not self.substitute:
                raise _Unreadable
            index = among[derive(self.seed, "substitute", wanted, attempt) % len(among)]
        first, last = bad[-self.tries - 1], bad[-1]
        raise MaemmError(
            f"{self.tries + 1} samples drawn one after the other are unreadable, from {first.id} ({first.reason}) "
            f"to {last.id} ({last.reason}); fix the data"
        )

    def _read(self, index: int, group: list[Request]) -> tuple[Sample, list[dict[str, dict]]]:
        self.at.fill_(index)
        epoch = group[0].epoch
        # Read once for all repeats, under the first one's key.
        sample = self.source.read(index, Rng((self.seed, epoch, index, group[0].repeat)))
        tta_views = []
        for request in group:
            rng = Rng((self.seed, epoch, index, request.repeat))
            here = self._here(self._names(index), sample.raw)
            tta_views.append({name: self._load(name, sample.raw, rng) for name in here})
        return sample, tta_views

    def _here(self, names: list[str], raw: Mapping[str, Any]) -> list[str]:
        """The modalities that a sample has. Raises ValueError where it lacks one and may not, or has none at all."""
        here = [name for name in names if name in raw]
        if here == names or (here and self.missing == "allow"):
            return here
        lacking = next(name for name in names if name not in raw)
        raise ValueError(f"the sample has no {lacking!r}, only {', '.join(map(repr, raw)) or 'nothing'}")

    def _load(self, name: str, raw: Mapping[str, Any], rng: Rng) -> dict[str, Any]:
        return self.modalities[name].load(raw[name], rng.fold_in(name) if self.augment else None)


def name_of(source: Source, index: int) -> str:
    """What messages call a sample that could not be read, on one line."""
    return "no sample yet" if index < 0 else printable(source.name(index))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(one, function) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(one, function) for one in value)
    return value
