"""A pretended GPU: CPU tensors stay real, what is put on "cuda" is a FakeTensor that carries its values.

    with gpu() as seen:
        ...the code as it is, with torch.device("cuda", 0)...
    seen.waits      # where the host of a GPU would wait for the device
    seen.copies     # copies between host and device
    seen.launches   # {aten operation: how often}
    seen.streams    # what a stream uses before it is there, or without telling the allocator; copies to the host

``gpu(values=False)``: shapes alone, for models of full size: nothing is computed, no memory is needed, and numbers that
the host reads mean nothing. ``seen.trace`` may be a function, which is called with (operation, arguments, options,
results) of each operation.

Operations over tensors of two devices raise torch's own error. Neither GPU nor driver is needed. Unseen are
NCCL, timings, compiled graphs.
"""

from __future__ import annotations

import contextlib
import itertools
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from safetensors import torch as safetensors
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from . import streams
from .streams import Stream, Streams

aten = torch.ops.aten
WAITING = {
    aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten._unique2.default,
    aten.unique_consecutive.default, aten.unique_dim.default, aten.bincount.default,
    aten.repeat_interleave.Tensor, aten._linalg_check_errors.default,
}  # fmt: skip
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
WITHOUT_SHAPES = {"aten::_fused_sgd_", "aten::_fused_adagrad_"}  # torch has no kernel of them that gives shapes alone
STAGED = 64 * 1024  # bytes of pageable memory that a copy to the device takes along without a wait
OUR_FOLDERS = ("/maemm/", "/maemm_plugins/", "/plugins/", "/timm/")


class Event(NamedTuple):
    """Something that the host did, and the innermost line of ours, or of timm, that made it."""

    kind: str  # "item", "cpu -> cuda", ...
    file: str
    line: int
    function: str
    blocking: bool = True
    stream: Stream | None = None  # of a copy
    pinned: bool = False  # whether a copy is from, or to, page-locked memory

    def __str__(self) -> str:
        return f"{self.kind} ({self.file}:{self.line} {self.function})"


def is_on_gpu(x: Any) -> bool:
    """Whether x is a tensor on the pretended GPU."""
    return isinstance(x, FakeTensor)


def _event(kind: str, blocking: bool = True, **more: Any) -> Event:
    for frame in reversed(traceback.extract_stack()):
        if any(folder in frame.filename for folder in OUR_FOLDERS) and "site-packages/torch/" not in frame.filename:
            file = "/".join(frame.filename.split("/")[-3:])
            return Event(kind, file, frame.lineno or 0, frame.name, blocking, **more)
    return Event(kind, "?", 0, "?", blocking, **more)


