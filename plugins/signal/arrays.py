"""Many samples in one array file as a source."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Label, Sample, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.files import fingerprint, printable_name, whole_labels
from maemm.data.labels import label_at

from .files import Taken
from .recordings import load_numbers, names_in, time_is_first
from .resample import length_after, resampled

_SIGNALS = ("x", "signals", "signal", "data")
_LABELS = ("y", "labels", "label", "targets")


class SampleArray(Source):
    """Samples (n, C, L) or (n, L) of a .npy file (mapped, so it may be larger than memory) or a .npz file (in memory).

    In a .npz file they stand under x, signals, signal, data or ``x_PART``, or are the only array of 2 or 3 dimensions;
    labels under y, labels, label, targets or ``y_PART``; "channels" holds their names and "classes" those of the
    labels. "rate" is in samples per second.
    """

    def __init__(
        self, path: Path, taken: Taken, *, name: str = "signal", time_first: bool | None = None, part: str = "train"
    ):
        self.file, self.taken, self.modality, self.part = path, taken, name, part
        self.time_first = time_first
        self._open()

    def __len__(self) -> int:
        return len(self._x)

    def name(self, index: int) -> str:
        """``file#index``."""
        return f"{printable_name(self.file.name)}#{index}"

    def read(self, index: int, rng: Rng) -> Sample:
        x = np.array(self._x[index])
        x = x[None] if x.ndim == 1 else x.T if self._turned else x
        rows, names = self.taken.rows(self._names, len(x))
        by = self.taken.ratios([self._rate])[0]
        if by != 1:
            count = length_after(x.shape[1], by)
            x = np.stack([resampled(x[row], by, 0, count) for row in rows])
        else:
            x = x[rows]
        return Sample({self.modality: {"x": x, "channels": names}}, self.name(index), self.label(index))

    def label(self, index: int) -> Label | None:
        return label_at(self._labels, index)

    def files(self) -> Iterable[Path]:
        return (self.file,)

    def fingerprint(self) -> str:
        """Shape, type, labels, some of the values and what is taken."""
        some = np.ascontiguousarray(self._x[:: max(1, len(self) // 16)])
        return fingerprint("samples", self._x.shape, self._x.dtype, some, self._labels, self.taken)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_x", "_labels")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()  # a mapped array would otherwise be copied into the message to the worker

    def _open(self) -> None:
        self._names, self._rate = None, None
        try:
            with load_numbers(self.file) as stored:
                x, labels = (stored, None) if isinstance(stored, np.ndarray) else self._members(stored)
        except MaemmError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy have many
            why = " ".join(str(error).split()) or type(error).__name__
            if "Object arrays" in why:
                why = "it holds Python objects, which may run code"
            raise MaemmError(f"cannot read the array ({self.file}: {why}); save plain numbers with numpy") from error
        if x.ndim not in (2, 3) or not x.size or x.dtype.kind not in "biuf":
            raise MaemmError(
                f"samples need numbers of shape (n, channels, length) or (n, length), the array is {x.dtype} "
                f"{x.shape} ({self.file}); for one recording set data.source.array=recording"
            )
        self._turned = x.ndim == 3 and time_is_first(x.shape, self.time_first)
        channels = 1 if x.ndim == 2 else x.shape[2 if self._turned else 1]
        if self._names is not None and len(self._names) != channels:
            raise MaemmError(f"{len(self._names)} channel names for {channels} channels ({self.file}); name each one")
        self._x, self._labels = x, whole_labels(labels, len(x), self.file, multilabel=True)
        self.multilabel = self._labels is not None and self._labels.ndim == 2

    def _members(self, archive: Any) -> tuple[np.ndarray, np.ndarray | None]:
        keys = archive.files
        key = next((one for one in (*_SIGNALS, f"x_{self.part}") if one in keys), None)
        if key is None:
            fit = [one for one in keys if archive[one].ndim in (2, 3)]
            if len(fit) != 1:
                held = ", ".join(keys) or "nothing"
                raise MaemmError(
                    f"cannot tell which array holds the signals ({self.file}: {held}); call it 'x', or set part"
                )
            key = fit[0]
        label_keys = (f"y_{self.part}",) if key == f"x_{self.part}" else _LABELS
        self._names = names_in(archive)
        self._rate = next((float(archive[one]) for one in ("rate", "fs") if one in keys), None)
        if "classes" in keys:
            self.classes = tuple(str(one) for one in archive["classes"])
        found = next((archive[one] for one in label_keys if one in keys), None)
        return archive[key], found
