"""What a GPU would do in a step: launches, bytes, operations and the time that a model gives them; memory that is held.

    with gpu(values=False) as seen, counted(seen) as work:
        ...
    work.kinds["product"].launches, work.seconds(), work.share()

The model of an H100 SXM, with the fractions of ``maemm/train/gpus.py``: operations run one after the other, and each
takes the longest of

* its launches times 4 us, in which the host of an eager step gets to the next one,
* its bytes (every tensor that it reads or writes, once) at 3.35 TB/s times 0.85,
* its multiplications and additions at 989 TFLOP/s (bf16; 494 in TF32, 67 in full float32) times 0.75, and
  times 0.5 within attention.

The rates are those of the data sheet, the fractions what large kernels reach. Waits, the loader and copies from the
host are not part of it. The share of the peak is: operations of products and attention / (seconds * 989 TFLOP/s).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from maemm.train.gpus import ATTENTION_SHARE, BANDWIDTH_SHARE, LAUNCH_S, PRODUCT_SHARE

from .device import PretendedGpu, is_on_gpu

LAUNCH, BANDWIDTH = LAUNCH_S, BANDWIDTH_SHARE * 3.35e12  # seconds, bytes/s
PEAK = 989e12  # operations/s
RATES = {"bf16": PEAK, "tf32": 494e12, "fp32": 67e12}
REACHED = {"product": PRODUCT_SHARE, "attention": ATTENTION_SHARE}

#: operations that only look at memory in another way, or allocate it
NO_KERNEL = ("empty", "new_empty", "detach", "_unsafe_view", "_reshape_alias", "lift_fresh", "alias", "set_")
COPIES = ("clone", "copy_", "cat", "stack", "constant_pad_nd", "index_select", "gather")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward")
#: kernels of what takes more than one
KERNELS = {
    "native_layer_norm_backward": 2,
    "native_batch_norm_backward": 2,
    "convolution_backward": 2,
    "_scaled_dot_product_flash_attention_backward": 3,
    "_scaled_dot_product_efficient_attention_backward": 2,
    "sort": 4,
    "topk": 2,
}
CHUNK, CHUNKS = 65536, 320  # elements of a chunk, and chunks of a launch, of torch's kernels for many tensors


@dataclass
class Kind:
    """The sum over the operations of a kind."""

    launches: int = 0
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.0


@dataclass
class Work:
    """What was done: ``kinds`` are product, attention, norm, cast, copy, update and elementwise."""

    kinds: dict[str, Kind] = field(default_factory=lambda: defaultdict(Kind))
    fp32: str = "tf32"  # how products of float32 are computed
    held: int = 0  # bytes on the device that are in use now
    peak: int = 0
    _counts: bool = True

    def __call__(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        self._hold(results)
        if self._counts:
            self.count(func, args, kwargs, results)

    def count(self, func: Any, args: Any, kwargs: Any, results: Any) -> None:
        """Count an eager operation, or the same as a part of a compiled graph."""
        name = func._schema.name.removeprefix("aten::")
        launches = _launches(func, name, args, kwargs)
        if not launches:
            return
        flops = _flops(func, args, kwargs, results)
        size = _size((args, kwargs)) + _size(results)
        self.add(_kind(name), launches, size, flops, flops / self._rate(name, args) if flops else 0.0)

    def add(self, kind: str, launches: int, size: int, flops: int = 0, seconds: float = 0.0) -> None:
        """Count launches of a ``kind`` that move ``size`` bytes and compute for ``seconds``."""
        sums = self.kinds[kind]
        sums.launches += launches
        sums.bytes += size
        sums.flops += flops
        sums.seconds += max(launches * LAUNCH, size / BANDWIDTH, seconds)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Within the block nothing is counted; what memory is held is known all the same."""
        before, self._counts = self._counts, False
        try:
            yield
        finally:
            self._counts = before

    def _rate(self, name: str, args: Any) -> float:
        dtypes = {x.dtype for x in tree_leaves(args) if is_on_gpu(x)}
        rate = RATES[self.fp32 if torch.float32 in dtypes and torch.bfloat16 not in dtypes else "bf16"]
        return rate * REACHED.get(_kind(name), 1.0)

    def _hold(self, results: Any) -> None:
        for x in tree_leaves(results):
            if is_on_gpu(x) and x.device.type == "cuda":
                storage = x.untyped_storage()
                if not getattr(storage, "_counted", False):
                    storage._counted = True
                    size = storage.nbytes()
                    self.held += size
                    self.peak = max(self.peak, self.held)
                    weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size

    def clear(self) -> None:
        """Forget what was done, not what is held."""
        self.kinds.clear()
        self.peak = self.held

    @property
    def launches(self) -> int:
        return sum(kind.launches for kind in self.kinds.values())

    @property
    def bytes(self) -> int:
        return sum(kind.bytes for kind in self.kinds.values())

    @property
    def flops(self) -> int:
        return sum(kind.flops for kind in self.kinds.values())

    def seconds(self) -> float:
        """By the model."""
        return sum(kind.seconds for kind in self.kinds.values())

    def share(self) -> float:
        """Of the peak in bf16, by the model."""
        return self.flops / (self.seconds() * PEAK)


