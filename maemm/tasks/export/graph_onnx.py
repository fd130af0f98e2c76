"""ONNX: the graph of ``torch.export``, checked with onnxruntime."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.tasks.export.card import card_of
from maemm.tasks.export.graph_torch import trace
from maemm.tasks.export.quiet import quiet
from maemm.tasks.export.subject import Answers, Subject
from maemm.tasks.export.written import Written

NEEDED = ("onnx", "onnxscript", "onnxruntime")
LARGEST = 1_900_000_000  # bytes of weights that one file may hold; protobuf ends at 2 GiB


def write(subject: Subject, folder: Path, name: str) -> Written:
    """One file, or with a file of weights beside it where they are too large for one."""
    for package in NEEDED:
        _need(package)
    program, outputs = trace(subject)
    titles = [subject.output if len(outputs) == 1 else f"{subject.output}.{one}" for one in outputs]
    with quiet():
        made = torch.onnx.export(
            program, input_names=subject.names, output_names=titles, dynamo=True, verbose=False, optimize=True
        )
        made.model.metadata_props["maemm"] = json.dumps(card_of(subject, "onnx"))
        large = sum(one.numel() * one.element_size() for one in program.state_dict.values()) > LARGEST
        made.save(str(folder / name), external_data=large)
    session = _session(folder / name)

    def read(batch: Mapping[str, Tensor]) -> Answers:
        found = session.run(titles, {key: value.numpy() for key, value in batch.items()})
        return {key: torch.from_numpy(value) for key, value in zip(outputs, found, strict=True)}

    opset = made.model.opset_imports.get("", "?")
    inputs = ", ".join(f"{one!r}: {one}" for one in subject.names)
    call = f"onnxruntime.InferenceSession({{path!r}}).run(None, {{{{{inputs}}}}})"
    beside = (f"{name}.data",) if large else ()
    return Written(name, read, subject.output, call, f"onnxruntime, opset {opset}", beside)


def _need(package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MaemmError(
            f"--to onnx needs the package {package!r} ({error}); run: pip install 'maemm[export]'"
        ) from None


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
