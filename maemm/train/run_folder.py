"""The run folder: one recipe, one process group at a time, and the same command again goes on."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maemm.config import diff, dump, reader
from maemm.contract.errors import MaemmError

RECIPE, METRICS, BAD, LOCK = "recipe.yaml", "metrics.jsonl", "bad_samples.jsonl", ".lock"

# May change in a run that exists: the numbers of a step do not depend on them.
FREE = {
    "out", "name", "data.workers", "data.timeout", "data.prefetch", "data.max_bad_fraction", "train.micro_batch",
    "train.log_every", "train.save_every", "train.keep", "train.picture_every", "train.tensorboard",
    "train.max_nonfinite",
}  # fmt: skip
# May change, though the learning rate of the steps to come changes with them.
LENGTH = {"train.epochs", "train.steps"}


class RunFolder:
    """Paths inside a run folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.recipe, self.metrics, self.bad = self.path / RECIPE, self.path / METRICS, self.path / BAD
        self.checkpoints, self.pictures = self.path / "checkpoints", self.path / "pictures"

    def create(self) -> None:
        """Make the folder. Raises :class:`MaemmError` where it cannot be one."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MaemmError(
                f"cannot make the run folder ({self.path}: {error.strerror}); choose another out="
            ) from None

    def store_recipe(self, recipe: Mapping[str, Any], say: Callable[[str], Any]) -> None:
        """Compare the recipe with that of the run, see :func:`compare`, and store it.

        Without a checkpoint there is nothing to go on with, and any recipe may begin.
        """
        if any(self.checkpoints.glob("step-*")):
            compare(self.path, self._stored(), recipe, say)
        text = dump(recipe)
        beside = self.path / f".{RECIPE}.tmp"
        try:
            beside.write_text(text, encoding="utf-8")
            os.replace(beside, self.recipe)
        except OSError as error:
            raise MaemmError(
                f"cannot write {self.recipe} ({error.strerror}); free space or choose another out="
            ) from None

    def _stored(self) -> dict[str, Any]:
        if not self.recipe.exists():
            raise MaemmError(f"{self.path} has checkpoints but no {RECIPE}; choose another out=, or delete it")
        return reader.read(self.recipe, str(self.recipe))[0]


def compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], say: Callable[[str], Any]) -> None:
    """Let a run go on under a recipe that means the same, and tell where its length has changed.

    Raises :class:`MaemmError` that lists every other key that differs.
    """
    changed = {line.partition(": ")[0]: line for line in diff(old, new)}
    serious = [line for key, line in changed.items() if key not in FREE | LENGTH]
    if serious:
        raise MaemmError(
            f"{path} holds a run with another recipe ({', '.join(serious)}); choose another out=, or delete it"
        )
    length = [line for key, line in changed.items() if key in LENGTH]
    if length:
        say(
            f"{path} was begun with another length ({', '.join(length)}): it goes on, but it is not what a run of the "
            "new length would have been, as the learning rate followed the old schedule until here"
        )


# -------------------------------------------------------------------------------------------------- locking
@contextmanager
def locked(folder: Path, say: Callable[[str], Any]) -> Iterator[None]:
    """Hold the folder against other runs. The system frees it when this process ends, however it ends.

    A record lock, since worker processes do not inherit it: after ``kill -9`` the folder is free at once. Raises
    :class:`MaemmError` that names the process which holds it. Where there are no such locks (Windows, some network
    file systems) it says so and goes on.
    """
    path = folder / LOCK
    try:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115  closing it would free the lock
    except OSError as error:
        raise MaemmError(f"cannot write in the run folder ({path}: {error.strerror}); choose another out=") from None
    with file:
        _lock(file, folder, say)
        yield


def _lock(file: Any, folder: Path, say: Callable[[str], Any]) -> None:
    try:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise MaemmError(
            f"{folder} is in use by another run ({file.read().strip()}); wait for it, or stop it"
        ) from None
    except (ImportError, OSError) as error:
        say(f"{folder} cannot be locked ({error}); take care to start one run at a time in it")
    file.seek(0)
    file.truncate()
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
