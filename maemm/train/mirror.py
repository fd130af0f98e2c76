"""A second place for the checkpoints of a run: a bucket, another disk, anything that fsspec writes.

A checkpoint is complete in the run folder first. Its files are then copied, ``meta.json`` last, so that one without it
is none. A copy that fails costs a line: the run goes on, and the next checkpoint is tried again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from maemm.config import load
from maemm.contract.errors import DataLost, MaemmError
from maemm.data.atomic import cause_of
from maemm.data.shards.storage import Storage
from maemm.train.run_folder import BAD, METRICS, RunFolder, compare
from maemm.weights.checkpoints import CHECKPOINTS, META, damage, step_of, steps_in

BESIDE = (METRICS, BAD)  # files of the run folder that belong to its newest checkpoint
PROBE = "maemm-can-write"


class Mirror:
    """Copies of checkpoints below a URL. For rank 0 alone."""

    def __init__(self, config: Mapping[str, Any], log: Callable[[str], Any]):
        """``config``: ``train.mirror`` of the recipe. Raises :class:`MaemmError` where the place cannot be written."""
        self.storage = Storage(config["url"], options=config["options"], patience=config["patience"])
        self.keep, self.log = config["keep"], log
        try:
            self._make_folder(self.storage.root)
            self.storage.system.pipe_file(self.storage.path(PROBE), b"")
            self.storage.system.rm_file(self.storage.path(PROBE))
        except MaemmError:
            raise
        except Exception as error:  # storages raise errors of all kinds
            raise MaemmError(
                f"checkpoints cannot be copied to {self.storage.root} ({_reason(error)}); mend that, or leave "
                "train.mirror out"
            ) from error

    # --------------------------------------------------------------------------------------------------------- there
    def put(self, checkpoint: Path) -> None:
        """Copy a complete checkpoint, and remove old ones; or print a line that says why not."""
        try:
            meta = json.loads((checkpoint / META).read_text(encoding="utf-8"))
            system, run = self.storage.system, checkpoint.parent.parent
            for name in [*meta["files"], META]:
                target = self.storage.path(f"{CHECKPOINTS}/{checkpoint.name}/{name}")
                self._make_folder(target.rpartition("/")[0])
                system.put_file(str(checkpoint / name), target)
            for name in BESIDE:
                if (run / name).is_file():
                    system.put_file(str(run / name), self.storage.path(name))
            for name in self._steps()[self.keep :]:
                folder = self.storage.path(f"{CHECKPOINTS}/{name}")
                system.rm_file(f"{folder}/{META}")
                system.rm(folder, recursive=True)
        except Exception as error:  # storages raise errors of all kinds
            self.log(
                f"warning: {checkpoint.name} is not in {self.storage.root} ({_reason(error)}); it is whole in "
                f"{checkpoint.parent}, and the next one is copied again"
            )

    def _make_folder(self, path: str) -> None:
        """On a disk; object storage has none, and would make a bucket."""
        if self.storage.is_local:
            os.makedirs(path, exist_ok=True)

    def _steps(self) -> list[str]:
        """Checkpoints that have been copied to their end, the newest first."""
        names = {name.split("/")[-2] for name in self.storage.find(f"{CHECKPOINTS}/step-*/{META}")}
        return sorted(names, key=lambda name: step_of(Path(name)), reverse=True)

    # ---------------------------------------------------------------------------------------------------------- back
    def fetch(self, run: Path, check: Callable[[Mapping[str, Any]], None]) -> bool:
        """Copy the newest whole checkpoint into the run folder where that has none as new, and say whether.

        ``check`` is called with its meta.json first, and may raise. Raises :class:`MaemmError` where the storage does
        not answer, or the disk is full.
        """
        folder = run / CHECKPOINTS
        newest = max((step_of(path) for path in steps_in(folder)), default=-1)
        try:
            names = [name for name in self._steps() if step_of(Path(name)) > newest]
            for name in names:
                temporary = folder / f".{name}.tmp"
                meta: dict[str, Any] = json.loads(self.storage.read(f"{CHECKPOINTS}/{name}/{META}"))
                check(meta)
                self._copy(name, temporary, [*meta["files"], META])
                reason = damage(temporary)
                if reason is None:
                    os.replace(temporary, folder / name)
                    for other in BESIDE:
                        if not (run / other).exists() and self.storage.exists(other):
                            self.storage.system.get_file(self.storage.path(other), str(run / other))
                    self.log(f"{name} has been copied from {self.storage.root}")
                    return True
                shutil.rmtree(temporary, ignore_errors=True)
                self.log(f"{name} in {self.storage.root} is damaged ({reason})")
        except MaemmError:
            raise
        except Exception as error:
            raise MaemmError(
                f"checkpoints cannot be copied from {self.storage.root} ({_reason(error)}); mend that, or leave "
                "train.mirror out to start without them"
            ) from error
        return False

    def _copy(self, name: str, temporary: Path, files: Iterable[str]) -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in files:
            if Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"{META} names a file {file}")
            (temporary / file).parent.mkdir(parents=True, exist_ok=True)
            self.storage.system.get_file(self.storage.path(f"{CHECKPOINTS}/{name}/{file}"), str(temporary / file))


def open_mirror(recipe: Mapping[str, Any], folder: RunFolder, log: Callable[[str], Any]) -> Iterator[Mirror]:
    """The mirror of the recipe, if it has one, after what is newer there has been copied into the run folder.

    On rank 0. Raises :class:`MaemmError` where the place cannot be used, or holds a run with another recipe.
    """
    config = recipe["train"]["mirror"]
    if config is None:
        return
    mirror = Mirror(config, log)

    def check(meta: Mapping[str, Any]) -> None:
        folder.moved = compare(Path(mirror.storage.root), load(meta["recipe"], training=True), recipe, log)

    if mirror.fetch(folder.path, check):
        folder.store(recipe)
    yield mirror


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, DataLost) else cause_of(error)
