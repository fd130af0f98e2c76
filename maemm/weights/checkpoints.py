"""Checkpoints on the disk: which are whole, and which file of a folder is to be loaded; for training and every verb.

``meta.json`` of a checkpoint holds the size and SHA-256 of each of its files, so that damage is detected.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.config import RECIPE, reader
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_text, write_whole
from maemm.model.model import Model
from maemm.weights.own import BEST, EMA, MODEL, read_header, save

META, CHECKPOINTS = "meta.json", "checkpoints"
FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")
_CHUNK = 1 << 20
_MAX_META = 16 << 20  # bytes; a larger one is no meta.json of ours

Choose = Callable[[Mapping[str, Any]], Iterable[str]]  # names in ``files`` of meta.json -> those that are needed


def warn(text: str) -> None:
    """Print one line on stderr, as the command line does."""
    print(f"maemm: warning: {text}", file=sys.stderr)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that have been done, which is the number of the next one, counted from 0."""
        return self.meta["step"]


def steps_in(folder: Path) -> list[Path]:
    """Checkpoint folders in ``folder``, the newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted((folder / name for name in names if _STEP.fullmatch(name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of a checkpoint folder, by its name."""
    return int(path.name.removeprefix("step-"))


def latest(
    folder: Path,
    log: Callable[[str], Any],
    needed: Choose | None = None,
    advice: str = "remove them to start from the beginning",
    before: int | None = None,
) -> Checkpoint | None:
    """The newest complete checkpoint in ``folder``, or None if there is none; damaged ones are logged and skipped.

    ``needed``: which files must be whole; None: all. ``before``: only checkpoints of fewer steps, as the one of that
    step cannot be used. Raises :class:`MaemmError`, which ends in ``advice``, where all are damaged: starting from the
    beginning would lose the run silently.
    """
    reason: str | None = None
    while True:
        folders, lines = steps_in(folder), list[str]()
        paths = [path for path in folders if before is None or step_of(path) < before]
        for path in paths:
            meta, reason = _checked(path, needed)
            if meta is not None:
                for line in lines:
                    log(f"{line}; falling back to {path.name}")
                return Checkpoint(path, meta)
            lines.append(f"{path} is damaged ({reason})")
        if steps_in(folder) == folders:  # else a run writes here, and has replaced what was looked at
            break
    if paths and before is None:
        raise MaemmError(f"all {len(paths)} checkpoints of the run are damaged ({folder}: {reason}); {advice}")
    return None


def damage(path: Path, needed: Choose | None = None) -> str | None:
    """What is wrong with a checkpoint folder, or None if its files (those ``needed``) are whole; reads every byte."""
    return _checked(path, needed)[1]


