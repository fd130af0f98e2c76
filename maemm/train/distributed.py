"""The ranks of a distributed run: who we are, agreement before each step, sums over ranks.

``torchrun``, ``srun``, ``mpirun`` (:mod:`maemm.ui.launchers`) or a process group that exists already make several
ranks. Without them there is one, and every method here works locally.
"""

from __future__ import annotations

import gc
import inspect
import os
import pickle
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maemm.contract.errors import MaemmError
from maemm.train.meeting import fresh
from maemm.train.roll_call import PATIENCE_S, missing_ranks
from maemm.train.signals import HANGUP, Interrupted
from maemm.ui.launchers import Place, launcher_ended, meeting_point, place

T = TypeVar("T")
RANK_TIMEOUT_S, STEP_TIMEOUT_S = 4 * 3600.0, 1800.0
# What a rank says in an agreement: whether it has failed, the first ranks first, a signal, how many bytes follow.
_SIGNAL_AT, _FAILED_AT = 40, 48  # bits
_GPU_OF_TASK = ("SLURM_GPUS_PER_TASK", "SLURM_GPU_BIND", "SLURM_TRES_PER_TASK")  # srun: each task has GPUs of its own


class PeerFailed(MaemmError):
    """Another rank failed and has reported its error; this rank ends because of it.

    ``gone``: it has not reported anything, and takes part in nothing any more.
    """

    def __init__(self, text: str, *, gone: bool = True):
        super().__init__(text)
        self.gone = gone


