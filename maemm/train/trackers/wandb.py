"""Weights & Biases, over the network or into files that ``wandb sync`` sends later."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from maemm.contract.tracking import TrackedRun, Tracker

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # of a .wandb file, whose records are framed as in LevelDB's logs
_START = 7  # bytes of its own header
_WHOLE, _LAST = 1, 4  # kinds of a piece after which a record is complete


class WandB(Tracker):
    """Reports to Weights & Biases under one id, however often a run is stopped and goes on.

    Options:
        project: the project
        entity: user or team; null: the one that wandb is logged in as
        name: of the run; null: that of its folder
        group: runs that belong together
        tags: words to find it by
        notes: a longer text
        mode: online, offline (files in the run folder, for ``wandb sync``) or null: as WANDB_MODE says, else online
    """

    packages = {"wandb": "maemm[wandb]"}

    def __init__(
        self,
        *,
        project: str = "maemm",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        notes: str | None = None,
        mode: Literal["online", "offline"] | None = None,
    ):
        self.options: dict[str, Any] = {"project": project, "entity": entity, "group": group, "notes": notes}
        self.options |= {"mode": mode, "tags": list(tags or ()) or None}
        self.name = name

    def begin(self, run: TrackedRun) -> str:
        import wandb

        settings = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True, disable_code=True)
        self._id, self._files, self._wandb = run.id or uuid.uuid4().hex, run.files, wandb
        self._run = wandb.init(
            id=self._id,
            resume="allow",
            dir=str(run.files),
            name=self.name or run.name,
            config=dict(run.recipe),
            settings=settings,
            **self.options,
        )
        return self._id

    def holds(self) -> int | None:
        """Online what the server says; offline what stands in the files, unlike the last rows of a killed process."""
        if not self._run.settings._offline:
            return max(0, self._run.step - 1)
        files = sorted(self._files.glob(f"wandb/*run-*-{self._id}/*.wandb"))
        return max((step for file in files for step in _steps_in(file)), default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def alarm(self, step: int, cause: str, text: str) -> None:
        self._run.alert(title=f"{cause} after step {step}", text=text)

    def picture(self, step: int, file: Path) -> None:
        self._run.log({"pictures": self._wandb.Image(str(file))}, step=step)

    def end(self, state: str) -> None:
        self._run.finish(exit_code=0 if state == "finished" else 1)


def _steps_in(path: Path) -> Iterator[int]:
    """The steps of the rows in a .wandb file, up to where it can be read."""
    from wandb.proto.wandb_internal_pb2 import Record

    with suppress(Exception):  # the end of a file whose writer was killed
        for data in _records(path.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                yield record.history.step.num


def _records(data: bytes) -> Iterator[bytes]:
    position, record = _START, b""
    while position + _HEADER.size <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER.size:
            position += left
            continue
        _, length, kind = _HEADER.unpack_from(data, position)
        position += _HEADER.size
        record += data[position : position + length]
        position += length
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""
