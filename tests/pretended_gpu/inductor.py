"""What Inductor would launch on an H100 in place of eager operations: graphs are lowered for it, and never run.

    with gpu(values=False) as seen, counted(seen) as work, lowered(seen, work) as graphs:
        ...torch.compile, a step...

Within the block ``torch.compile`` traces with Dynamo, differentiates and partitions with AOT autograd, and lowers with
Inductor for compute capability 9.0 down to the code that it would run. The operations of the scheduler that this code
was made of are added to ``work`` at every call of the graph, in place of the eager operations of the graph:

* a Triton kernel is one launch, and its bytes are Inductor's own estimate (``get_read_write_buffers_sizes``): every
  buffer that it reads or writes, once, or less where it touches a part;
* a matrix product, attention and whatever else Inductor leaves to a library is counted as in an eager step.

Not part of it: compiling the kernels and choosing among them, padding of matrices (which Inductor decides by
measurements), checks before a graph is entered.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._dynamo.device_interface as device_interface
import torch._inductor.compile_fx as compile_fx
import torch._inductor.config as inductor
from torch._inductor import scheduler as schedules
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch.fx import Node
from torch.utils import _triton as triton_of_torch
from torch.utils._pytree import tree_map

from maemm.train.compiling import compiler_settings

from .device import PretendedGpu
from .work import COPIES, Work

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    warp_size=32,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    gcnArchName="",
)
SETTINGS: dict[str, Any] = {  # of Inductor
    "compile_threads": 1,
    "fx_graph_cache": False,
    "joint_graph_constant_folding": False,  # needs values
    "shape_padding": False,  # is decided by measurements on the device
}
VIEWS = ("view", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "slice", "select", "unbind", "detach")
#: Lines of the code that launch what is not of a library. A kernel that reduces along two axes at once leaves partial
#: sums, which torch adds up; where the scheduler has them in one node with what follows, that is a launch more.
LAUNCHES = re.compile(r"^ +triton_\w+\.run\(| = workspace_.*\(dim=0\)", re.MULTILINE)
_RANDOM = torch.zeros(16, dtype=torch.uint8)  # a state of the device's generator
_compile = torch.compile  # before gpu() takes it away


@dataclass
class Operation:
    """One node of Inductor's scheduler: a Triton kernel, or an operation of a library."""

    kind: str  # as in Work.kinds
    bytes: int = 0
    eager: tuple[Any, Any, Any, Any] | None = None  # (operation, arguments, options, results) of a library's


@dataclass
class Graph:
    """The forward or the backward pass of what is compiled, for one set of shapes."""

    backward: bool
    operations: list[Operation]
    calls: int = 0

    def add_to(self, work: Work) -> None:
        """Count one call."""
        self.calls += 1
        for operation in self.operations:
            if operation.eager is None:
                work.add(operation.kind, 1, operation.bytes)
            else:
                work.count(*operation.eager)


class _LoweredError(BaseException):
    """Ends a compilation where code would be compiled and loaded; not an Exception, which Inductor would wrap."""


@contextlib.contextmanager
def lowered(seen: PretendedGpu, work: Work) -> Iterator[list[Graph]]:
    """Within the block, what is compiled counts as the kernels that Inductor would launch; gives the graphs."""
    graphs: list[Graph] = []

    def inner(module: Any, inputs: Any, **options: Any) -> Callable[[list[Any]], list[Any]]:
        with _quiet(seen):
            graph = Graph(bool(options.get("is_backward")), _operations(module, inputs, options))
        graphs.append(graph)

        def call(arguments: list[Any]) -> list[Any]:
            own = list(arguments)
            arguments.clear()
            graph.add_to(work)
            with work.uncounted():
                return list(module(*own))

        call._boxed_call = True  # type: ignore[attr-defined]
        return call

    def backend(module: Any, inputs: Any) -> Any:
        return compile_fx.compile_fx(module, inputs, inner_compile=inner)

    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict("os.environ", TORCHINDUCTOR_CACHE_DIR=folder))
        stack.enter_context(inductor.patch(SETTINGS))
        stack.enter_context(compiler_settings())
        for owner, name, replacement in _patches():
            stack.enter_context(mock.patch.object(owner, name, replacement))
        stack.enter_context(
            mock.patch.object(torch, "compile", lambda f, **options: _compile(f, **{**options, "backend": backend}))
        )
        torch._dynamo.reset()
        try:
            yield graphs
        finally:
            torch._dynamo.reset()


