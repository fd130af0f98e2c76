"""Many samples in one array file as a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from maemm.contract import Sample
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.arrays import ArrayFile, open_array_file
from maemm.data.files import fingerprint

from .files import Taken
from .recordings import names_in, rate_in, time_is_first
from .resample import length_after, resampled

_SIGNALS = ("x", "signals", "signal", "data")
_LABELS = ("y", "labels", "label", "targets")


class SampleArray(ArrayFile):
    """Samples (n, C, L) or (n, L) of a .npy file (mapped, so it may be larger than memory) or a .npz file (in memory).

    In a .npz file their key is x, signals, signal, data or ``x_PART``, or they are the only array of 2 or 3 dimensions;
    labels are y, labels, label, targets or ``y_PART``; "channels" holds channel names, "classes" the names of the
    labels, "rate" the samples per second.
    """

    def __init__(
        self, path: Path, taken: Taken, *, name: str = "signal", time_first: bool | None = None, part: str = "train"
    ):
        self.taken, self.part, self.time_first = taken, part, time_first
        self._names: tuple[str, ...] | None = None
        self._rate: float | None = None
        super().__init__(path, name)

    def read(self, index: int, rng: Rng) -> Sample:
        x = np.array(self._values[index])
        x = x[None] if x.ndim == 1 else x.T if self._time_first else x
        rows, names = self.taken.rows(self._names, len(x))
        by = self.taken.ratios([self._rate])[0]
        if by != 1:
            count = length_after(x.shape[1], by)
            x = np.stack([resampled(x[row], by, 0, count) for row in rows])
        else:
            x = x[rows]
        return Sample({self.modality: {"x": x, "channels": names}}, self.name(index), self.label(index))

    def fingerprint(self) -> str:
        """Shape, type, labels, some of the values and what is taken."""
        values = np.ascontiguousarray(self._values[:: max(1, len(self) // 16)])
        return fingerprint("samples", self._values.shape, self._values.dtype, values, self._labels, self.taken)

    def find(self, file: Path) -> tuple[np.ndarray, np.ndarray | None]:
        with open_array_file(file) as stored:
            return (stored, None) if isinstance(stored, np.ndarray) else self._members(stored)

    def check(self, values: np.ndarray) -> None:
        if values.ndim not in (2, 3) or not values.size or values.dtype.kind not in "biuf":
            raise MaemmError(
                f"samples need numbers of shape (n, channels, length) or (n, length), the array is {values.dtype} "
                f"{values.shape} ({self.file}); for one recording set data.source.array=recording"
            )
        self._time_first = values.ndim == 3 and time_is_first(values.shape, self.time_first)
        channels = 1 if values.ndim == 2 else values.shape[2 if self._time_first else 1]
        if self._names is not None and len(self._names) != channels:
            raise MaemmError(f"{len(self._names)} channel names for {channels} channels ({self.file}); name each one")

    def _members(self, archive: NpzFile) -> tuple[np.ndarray, np.ndarray | None]:
        """Signals and labels; names and rate are attributes."""
        keys = archive.files
        key = next((key for key in (*_SIGNALS, f"x_{self.part}") if key in keys), None)
        if key is None:
            candidates = [key for key in keys if archive[key].ndim in (2, 3)]
            if len(candidates) != 1:
                content = ", ".join(keys) or "nothing"
                raise MaemmError(
                    f"cannot tell which array holds the signals ({self.file}: {content}); call it 'x', or set part"
                )
            key = candidates[0]
        self._names, self._rate = names_in(archive), rate_in(archive)
        if "classes" in keys:
            self.classes = tuple(str(name) for name in archive["classes"])
        label_keys = (f"y_{self.part}",) if key == f"x_{self.part}" else _LABELS
        labels = next((archive[key] for key in label_keys if key in keys), None)
        return archive[key], labels
