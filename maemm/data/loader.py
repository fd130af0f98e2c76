"""Samples -> batches, in worker processes or in this one.

What a batch holds depends on its requests alone, never on the number of workers or on where iteration started.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from multiprocessing import connection
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maemm.contract import Modality, Source
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.order import Order, Request
from maemm.draws import Draw, derive
from maemm.errors import MaemmError

POLL_S = 1.0  # how often a waiting loader looks whether its workers live


@dataclass(frozen=True)
class Batch:
    """One micro-batch of one process."""

    raw: dict[str, Any]  # {modality: what its collate returned}; empty if every sample was bad and left out
    ids: list[str]
    labels: Tensor | None  # (B,) int64, -1 where a sample has none; None: no sample has one
    rows: list[int]  # place of each sample in the global batch
    bad: list[BadSample]  # met while this batch was read
    step: int
    micro: int  # number of the micro-batch within the step

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on ``device``; the copy is asynchronous if the batch is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; torch's loader calls this."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        labels = None if self.labels is None else function(self.labels)
        return replace(self, raw=_map_tensors(self.raw, function), labels=labels)


class Loader:
    """Reads, loads and collates the requests of an order.

    ``source``: where samples come from. ``modalities``: {name: unconnected modality without parameters}. ``order``:
    :class:`~maemm.data.order.Slots` or ``Once``. ``timeout``: seconds that one batch may take. ``augment=False``
    calls ``Modality.load(raw, None)``. ``substitute=False`` leaves bad samples out instead of replacing them, so
    that evaluation counts nothing twice. ``pin``: page-locked batches; None: where there is CUDA.

    Any exception in ``read`` or ``load`` except MemoryError makes a sample bad. The ``tries`` replacements of a bad
    sample depend on its index and the seed alone. :class:`MaemmError` is raised when they all fail, when a worker
    dies and when a batch takes longer than ``timeout``; it names the sample.
    """

    def __init__(
        self,
        source: Source,
        modalities: Mapping[str, Modality],
        order: Order,
        *,
        seed: int,
        workers: int = 0,
        timeout: float = 600,
        prefetch: int = 2,
        pin: bool | None = None,
        augment: bool = True,
        substitute: bool = True,
        tries: int = 20,
    ):
        self.order, self.workers, self.timeout, self.prefetch = order, workers, timeout, prefetch
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.reader = _Reader(source, dict(modalities), seed, augment, substitute, tries, workers)

    def batches(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        """The micro-batches of the steps ``start_step`` .. ``stop_step`` - 1, in order.

        Close the iterator, or drop it, to stop its workers.
        """
        if self.workers:
            return self._with_workers(start_step, stop_step)
        return self._alone(start_step, stop_step)

    def steps(self, start_step: int, stop_step: int) -> Iterator[tuple[int, list[Batch]]]:
        """(step, its micro-batches), for a loop that needs all of a step before its first backward."""
        for step, batches in groupby(self.batches(start_step, stop_step), key=lambda batch: batch.step):
            yield step, list(batches)

    def _alone(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        for work in _Work(self.order, start_step, stop_step):
            batch = _whole(self.reader[work])
            yield batch.pin_memory() if self.pin else batch

    def _with_workers(self, start_step: int, stop_step: int) -> Iterator[Batch]:
        pool = _Pool(self, _Work(self.order, start_step, stop_step))
        try:
            while (batch := pool.next()) is not None:
                yield _whole(batch)
        finally:
            pool.close()


class _Work:
    """(step, micro, requests) of a range of steps, as the sampler of torch's loader."""

    def __init__(self, order: Order, start_step: int, stop_step: int):
        self.order, self.steps = order, range(start_step, stop_step)

    def __iter__(self) -> Iterator[tuple[int, int, list[Request]]]:
        for step in self.steps:
            for micro, requests in enumerate(self.order.micro_batches(step)):
                yield step, micro, requests


# ------------------------------------------------------------------------------------------ reading, in the worker
@dataclass(frozen=True)
class _Failure:
    """An error on its way from a worker: exceptions themselves would arrive with the worker's traceback as text."""

    text: str


class _Unreadable(Exception):
    """A bad sample, which is recorded by then."""