@contextlib.contextmanager
def _quiet(seen: PretendedGpu) -> Iterator[None]:
    trace, seen.trace = seen.trace, None
    try:
        yield
    finally:
        seen.trace = trace


def _operations(module: Any, inputs: Any, options: Any) -> list[Operation]:
    """What Inductor makes of a graph."""
    operations: list[Operation] = []

    def scheduled(graph: GraphLowering) -> Any:
        code = graph.codegen()[0].value
        operations.extend(_all_of(graph.scheduler.nodes))
        more = len(LAUNCHES.findall(code)) - sum(operation.eager is None for operation in operations)
        if more < 0:
            raise AssertionError(f"{-more} scheduled kernels are not launched")
        operations.extend([Operation("norm")] * more)
        raise _LoweredError

    with (
        mock.patch.object(GraphLowering, "compile_to_module", scheduled),
        contextlib.suppress(_LoweredError),
    ):
        compile_fx.compile_fx_inner(module, inputs, **options)
    return operations


def _all_of(nodes: list[Any]) -> Iterator[Operation]:
    for node in nodes:
        if isinstance(node, schedules.NopKernelSchedulerNode):
            continue
        if isinstance(node, schedules.ExternKernelSchedulerNode):
            yield from _of_library(node)
        else:
            yield Operation(_kind(node), node.get_read_write_buffers_sizes())


def _of_library(node: Any) -> Iterator[Operation]:
    """Nothing for what only takes one of several results."""
    if isinstance(node.node, schedules.MultiOutput):
        return
    origin = node.node.get_origin_node()
    if origin is None:
        operation = node.node.op_overload
        origin = next(origin for origin in node.node.get_origins() if origin.target is operation)
    arguments, options = tree_map(_meta, (origin.args, origin.kwargs))
    yield Operation("", eager=(origin.target, arguments, options, origin.meta.get("val")))


def _meta(x: Any) -> Any:
    return x.meta.get("val") if isinstance(x, Node) else x


def _kind(node: Any) -> str:
    """Of a Triton kernel, by the operations that were fused."""
    names = set()
    for part in node.get_nodes():
        for origin in part.node.get_origins():
            original = origin.meta.get("original_aten") or origin.target
            names.add(str(original).removeprefix("aten.").partition(".")[0])
    if any("norm" in name for name in names):
        return "norm"
    names -= set(VIEWS)
    if names <= {"_to_copy"}:
        return "cast"
    return "copy" if names <= {"_to_copy", *COPIES} else "elementwise"


def _patches() -> Iterator[tuple[Any, str, Any]]:
    """Questions to the device and the driver."""
    cuda = device_interface.CudaInterface
    for owner, name, answer in (
        (cuda, "get_compute_capability", 90),
        (cuda, "get_device_properties", H100),
        (cuda, "is_triton_capable", True),
        (cuda, "raise_if_triton_unavailable", None),
        (cuda.Worker, "get_device_properties", H100),
        (cuda.Worker, "current_device", 0),
    ):
        yield owner, name, staticmethod(lambda device=None, answer=answer: answer)
    properties = ("cuda", 0, H100.multi_processor_count, 90, 9, 65536, 2048, 1024, 32)
    yield (
        DeviceProperties,
        "create",
        classmethod(lambda cls, device: cls(*(properties if device.type == "cuda" else (device.type, 0, 1, 0)))),
    )
    yield torch.cuda, "get_device_properties", lambda device=None: H100
    yield torch.cuda, "get_device_capability", lambda device=None: (9, 0)
    yield torch.cuda, "get_device_name", lambda device=None: H100.name
    yield torch.cuda, "_exchange_device", lambda index: index
    yield torch.cuda, "_maybe_exchange_device", lambda index: index
    yield torch.cuda, "is_current_stream_capturing", lambda: False
    yield torch.cuda, "get_rng_state", lambda device=None: _RANDOM
    yield torch.cuda, "set_rng_state", lambda *state: None
    yield triton_of_torch, "triton_hash_with_backend", lambda: "none"
    yield PretendedGpu, "is_infra_mode", classmethod(lambda cls: True)  # Dynamo traces beneath it
