"""Checkpoints: one folder per step, either complete or absent.

A folder is written under a temporary name, synced to the disk and renamed. ``meta.json`` is written last and holds the
size and SHA-256 of every other file, so that later damage is detected, and the checkpoint skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from maemm import registry
from maemm.contract.errors import MaemmError
from maemm.contract.version import __version__
from maemm.data.atomic import WRITE_ERRORS, cause_of, fsync
from maemm.model.model import Model
from maemm.weights import EMA, MODEL, fill, save

OPTIMIZER, META = "optimizer.pt", "meta.json"
FORMAT = 1
_STEP = re.compile(r"step-(\d{6,})")
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on the disk."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that have been done, which is the number of the next one, counted from 0."""
        return self.meta["step"]


# --------------------------------------------------------------------------------------------------- writing
def write(
    folder: Path,
    step: int,
    model: Model,
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    ema_model: Model | None = None,
) -> Path:
    """Write ``folder/step-NNNNNN`` and return it.

    ``state`` goes into optimizer.pt: tensors, numbers, strings, lists and dicts only, as it is read back with
    ``weights_only=True``. Raises :class:`MaemmError` where the disk is full or cannot be written; then nothing
    half-written stays behind, and older checkpoints are untouched.
    """
    final = folder / f"step-{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        _remove(temporary)
        temporary.mkdir(parents=True)
        save(model, temporary / MODEL)
        if ema_model is not None:
            save(ema_model, temporary / EMA)
        with open(temporary / OPTIMIZER, "wb") as file:
            torch.save(dict(state), file)
        files = {path.name: _stamp(path) for path in sorted(temporary.iterdir())}
        text = json.dumps({**meta, "format": FORMAT, "step": step, "files": files}, indent=1)
        (temporary / META).write_text(text + "\n", encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            fsync(path)
        _remove(final)  # a damaged one of the same step
        os.replace(temporary, final)
        fsync(folder)
    except WRITE_ERRORS as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise MaemmError(
            f"the checkpoint of step {step} cannot be written ({final}: {cause_of(error)}); "
            "free space and start again: the last complete checkpoint is kept"
        ) from error
    return final


def prune(folder: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints, and what an interrupted :func:`write` left behind."""
    for path in [*_folders(folder)[keep:], *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def versions() -> dict[str, Any]:
    """For ``meta``: versions of maemm, torch, Python and plugins, and the commit if maemm runs from a git checkout."""
    discovered = [entry for entry in registry.all_plugins() if entry.name != "core"]
    return {
        "versions": {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "plugins": {entry.name: entry.plugin.version for entry in discovered if entry.plugin is not None},
        "commit": _commit(),
    }


def _commit() -> str | None:
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _stamp(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# -------------------------------------------------------------------------------------------------- reading
def latest(folder: Path, log: Callable[[str], Any]) -> Checkpoint | None:
    """The newest complete checkpoint in ``folder``, or None if there is none; damaged ones are logged and skipped.

    Raises :class:`MaemmError` where all are damaged: starting from the beginning would lose the run silently.
    """
    paths = _folders(folder)
    for path in paths:
        reason = damage(path)
        if reason is None:
            return Checkpoint(path, _meta(path))
        log(f"{path} is damaged ({reason}); falling back to the one before it")
    if paths:
        raise MaemmError(
            f"all {len(paths)} checkpoints of the run are damaged ({folder}); remove them to start from the beginning"
        )
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None if it is complete. Reads every byte."""
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
                return f"{name} does not have the SHA-256 that it was written with"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{META} cannot be read: {type(error).__name__}"
    return None


def _meta(path: Path) -> dict[str, Any]:
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    if path.name != f"step-{meta['step']:06d}":
        raise ValueError("the step is not that of the folder")
    return meta


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    steps = sorted((int(match.group(1)), match.group(0)) for name in names if (match := _STEP.fullmatch(name)))
    return [folder / name for _, name in reversed(steps)]


def read(checkpoint: Checkpoint, model: Model, ema_model: Model | None = None) -> dict[str, Any]:
    """Fill ``model``, and ``ema_model`` if there is one, from a checkpoint; returns the ``state`` of :func:`write`."""
    _fill(model, checkpoint.path / MODEL)
    if ema_model is not None:
        _fill(ema_model, checkpoint.path / EMA)
    try:
        return torch.load(checkpoint.path / OPTIMIZER, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, OSError) as error:
        reason = "it holds more than tensors" if isinstance(error, pickle.UnpicklingError) else cause_of(error)
        raise MaemmError(
            f"{checkpoint.path / OPTIMIZER} cannot be read ({reason}); remove that checkpoint to use an older one"
        ) from error


def _fill(model: Model, path: Path) -> None:
    if not path.is_file():
        raise MaemmError(f"the checkpoint has no {path.name} ({path.parent}); choose another out=")
    state = {key: value for key, value in load_file(path).items() if not key.startswith("extras/")}
    fill(model, state, str(path))