@dataclass
class DistContext:
    """One rank of a run. A context manager that ends the process group, if it is ours.

    ``control_group`` is a gloo group of its own: agreements do not wait for the work queued on the device, and may wait
    longer than that for one rank that works alone.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")
    control_group: Any = None
    owns_group: bool = False  # whether start() made the process group, so that leaving the context ends it
    timeout_s: float = RANK_TIMEOUT_S  # that ranks wait in the control group for one of them
    step_timeout_s: float = STEP_TIMEOUT_S  # that they wait in a collective of a step
    mesh: Any = None  # a DeviceMesh of the ranks among which weights are sharded (maemm.train.sharding)
    _late: Exception | None = field(default=None, init=False)  # of rank 0 alone, for the next agreement

    @property
    def is_rank0(self) -> bool:
        """True on the one rank that writes files and prints."""
        return self.rank == 0

    def __enter__(self) -> DistContext:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        control_group, self.control_group = self.control_group, None
        if control_group is not None and not self.owns_group and dist.is_initialized():
            dist.destroy_process_group(control_group)
        # After an error NCCL would wait for work that never ends: the process is about to end, and the group with it.
        if self.owns_group and dist.is_initialized() and (error_type is None or dist.get_backend() == "gloo"):
            dist.destroy_process_group()
            gc.collect()  # a group that outlives this ends its threads with the interpreter, which now and then aborts

    # ---- agreement
    # One integer of each rank and their maximum, for any number of them. A text or a result follows where it says.
    def on_all_ranks(self, work: Callable[[], T], *, stop: Callable[[], int] = lambda: 0) -> T:
        """Run ``work`` on every rank and return its result once all ranks have succeeded.

        ``work`` must not wait for other ranks. An exception on one rank ends all: it is raised there, and
        :class:`PeerFailed` on the others. ``stop()`` returns a signal number or 0 and is called after ``work``; if any
        rank reports a signal, all raise :class:`Interrupted`.
        """
        with self._or_all_fail():
            result = work()
        self._agree(None, stop())
        return result

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Run ``work`` on rank 0 while the others wait. All get its result, a picklable object, or all fail."""
        with self._or_all_fail():
            result = work() if self.is_rank0 else None
            payload = b"" if result is None or self.world_size == 1 else pickle.dumps(result)
        payload = self._agree(None, 0, payload)
        return cast(T, pickle.loads(payload) if payload and not self.is_rank0 else result)

    def on_rank0_alone(self, work: Callable[[], object]) -> None:
        """Run ``work`` on rank 0; the others do not wait. Its exception ends all ranks at their next agreement."""
        if not self.is_rank0:
            return
        try:
            work()
        except Exception as error:
            if self.world_size == 1:
                raise
            self._late = self._late or error

    @contextmanager
    def _or_all_fail(self) -> Iterator[None]:
        """Around work on some ranks: an exception is told to the other ranks, as is one that came too late before.

        Not one because of a rank that is gone or hangs, as it would be waited for again: the others meet that too.
        """
        began = time.monotonic()
        try:
            late, self._late = self._late, None
            if late is not None:
                raise late
            yield
        except Exception as error:
            if (of_peer := self._of_peer(error, began)) is not None:
                raise of_peer from error
            if not (isinstance(error, PeerFailed) and error.gone):
                self._agree(error, 0)
            raise

    def _agree(self, error: Exception | None, signum: int, payload: bytes = b"") -> bytes:
        """Raise unless all ranks come here without an error and without a signal. Returns the payload of rank 0."""
        if self.world_size > 1:
            if error is not None:
                payload = one_line(error).encode(errors="backslashreplace")
            failed = 0 if error is None else self.world_size - self.rank
            agreed = torch.tensor(failed << _FAILED_AT | signum << _SIGNAL_AT | len(payload))
            self._communicate(lambda: dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.control_group), error)
            failed, rest = divmod(int(agreed), 1 << _FAILED_AT)
            signum, size = divmod(rest, 1 << _SIGNAL_AT)
            speaker = self.world_size - failed if failed else 0
            if size:
                payload = self._broadcast(payload, size, speaker, error)
            if failed and error is None:
                raise PeerFailed(f"rank {speaker} failed: {payload.decode()}", gone=False)
        if error is not None:
            raise error
        if signum:
            raise Interrupted(signum)
        return payload

    def same_on_all_ranks(self, number: int) -> bool:
        """Whether all ranks call this with the same ``number``, at most 63 bits."""
        if self.world_size == 1:
            return True
        bounds = torch.tensor([number, -number])
        self._communicate(lambda: dist.all_reduce(bounds, dist.ReduceOp.MAX, group=self.control_group), None)
        return bool(bounds.sum() == 0)

    def _communicate(self, collective: Callable[[], Any], error: Exception | None) -> None:
        """Call a collective of the control group; where a rank is gone, raise ``error`` or :class:`PeerFailed`."""
        began = time.monotonic()
        try:
            collective()
        except RuntimeError as broken:  # gloo notices at once when a process is gone
            if error is not None:
                raise error from broken
            raise self._peer_failed(broken, time.monotonic() - began, self.timeout_s) from broken

    def _peer_failed(self, broken: RuntimeError, waited_s: float, timeout_s: float) -> PeerFailed:
        """What to say where a collective failed after at most ``waited_s``, of at most ``timeout_s``."""
        gave_up = "timed out" in str(broken).lower()
        missing = []
        if gave_up or waited_s > min(PATIENCE_S, timeout_s / 2):
            missing = missing_ranks(self.control_group.group_name, self.rank, self.world_size, gave_up)
        if gave_up or missing:
            return PeerFailed(
                f"{_named(missing)} did not answer for {timeout_s:g} s: it works on something alone, or hangs "
                "(train.rank_timeout); look at its log, or raise it"
            )
        return PeerFailed("another rank exited; see its log")

    def _of_peer(self, error: Exception, began: float) -> PeerFailed | None:
        """What to say where ``error`` is that of a collective of the step, which another rank left; else None."""
        of_collective = isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo/" in str(error))
        if self.world_size == 1 or not isinstance(error, RuntimeError) or not of_collective:
            return None
        return self._peer_failed(error, time.monotonic() - began, self.step_timeout_s)

    def _broadcast(self, payload: bytes, size: int, source: int, error: Exception | None) -> bytes:
        """The payload, of ``size`` bytes, of the rank ``source``."""
        data = torch.frombuffer(bytearray(payload if self.rank == source else size), dtype=torch.uint8)
        self._communicate(lambda: dist.broadcast(data, source, group=self.control_group), error)
        return data.numpy().tobytes()

    def gather_object(self, value: T) -> list[T]:
        """``value`` of every rank, in order of rank, on rank 0; [] on the others."""
        values: list[Any] | None = [value] * self.world_size if self.is_rank0 else None
        if self.world_size > 1:
            self._communicate(lambda: dist.gather_object(value, values, group=self.control_group), None)
        return values or []

    def all_gather_object(self, value: T) -> list[T]:
        """``value`` of every rank, a picklable object, in order of rank. Not for each step: it costs O(ranks)."""
        values = [value] * self.world_size
        if self.world_size > 1:
            self._communicate(lambda: dist.all_gather_object(values, value, group=self.control_group), None)
        return values

    def with_group_of_its_own(self) -> DistContext:
        """The same ranks, with agreements that do not meet those of this one: for a thread. All ranks call this."""
        if self.world_size == 1:
            return DistContext(device=self.device)
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))
        timeouts = self.timeout_s, self.step_timeout_s
        return DistContext(self.rank, self.world_size, self.device, group, False, *timeouts)

    # ---- collectives on the device
    def all_reduce_sum(self, values: Tensor) -> Tensor:
        """``values`` summed over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def wrap(self, model: nn.Module, without: Collection[str] = ()) -> nn.Module:
        """``model`` wrapped in DistributedDataParallel, or itself where there is one rank.

        ``without``: names of parameters whose gradient is not averaged, such as those that the loss does not reach: DDP
        waits for a gradient of all others in every step.
        """
        if self.world_size == 1:
            return model
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, list(without))
        # Our BatchNorm keeps its statistics equal itself. The option is called forward_sync_buffers from torch 2.13 on.
        parameters = inspect.signature(DistributedDataParallel).parameters
        option = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
        options: dict[str, Any] = {option: False, "find_unused_parameters": False, "gradient_as_bucket_view": True}
        return DistributedDataParallel(model, **options)

    def no_sync(self, net: nn.Module, last: bool) -> AbstractContextManager[Any]:
        """For all micro-batches of a step but the ``last``: accumulate gradients without averaging over ranks."""
        if self.mesh is not None:
            sharded: Any = net
            sharded.set_is_last_backward(last)
            sharded.set_requires_gradient_sync(last)
        return net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """Around work with collectives: a rank that is gone or hangs, or a failed compilation, as a one-line error."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            if (of_peer := self._of_peer(error, began)) is not None:
                raise of_peer from error
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise MaemmError(f"torch.compile failed ({one_line(error)[:200]}); set train.compile=false") from error
            raise