class PretendedGpu(TorchDispatchMode):
    """Runs each operation twice: on the values, and on fake tensors, which know what is on which device."""

    def __init__(self, values: bool = True) -> None:
        super().__init__()
        self.values = values
        self.trace: Callable[[Any, Any, Any, Any], Any] | None = None
        self.fake = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: list[Event] = []
        self.copies: list[Event] = []
        self.launches: Counter[str] = Counter()
        self.streams = Streams(_event, self.wait)

    def clear(self) -> None:
        """Forget what was seen so far."""
        self.waits.clear()
        self.copies.clear()
        self.launches.clear()
        self.streams.clear()

    @property
    def blocking_copies(self) -> list[Event]:
        return [copy for copy in self.copies if copy.blocking]

    def wait(self, kind: str) -> None:
        self.waits.append(_event(kind))

    def synchronize(self, device: Any = None) -> None:
        """``torch.cuda.synchronize``."""
        self.wait("torch.cuda.synchronize")
        self.streams.arrivals.arrive()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if func.namespace == "prims":  # Inductor's own take it by position
            device = next((x for x in args if isinstance(x, torch.device)), device)
        target = None if device is None else torch.device(device).type
        if target != "cuda" and not any(map(is_on_gpu, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)  # the CPU's own work
        if func is torch.ops.prim.device.default:
            return args[0].fake_device
        if torch.is_inference_mode_enabled():  # composed operations arrive here whole
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        self.launches[str(func)] += 1
        if func is aten._local_scalar_dense.default:
            self.wait("item(), tolist() or bool()")
            return func(args[0]._value if self.values else torch.ones((), dtype=args[0].dtype))
        if func in WAITING or (func in INDEXING and _has_mask(args[1])):
            self.wait(str(func).removeprefix("aten."))
        self._note_copies(func, args, kwargs, target)
        if not self.values:
            results = self._shapes(func, args, kwargs)
        else:
            for tensor in tree_leaves((args, kwargs)):
                if is_on_gpu(tensor):
                    self.streams.used(tensor)
            results = self._computed(func, args, kwargs, target)
        if self.trace is not None:
            self.trace(func, args, kwargs, results)
        return results

    def _shapes(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func._schema.name in WITHOUT_SHAPES:
            return None
        with self.fake:
            return func(*args, **kwargs)

    def _computed(self, func: Any, args: Any, kwargs: Any, target: str | None) -> Any:
        to_host = target == "cpu" or (func is aten.copy_.default and not is_on_gpu(args[0]))
        if to_host and func in (aten.copy_.default, aten._to_copy.default) and _is_asynchronous(args, kwargs):
            copies = func is aten.copy_.default
            values = args[1]._value if copies else func(*tree_map(_value, args), **tree_map(_value, kwargs))
            return self.streams.arrivals.send(args[0] if copies else torch.empty_like(values), values)
        values = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if target == "cpu" or func in (aten.equal.default, aten.is_nonzero.default):
            return values
        if func is aten.copy_.default and not is_on_gpu(args[0]):
            return args[0]
        if func._schema.name in WITHOUT_SHAPES:
            return values
        try:
            with self.fake:
                fakes = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):
            with self.fake:
                fakes = tree_map(_empty_like, values)
        for fake, value in zip(tree_leaves(fakes), tree_leaves(values), strict=True):
            if is_on_gpu(fake) and fake.device.type == "cuda":
                fake._value = value
                self.streams.written(fake)
        return fakes

    def _note_copies(self, func: Any, args: Any, kwargs: Any, target: str | None) -> None:
        if func in INDEXING and is_on_gpu(args[0]):
            if any(isinstance(index, Tensor) and not is_on_gpu(index) for index in args[1]):
                self.copies.append(_event("cpu -> cuda: an index"))  # torch copies it, and waits
            return
        if func is aten._to_copy.default and target is not None:
            source = args[0].device.type
        elif func is aten.copy_.default:
            source, target = args[1].device.type, args[0].device.type
        else:
            return
        if source == target:
            return
        asynchronous = _is_asynchronous(args, kwargs)
        host = args[1] if func is aten.copy_.default and target == "cuda" else args[0]
        pinned = not is_on_gpu(host) and host.is_pinned()
        staged = target == "cuda" and host.numel() * host.element_size() <= STAGED
        if target == "cuda" and not (pinned or staged):
            asynchronous = False
        kind = f"{source} -> {target} {tuple(args[0].shape)}"
        self.copies.append(_event(kind, blocking=not asynchronous, stream=self.streams.current, pinned=pinned))
        if target == "cpu" and not asynchronous:
            self.wait("copy to the host")


def _is_asynchronous(args: Any, kwargs: Any) -> bool:
    """Whether a copy is meant to be, of the arguments of ``copy_`` or ``_to_copy``."""
    return bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))


def _has_mask(indices: Any) -> bool:
    """Whether one of the indices is a mask, whose result has a size that the host must know."""
    return any(isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8) for x in tree_leaves(indices))


def _value(x: Any) -> Any:
    if is_on_gpu(x):
        return x._value
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _empty_like(x: Any) -> Any:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda") if isinstance(x, Tensor) else x


# ----------------------------------------------------------------------------------------------- the backward pass
def gradients_of(
    roots: Sequence[Tensor], gradients: Sequence[Tensor], inner: Sequence[Tensor] = ()
) -> dict[Tensor, Tensor]:
    """{leaf: gradient}, and of ``inner`` tensors that are no leaves. torch's engine asks the driver for streams; this
    walks the same nodes in Python."""
    arrived: dict[Any, dict[int, Tensor]] = {x.grad_fn: {} for x in inner}
    # By this number activations that are computed again know that they have been in this backward pass.
    with mock.patch.object(torch._C, "_current_graph_task_id", partial(int, next(_passes))):
        leaves = _walk(roots, gradients, arrived)
    inner_gradients = {x: arrived[x.grad_fn].get(x.output_nr) for x in inner}
    return leaves | {x: gradient for x, gradient in inner_gradients.items() if gradient is not None}


_passes = itertools.count(1_000_000)


