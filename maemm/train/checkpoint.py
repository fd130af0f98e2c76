"""Checkpoints: one folder per step, either complete or absent.

A folder is written under a temporary name, synced to the disk and renamed. ``meta.json`` is written last and holds the
size and SHA-256 of every other file, so that later damage is detected, and the checkpoint skipped.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maemm import registry
from maemm.contract.errors import MaemmError
from maemm.contract.rng import RNG_VERSION
from maemm.contract.version import __version__
from maemm.data.atomic import WRITE_ERRORS, cause_of, fsync
from maemm.model.model import Model
from maemm.weights import EMA, MODEL, save
from maemm.weights.checkpoints import FORMAT, META, stamp, step_of, steps_in

OPTIMIZER = "optimizer.pt"


# --------------------------------------------------------------------------------------------------- writing
def path_of(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` steps."""
    return folder / f"step-{step:06d}"


def begin(folder: Path, step: int) -> Path:
    """Make and return the temporary folder of a checkpoint, for files that are written before :func:`write`."""
    final = path_of(folder, step)
    temporary = folder / f".{final.name}.tmp"
    try:
        _remove(temporary)
        temporary.mkdir(parents=True)
    except WRITE_ERRORS as error:
        raise _cannot_write(final, step, error) from error
    return temporary


def write(
    folder: Path,
    step: int,
    model: Model,
    state: Mapping[str, Any],
    meta: Mapping[str, Any],
    ema_model: Model | None = None,
    written: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``folder/step-NNNNNN`` and return it.

    ``state`` goes into optimizer.pt: tensors, numbers, strings, lists and dicts only, as it is read back with
    ``weights_only=True``. ``written``: stamps of files that lie in the folder of :func:`begin` already. Raises
    :class:`MaemmError` where the disk is full or cannot be written; then nothing half-written stays behind, and older
    checkpoints are untouched.
    """
    final = path_of(folder, step)
    temporary = folder / f".{final.name}.tmp" if written else begin(folder, step)
    try:
        save(model, temporary / MODEL)
        if ema_model is not None:
            save(ema_model, temporary / EMA)
        with open(temporary / OPTIMIZER, "wb") as file:
            torch.save(dict(state), file)
        files = {path.name: stamp(path) for path in sorted(temporary.iterdir()) if path.is_file()} | dict(written or {})
        text = json.dumps({**meta, "format": FORMAT, "step": step, "files": files}, indent=1)
        (temporary / META).write_text(text + "\n", encoding="utf-8")
        for path in [*temporary.iterdir(), temporary]:
            fsync(path)
        _remove(final)  # a damaged one of the same step
        os.replace(temporary, final)
        fsync(folder)
    except WRITE_ERRORS as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise _cannot_write(final, step, error) from error
    return final


def _cannot_write(final: Path, step: int, error: BaseException) -> MaemmError:
    return MaemmError(
        f"the checkpoint of step {step} cannot be written ({final}: {cause_of(error)}); "
        "free space and start again: the last complete checkpoint is kept"
    )


def prune(folder: Path, keep: int, step: int, *, later: bool = False) -> None:
    """Remove all but the ``keep`` newest checkpoints of at most ``step``, and what an interrupted :func:`write` left.

    A run has later ones if it could not resume from them. They do not count, and are removed with ``later=True``, once
    there is a new one.
    """
    steps = {path: step_of(path) for path in steps_in(folder)}
    usable, others = ([path for path in steps if (steps[path] <= step) == good] for good in (True, False))
    for path in [*usable[keep:], *(others if later else []), *folder.glob(".step-*.tmp")]:
        shutil.rmtree(path, ignore_errors=True)


def versions() -> dict[str, Any]:
    """For ``meta``: versions of maemm, torch, Python and plugins, and the commit if maemm runs from a git checkout."""
    discovered = [entry for entry in registry.all_plugins() if entry.name != "core"]
    return {
        "rng_version": RNG_VERSION,
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
