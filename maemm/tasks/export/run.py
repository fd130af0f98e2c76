"""``maemm export``: write to a temporary folder, load, compare with the model, and only then rename."""

from __future__ import annotations

import contextlib
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

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError, advice
from maemm.data.atomic import usual_permissions
from maemm.data.locks import writes
from maemm.data.transfer import host_copy
from maemm.model.model import Model
from maemm.tasks._shared.inputs import Weights, open_model
from maemm.tasks.export.card import card_of, inputs_of
from maemm.tasks.export.comparison import BATCHES, differences_of, worst_of
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

TOLERANCE = 1e-4  # largest allowed difference of any output


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote."""

    path: Path
    to: str
    output: str
    call: str  # Python that loads it
    checked_with: str  # the library that loaded it for the comparison
    differences: dict[str, float]  # {what was compared: largest difference from the model's own outputs}
    inputs: dict[str, list[Any]]  # {input: ["batch", ...]}; a text is a size that may vary
    card: Path | None = None

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in self.inputs.items())
        titles = [f"batch {batch}" for batch in BATCHES]
        compared = ", ".join(f"{title}: {self.differences[title]:.1e}" for title in titles)
        if padded := {title: value for title, value in self.differences.items() if title not in titles}:
            worst = worst_of(padded)
            compared += f", {len(padded)} padded or with gaps: {padded[worst]:.1e} at most ({worst})"
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
    whole: bool = False,
    force: bool = False,
    **settings: Any,
) -> Exported:
    """Write a model for another tool, and compare the outputs of what was written with the model's own.

    ``to``: safetensors (with a card), torch (``torch.export``), onnx, or a library that a checkpoint format writes
    for (timm, hf). ``output``: features, tokens, latents or logits (default: logits where there is a classifier, else
    features); the layouts of libraries have an output of their own. ``pool`` as in :meth:`Model.embed`. ``shape``: of
    one preprocessed sample, where it is not that of the recipe. ``force``: replace ``out``. ``settings`` go to
    :func:`maemm.load`. A model that is given stays as it is, where it is.

    Inputs of a graph are preprocessed tensors: for each modality ``NAME`` (B, ...) float, and where its samples may be
    padded or have gaps (:meth:`Modality.validity`) ``NAME_valid`` bool, False there: what ``NAME`` holds at such places
    does not matter, the outputs are those of :meth:`Model.embed` with the same ``Preprocessed.valid``. Sets may then
    have any number of elements, other samples are padded to ``shape``. Where a recipe allows samples to lack a modality
    (``data.missing: allow``) there is ``NAME_present`` (B,) bool too. ``whole``: none of these inputs.

    Raises :class:`MaemmError`, and leaves no file, where outputs differ by more than 1e-4 (on whole samples, and on
    padded ones of several lengths where they are accepted), where the model does not fit the target, where the target
    has no place for validity, and where ``out`` exists, unless ``force``.
    """
    writer = writer_of(to)
    path = _checked_path(expanded(out), to, force)
    if isinstance(weights, Model):  # its owner goes on with it, on its device and in its mode
        model, origin, run = host_copy(open_model(weights, precision="fp32", **settings)), "a model", None
    else:
        model = open_model(weights, precision="fp32", **settings).to("cpu")
        origin, run = os.fspath(weights), expanded(weights)
    model = model.float().eval()
    if to not in FORMATS:
        writes_folder = format_for(model, to).exported_state(model).config is not None
        _check_library_name(path, to, writes_folder)
        if output is not None or pool is not None:
            raise MaemmError(f"--output and --pool are for {', '.join(FORMATS)}; {to} has its own")
    exported = inference_model(model, origin, output=output, pool=pool, shape=shape, whole=whole)
    exported.run = run
    exported.check()  # a wrong shape is reported before minutes of tracing
    if to not in FORMATS and (exported.ragged or exported.optional):
        names = ", ".join(dict.fromkeys([*exported.ragged, *exported.optional]))
        raise MaemmError(
            f"{to} has no place for validity, and samples may be padded, have gaps or lack a modality ({names}); "
            "add --whole for whole samples alone, or choose --to safetensors, torch, onnx"
        )
    with _temporary_folder(path) as folder:
        written = writer(exported, folder, path.name)
        differences = differences_of(exported, written)
        worst = worst_of(differences)
        if not differences[worst] <= TOLERANCE:  # NaN too
            raise MaemmError(
                f"the exported {to} differs from the model by {differences[worst]:.2g} ({worst}, allowed "
                f"{TOLERANCE:g}); nothing is kept"
            )
        card = _write_card(exported, folder, path, differences) if to == "safetensors" else None
        _move(folder, path, written, card)
    shapes = {name: about["shape"] for name, about in inputs_of(exported, written.elements).items()}
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


def _write_card(exported: InferenceModel, folder: Path, path: Path, differences: dict[str, float]) -> Path:
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
    moved: list[Path] = []
    try:
        for name in (*written.extra_files, *([] if card is None else [card.name]), written.name):
            target = path.parent / name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(folder / name, target)
            moved.append(target)
    except BaseException:  # all or none, on Ctrl-C too
        for target in moved:
            target.unlink(missing_ok=True)
        raise
