"""Processes that train together: who we are, agreeing before each step, adding up counts.

``torchrun`` (or anything that sets its environment variables, or a process group that is there already) makes
several processes; without it there is one, and every function here is a plain local one.
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.train.signals import Interrupted

T = TypeVar("T")


class PeerFailed(MaemmError):
    """Another process failed, and has said why; this one only ends with it."""


@dataclass
class DistContext:
    """The processes of a run. ``control`` is a gloo group: agreements travel beside the device's work."""

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    control: Any = None
    ours: bool = False  # whether this module made the process group, and so ends it

    @property
    def is_rank0(self) -> bool:
        """True in the one process that writes and speaks."""
        return self.rank == 0

    # ---- agreeing
    def on_all_ranks(self, work: Callable[[], T], *, stop: Callable[[], int] = lambda: 0) -> T:
        """Do ``work`` in every process, and let all go on only if all can. ``work`` must not wait for the others.

        An exception in one process ends all: it is raised there, and :class:`PeerFailed` in the others.
        ``stop()`` is a signal number or 0, asked after the work; if any process says one, all raise
        :class:`Interrupted`.
        """
        result, error = None, None
        try:
            result = work()
        except Exception as caught:
            error = caught
        self._agree(error, 0 if error else stop())
        return result

    def _agree(self, error: Exception | None, signum: int) -> None:
        if self.world > 1:
            failed, signum = self._most([int(error is not None), signum], error)
            if failed:
                self._raise_first(error)
        if error is not None:
            raise error
        if signum:
            raise Interrupted(signum)

    def _most(self, said: list[int], error: Exception | None) -> list[int]:
        """The largest of each number over processes: one small message, for this happens in every step."""
        numbers = torch.tensor(said)
        self._talk(lambda: dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.control), error)
        return numbers.tolist()

    def _raise_first(self, error: Exception | None) -> None:
        texts: list[Any] = [None] * self.world
        own = None if error is None else one_line(error)
        self._talk(lambda: dist.all_gather_object(texts, own, group=self.control), error)
        if error is None:
            rank = next(rank for rank, text in enumerate(texts) if text is not None)
            raise PeerFailed(f"process {rank} failed: {texts[rank]}")

    def _talk(self, call: Callable[[], Any], error: Exception | None) -> None:
        try:
            call()
        except RuntimeError as broken:  # gloo notices at once when a process is gone
            if error is not None:
                raise error from broken
            raise PeerFailed("another rank exited; see its log") from broken

    def gather(self, said: T) -> list[T]:
        """What every process says, in order of rank."""
        told: list[Any] = [said] * self.world
        if self.world > 1:
            self._talk(lambda: dist.all_gather_object(told, said, group=self.control), None)
        return told

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Let the first process work and the others wait; all get its result, or all fail."""
        result = self.on_all_ranks(lambda: work() if self.is_rank0 else None)
        return self.gather(result)[0]

    # ---- adding up
    def add(self, values: Tensor) -> Tensor:
        """``values`` summed over processes, in place, on the device."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    # ---- wrapping
    def wrap(self, model: nn.Module) -> nn.Module:
        """``model`` with gradients averaged over processes (DDP), or itself where there is one process."""
        if self.world == 1:
            return model
        ddp = nn.parallel.DistributedDataParallel
        # The core's layers keep their statistics equal themselves. The option has another name from torch 2.13 on.
        names = inspect.signature(ddp).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in names else "broadcast_buffers"
        return ddp(model, find_unused_parameters=False, **{name: False})

    def no_sync(self, model: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """For all micro-batches but the last: keep gradients here."""
        return nullcontext() if last or self.world == 1 else model.no_sync()

    def leave(self, kind: type[BaseException] | None, *rest: Any) -> None:
        """End the process group, if it was begun here; an ``__exit__``.

        After an error NCCL would wait for work that never ends: the process is about to end, and the group with it.
        """
        self.control = None
        if self.ours and dist.is_initialized() and (kind is None or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
            gc.collect()  # a group that outlives this ends its threads with the interpreter, which now and then aborts

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around work that all processes do together: one that has gone is said in one line by the others."""
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and (isinstance(error, dist.DistError) or "gloo/" in str(error)):
                raise PeerFailed("another rank exited; see its log") from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise MaemmError(f"torch.compile failed ({one_line(error)[:200]}); set train.compile=false") from error
            raise


def start(timeout_s: float = 1800.0) -> DistContext:
    """Join the processes that the environment speaks of, or a group that is there already.

    gloo on CPUs, NCCL between GPUs. Raises :class:`MaemmError` where there are more processes than GPUs.
    """
    cuda = torch.cuda.is_available()
    if dist.is_available() and dist.is_initialized():
        return _dist_context(cuda, ours=False)
    world = _environment("WORLD_SIZE", 1)
    if world == 1:
        return DistContext(device=torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu"))
    local = _environment("LOCAL_RANK", 0)
    if cuda and local >= torch.cuda.device_count():
        raise MaemmError(
            f"process {local} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "start at most one process per GPU (torchrun --nproc-per-node)"
        )
    if cuda:
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        raise MaemmError(
            f"the {world} processes do not find each other ({one_line(error)}); start them with torchrun"
        ) from error
    return _dist_context(cuda, ours=True)


@contextmanager
def joined() -> Iterator[DistContext]:
    """The processes as one team until the end of the block, however many runs they train in it."""
    dist_context = start()
    with ExitStack() as stack:
        stack.push(dist_context.leave)
        yield dist_context


def _dist_context(cuda: bool, ours: bool) -> DistContext:
    rank, world = dist.get_rank(), dist.get_world_size()
    device = torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")
    control = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return DistContext(rank, world, device, control, ours)


def _environment(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise MaemmError(f"the environment variable {name} is {text!r}, not a number; start with torchrun") from None


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, MaemmError) else f"{type(error).__name__}: {text}"
