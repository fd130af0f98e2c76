"""Writers of graphs: ``torch.export`` programs (.pt2), and ONNX files made from them."""

from __future__ import annotations

import builtins
import contextlib
import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.tasks.export.card import card_of
from maemm.tasks.export.formats import Written, silenced
from maemm.tasks.export.inference_model import InferenceModel, Outputs
from maemm.tasks.export.inputs import Inputs, input_name

UNLIMITED = 2**31  # sizes from here on are no limit
TRACED = 3  # batch size of the example inputs; 1 would become a constant of the graph
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LARGEST = 1_900_000_000  # bytes of weights in one .onnx file; protobuf ends at 2 GiB


@dataclass(frozen=True)
class Traced:
    """A program with a dynamic batch size, and with a dynamic number of elements of sets where that can be traced."""

    program: torch.export.ExportedProgram
    outputs: list[str]  # their names
    elements: dict[str, tuple[int, int | None]]  # as in :class:`Written`


def trace(exported: InferenceModel) -> Traced:
    """Raises :class:`MaemmError` where the model cannot be traced."""
    graph, example = exported.graph(), exported.example(TRACED)
    sets = exported.sets()
    with torch.no_grad():
        # Run eagerly first: tables that parts cache are then real tensors, and become constants of the graph.
        outputs = list(exported.compute(example))
        graph(*example.values())
        program = None
        if sets:
            with contextlib.suppress(Exception):  # whatever a plugin's part does with a size that is no number
                program = _program(graph, example, sets)
        try:
            program = program or _program(graph, example, [])
        except Exception as error:  # whatever a plugin's part does that cannot be traced
            validity = " and validity as an input" if exported.ragged or exported.optional else ""
            raise MaemmError(
                f"this model cannot be traced with a dynamic batch size{validity} ({_reason(error)}); "
                f"choose --to safetensors{', or --whole for whole samples alone' if validity else ''}"
            ) from error
    return Traced(program, outputs, _elements(program, example, sets))


def _program(graph: nn.Module, example: Inputs, sets: Sequence[str]) -> torch.export.ExportedProgram:
    """``sets``: modalities whose number of elements is dynamic where the model allows it."""
    varying = {*sets, *(input_name(name, "valid") for name in sets)}
    batch, some = torch.export.Dim("batch"), torch.export.Dim.AUTO
    shapes = tuple({0: batch, 1: some} if name in varying else {0: batch} for name in example)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nn.MultiheadAttention takes it in eval mode, for one batch size
    try:
        with _symbolic_len():
            return torch.export.export(graph, tuple(example.values()), dynamic_shapes=shapes, strict=False)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def _symbolic_len() -> Iterator[None]:
    """``len(x)`` of a tensor is ``x.shape[0]``, a symbol while tracing. Python's own ``len`` makes a number of it, and
    the graph would take batches of one size alone. (torch does the same with ``max`` and ``min``.)"""
    python_len = builtins.len

    def symbolic_len(x: Any) -> Any:
        return x.shape[0] if isinstance(x, Tensor) and x.ndim else python_len(x)

    builtins.len = symbolic_len
    try:
        yield
    finally:
        builtins.len = python_len


def _elements(
    program: torch.export.ExportedProgram, example: Inputs, sets: Sequence[str]
) -> dict[str, tuple[int, int | None]]:
    """{set: least and largest number of its elements}, without those of which the program takes one number alone."""
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    elements: dict[str, tuple[int, int | None]] = {}
    for name, key in zip(example, program.graph_signature.user_inputs, strict=True):
        size = values[key].shape[1] if name in sets else 0
        if isinstance(size, torch.SymInt) and size.node.expr in program.range_constraints:
            limits = program.range_constraints[size.node.expr]
            largest = int(limits.upper) if limits.upper < UNLIMITED else None
            elements[name] = (int(limits.lower), largest)
    return elements


def _reason(error: BaseException) -> str:
    """The first line of what began it."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()  # without colours
    first_line = next(iter(text.splitlines()), "").strip()
    if "specialized it to be a constant" in text:
        return "its code makes a number of the batch size, as int() and range() do; use x.shape[0] as it is"
    return f"{type(error).__name__}: {first_line}"[:300] if first_line else type(error).__name__


def _translations() -> dict[Any, Callable[..., Any]]:
    """{operation that torch's ONNX exporter lacks: its translation}."""
    import onnxscript

    operations: Any = onnxscript.opset20  # its types say which dtypes are allowed, which no checker can follow here

    def stable_sort(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        """TopK of all: of equal values the one with the lower index comes first, as the standard says."""
        count = operations.Gather(operations.Shape(x), operations.Constant(value_ints=[dim]))
        return operations.TopK(x, count, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}


def write_torch(exported: InferenceModel, folder: Path, name: str) -> Written:
    """A program that needs torch alone, with its card as an extra file inside."""
    traced = trace(exported)
    card = card_of(exported, "torch", elements=traced.elements)
    try:
        torch.export.save(traced.program, folder / name, extra_files={"card.json": json.dumps(card, indent=1)})
        loaded = torch.export.load(folder / name).module()
    except OSError:
        raise
    except Exception as error:  # an operation that torch traces but does not write
        raise MaemmError(
            f"this model cannot be written by torch.export ({_reason(error)}); choose --to onnx or safetensors"
        ) from error

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        with torch.no_grad():
            return dict(zip(traced.outputs, loaded(*inputs.values()), strict=True))

    call = "torch.export.load({path!r}).module()" + f"({', '.join(exported.names)})"
    return Written(name, run, exported.output, call, "torch.export.load", elements=traced.elements)


def write_onnx(exported: InferenceModel, folder: Path, name: str) -> Written:
    """One file, or one with a second file of weights where they are too large, with its card in the metadata."""
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MaemmError(
                f"--to onnx needs the package {package!r} ({error}); run: pip install 'maemm[export]'"
            ) from None
    import onnxruntime

    traced = trace(exported)
    program, titles = traced.program, traced.outputs
    titles = [exported.output if len(titles) == 1 else f"{exported.output}.{title}" for title in titles]
    card = card_of(exported, "onnx", elements=traced.elements)
    split = sum(value.numel() * value.element_size() for value in program.state_dict.values()) > ONNX_LARGEST
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        with silenced():
            onnx_program = torch.onnx.export(
                program,
                input_names=exported.names,
                output_names=titles,
                dynamo=True,
                verbose=False,
                optimize=True,
                custom_translation_table=_translations(),
            )
            assert onnx_program is not None  # None is only returned without dynamo
            onnx_program.model.metadata_props["maemm"] = json.dumps(card)
            onnx_program.save(str(folder / name), external_data=split)
        session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # an operation that ONNX, or its runtime, does not have
        raise MaemmError(
            f"this model cannot be written as ONNX ({_reason(error)}); choose --to torch or safetensors"
        ) from error

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        arrays = session.run(titles, {key: value.numpy() for key, value in inputs.items()})
        return {key: torch.from_numpy(array) for key, array in zip(traced.outputs, arrays, strict=True)}

    opset = onnx_program.model.opset_imports.get("", "?")
    arguments = ", ".join(f"{key!r}: {key}" for key in exported.names)
    call = f"onnxruntime.InferenceSession({{path!r}}).run(None, {{{{{arguments}}}}})"
    extra_files = (f"{name}.data",) if split else ()
    return Written(name, run, exported.output, call, f"onnxruntime, opset {opset}", extra_files, traced.elements)