def _checked(path: Path, needed: Choose | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """(meta.json, None) of a whole checkpoint, (None, what is wrong) of any other."""
    try:
        meta = _meta(path)
        if _STEP.fullmatch(path.name) and path.name != f"step-{meta['step']:06d}":
            return None, f"{META} is of step {meta['step']}"
        if meta["format"] != FORMAT:
            return None, f"written in format {meta['format']}, this version reads {FORMAT}"
        files = meta["files"]
        if MODEL not in files:
            return None, f"{META} does not list {MODEL}"
        reasons = (_difference(path / name, files[name]) for name in (files if needed is None else needed(files)))
        reason = next((reason for reason in reasons if reason is not None), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return None, f"{META} is missing" if isinstance(error, FileNotFoundError) else _unreadable(error)
    return (meta, None) if reason is None else (None, reason)


def _meta(folder: Path) -> dict[str, Any]:
    """The content of meta.json. Raises OSError, ValueError or RecursionError where it is no JSON object."""
    path = folder / META
    if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_META):
        raise ValueError("no file of ours")
    meta = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(meta, dict):
        raise ValueError("no JSON object")
    return meta


def _unreadable(error: BaseException) -> str:
    return f"{META} cannot be read: {type(error).__name__}"


def _difference(path: Path, stamp: Mapping[str, Any]) -> str | None:
    """How a file differs from its :func:`stamp`; None: it does not."""
    if not path.is_file():
        return f"{path.name} is missing"
    size = path.stat().st_size
    if size != stamp["bytes"]:
        return f"{path.name} has {size:,} bytes, not {stamp['bytes']:,}"
    if _sha256(path) != stamp["sha256"]:
        return f"{path.name} does not have the SHA-256 that it was written with"
    return None


def stamp(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file, for ``files`` of meta.json."""
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------- what is loaded
def run_of(folder: Path) -> Path:
    """Of a run of several stages the folder of the last one that has weights; any other folder as it is."""
    if (folder / CHECKPOINTS).is_dir() or not (folder / RECIPE).is_file():
        return folder
    try:
        stages = reader.read(folder / RECIPE, str(folder / RECIPE))[0].get("stages")
    except MaemmError:
        return folder
    for name in reversed(list(stages) if isinstance(stages, dict) else []):
        if steps_in(folder / name / CHECKPOINTS):
            return folder / name
    return folder


def find_checkpoint(folder: Path, log: Callable[[str], Any] = warn) -> Path:
    """The weights file of a checkpoint folder, or of the checkpoint of a run folder that is to be used.

    Of a run folder that is the best checkpoint if the run trained a classifier and validated it, else the last whole
    one; ``log`` gets a line where damaged ones are passed over. Of a checkpoint it is the average of the weights
    (``train.ema``, ``train.average``) if it has one. Raises :class:`MaemmError` where a checkpoint folder is damaged,
    and where the folder holds no whole checkpoint. Of a run of several stages it is that of the last one that has any.
    """
    folder = run_of(folder)
    if _STEP.fullmatch(folder.name) or (folder / MODEL).is_file():
        return _in_checkpoint(folder)
    best, reason = folder / BEST, None
    if best.is_dir():
        reason = _unstamped_damage(best) or _header_damage(best / MODEL)
        if reason is None and _is_classifier(best / MODEL):
            return best / MODEL
    checkpoint = latest(folder / CHECKPOINTS, log, _weights_of, "give other weights, or train again")
    if checkpoint is None:
        raise MaemmError(_without_checkpoint(folder))
    (name,) = _weights_of(checkpoint.meta["files"])
    if reason is not None and _is_classifier(checkpoint.path / name):
        log(f"{best} is damaged ({reason}); falling back to {checkpoint.path.name}, the last checkpoint")
    return checkpoint.path / name


def check_file(path: Path) -> None:
    """Raises :class:`MaemmError` where meta.json beside a weights file says that it was written otherwise."""
    reason = _unstamped_damage(path.parent, path.name) if path.is_file() else None
    if reason is not None:
        raise MaemmError(_damaged(path, reason))


def _in_checkpoint(folder: Path) -> Path:
    """The weights file of a checkpoint folder."""
    if not _STEP.fullmatch(folder.name):  # best/, a copy under another name, or files that a user put together
        name = EMA if (folder / EMA).is_file() or EMA in _stamps(folder) else MODEL
        reason = _unstamped_damage(folder, name)
    else:
        meta, reason = _checked(folder, _weights_of)
        name = MODEL if meta is None else next(iter(_weights_of(meta["files"])))
    if reason is not None:
        raise MaemmError(_damaged(folder, reason))
    return folder / name


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged ({reason}); give its run, whose last whole checkpoint is then used, or other weights"


def _weights_of(files: Mapping[str, Any]) -> list[str]:
    """The file to load, of those that a checkpoint was written with."""
    return [EMA if EMA in files else MODEL]


def _header_damage(path: Path) -> str | None:
    """What is wrong with the header of a weights file of ours."""
    try:
        return None if read_header(path) is not None else f"{path.name} cannot be read"
    except MaemmError as error:
        return str(error)


def _is_classifier(path: Path) -> bool:
    """Whether the weights file is of a model with a head."""
    return bool(((read_header(path) or {}).get("recipe") or {}).get("head"))


def _stamps(folder: Path) -> Mapping[str, Any]:
    """``files`` of meta.json; empty where there is none."""
    try:
        files = _meta(folder).get("files")
    except (OSError, ValueError, RecursionError):
        return {}
    return files if isinstance(files, dict) else {}


def _unstamped_damage(folder: Path, name: str = MODEL) -> str | None:
    """What is wrong with one file of a folder, where meta.json need not be there, nor hold a stamp of the file."""
    while True:
        try:
            before = _meta(folder) if (folder / META).exists() else {}
            files = before.get("files")
            stamped = files.get(name) if isinstance(files, dict) else None
            reason = _difference(folder / name, stamped) if stamped is not None else None
            if stamped is None and not (folder / name).is_file():
                reason = f"{name} is missing"
            if reason is None or (_meta(folder) if (folder / META).exists() else {}) == before:
                return reason  # else a run has written other weights in the meantime
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            return _unreadable(error)


def _without_checkpoint(folder: Path) -> str:
    """Why nothing can be loaded from a folder, and what to do."""
    if any((folder / CHECKPOINTS).glob(".step-*")):
        return f"{folder} holds no whole checkpoint yet, only one that was not written to its end; train it on"
    if (folder / RECIPE).is_file() or (folder / CHECKPOINTS).is_dir():
        return f"{folder} holds no checkpoint yet; train it until its first one"
    return f"{folder} holds no checkpoint; give a run folder, a checkpoint folder or a weights file"


# ----------------------------------------------------------------------------------------------- the best weights
def write_best(folder: Path, model: Model, about: Mapping[str, Any]) -> None:
    """Write the weights with the best metric so far, and ``about`` them: the step and the metrics.

    Between the two files meta.json holds no stamp, so that weights are never taken for damaged when the run was killed
    there. Raises :class:`MaemmError` where they cannot be written.
    """
    advice = "free space: the same command continues"
    title = "the metrics of the best weights"

    def write_about(files: Mapping[str, Any]) -> None:
        text = json.dumps({**about, **files}, indent=1) + "\n"
        write_text(folder / META, text, title, advice=advice)

    if (folder / META).exists():
        write_about({})
    write_whole(folder / MODEL, lambda path: save(model, path), "the best weights", advice=advice)
    write_about({"files": {MODEL: stamp(folder / MODEL)}})
