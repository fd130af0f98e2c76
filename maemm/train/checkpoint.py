"""Checkpoints: one folder per step, whole or not there.

A folder is written under another name, synced to the disk and renamed. ``meta.json`` is written last and holds the
size and SHA-256 of every other file, so that one which the disk damaged later is found out and passed over.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from maemm.contract.errors import MaemmError
from maemm.data.atomic import WRITE_ERRORS, cause_of
from maemm.weights import EMA, MODEL, fill, save

OPTIMIZER, META = "optimizer.pt", "meta.json"
FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done: the next one has this number, counted from 0."""
        return self.meta["step"]


# --------------------------------------------------------------------------------------------------- saving
def write(
    folder: Path, step: int, model: nn.Module, state: Mapping[str, Any], meta: Mapping[str, Any], ema: Any = None
) -> Path:
    """Write ``folder/step-NNNNNN`` and return it.

    ``state`` goes into optimizer.pt: tensors, numbers, texts, lists and dicts only, as it is read back without
    unpickling anything else. Raises :class:`MaemmError` when the disk is full or refuses; nothing half-written
    stays then, and the older checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    beside = folder / f".{final.name}.tmp"
    try:
        _clear(beside)
        beside.mkdir(parents=True)
        save(model, beside / MODEL)
        if ema is not None:
            save(ema, beside / EMA)
        with open(beside / OPTIMIZER, "wb") as file:
            torch.save(dict(state), file)
        files = {path.name: _stamp(path) for path in sorted(beside.iterdir())}
        text = json.dumps({**meta, "format": FORMAT, "step": step, "files": files}, indent=1)
        (beside / META).write_text(text + "\n", encoding="utf-8")
        _sync(beside)
        _clear(final)  # a damaged one of the same step
        os.replace(beside, final)
        _sync_folder(folder)
    except WRITE_ERRORS as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise MaemmError(
            f"the checkpoint of step {step} cannot be written ({final}: {cause_of(error)}); "
            "free space and start again: the last whole checkpoint is kept"
        ) from error
    return final


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what an interrupted save left behind."""
    for path in [*_folders(folder)[keep:], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def _clear(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _stamp(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError:
        pass  # some network file systems cannot sync a folder; the files themselves are synced
    finally:
        os.close(number)


# -------------------------------------------------------------------------------------------------- reading
def latest(folder: Path, say: Callable[[str], Any]) -> Checkpoint | None:
    """The newest whole checkpoint of a ``checkpoints`` folder; damaged ones are told of and passed over.

    Raises :class:`MaemmError` when there are some and all are damaged: starting again silently would lose the run.
    """
    found = _folders(folder)
    for path in found:
        wrong = damage(path)
        if wrong is None:
            return Checkpoint(path, _meta(path))
        say(f"{path} is damaged ({wrong}); going back to the one before it")
    if found:
        raise MaemmError(
            f"all {len(found)} checkpoints of the run are damaged ({folder}); remove them to start from the beginning"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, in words, or None where it is whole. Reads every byte."""
    try:
        meta = _meta(path)
        if meta["format"] != FORMAT:
            return f"written in format {meta['format']}, this version reads {FORMAT}"
        for name, stamp in meta["files"].items():
            if not (path / name).is_file():
                return f"{name} is missing"
            size = (path / name).stat().st_size
            if size != stamp["bytes"]:
                return f"{name} has {size:,} bytes, not {stamp['bytes']:,}"
            if _sha256(path / name) != stamp["sha256"]:
                return f"{name} has another content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{META} cannot be read: {type(error).__name__}"
    return None


def _meta(path: Path) -> dict[str, Any]:
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    if meta["step"] != int(_STEP.fullmatch(path.name).group(1)):
        raise ValueError("the step is not that of the folder")
    return meta


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    names: Iterable[str] = os.listdir(folder) if folder.is_dir() else ()
    steps = sorted((int(found.group(1)), found.group(0)) for name in names if (found := _STEP.fullmatch(name)))
    return [folder / name for _, name in reversed(steps)]


def read(checkpoint: Checkpoint, model: nn.Module, ema: nn.Module | None = None) -> dict[str, Any]:
    """Fill the model, and its average where there is one; -> what :func:`write` was given as ``state``."""
    _fill(model, checkpoint.path / MODEL)
    if ema is not None:
        _fill(ema, checkpoint.path / EMA)
    try:
        return torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError) as error:
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else cause_of(error)
        raise MaemmError(
            f"{checkpoint.path / OPTIMIZER} cannot be read ({reason}); remove that checkpoint to use an older one"
        ) from error


def _fill(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise MaemmError(f"the checkpoint has no {path.name} ({path.parent}); choose another out=")
    state = {key: value for key, value in load_file(path).items() if not key.startswith("extras/")}
    fill(model, state, str(path))
