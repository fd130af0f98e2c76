"""What a step computes and holds, operation by operation: its own books, of real tensors or of fake ones alike."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from maemm.train.gpus import ATTENTION_SHARE, BANDWIDTH_SHARE, LAUNCH_S, PRODUCT_SHARE, Gpu

aten = torch.ops.aten
OTHER, UPDATE = "rest", "update"
CAST = "weights in bf16"
#: operations that torch has no kernel of that gives shapes alone; they change their arguments and return nothing
WITHOUT_SHAPES = ("aten::_fused_sgd_", "aten::_fused_adagrad_")
#: operations that only look at memory in another way, or allocate it
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "lift_fresh", "alias", "set_")
CHUNK, CHUNKS = 65536, 320  # elements of a chunk, and chunks of a launch, of torch's kernels for many tensors


@dataclass
class Sums:
    """The sums over the operations of a part."""

    forward: int = 0  # operations: two for each multiply-add of products and convolutions
    backward: int = 0
    seconds: float = 0.0  # by the model of a GPU


@dataclass
class Ledger(TorchDispatchMode):
    """Counts operations by part, and follows the memory of every tensor that is made inside the block.

    ``gpu``: on which the time is modelled, see :mod:`maemm.train.gpus`; None: no time. ``bf16``: products are in bf16,
    else in TF32. A part is what :meth:`part` says, in the backward pass that in which autograd has saved what it reads.
    Operations that are computed again (activation checkpointing) count as forward.
    """

    gpu: Gpu | None = None
    parts: dict[str, Sums] = field(default_factory=lambda: defaultdict(Sums))
    held: int = 0  # bytes that are in use now, of what was made inside the block
    peak: int = 0
    held_by_part: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    default: str = OTHER  # the part of what no part says
    _labels: list[str] = field(default_factory=list)
    _of_node: str = OTHER  # the part of the node of the backward pass that runs
    _weights: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    # ---- parts
    @contextlib.contextmanager
    def part(self, label: str, *, whole: bool = False) -> Iterator[None]:
        """Within the block operations are of the part ``label``; ``whole``: those of parts inside it too."""
        self._labels.append(self._labels[-1] if self._labels and self._labels[-1].startswith("=") else label)
        if whole and not self._labels[-1].startswith("="):
            self._labels[-1] = f"={label}"
        try:
            yield
        finally:
            self._labels.pop()

    def wrapped(self, function: Callable[..., Any], label: str, whole: bool = False) -> Callable[..., Any]:
        """The function, whose operations are of the part ``label``."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(label, whole=whole):
                return function(*args, **kwargs)

        return call

    @property
    def label(self) -> str:
        """The part that counts now."""
        if self._labels:
            return self._labels[-1].removeprefix("=")
        return self._of_node if _in_backward() else self.default

    @contextlib.contextmanager
    def saved_by_part(self) -> Iterator[None]:
        """Within the block what autograd saves tells, when the backward pass reads it, of which part that is."""

        def pack(x: Tensor) -> tuple[str, Tensor]:
            return self.label, x

        def unpack(packed: tuple[str, Tensor]) -> Tensor:
            self._of_node = packed[0]
            return packed[1]

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def know_weights(self, model: nn.Module) -> None:
        """Copies of these in another type are :data:`CAST`."""
        self._weights = {id(parameter) for parameter in model.parameters()}

    # ---- operations
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and isinstance(args[0], torch._subclasses.FakeTensor):
            return _number(args[0])
        if func.namespace == "prim":  # questions about a tensor
            return func(*args, **kwargs)
        skipped = func._schema.name in WITHOUT_SHAPES
        results = None if skipped else func(*args, **kwargs)
        cast = func is aten._to_copy.default and id(args[0]) in self._weights
        self._hold(results, CAST if cast else self.label)
        sums = self.parts[self.label]
        flops = _flops(func, args, kwargs, results)
        if _in_backward() and not self._labels:
            sums.backward += flops
        else:
            sums.forward += flops
        if self.gpu is not None:
            sums.seconds += self._seconds(func, args, kwargs, results, flops)
        return results

    def _hold(self, results: Any, label: str) -> None:
        for x in tree_leaves(results):
            if isinstance(x, Tensor) and x.layout is torch.strided:
                storage: Any = x.untyped_storage()
                if not getattr(storage, "_counted", False):
                    storage._counted = True
                    size = storage.nbytes()
                    self.held += size
                    self.held_by_part[label] += size
                    self.peak = max(self.peak, self.held)
                    weakref.finalize(storage, self._free, size, label)

    def _free(self, size: int, label: str) -> None:
        self.held -= size
        self.held_by_part[label] -= size

    def _seconds(self, func: Any, args: Any, kwargs: Any, results: Any, flops: int) -> float:
        gpu = self.gpu
        assert gpu is not None
        launches = _launches(func, args)
        if not launches:
            return 0.0
        narrow = any(x.dtype is torch.bfloat16 for x in tree_leaves(args) if isinstance(x, Tensor))
        rate = (gpu.bf16 if narrow else gpu.tf32) * 1e12
        rate *= ATTENTION_SHARE if "attention" in func._schema.name else PRODUCT_SHARE
        size = _bytes((args, kwargs)) + _bytes(results)
        return max(launches * LAUNCH_S, size / (gpu.bandwidth * 1e9 * BANDWIDTH_SHARE), flops / rate)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _number(x: Tensor) -> int | float | bool:
    """What the host reads of a tensor without values: false, 1, or 0.5, such as a rate of drop path."""
    if x.dtype is torch.bool:
        return False
    return 0.5 if x.is_floating_point() else 1


def _flops(func: Any, args: Any, kwargs: Any, results: Any) -> int:
    """Two for each multiply-add. Of attention what the plain products need, not what a kernel computes twice."""
    name = func._schema.name
    if "dot_product" in name and name.endswith("attention_for_cpu"):
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if "dot_product" in name and name.endswith("attention_for_cpu_backward"):
        _, query, key, value, *_ = args
        return 2 * int(sdpa_flop_count(query.shape, key.shape, value.shape))
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=results))


def _launches(func: Any, args: Any) -> int:
    name = func._schema.name.removeprefix("aten::")
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
    if views or name.startswith(NO_KERNEL):
        return 0
    if name.startswith(("_foreach", "_fused")):
        return -(-sum(-(-x.numel() // CHUNK) for x in args[0]) // CHUNKS)
    return 1


def _bytes(tree: Any) -> int:
    """Bytes of the tensors; what is expanded counts as often as it is stored."""
    total = 0
    for x in tree_leaves(tree):
        if isinstance(x, Tensor) and x.numel():
            stored = 1
            for size, stride in zip(x.shape, x.stride(), strict=True):
                stored *= size if stride else 1
            total += stored * x.element_size()
    return total