class _Reader(Dataset):
    """Turns one piece of work into a batch; the data set that torch's loader sees."""

    def __init__(
        self,
        source: Source,
        modalities: dict[str, Modality],
        seed: int,
        augment: bool,
        substitute: bool,
        tries: int,
        workers: int,
    ):
        self.source, self.modalities, self.seed = source, modalities, seed
        self.augment, self.substitute, self.tries = augment, substitute, tries
        # (workers, 2) process id and index being read, -1: none. In shared memory, so that it outlives its worker.
        self.board = torch.full((max(workers, 1), 2), -1, dtype=torch.int64).share_memory_()
        self.worker = 0

    def __getitem__(self, work: tuple[int, int, list[Request]]) -> Batch | _Failure:
        step, micro, requests = work
        try:
            return self._batch(step, micro, requests)
        except MaemmError as error:
            return _Failure(str(error))
        except MemoryError:
            where = name_of(self.source, int(self.board[self.worker, 1]))
            return _Failure(f"out of memory while reading {where}; use fewer data.workers or a smaller batch")
        finally:
            self.board[self.worker, 1] = -1

    def _batch(self, step: int, micro: int, requests: list[Request]) -> Batch:
        bad: list[BadSample] = []
        loaded: list[dict[str, dict]] = []
        ids, labels, rows = [], [], []
        for _, group in groupby(requests, key=lambda request: (request.epoch, request.index)):
            group = list(group)
            try:
                sample, views = self._readable(group, bad)
            except _Unreadable:
                continue
            loaded += views
            ids += [sample.id] * len(group)
            labels += [-1 if sample.label is None else sample.label] * len(group)
            rows += [request.row for request in group]
        known = torch.tensor(labels) if any(label != -1 for label in labels) else None
        return Batch(self._collate(loaded), ids, known, rows, bad, step, micro)

    def _collate(self, loaded: list[dict[str, dict]]) -> dict[str, Any]:
        if not loaded:
            return {}
        try:
            return {name: one.collate([views[name] for views in loaded]) for name, one in self.modalities.items()}
        except (MemoryError, MaemmError):
            raise
        except Exception as error:
            raise MaemmError(f"samples do not make a batch ({reason_of(error)}); give them equal sizes") from error

    def _readable(self, group: list[Request], bad: list[BadSample]) -> tuple[Any, list[dict[str, dict]]]:
        """A sample and its views; where the one asked for is bad, the first of its substitutes that is not."""
        wanted = group[0].index
        index = wanted
        for attempt in range(1, self.tries + 2):
            try:
                return self._read(index, group)
            except MemoryError:
                raise
            except Exception as error:
                bad.append(BadSample(index, name_of(self.source, index), reason_of(error)))
            if not self.substitute:
                raise _Unreadable
            index = derive(self.seed, "substitute", wanted, attempt) % len(self.source)
        first, last = bad[-self.tries - 1], bad[-1]
        raise MaemmError(
            f"{self.tries + 1} samples drawn one after the other are unreadable, from {first.id} ({first.reason}) "
            f"to {last.id} ({last.reason}); fix the data"
        )

    def _read(self, index: int, group: list[Request]) -> tuple[Any, list[dict[str, dict]]]:
        self.board[self.worker, 1] = index
        epoch = group[0].epoch
        # Read once for all repeats, under the first one's key.
        sample = self.source.read(index, Draw((self.seed, epoch, index, group[0].repeat)))
        views = []
        for request in group:
            draw = Draw((self.seed, epoch, index, request.repeat))
            views.append({name: self._load(name, sample.raw, draw) for name in self.modalities})
        return sample, views

    def _load(self, name: str, raw: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        if name not in raw:
            raise ValueError(f"the sample has no {name!r}, only {', '.join(map(repr, raw)) or 'nothing'}")
        return self.modalities[name].load(raw[name], draw.under(name) if self.augment else None)

    def start_worker(self, worker: int) -> None:
        """Called in each new worker process. An interrupt is for the main process, which saves and ends its workers."""
        self.worker = worker
        self.board[worker, 0] = os.getpid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # batch systems send it to all processes of a job
        torch.set_num_threads(1)


def name_of(source: Source, index: int) -> str:
    """What messages call a sample that could not be read: ``source.name(index)`` where there is one."""
    if index < 0:
        return "no sample yet"
    name = getattr(source, "name", None)
    return printable(name(index)) if callable(name) else f"sample {index}"


# ------------------------------------------------------------------------------------------ workers, from outside
class _Pool:
    """One pass of torch's loader over some work, with worker deaths and timeouts turned into one-line errors."""

    def __init__(self, loader: Loader, work: _Work):
        self.timeout, self.reader = loader.timeout, loader.reader
        self.reader.board.fill_(-1)
        before = set(multiprocessing.active_children())
        handler = signal.getsignal(signal.SIGCHLD)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # more workers than cores: the user's choice
            self.batches = iter(_torch_loader(loader, work))
        self.flag = self.batches._workers_done_event._cond._lock
        mark = self.batches._mark_worker_as_unavailable
        self.batches._mark_worker_as_unavailable = lambda *args, **named: (self._free(), mark(*args, **named))
        # torch's handler would raise RuntimeError anywhere in the main program, even while a checkpoint is written.
        # Here a dead worker is noticed by looking, when a batch is waited for.
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
        self.processes = set(multiprocessing.active_children()) - before
        self.failed = False
        atexit.register(self.kill)

    def next(self) -> Batch | _Failure | None:
        """The next batch; None at the end."""
        start = time.monotonic()
        while True:
            try:
                return next(self.batches, None)
            except Exception as error:
                text = self._explain(error, time.monotonic() - start)
                if text is not None:
                    self.failed = True
                    raise MaemmError(text) from error

    def _explain(self, error: Exception, waited: float) -> str | None:
        """The message for an error of torch's loader; None where it is only time for another look."""
        if isinstance(error, OSError | EOFError):  # a broken connection is a moment ahead of the news of the death
            dead = connection.wait([process.sentinel for process in self.processes], timeout=2)
            for process in self.processes:
                if process.sentinel in dead:
                    process.join(timeout=2)
        for process in self.processes:
            if process.exitcode is not None:  # workers end only when the work does, and then nobody waits for them
                return self._death_text(process)
        if not str(error).startswith("DataLoader timed out"):
            return f"reading data failed ({reason_of(error)}); try data.workers=0"
        return self._timeout_text() if waited >= self.timeout else None

    def _death_text(self, process: Any) -> str:
        code = process.exitcode
        how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        board = self.reader.board.tolist()
        index = next((index for pid, index in board if pid == process.pid), -1)
        where = f"while reading {self._sample(index)}" if index >= 0 else "between two samples"
        return f"a data worker died of {how} {where}; {_ADVICE.get(how, 'look at that sample, or try data.workers=0')}"

    def _timeout_text(self) -> str:
        names = [self._sample(index) for _, index in self.reader.board.tolist() if index >= 0]
        where = f"workers are at {', '.join(names)}" if names else "workers are between two samples"
        return f"no data for {self.timeout:g} s ({where}); look at the storage, or raise data.timeout"

    def _sample(self, index: int) -> str:
        name = name_of(self.reader.source, index)
        return name if name == f"sample {index}" else f"{name} (sample {index})"

    def _free(self) -> None:
        """Give back the lock of torch's end-of-work flag where a killed worker took it along: torch would hang."""
        self.flag.acquire(timeout=1)
        self.flag.release()

    def kill(self) -> None:
        """End the workers at once, stuck ones too: they ignore gentler signals."""
        for process in self.processes:
            process.kill()

    def close(self) -> None:
        if self.failed:
            self.kill()
            self._free()
        del self.batches._mark_worker_as_unavailable  # ours: it closes a circle, and the end would wait for gc
        del self.batches  # torch asks them to finish and waits for 5 s
        self.kill()
        for process in self.processes:
            process.join(timeout=5)
        atexit.unregister(self.kill)


_ADVICE = {
    "SIGKILL": "if memory ran out, use fewer data.workers; else look at that sample",
    "SIGBUS": "shared memory (/dev/shm) may be full: enlarge it, or use fewer data.workers",
}


def _torch_loader(loader: Loader, work: _Work) -> DataLoader:
    return DataLoader(
        loader.reader,
        sampler=work,
        batch_size=None,  # the reader collates
        collate_fn=_as_is,
        num_workers=loader.workers,
        prefetch_factor=loader.prefetch,
        timeout=min(POLL_S, loader.timeout),
        pin_memory=loader.pin,
        worker_init_fn=loader.reader.start_worker,
        generator=torch.Generator(),  # otherwise torch draws a seed from the global stream
    )


def _as_is(batch: Any) -> Any:
    return batch


def _whole(batch: Batch | _Failure) -> Batch:
    if isinstance(batch, _Failure):
        raise MaemmError(batch.text)
    return batch


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(one, function) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_map_tensors(one, function) for one in value)
    return value
