"""Between host and device: inputs asynchronously, results of a batch in one copy that is read one batch later."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)
# The work on a batch: yields trees of tensors, is sent the same on the host, and returns what the batch gives.
Work = Generator[Any, Any, R]


def overlapped(works: Iterable[Work[R]]) -> Generator[R]:
    """What the work on each batch returns, in order; on a GPU the host prepares a batch while the one before runs.

    The work on a batch is a generator. It starts operations on the device, yields a tree of tensors and is sent the
    same tree on the host; it may do so several times::

        def work(batch):
            features = yield model.embed(batch)
            return features.numpy()

        for x in overlapped(work(batch) for batch in batches): ...

    Trees are made of dicts, lists, tuples and dataclasses. All that the works in flight have yielded since the start of
    the batch before goes to page-locked memory in one asynchronous copy, and is sent to them when the next batch has
    been started: a batch costs one copy, and the host waits for the newest work only after the last batch, once for
    each time that a work yields. On a CPU each work is sent its own tensors at once, and ends before the next begins.
    """
    running: deque[_Running[R]] = deque()
    on_the_way: list[_Running[R]] = []
    transfer = _Transfer([])

    def turn() -> Generator[R]:
        nonlocal on_the_way, transfer
        for batch, tree in zip(on_the_way, transfer.finish(), strict=True):
            batch.send(tree)
        on_the_way = [batch for batch in running if not batch.done]
        transfer = _Transfer([batch.tree for batch in on_the_way])
        while running and running[0].done:
            yield running.popleft().result

    try:
        for work in works:
            running.append(_Running(work))
            yield from turn()
        while running:
            yield from turn()
    finally:
        for batch in running:
            batch.work.close()


def together(works: Iterable[Work[R]]) -> Work[list[R]]:
    """Works on the same batch, side by side: what they yield at a time goes to the host together."""
    running = [_Running(work) for work in works]
    while waiting := [part for part in running if not part.done]:
        trees = yield [part.tree for part in waiting]
        for part, tree in zip(waiting, trees, strict=True):
            part.send(tree)
    return [part.result for part in running]


def sent(tree: Any) -> Work[Any]:
    """The work that yields a tree and returns it on the host."""
    return (yield tree)


def on_host(tree: Any) -> Any:
    """A tree of tensors, see :func:`overlapped`, on the host: one copy, for which the host waits."""
    return _Transfer([tree]).finish()[0]


def to_device(tree: Any, device: torch.device | str) -> Any:
    """A tree of tensors, see :func:`overlapped`, on ``device``, by asynchronous copies from page-locked memory."""
    device = torch.device(device)

    def moved(x: Tensor) -> Tensor:
        pinned = x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" and not x.is_pinned() else x
        return pinned.to(device, non_blocking=device.type != "cpu")

    return _mapped(tree, moved)


def module_on_host(module: M) -> M:
    """``module`` where it is on the CPU, else a copy of it that is."""
    return host_copy(module) if _on_device([*module.parameters(), *module.buffers()]) else module


def host_copy(module: M) -> M:
    """A copy of a module whose parameters and buffers are on the CPU; ``module`` stays where it is."""
    tensors = _on_device([*module.parameters(), *module.buffers()])
    memo: dict[int, Any] = {}  # of what has been copied already
    for x, value in zip(tensors, overlapped(sent(x.detach()) for x in tensors), strict=True):
        memo[id(x)] = nn.Parameter(value, x.requires_grad) if isinstance(x, nn.Parameter) else value
    return copy.deepcopy(module, memo)


# ------------------------------------------------------------------------------------------------------ one batch
class _Running(Generic[R]):
    """The work on a batch, as far as it came without what is on the device."""

    result: R

    def __init__(self, work: Work[R]):
        self.work, self.done = work, False
        self.tree: Any = None  # what it has yielded
        self.send(None)

    def send(self, tree: Any) -> None:
        try:
            self.tree = self.work.send(tree)
            while not _on_device(self.tree):
                self.tree = self.work.send(self.tree)
        except StopIteration as end:
            self.done, self.result = True, end.value


class _Transfer:
    """Trees of tensors on their way to the host: all tensors of a GPU in one asynchronous copy."""

    def __init__(self, trees: list[Any]):
        self.trees = trees
        # The largest elements first: each tensor then begins where its type allows.
        self.tensors = sorted(_on_device(trees), key=lambda x: -x.element_size())
        self.event: torch.cuda.Event | None = None
        if not self.tensors:
            return
        pieces = [x.detach().contiguous().view(-1).view(torch.uint8) for x in self.tensors]
        packed = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        self.buffer = torch.empty(packed.shape, dtype=torch.uint8, pin_memory=packed.device.type == "cuda")
        self.buffer.copy_(packed, non_blocking=packed.device.type == "cuda")
        if packed.device.type == "cuda":
            self.event = torch.cuda.Event()
            self.event.record()

    def finish(self) -> list[Any]:
        """The trees on the host, in memory of their own: page-locked memory is scarce."""
        if not self.tensors:
            return self.trees
        if self.event is not None:
            self.event.synchronize()
        copies, start = {}, 0
        for x in self.tensors:
            stop = start + x.numel() * x.element_size()
            copies[id(x)] = self.buffer[start:stop].view(x.dtype).view(x.shape).clone()
            start = stop
        return [_mapped(tree, lambda x: copies.get(id(x), x)) for tree in self.trees]


# ----------------------------------------------------------------------------------------------------------- trees
def _on_device(tree: Any) -> list[Tensor]:
    """The tensors of a tree that are not on the host, each once."""
    tensors: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            tensors[id(x)] = x
        return x

    _mapped(tree, note)
    return [*tensors.values()]


def _mapped(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, Mapping):
        return {key: _mapped(value, function) for key, value in tree.items()}
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(_mapped(value, function) for value in tree))
    if isinstance(tree, list | tuple):
        return type(tree)(_mapped(value, function) for value in tree)
    if is_dataclass(tree) and not isinstance(tree, type):
        values = {field.name: getattr(tree, field.name) for field in fields(tree) if field.init}
        return replace(tree, **{name: _mapped(value, function) for name, value in values.items()})
    return tree