def _kind(name: str) -> str:
    if name.startswith("_foreach") or name.startswith("_fused"):
        return "update"
    if "attention" in name:
        return "attention"
    if name in PRODUCTS:
        return "product"
    if "layer_norm" in name or "batch_norm" in name:
        return "norm"
    if name == "_to_copy":
        return "cast"
    return "copy" if name in COPIES else "elementwise"


def _launches(func: Any, name: str, args: Any, kwargs: Any) -> int:
    views = any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns)
    if views or name.startswith(NO_KERNEL) or name == "_local_scalar_dense":
        return 0
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if any(not is_on_gpu(x) for x in tensors) and name in ("_to_copy", "copy_"):
        return 0  # between host and device, by the copy engine
    if name.startswith(("_foreach", "_fused")):
        chunks = sum(-(-x.numel() // CHUNK) for x in args[0])
        return -(-chunks // CHUNKS)
    return KERNELS.get(name, 1)


def _flops(func: Any, args: Any, kwargs: Any, results: Any) -> int:
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else int(formula(*args, **kwargs, out_val=results))


def _size(tree: Any) -> int:
    """Bytes of the tensors on the device; what is expanded counts as often as it is stored."""
    total = 0
    for x in tree_leaves(tree):
        if is_on_gpu(x) and x.device.type == "cuda":
            stored = 1
            for size, stride in zip(x.shape, x.stride(), strict=True):
                stored *= size if stride else 1
            total += stored * x.element_size() if x.numel() else 0
    return total


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel that a GPU takes: torch chooses none where there is no device to ask."""
    if query.device.type != "cuda":  # not is_on_gpu(), which Dynamo does not see
        return _plain_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    if attn_mask is None and query.dtype in (torch.bfloat16, torch.float16):
        flash = torch.ops.aten._scaled_dot_product_flash_attention.default
        return flash(query, key, value, dropout_p, is_causal, scale=scale)[0]
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -torch.inf)
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    efficient = torch.ops.aten._scaled_dot_product_efficient_attention.default
    needs_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    return efficient(query, key, value, attn_mask, needs_gradient, dropout_p, is_causal, scale=scale)[0]


_plain_attention = F.scaled_dot_product_attention


@contextlib.contextmanager
def counted(seen: PretendedGpu, work: Work | None = None) -> Iterator[Work]:
    """Count what is done on the pretended GPU, which has no values."""
    assert not seen.values
    work = work or Work()
    supported = mock.patch("torch.nn.utils.clip_grad._has_foreach_support", lambda tensors, device: True)
    with supported, mock.patch.object(F, "scaled_dot_product_attention", fused_attention):
        seen.trace = work
        try:
            yield work
        finally:
            seen.trace = None
