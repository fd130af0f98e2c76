"""Samples -> batches, in worker processes or in this one.

The content of a batch depends on its requests alone, never on the number of workers or the step where the run started.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, islice
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import default_collate

from maemm.contract import Label, Modality, Sample, Source
from maemm.contract.errors import MaemmError, RunEnds
from maemm.contract.rng import Rng, derive
from maemm.data import labels as labels_
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.mixture import Mixture
from maemm.data.order import BatchOrder, Request
from maemm.data.workers import Failure, Workers

Task = tuple[int, int]  # step, micro-batch
Loaded = dict[str, Any]  # {modality: what its ``load`` returned} of one sample
Missing = Literal["skip", "allow"]
_SIDE = "side inputs"  # key beside what ``load`` returned; ``collate`` never sees it


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one rank."""

    # {modality: what its collate returned}; empty if all samples were bad and left out. A modality that no sample of
    # the batch has is not in it, see ``present``.
    raw: dict[str, Any]
    ids: list[str]
    labels: Tensor | None  # (B,) int64, -1 for none, or (B, L), see labels.stack; None: no sample has a label
    rows: list[int]  # position of each sample in the global batch
    bad: list[BadSample]  # found while this batch was read
    step: int
    micro: int  # number of the micro-batch in the step
    # {modality: (B,) bool} where samples may lack modalities; False: ``raw`` holds a copy of another sample there
    present: dict[str, Tensor] = field(default_factory=dict)
    side_inputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {modality: {name: (B, ...)}}

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; a copy to a GPU is asynchronous if the batch is pinned."""
        asynchronous = torch.device(device).type != "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=asynchronous))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory."""
        return self._map(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keep the memory of these tensors for the work that ``stream`` has been given by the time they are freed."""
        self._map(lambda tensor: tensor.record_stream(stream) or tensor)  # type: ignore[func-returns-value]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        raw, present, side_inputs = (
            _map_tensors(tensors, function) for tensors in (self.raw, self.present, self.side_inputs)
        )
        return replace(self, raw=raw, labels=labels, present=present, side_inputs=side_inputs)


class Loader:
    """Reads, loads and collates the requests of an order.

    ``modalities``: {name: unconnected modality without parameters}. ``order``:
    :class:`~maemm.data.order.ShuffledBatches`, ``SequentialBatches`` or another :class:`~maemm.data.order.BatchOrder`.
    ``prefetch``: batches that each worker reads ahead. ``timeout``: seconds to wait for a batch. ``augment=False``
    calls ``Modality.load(raw, None)``. ``substitute=False`` leaves bad samples out instead of replacing them, so that
    evaluation counts no sample twice. ``pin``: page-locked batches; None: if CUDA is available. ``missing``: a sample
    that lacks a modality is bad ("skip"), or is used with the modalities that it has ("allow").

    Any exception in ``read`` or ``load`` except MemoryError and :class:`RunEnds` makes a sample bad. The up to
    ``tries`` replacements of a bad sample depend on its index and the seed alone. :class:`MaemmError` is raised when
    they all fail, when a worker dies and when a batch takes longer than ``timeout``; it names the sample.
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

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch]:
        """The micro-batches of the steps ``start_step`` .. ``stop_step`` - 1, in order.

        Close the generator, or delete it, to stop its workers.
        """
        tasks = (
            (step, micro)
            for step in range(start_step, stop_step)
            for micro in range(len(self.order.micro_batches(step)))
        )
        if not self.workers:
            for task in tasks:
                yield self._pinned(self.reader(task))
            return
        workers = Workers(
            self.reader,
            tasks,
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

    def steps(self, start_step: int, stop_step: int, offset: int = 0) -> Generator[tuple[int, list[Batch]], None, None]:
        """(step, its micro-batches), for a loop that needs all batches of a step before its first backward pass.

        ``offset``: steps of the order that have been passed over: a step has the samples of the ``offset``-th after it.
        """
        with closing(self.batches(start_step + offset, stop_step + offset)) as batches:
            for step in range(start_step, stop_step):
                yield step, list(islice(batches, len(self.order.micro_batches(step + offset))))

    def _pinned(self, batch: Batch) -> Batch:
        return batch.pin_memory() if self.pin else batch


# ------------------------------------------------------------------------------------------ reading, in the worker
class _Unreadable(Exception):
    """The sample is bad, and recorded as such."""


class _Reader:
    """Reads the batch of a task."""

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
        self._step: tuple[int, list[list[Request]]] | None = None  # the last one, to call the order once per step
        self.at = torch.tensor(-1)  # index of the sample being read; in a worker it is in shared memory

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
        loaded: list[Loaded] = []
        ids: list[str] = []
        labels: list[Label | None] = []
        rows: list[int] = []
        self.source.read_ahead([*dict.fromkeys(request.index for request in requests)])
        for _, neighbours in groupby(requests, key=lambda request: (request.epoch, request.index)):
            repeats = list(neighbours)
            try:
                sample, loaded_repeats = self._readable(repeats, bad)
            except _Unreadable:
                continue
            loaded += loaded_repeats
            ids += [sample.id] * len(repeats)
            labels += [sample.label] * len(repeats)
            rows += [request.row for request in repeats]
        names = {tuple(self._names(request.index)) for request in requests}
        if len(names) > 1:
            raise MaemmError("samples of several data sets cannot be in one batch (data.mix); read one of them alone")
        raw, present, side_inputs = self._collate(loaded, names.pop())
        return Batch(raw, ids, labels_.stack(labels), rows, bad, step, micro, present, side_inputs)

    def _names(self, index: int) -> list[str]:
        """The modalities that a sample should have."""
        of_set = self.source.modalities(index) if isinstance(self.source, Mixture) else self.modalities
        return [name for name in self.modalities if name in of_set]

    def _collate(
        self, loaded: list[Loaded], names: Iterable[str]
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """``Batch.raw``, ``Batch.present`` and ``Batch.side_inputs``."""
        if not loaded:
            return {}, {}, {}
        raw, present, side_inputs = {}, {}, {}
        try:
            for name in names:
                fill = next((sample[name] for sample in loaded if name in sample), None)
                if fill is not None:
                    samples = [sample.get(name, fill) for sample in loaded]
                    if self.modalities[name].side_inputs:
                        side_inputs[name] = default_collate([sample[_SIDE] for sample in samples])
                        samples = [{key: sample[key] for key in sample if key != _SIDE} for sample in samples]
                    raw[name] = self.modalities[name].collate(samples)
                if self.missing == "allow":
                    present[name] = torch.tensor([name in sample for sample in loaded])
            return raw, present, side_inputs
        except (MemoryError, MaemmError):
            raise
        except Exception as error:
            raise MaemmError(f"samples do not make a batch ({reason_of(error)}); give them equal sizes") from error

    def _readable(self, repeats: list[Request], bad: list[BadSample]) -> tuple[Sample, list[Loaded]]:
        """The requested sample and its repeats as loaded; if it is bad, the first of its substitutes that is not."""
        index = requested = repeats[0].index
        among = self.source.span(requested) if isinstance(self.source, Mixture) else range(len(self.source))
        for attempt in range(1, self.tries + 2):
            try:
                return self._read(index, repeats)
            except (MemoryError, RunEnds):
                raise
            except Exception as error:
                bad.append(BadSample(index, name_of(self.source, index), reason_of(error)))
            if not self.substitute:
                raise _Unreadable
            index = among[derive(self.seed, "substitute", requested, attempt) % len(among)]
        first, last = bad[-self.tries - 1], bad[-1]
        raise MaemmError(
            f"{self.tries + 1} samples in a row are unreadable, from {first.id} ({first.reason}) "
            f"to {last.id} ({last.reason}); fix the data"
        )

    def _read(self, index: int, repeats: list[Request]) -> tuple[Sample, list[Loaded]]:
        """Raises ValueError where the sample lacks a modality that it must have, or has none at all."""
        self.at.fill_(index)
        epoch = repeats[0].epoch
        # Read once for all repeats, with the random key of the first.
        sample = self.source.read(index, Rng((self.seed, epoch, index, repeats[0].repeat)))
        expected = self._names(index)
        names = [name for name in expected if name in sample.raw]
        if names != expected and not (names and self.missing == "allow"):
            absent = next(name for name in expected if name not in sample.raw)
            raise ValueError(f"the sample has no {absent!r}, only {', '.join(map(repr, sample.raw)) or 'nothing'}")
        loaded = []
        for request in repeats:
            rng = Rng((self.seed, epoch, index, request.repeat))
            loaded.append({name: self._load(name, sample, rng) for name in names})
        return sample, loaded

    def _load(self, name: str, sample: Sample, rng: Rng) -> Any:
        modality, of_source = self.modalities[name], sample.sides.get(name, {})
        whole = modality.whole_samples and any(side in of_source for side in modality.side_inputs)
        modality_rng = rng.fold_in(modality.aligned_with or name) if self.augment and not whole else None
        loaded = modality.load(sample.raw[name], modality_rng)
        if modality.side_inputs:
            sides = {
                side: torch.as_tensor(of_source[side])
                if side in of_source
                else modality.side_input(side, loaded, modality_rng)
                for side in modality.side_inputs
            }
            loaded = {**loaded, _SIDE: sides}
        return loaded


def name_of(source: Source, index: int) -> str:
    """The name of a sample in messages, on one line."""
    return "no sample yet" if index < 0 else printable(source.name(index))


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(item, function) for item in value)
    return value
