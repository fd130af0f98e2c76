"""Formats that need an extra package: EDF and BDF through pyedflib, WFDB through wfdb."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from maemm.contract.errors import MaemmError

from .recordings import Header, uniform_header, unique_names


def need(package: str) -> ModuleType:
    """Import an optional package. Raises :class:`MaemmError` that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from their dependencies
            return importlib.import_module(package)
    except ImportError as error:
        raise MaemmError(
            f"such files need the package {package!r} ({error}); run: pip install 'maemm[signal]'"
        ) from None


class EDF:
    """EDF, EDF+ and BDF in physical units, read in parts; annotations are left out. Rates may differ by channel."""

    def header(self, path: Path) -> Header:
        with closing(self._opened(path)) as file:
            rates = tuple(map(float, file.getSampleFrequencies()))
            lengths = tuple(map(int, file.getNSamples()))
            return Header(unique_names(file.getSignalLabels()), rates, lengths)

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        with closing(self._opened(path)) as file:
            parts = [file.readSignal(row, start, stop - start) for row, (start, stop) in zip(rows, spans, strict=True)]
        for x, (start, stop) in zip(parts, spans, strict=True):
            if len(x) != stop - start:
                raise ValueError(f"the file ends before sample {stop:,}")
        return parts

    def _opened(self, path: Path) -> Any:
        pyedflib = need("pyedflib")
        if not path.stat().st_size:
            raise ValueError("empty file (0 bytes)")
        try:
            return pyedflib.EdfReader(os.fspath(path))
        except OSError as error:
            # Its text repeats the path, which messages name anyway.
            raise ValueError(str(error).replace(os.fspath(path), "").strip(" :") or "not a readable EDF file") from None


class WFDB:
    """WFDB records (PhysioNet) in physical units by their ``.hea`` file, read in parts."""

    def header(self, path: Path) -> Header:
        head = self._called("rdheader", path)
        if not head.n_sig or not head.sig_len:
            raise ValueError("the header names no channels, or no length")
        folder = os.path.dirname(os.path.abspath(path))
        missing = [name for name in set(head.file_name or ()) if not os.path.exists(os.path.join(folder, name))]
        if missing:
            raise ValueError(f"{min(missing)} is missing, which holds its samples")
        names = head.sig_name or [str(i) for i in range(head.n_sig)]
        return uniform_header(names, float(head.fs), head.n_sig, int(head.sig_len))

    def read(self, path: Path, rows: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        first, last = min(start for start, _ in spans), max(stop for _, stop in spans)
        record = self._called("rdrecord", path, sampfrom=first, sampto=last, channels=list(rows))
        x = record.p_signal
        if x is None or x.shape != (last - first, len(rows)):
            raise ValueError(f"holds {0 if x is None else len(x):,} of {last - first:,} samples")
        return [x[start - first : stop - first, i] for i, (start, stop) in enumerate(spans)]

    def _called(self, function: str, path: Path, **options: Any) -> Any:
        wfdb = need("wfdb")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return getattr(wfdb, function)(os.path.splitext(os.path.abspath(path))[0], **options)
        except (MemoryError, MaemmError):
            raise
        except Exception as error:  # IndexError, KeyError, TypeError and others for broken headers
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, FileNotFoundError) and error.filename:
                reason = f"{os.path.basename(error.filename)} is missing"
            raise ValueError(f"not a readable record ({reason})") from None
