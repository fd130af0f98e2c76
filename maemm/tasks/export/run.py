"""``maemm export``: write to a temporary folder, load, compare with the model, and only then rename."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError, advice
from maemm.data.atomic import usual_permissions
from maemm.data.locks import writes
from maemm.model.model import Model
from maemm.tasks._shared.inputs import Weights, open_model
from maemm.tasks.export.card import card_of
from maemm.tasks.export.formats import FORMATS, Writer, Written
from maemm.tasks.export.graphs import write_onnx, write_torch
from maemm.tasks.export.inference_model import InferenceModel, inference_model
from maemm.tasks.export.weights_files import (
    LIBRARY_SUFFIXES,
    format_for,
    library_formats,
    write_for_library,
    write_safetensors,
)

BATCHES = (1, 3)  # batch sizes that are compared: 1 is where a graph is most easily specialised by accident
TOLERANCE = 1e-4  # largest allowed difference of any output


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote."""

    path: Path
    to: str
    output: str
    call: str  # Python that loads it
    checked_with: str  # the library that loaded it for the comparison
    differences: dict[int, float]  # {batch size: largest difference from the model's own outputs}
    inputs: dict[str, list[Any]]  # {input: ["batch", ...]}
    card: Path | None = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        compared = ", ".join(f"batch {batch}: {value:.1e}" for batch, value in self.differences.items())
        lines = [
            f"{self.path}: {self.output} of {shapes}, for {self.to}",
            f"  difference from the model  {compared}  (checked with {self.checked_with})",
            f"  {self.call}",
        ]
        return "\n".join([*lines, f"  card  {self.card}"] if self.card else lines)


@writes("out")
def export(
    weights: Weights,
    out: str | os.PathLike,
    *,
    to: str,
    output: str | None = None,
    pool: str | None = None,
    shape: str | None = None,
    force: bool = False,
    **settings: Any,
) -> Exported:
    """Write a model for another tool, and compare the outputs of what was written with the model's own.

    ``to``: safetensors (with a card), torch (``torch.export``), onnx, or a library that a checkpoint format writes
    for (timm, hf). ``output``: features, tokens or logits (default: logits where there is a classifier, else
    features); the layouts of libraries have an output of their own. ``pool`` as in :meth:`Model.embed`. ``shape``: of
    one preprocessed sample, where it is not that of the recipe. ``force``: replace ``out``. ``settings`` go to
    :func:`maemm.load`. Inputs of what is written are preprocessed tensors without padding.

    Raises :class:`MaemmError`, and leaves no file, where outputs differ by more than 1e-4, where the model does not
    fit the target, and where ``out`` exists, unless ``force``.
    """
    writer = writer_of(to)
    path = _checked_path(expanded(out), to, force)
    if isinstance(weights, Model):
        model, origin, run = copy.deepcopy(weights), "a model", None
    else:
        model, origin, run = open_model(weights, **settings), os.fspath(weights), expanded(weights)
    if to not in FORMATS:
        writes_folder = format_for(model, to).exported_state(model).config is not None
        _check_library_name(path, to, writes_folder)
        if output is not None or pool is not None:
            raise MaemmError(f"--output and --pool are for {', '.join(FORMATS)}; {to} has its own")
    exported = inference_model(model, origin, output=output, pool=pool, shape=shape)
    exported.run = run
    exported.compute(exported.example(1))  # a wrong shape is reported before minutes of tracing
    with _temporary_folder(path) as folder:
        written = writer(exported, folder, path.name)
        differences = {batch: _difference(exported, written, batch) for batch in BATCHES}
        for batch, difference in differences.items():
            if not difference <= TOLERANCE:  # NaN too
                raise MaemmError(
                    f"the exported {to} differs from the model by {difference:.2g} (batch {batch}, allowed "
                    f"{TOLERANCE:g}); nothing is kept"
                )
        card = _write_card(exported, folder, path, differences) if to == "safetensors" else None
        _move(folder, path, written, card)
    shapes = {name: ["batch", *sides] for name, sides in exported.shapes.items()}
    call = written.call.format(path=os.fspath(path))
    return Exported(path, to, written.output, call, written.checked_with, differences, shapes, card)