def _walk(
    roots: Sequence[Tensor], gradients: Sequence[Tensor], kept: dict[Any, dict[int, Tensor]]
) -> dict[Tensor, Tensor]:
    """``kept`` is filled with what arrives at its nodes, by output."""
    leaves: dict[Tensor, Tensor] = {}
    arrived: dict[Any, dict[int, Tensor]] = {}  # by node: gradient of each of its outputs
    for root, gradient in zip(roots, gradients, strict=True):
        _add(arrived.setdefault(root.grad_fn, {}), root.output_nr, gradient)
    waiting = _numbers_of_users(list(arrived))
    ready = [node for node in arrived if not waiting[node]]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            own = arrived.pop(node, {})
            if (leaf := getattr(node, "variable", None)) is not None:
                if 0 in own:
                    leaves[leaf] = _laid_out_like(leaf, own[0])
                continue
            if node in kept:
                kept[node] = own
            if "Error" in node.name():  # stands where a graph must not be left, as behind AOT's outputs
                continue
            results = _call(node, own) if own else [None] * len(node.next_functions)
            for (user, number), gradient in zip(node.next_functions, results, strict=False):
                if user is None:
                    continue
                if gradient is not None:
                    _add(arrived.setdefault(user, {}), number, _fitted(gradient, user._input_metadata[number]))
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
    return leaves


def _laid_out_like(leaf: Tensor, gradient: Tensor) -> Tensor:
    """The gradient with the strides of its parameter, as torch's engine stores it; fused optimisers count on them."""
    return gradient if gradient.stride() == leaf.stride() else torch.empty_like(leaf).copy_(gradient)


def _numbers_of_users(starts: list[Any]) -> Counter[Any]:
    """For each node below ``starts``, how many others send it a gradient."""
    users: Counter[Any] = Counter()
    seen, todo = set(starts), list(starts)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is not None:
                users[node] += 1
                if node not in seen:
                    seen.add(node)
                    todo.append(node)
    return users


def _add(gradients: dict[int, Tensor], number: int, gradient: Tensor) -> None:
    gradients[number] = gradient if number not in gradients else gradients[number] + gradient


def _call(node: Any, own: dict[int, Tensor]) -> Sequence[Tensor | None]:
    inputs = [own.get(number) for number in range(len(node._input_metadata))]
    if isinstance(node, torch.autograd.function.BackwardCFunction):  # written in Python: it is given zeros
        inputs = [
            torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device) if x is None else x
            for x, like in zip(inputs, node._input_metadata, strict=True)
        ]
        results = node.apply(*inputs)
    else:
        results = node(*inputs)
    return results if isinstance(results, tuple | list) else (results,)


def _fitted(gradient: Tensor, like: Any) -> Tensor:
    """What the engine checks and converts on the way."""
    if gradient.device != like.device:
        raise RuntimeError(f"a gradient on {gradient.device} for a tensor on {like.device}")
    gradient = gradient if gradient.shape == tuple(like.shape) else gradient.sum_to_size(like.shape)
    return gradient if gradient.dtype == like.dtype else gradient.to(like.dtype)


def _backward(
    loss: Tensor,
    gradient: Tensor | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    inputs: Any = None,
) -> None:
    """``Tensor.backward``."""
    with torch.no_grad():
        for leaf, grad in gradients_of([loss], [torch.ones_like(loss) if gradient is None else gradient]).items():
            shared = hasattr(
                grad, "_value"
            )  # with shapes alone nothing can be written twice; torch's engine copies none
            new = grad.clone() if shared else grad
            leaf.grad = new if leaf.grad is None else leaf.grad + grad


