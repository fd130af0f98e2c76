"""The labels of a whole source, few of them, and how often each sample is drawn so that classes are met alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError


def labels_of(source: Source) -> np.ndarray:
    """(n,) int64, -1 for none; or (n, classes) int8 of 0 and 1 where samples may have several, -1 through for none.

    A sample whose label cannot be told counts as one without.
    """
    found = []
    for index in range(len(source)):
        try:
            found.append(source.label(index))
        except MemoryError:
            raise
        except Exception:  # whatever a broken file does; the loader counts it
            found.append(None)
    if not any(isinstance(one, tuple) for one in found):
        return np.array([-1 if one is None else one for one in found], np.int64)
    rows = [one if isinstance(one, tuple) or one is None else (one,) for one in found]
    width = max(len(source.classes or ()), 1 + max((max(row) for row in rows if row), default=0))
    table = np.zeros((len(rows), width), np.int8)
    for place, row in zip(table, rows, strict=True):
        if row is None:
            place.fill(-1)
        else:
            place[list(row)] = 1
    return table


def has_label(labels: np.ndarray) -> np.ndarray:
    """(n,) bool of what :func:`labels_of` gives."""
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def balancing(labels: np.ndarray) -> np.ndarray:
    """(n,) float64 weights: the sum over a sample's labels of 1 / (samples with that label).

    AudioMAE's and CAV-MAE's weights up to a factor. Raises :class:`MaemmError` where there are no labels.
    """
    known = has_label(labels)
    if not known.any():
        raise MaemmError("samples have no labels to balance (data.balance); set it to false")
    if labels.ndim == 1:
        counts = np.bincount(labels[known])
        return np.where(known, 1.0 / np.maximum(counts[np.maximum(labels, 0)], 1), 0.0)
    own = np.maximum(labels, 0)
    return own @ (1.0 / np.maximum(own.sum(0, dtype=np.int64), 1))


@dataclass(frozen=True)
class Shots:
    """How many labels of each class a classifier may see."""

    text: str  # "5": samples of each class; "10%": share of each class; "all"
    count: int | None = None
    fraction: float | None = None

    @classmethod
    def parse(cls, text: str) -> Shots:
        """Read "5", "10%" or "all"; raises :class:`MaemmError`."""
        text = text.strip()
        try:
            if text == "all":
                return cls(text, fraction=1.0)
            if text.endswith("%"):
                fraction = float(text[:-1]) / 100
                if 0 < fraction <= 1:
                    return cls(text, fraction=fraction)
            elif int(text) > 0:
                return cls(text, count=int(text))
        except ValueError:
            pass
        raise MaemmError(f"--shots {text!r} means nothing; give samples of a class or a share, such as 1,5,10%")

    def choose(self, labels: np.ndarray, seed: int, classes: Sequence[str] | None = None) -> np.ndarray:
        """Indices of a part of the samples, at least one of every class. More shots of one seed contain fewer.

        ``labels`` (n,) or (n, classes); where samples have several, a class may get more. ``classes``: their names.
        Raises :class:`MaemmError` where a class has fewer samples than asked for.
        """
        drawn, found = np.random.default_rng(seed), []
        multilabel = labels.ndim == 2
        for label in range(labels.shape[1]) if multilabel else np.unique(labels[labels >= 0]):
            of_class = np.flatnonzero(labels[:, label] > 0 if multilabel else labels == label)
            rows = drawn.permutation(of_class)
            if not len(rows):
                continue
            wanted = max(1, round(self.fraction * len(rows))) if self.count is None else self.count
            if wanted > len(rows):
                name = f"label {label}" if classes is None else f"class {classes[label]!r}"
                raise MaemmError(f"{name} has {len(rows)} samples, --shots asks for {wanted}; ask for fewer")
            found.append(rows[:wanted])
        if not found:
            raise MaemmError("samples have no labels to choose from (data.shots); give data with labels")
        return np.unique(np.concatenate(found))