def writer_of(to: str) -> Writer:
    """The function that writes a target. Raises :class:`MaemmError` for an unknown one."""
    if to in FORMATS:
        return {"safetensors": write_safetensors, "torch": write_torch, "onnx": write_onnx}[to]
    libraries = library_formats()
    if to not in libraries:
        raise MaemmError(f"unknown target {to!r} (--to); {advice(to, [*libraries, *FORMATS])}")
    return partial(write_for_library, library=to)


def _difference(exported: InferenceModel, written: Written, batch: int) -> float:
    """The largest absolute difference of any output, for one batch size."""
    inputs = exported.example(batch)
    expected = exported.compute(inputs, written.output)
    with torch.no_grad():
        outputs = written.run(inputs)
    if {name: x.shape for name, x in outputs.items()} != {name: x.shape for name, x in expected.items()}:
        raise MaemmError(f"the outputs of what was written have another shape than the model's (batch {batch})")
    return max(float((outputs[name].double() - x.double()).abs().max()) for name, x in expected.items())


# ------------------------------------------------------------------------------------------------ files
def _checked_path(path: Path, to: str, force: bool) -> Path:
    ending = FORMATS.get(to)
    if ending is not None and path.suffix.lower() != ending:
        raise MaemmError(f"--to {to} writes {ending}, not {path.name!r} (-o); choose such a name")
    for target in (path, _card_path(path)) if to == "safetensors" else (path,):
        if target.exists() and not force:
            raise MaemmError(f"{target} exists (-o); choose another name, or add --force")
        # Only a folder that holds nothing but what an export writes may be replaced.
        if target.is_dir() and not {file.name for file in target.iterdir()} <= {"config.json", "model.safetensors"}:
            raise MaemmError(f"{target} is a folder with other files (-o); choose another name")
    return path


def _check_library_name(path: Path, to: str, writes_folder: bool) -> None:
    """The ending of the name is the format of a file, and a folder has none. Raises :class:`MaemmError`."""
    suffix = path.suffix  # as it is: timm knows small letters alone
    if writes_folder and suffix.lower() in (*LIBRARY_SUFFIXES, *FORMATS.values()):
        raise MaemmError(f"--to {to} writes a folder, not {path.name!r} (-o); choose a name without {path.suffix}")
    if writes_folder and path.exists() and not path.is_dir():
        raise MaemmError(f"--to {to} writes a folder, and {path} is a file (-o); choose another name")
    if not writes_folder and suffix not in LIBRARY_SUFFIXES:
        raise MaemmError(f"--to {to} writes {' or '.join(LIBRARY_SUFFIXES)}, not {path.name!r} (-o); name such a file")


def _card_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is deleted afterwards, whatever happens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise MaemmError(f"cannot write {path} ({error.strerror}); choose another path") from error
    try:
        yield folder
    except OSError as error:
        raise MaemmError(f"cannot write {path} ({error.strerror or error}); choose another path") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_card(exported: InferenceModel, folder: Path, path: Path, differences: dict[int, float]) -> Path:
    """Write the card of ``folder / path.name`` beside it; -> its final path."""
    file = folder / path.name
    checksum = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            checksum.update(chunk)
    card = card_of(exported, "safetensors", differences)
    card |= {"file": path.name, "bytes": file.stat().st_size, "sha256": checksum.hexdigest()}
    (folder / _card_path(path).name).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return _card_path(path)


def _move(folder: Path, path: Path, written: Written, card: Path | None) -> None:
    """Rename what was written to where it belongs, the file that the user named last."""
    for file in folder.rglob("*"):
        if file.is_file():
            usual_permissions(file)
    for name in (*written.extra_files, *([] if card is None else [card.name]), written.name):
        target = path.parent / name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(folder / name, target)
