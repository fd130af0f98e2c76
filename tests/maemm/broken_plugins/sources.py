"""Sources that break one rule each."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from maemm.contract import Sample, Source
from maemm.contract.rng import Rng
from maemm.data.arrays import ArrayFiles
from maemm.testing.toy import SIGNAL
from maemm.testing.toy_signal import open_signals, write


class _Changed(Source):
    """A correct source whose samples a subclass changes."""

    def __init__(self, inner: Source):
        self.inner, self.reads = inner, 0

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, index: int, rng: Rng) -> Sample:
        self.reads += 1
        sample = self.inner.read(index, rng)
        return Sample({SIGNAL: self.change(sample.raw[SIGNAL])}, sample.id, sample.label)

    def change(self, x: np.ndarray) -> np.ndarray:
        return x


class _Nameless(_Changed):
    def read(self, index: int, rng: Rng) -> Sample:
        return Sample(super().read(index, rng).raw, "")


class _Counting(_Changed):
    def change(self, x: np.ndarray) -> np.ndarray:
        return x + self.reads


class _ThisProcess(_Changed):
    """Reads other values in a process that did not open it, such as a forked worker."""

    def __init__(self, inner: Source):
        super().__init__(inner)
        self.home = os.getpid()

    def change(self, x: np.ndarray) -> np.ndarray:
        return x + float(os.getpid() != self.home)


class _Lambda(_Changed):
    def __init__(self, inner: Source):
        super().__init__(inner)
        self.scale = lambda x: x


class _Turned(_Changed):
    def change(self, x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x, 0, -1)


class _Forgiving(_Changed):
    def read(self, index: int, rng: Rng) -> Sample:
        try:
            return super().read(index, rng)
        except ValueError:
            return Sample({SIGNAL: np.zeros((2, 8, 8), np.float32)}, self.name(index))


def open_nameless(root: str | None, list: str | None = None) -> Source:
    return _Nameless(open_signals(root, list))


def open_counting(root: str | None, list: str | None = None) -> Source:
    return _Counting(open_signals(root, list))


def open_this_process(root: str | None, list: str | None = None) -> Source:
    return _ThisProcess(open_signals(root, list))


def open_lambda(root: str | None, list: str | None = None) -> Source:
    return _Lambda(open_signals(root, list))


def open_turned(root: str | None, list: str | None = None) -> Source:
    return _Turned(open_signals(root, list))


def open_forgiving(root: str | None, list: str | None = None) -> Source:
    return _Forgiving(open_signals(root, list))


def open_anything(root: str | None, list: str | None = None) -> Source:
    """Opens a folder that is not there."""
    if not Path(root or "").exists():
        return ArrayFiles(Path("."), [], None, None, name=SIGNAL)
    return open_signals(root, list)


__all__ = ["SOURCES", "write"]

SOURCES = {
    "samples_are_whole": "open_nameless",
    "source_is_repeatable": "open_counting",
    "another_process_reads_the_same": "open_lambda",
    "samples_fit_their_modality": "open_turned",
    "workers_change_nothing": "open_this_process",
    "broken_files_are_counted": "open_forgiving",
    "missing_data_are_named": "open_anything",
}
