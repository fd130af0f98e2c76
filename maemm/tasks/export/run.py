"""``maemm export``: write, read back, compare, and only then take the name that was asked for."""

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
from pathlib import Path
from typing import Any

import torch

from maemm.contract.errors import MaemmError
from maemm.data.atomic import usual_permissions
from maemm.model.model import Model
from maemm.tasks._shared.inputs import Weights, open_model
from maemm.tasks.export.card import card_of
from maemm.tasks.export.exported_state import kind_for
from maemm.tasks.export.subject import Subject, subject_of
from maemm.tasks.export.targets import check_target, writer_of
from maemm.tasks.export.written import FORMATS, Written

BATCHES = (1, 3)  # sizes that are compared; neither is what a graph is specialised to by accident
TOLERANCE = 1e-4  # largest difference of any answer


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote."""

    path: Path
    to: str
    output: str
    call: str  # Python that loads it
    by: str  # what read it back for the check
    differences: dict[int, float]  # {batch: largest difference from the model's own answers}
    inputs: dict[str, list[Any]]  # {input: ["batch", ...]}
    card: Path | None = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        compared = ", ".join(f"batch {batch}: {value:.1e}" for batch, value in self.differences.items())
        lines = [
            f"{self.path}: {self.output} of {shapes}, for {self.to}",
            f"  difference from the model  {compared}  (checked with {self.by})",
            f"  {self.call}",
        ]
        return "\n".join([*lines, f"  card  {self.card}"] if self.card else lines)


def export(
    what: Weights,
    out: str | os.PathLike,
    *,
    to: str,
    output: str | None = None,
    pool: str | None = None,
    shape: str | None = None,
    force: bool = False,
    **known: Any,
) -> Exported:
    """Write the model of a run or of weights for another tool, and compare its answers with the model's own.

    ``to``: safetensors (with a card), torch (``torch.export``), onnx, or a library that a format hands over to
    (timm, hf). ``output``: features, tokens or logits (default: logits where there is a classifier, else features);
    a library's layout decides by itself. ``pool`` as in :meth:`Model.embed`. ``shape``: of one prepared sample, where
    it is not the usual one. ``known`` goes to :func:`maemm.load`. Inputs are prepared tensors, nothing is padded.

    Raises :class:`MaemmError`, and leaves no file, where answers differ by more than 1e-4, where a target has no
    place for the model, and where ``out`` exists, unless ``force``.
    """
    check_target(to)
    path = _checked_path(Path(out), to, force)
    model, name = _opened(what, known)
    if to not in FORMATS:
        kind_for(model, to)
        if output is not None or pool is not None:
            raise MaemmError(f"--output and --pool are for {', '.join(FORMATS)}; {to} has its own")
    subject = subject_of(model, name, output=output, pool=pool, shape=shape)
    subject.run = None if isinstance(what, Model) else Path(what)
    subject.answer(subject.example(1))  # a wrong shape is told before minutes of tracing
    with _beside(path) as folder:
        written = writer_of(to)(subject, folder, path.name)
        differences = {batch: _difference(subject, written, batch) for batch in BATCHES}
        _check(differences, to)
        card = _add_card(subject, folder, path, differences) if to == "safetensors" else None
        _take_name(folder, path, written, card)
    shapes = {name: ["batch", *one] for name, one in subject.shapes.items()}
    call = written.call.format(path=os.fspath(path))
    return Exported(path, to, written.output, call, written.by, differences, shapes, card)


def _opened(what: Weights, known: dict[str, Any]) -> tuple[Model, str]:
    """A model of our own to do with as we like, and its name."""
    if isinstance(what, Model):
        return copy.deepcopy(what), "a model"
    return open_model(what, **known), os.fspath(what)


# ------------------------------------------------------------------------------------------------ the check
def _difference(subject: Subject, written: Written, batch: int) -> float:
    example = subject.example(batch)
    wanted = subject.answer(example, written.output)
    with torch.no_grad():
        found = written.read(example)
    if {name: one.shape for name, one in found.items()} != {name: one.shape for name, one in wanted.items()}:
        raise MaemmError(f"what was written answers in another shape than the model, for a batch of {batch}")
    return max(float((found[name].double() - one.double()).abs().max()) for name, one in wanted.items())


def _check(differences: dict[int, float], to: str) -> None:
    for batch, value in differences.items():
        if not value <= TOLERANCE:  # NaN too
            raise MaemmError(
                f"what was written for {to} differs from the model by {value:.2g} (batch {batch}, allowed "
                f"{TOLERANCE:g}); nothing is kept"
            )


# ------------------------------------------------------------------------------------------------ files
def _checked_path(path: Path, to: str, force: bool) -> Path:
    ending = FORMATS.get(to)
    if ending is not None and path.suffix != ending:
        raise MaemmError(f"--to {to} writes {ending}, not {path.name!r} (-o); choose such a name")
    for one in (path, _card_path(path)) if to == "safetensors" else (path,):
        if one.exists() and not force:
            raise MaemmError(f"{one} exists (-o); choose another name, or add --force")
        if one.is_dir() and not _ours(one):
            raise MaemmError(f"{one} is a folder with other files (-o); choose another name")
    return path


def _ours(folder: Path) -> bool:
    """Only a folder that holds nothing else than what an export writes may be replaced."""
    return {one.name for one in folder.iterdir()} <= {"config.json", "model.safetensors"}


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` that is gone afterwards, whatever happens."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise MaemmError(f"cannot write {path} ({error.strerror}); choose another place") from error
    try:
        yield folder
    except OSError as error:
        raise MaemmError(f"cannot write {path} ({error.strerror or error}); choose another place") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _card_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _add_card(subject: Subject, folder: Path, path: Path, differences: dict[int, float]) -> Path:
    card = card_of(subject, "safetensors", differences)
    file = folder / path.name
    card |= {"file": path.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}
    text = json.dumps(card, indent=1) + "\n"
    (folder / _card_path(path).name).write_text(text, encoding="utf-8")
    return _card_path(path)


def _sha256(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as opened:
        while part := opened.read(2**20):
            found.update(part)
    return found.hexdigest()


def _take_name(folder: Path, path: Path, written: Written, card: Path | None) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            usual_permissions(file)
    for name in (*written.beside, *([] if card is None else [card.name]), written.name):
        place = path.parent / name
        if place.is_dir():
            shutil.rmtree(place)
        os.replace(folder / name, place)