def _grad(
    outputs: Any, inputs: Any, grad_outputs: Any = None, *args: Any, allow_unused: bool = False, **kwargs: Any
) -> tuple[Tensor | None, ...]:
    """``torch.autograd.grad``; None for inputs that the outputs do not depend on, where that is allowed."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    given = [None] * len(outputs) if grad_outputs is None else tree_leaves(grad_outputs, is_leaf=lambda x: x is None)
    pairs = [
        (output, torch.ones_like(output) if gradient is None else gradient)
        for output, gradient in zip(outputs, given, strict=True)
        if output.grad_fn is not None
    ]
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    inner = [x for x in inputs if x.grad_fn is not None]
    with torch.no_grad():
        gradients = gradients_of([output for output, _ in pairs], [gradient for _, gradient in pairs], inner)
    return tuple(gradients.get(x) if allow_unused else gradients[x] for x in inputs)


# ----------------------------------------------------------------------------------------------------- the pretence
_PROPERTIES = types.SimpleNamespace(
    name="pretended NVIDIA H100 80GB HBM3", total_memory=80 * 2**30, major=9, minor=0, multi_processor_count=132
)


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    return _marked(tensor.clone(), True)


def _marked(tensor: Any, pinned: bool) -> Tensor:
    tensor._is_pinned = pinned
    return tensor


def _is_pinned(tensor: Any, device: Any = None) -> bool:
    return getattr(tensor, "_is_pinned", False) or (tensor._base is not None and _is_pinned(tensor._base))


def _deepcopy(tensor: Any, memo: dict[int, Any]) -> Any:
    if id(tensor) not in memo:
        copy = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copy._is_param = getattr(tensor, "_is_param", False)
        memo[id(tensor)] = copy
    return memo[id(tensor)]


def _fps_kernel(planes: Any, nearest: Any, first: Any, count: int) -> tuple[Tensor, ...]:
    """Farthest point sampling is a Triton kernel, which torch does not see."""
    from maemm_plugins.pointcloud import grouping

    assert planes.device == nearest.device == first.device and planes.is_contiguous()
    if not hasattr(planes, "_value"):
        index = torch.empty(len(first), count, dtype=torch.long, device=planes.device)
        return index, torch.empty(len(first), count, device=planes.device)
    sampled = grouping._sample(planes._value, nearest._value, first._value, count)
    return tuple(x.to("cuda", non_blocking=True) for x in sampled)


def _patches(seen: PretendedGpu) -> Iterator[tuple[Any, str, Any]]:
    yield torch.cuda, "_lazy_init", lambda: None
    yield torch.cuda, "is_available", lambda: True
    yield torch.cuda, "is_bf16_supported", lambda including_emulation=True: True
    yield torch.cuda, "current_device", lambda: 0
    yield torch.cuda, "device_count", lambda: 1
    yield torch.cuda, "device_of", lambda x: contextlib.nullcontext()
    yield torch.cuda, "max_memory_allocated", lambda device=None: 0
    yield torch.cuda, "get_device_properties", lambda device=None: _PROPERTIES
    yield torch.cuda, "mem_get_info", lambda device=None: (_PROPERTIES.total_memory, _PROPERTIES.total_memory)
    yield torch.cuda, "reset_peak_memory_stats", lambda device=None: None
    yield torch.cuda, "synchronize", seen.synchronize
    yield torch.cuda, "set_device", lambda device: None
    yield torch.cuda, "Stream", Stream
    yield torch.cuda, "Event", streams.Event
    yield torch.cuda, "stream", seen.streams.on
    yield torch.cuda, "current_stream", lambda device=None: seen.streams.current
    yield torch.cuda, "default_stream", lambda device=None: seen.streams.default
    yield torch.Tensor, "record_stream", streams.record_stream
    yield torch, "compile", lambda function, **options: function  # what is compiled runs as it is
    pointer, empty = torch.Tensor.data_ptr, torch.empty
    yield torch.Tensor, "pin_memory", _pinned
    yield torch.Tensor, "is_pinned", _is_pinned
    yield torch.Tensor, "data_ptr", lambda self: pointer(_value(self))
    yield torch.Tensor, "backward", _backward
    yield torch.autograd, "grad", _grad
    yield torch, "empty", lambda *args, pin_memory=False, **kwargs: _marked(empty(*args, **kwargs), pin_memory)
    yield fake_tensor.FakeTensorMode, "avoid_device_init", property(lambda self: True)
    yield fake_tensor, "init_gpu_context", lambda device: None
    yield FakeTensor, "__reduce_ex__", lambda self, protocol: self._value.__reduce_ex__(protocol)
    yield FakeTensor, "__deepcopy__", _deepcopy
    for name in ("storage_ptr", "storage_size"):
        function: Callable[[Any], Any] = getattr(safetensors, name)
        yield safetensors, name, lambda x, function=function: function(_value(x))
    with contextlib.suppress(ImportError):
        from maemm_plugins.pointcloud import fps_triton

        yield fps_triton, "sample", _fps_kernel


@contextlib.contextmanager
def gpu(values: bool = True) -> Iterator[PretendedGpu]:
    """Pretend that "cuda" is there, within the block. ``values=False``: shapes alone."""
    torch._C._ensureCUDADeviceGuardSet()  # guards and streams that ask no driver
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(.., device="cuda") is made on the CPU and copied
    seen = PretendedGpu(values)
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in _patches(seen):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(seen)
        try:
            yield seen
        finally:
            torch._C._set_only_lift_cpu_tensors(lifted)
