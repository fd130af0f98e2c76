"""TensorBoard: event files in the folder ``tensorboard`` of the run."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maemm.contract.tracking import TrackedRun, Tracker

_SIZE_AT = 16  # bytes into a PNG, where its width and height stand


class TensorBoard(Tracker):
    """Writes event files with numbers, alarms and pictures.

    By the package ``tensorboard`` alone, as torch's writer would import torch into the process of the tracker.
    """

    packages = {"tensorboard": "maemm[tensorboard]"}
    rewinds = True

    def begin(self, run: TrackedRun) -> str:
        """Open another event file, which tells readers to drop events after ``run.step``."""
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._session = event_pb2.Event, summary_pb2.Summary, event_pb2.SessionLog
        self._writer = EventFileWriter(str(run.folder / "tensorboard"))
        self._add(run.step + 1, session_log=self._session(status=self._session.START))
        return run.name

    def log(self, step: int, values: Mapping[str, float]) -> None:
        scalars = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(step, summary=self._summary(value=scalars))

    def alarm(self, step: int, cause: str, text: str) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(step, summary=text_pb(f"alarms/{cause}", text))

    def picture(self, step: int, file: Path) -> None:
        data = file.read_bytes()
        width, height = struct.unpack_from(">II", data, _SIZE_AT)
        image = self._summary.Image(width=width, height=height, colorspace=3, encoded_image_string=data)
        self._add(step, summary=self._summary(value=[self._summary.Value(tag="pictures", image=image)]))

    def end(self, state: str) -> None:
        self._writer.close()

    def _add(self, step: int, **what: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=step, **what))
        self._writer.flush()
