"""Writers of graphs: ``torch.export`` programs (.pt2), and ONNX files made from them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.tasks.export.card import card_of
from maemm.tasks.export.formats import Written, silenced
from maemm.tasks.export.inference_model import InferenceModel, Outputs

TRACED = 3  # batch size of the example inputs; 1 would become a constant of the graph
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_LARGEST = 1_900_000_000  # bytes of weights in one .onnx file; protobuf ends at 2 GiB


def trace(exported: InferenceModel) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The program, with a dynamic batch size, and the names of its outputs.

    Raises :class:`MaemmError` where the model cannot be traced.
    """
    graph, example = exported.graph(), exported.example(TRACED)
    with torch.no_grad():
        # Run eagerly first: tables that parts cache are then real tensors, and become constants of the graph.
        outputs = list(exported.compute(example))
        inputs = tuple(example.values())
        graph(*inputs)
        batch = {0: torch.export.Dim("batch")}
        try:
            program = torch.export.export(graph, inputs, dynamic_shapes=((batch,) * len(inputs),), strict=False)
        except Exception as error:  # whatever a plugin's part does that cannot be traced
            first_line = next(iter(str(error).strip().splitlines()), "").strip()
            reason = f"{type(error).__name__}: {first_line}"[:300] if first_line else type(error).__name__
            raise MaemmError(
                f"this model cannot be traced with a dynamic batch size ({reason}); choose --to safetensors"
            ) from error
    return program, outputs


def write_torch(exported: InferenceModel, folder: Path, name: str) -> Written:
    """A program that needs torch alone, with its card as an extra file inside."""
    program, outputs = trace(exported)
    card = card_of(exported, "torch")
    torch.export.save(program, folder / name, extra_files={"card.json": json.dumps(card, indent=1)})
    loaded = torch.export.load(folder / name).module()

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        with torch.no_grad():
            return dict(zip(outputs, loaded(*inputs.values()), strict=True))

    call = "torch.export.load({path!r}).module()" + f"({', '.join(exported.names)})"
    return Written(name, run, exported.output, call, "torch.export.load")


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

    program, outputs = trace(exported)
    titles = [exported.output if len(outputs) == 1 else f"{exported.output}.{title}" for title in outputs]
    with silenced():
        onnx_program = torch.onnx.export(
            program, input_names=exported.names, output_names=titles, dynamo=True, verbose=False, optimize=True
        )
        assert onnx_program is not None  # None is only returned without dynamo
        onnx_program.model.metadata_props["maemm"] = json.dumps(card_of(exported, "onnx"))
        split = sum(value.numel() * value.element_size() for value in program.state_dict.values()) > ONNX_LARGEST
        onnx_program.save(str(folder / name), external_data=split)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Tensor]) -> Outputs:
        arrays = session.run(titles, {key: value.numpy() for key, value in inputs.items()})
        return {key: torch.from_numpy(array) for key, array in zip(outputs, arrays, strict=True)}

    opset = onnx_program.model.opset_imports.get("", "?")
    arguments = ", ".join(f"{key!r}: {key}" for key in exported.names)
    call = f"onnxruntime.InferenceSession({{path!r}}).run(None, {{{{{arguments}}}}})"
    extra_files = (f"{name}.data",) if split else ()
    return Written(name, run, exported.output, call, f"onnxruntime, opset {opset}", extra_files)
