"""The labels of a whole source, subsets with few labels per class, and weights that balance classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maemm.contract import Label, Source
from maemm.contract.errors import MaemmError


def labels_of(source: Source) -> np.ndarray:
    """(n,) int64, -1 for none; where samples may have several (n, classes) int8 of 0 and 1, a row of -1 for none.

    A sample whose label cannot be read counts as one without.
    """
    labels: list[Label | None] = []
    for index in range(len(source)):
        try:
            labels.append(source.label(index))
        except MemoryError:
            raise
        except Exception:  # whatever a broken file does; the loader counts it
            labels.append(None)
    if not any(isinstance(label, tuple) for label in labels):
        return np.array([-1 if label is None else label for label in labels], np.int64)
    rows = [label if isinstance(label, tuple) or label is None else (label,) for label in labels]
    width = max(len(source.classes or ()), 1 + max((max(row) for row in rows if row), default=0))
    table = np.zeros((len(rows), width), np.int8)
    for target, row in zip(table, rows, strict=True):
        if row is None:
            target.fill(-1)
        else:
            target[list(row)] = 1
    return table


def has_label(labels: np.ndarray) -> np.ndarray:
    """(n,) bool: which samples of :func:`labels_of` have labels."""
    return (labels if labels.ndim == 1 else labels[:, 0]) >= 0


def balancing(labels: np.ndarray) -> np.ndarray:
    """(n,) float64 weights: the sum over a sample's labels of 1 / (samples with that label).

    AudioMAE's and CAV-MAE's weights up to a factor. Raises :class:`MaemmError` where there are no labels.
    """
    labelled = has_label(labels)
    if not labelled.any():
        raise MaemmError("samples have no labels to balance (data.balance); set it to false")
    if labels.ndim == 1:
        counts = np.bincount(labels[labelled])
        return np.where(labelled, 1.0 / np.maximum(counts[np.maximum(labels, 0)], 1), 0.0)
    hot = np.maximum(labels, 0)
    return hot @ (1.0 / np.maximum(hot.sum(0, dtype=np.int64), 1))


@dataclass(frozen=True)
class Shots:
    """How many labels of each class a classifier may see: ``count``, or where it is None ``fraction``."""

    text: str  # "5": samples per class; "10%": fraction of each class; "all"
    count: int | None = None
    fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Shots:
        """Read "5", "10%" or "all"; raises :class:`MaemmError`."""
        text = text.strip()
        try:
            if text == "all":
                return cls(text)
            if text.endswith("%"):
                fraction = float(text[:-1]) / 100
                if 0 < fraction <= 1:
                    return cls(text, fraction=fraction)
            elif int(text) > 0:
                return cls(text, count=int(text))
        except ValueError:
            pass
        raise MaemmError(f"--shots {text!r} is not valid; give samples per class or a percentage, such as 1,5,10%")

    def choose(self, labels: np.ndarray, seed: int, classes: Sequence[str] | None = None) -> np.ndarray:
        """Sorted indices of the chosen samples, at least one per class. With one seed, more shots include fewer.

        ``labels`` (n,) or (n, classes); where samples have several, a class may get more. ``classes``: their names, for
        messages. Raises :class:`MaemmError` where a class has fewer samples than needed, and without any labels.
        """
        generator = np.random.default_rng(seed)
        chosen: list[np.ndarray] = []
        multilabel = labels.ndim == 2
        for label in range(labels.shape[1]) if multilabel else np.unique(labels[labels >= 0]):
            of_class = np.flatnonzero(labels[:, label] > 0 if multilabel else labels == label)
            rows = generator.permutation(of_class)
            if not len(rows):
                continue
            count = max(1, round(self.fraction * len(rows))) if self.count is None else self.count
            if count > len(rows):
                name = f"label {label}" if classes is None else f"class {classes[label]!r}"
                raise MaemmError(f"{name} has {len(rows)} samples, --shots needs {count}; use fewer")
            chosen.append(rows[:count])
        if not chosen:
            raise MaemmError("samples have no labels to choose from (data.shots); give data with labels")
        return np.unique(np.concatenate(chosen))
