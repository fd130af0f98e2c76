"""What writing a target leaves, and how it is read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from maemm.tasks.export.subject import Answers, Subject

Read = Callable[[Mapping[str, Tensor]], Answers]
FORMATS = {"safetensors": ".safetensors", "torch": ".pt2", "onnx": ".onnx"}  # of the core: name -> ending


@dataclass(frozen=True)
class Written:
    """What a target wrote into a folder, and how it is read there."""

    name: str  # of the file, or of the folder, that is asked for
    read: Read  # loaded from what was written: {input: (B, ...)} -> answers
    output: str  # what ``read`` answers
    call: str  # Python that loads it; {path} stands for its place
    by: str  # what read it back for the check
    beside: tuple[str, ...] = ()  # names of further files


Write = Callable[[Subject, Path, str], Written]  # (subject, folder, name)