def start(rank_timeout_s: float = RANK_TIMEOUT_S, *, timeout_s: float = STEP_TIMEOUT_S) -> DistContext:
    """Join the process group that the environment describes (torchrun, srun, mpirun), or one that exists already.

    gloo on CPUs, NCCL between GPUs. ``rank_timeout_s``: that ranks wait for one which works alone. ``timeout_s``: that
    they wait for each other at the start, and in collectives of a step if that is shorter: all take part in those at
    once. Raises :class:`MaemmError` where there are more ranks than GPUs, and where the environment contradicts itself.
    """
    cuda = torch.cuda.is_available()
    if dist.is_available() and dist.is_initialized():
        step_timeout_s = min(STEP_TIMEOUT_S, rank_timeout_s)
        if step_timeout_s < STEP_TIMEOUT_S:  # else that of whoever has made the group
            _set_timeout(timedelta(seconds=step_timeout_s))
        return _of_process_group(cuda, False, rank_timeout_s, step_timeout_s)
    where = place()
    if where.world_size == 1:
        return DistContext(device=_device(cuda))
    if cuda:
        torch.cuda.set_device(_gpu_of(where))
    address, port = meeting_point(where)
    step_timeout_s = min(timeout_s, rank_timeout_s)
    try:
        with _left_without_launcher():
            store = _store(where, address, port, timeout_s)
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                store=store,
                rank=where.rank,
                world_size=where.world_size,
                timeout=timedelta(seconds=timeout_s),
            )
            dist_context = _of_process_group(cuda, True, rank_timeout_s, step_timeout_s)
            _set_timeout(timedelta(seconds=step_timeout_s))  # not before: ranks do not start at the same moment
    except (RuntimeError, ValueError) as error:
        raise MaemmError(
            f"the {where.world_size} ranks cannot connect to each other ({one_line(error)}); start them with torchrun "
            "or srun, all with the same MASTER_ADDR and MASTER_PORT"
        ) from error
    return dist_context


def _store(where: Place, address: str, port: int, timeout_s: float) -> dist.Store:
    """Where the ranks meet: in the store of torchrun, or of rank 0, and there by themselves."""
    timeout = timedelta(seconds=timeout_s)
    if where.launcher:
        host = f"[{address}]" if ":" in address else address
        meeting = rendezvous(f"tcp://{host}:{port}", where.rank, where.world_size, timeout=timeout)
    else:  # from torchrun's variables, which say too whether it holds the store
        meeting = rendezvous("env://", timeout=timeout)
    store, rank, world_size = next(meeting)
    return fresh(store, rank, world_size, timeout_s)


def _set_timeout(timeout: timedelta) -> None:
    """Of collectives in the default group from now on."""
    public = getattr(dist, "set_timeout", None)  # from torch 2.14 on
    (public or dist.distributed_c10d._set_pg_timeout)(timeout)


def joined() -> DistContext:
    """``with joined() as dist_context:`` keeps one process group for all runs that are trained in the block."""
    return start()


def _of_process_group(cuda: bool, owns_group: bool, timeout_s: float, step_timeout_s: float) -> DistContext:
    control_group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    rank, world_size, device = dist.get_rank(), dist.get_world_size(), _device(cuda)
    return DistContext(rank, world_size, device, control_group, owns_group, timeout_s, step_timeout_s)


def _device(cuda: bool) -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def _gpu_of(where: Place) -> int:
    """The GPU of this rank. Raises :class:`MaemmError` where there is none for it."""
    gpus = torch.cuda.device_count()
    if gpus == 1 and where.launcher == "srun" and any(os.environ.get(name) for name in _GPU_OF_TASK):
        return 0  # a task sees no GPU but its own
    if where.local_rank >= gpus:
        raise MaemmError(
            f"local rank {where.local_rank} has no GPU, this machine has {gpus}; start at most one process per GPU "
            "(torchrun --nproc-per-node, srun --ntasks-per-node)"
        )
    return where.local_rank


@contextmanager
def _left_without_launcher() -> Iterator[None]:
    """End this process if torchrun ends within the block: others would be waited for that nobody starts.

    Nothing has been done until then. Later the ranks themselves see it between two steps, and save.
    """
    met = threading.Event()

    def watch() -> None:
        while not met.wait(0.5):
            if launcher_ended():
                os._exit(128 + HANGUP)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        met.set()


def _named(missing: list[int]) -> str:
    """Ranks in words, in the singular."""
    if not missing:
        return "another rank"
    numbers = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
    return f"rank {numbers}" if len(missing) == 1 else f"each of the ranks {numbers}"


def one_line(error: BaseException) -> str:
    """An exception on one line, with its type unless it is a :class:`MaemmError`."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, MaemmError) else f"{type(error).__name__}: {text}"
