"""The file formats of the core, and what a writer of a format returns."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from maemm.tasks.export.inference_model import InferenceModel, Outputs

FORMATS = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}  # {name: ending of its files}

Run = Callable[[Mapping[str, Tensor]], Outputs]


@dataclass(frozen=True)
class Written:
    """What a writer wrote into a folder, and the exported model loaded from there."""

    name: str  # of the file or folder that the user named
    run: Run  # the model as loaded from what was written: {input: (B, ...)}, whole or padded -> outputs
    output: str  # what ``run`` returns: one of inference_model.OUTPUTS
    call: str  # Python that loads it; {path} is replaced by its path
    checked_with: str  # the library behind ``run``
    extra_files: tuple[str, ...] = ()  # names of further files
    # {modality: least and largest number of elements of its sets}, where a graph accepts another than the traced one
    elements: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)


Writer = Callable[[InferenceModel, Path, str], Written]  # (model, folder, name)


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No warnings, no log records below errors, nothing on stderr: other libraries are chatty. Exceptions pass."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
