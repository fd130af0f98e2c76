"""Features of many samples, with their ids, labels and digests, and what had to be skipped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.shots import has_label

LOST = ""  # key of a batch of which nothing could be read


@dataclass(frozen=True)
class Features:
    """Features of n samples of one modality."""

    x: np.ndarray  # (n, D) float32, or (n, N, D) of tokens
    # (n,) int64, -1 for a sample without a label; multi-label: (n, classes) int8 of 0 and 1, -1 for one without labels
    labels: np.ndarray
    ids: list[str]
    skipped: list[BadSample] = field(default_factory=list)  # unreadable, or without finite features
    digests: np.ndarray | None = None  # (n,) int64 of what was loaded; equal content, equal digest
    classes: tuple[str, ...] | None = None  # names of the labels
    valid: np.ndarray | None = None  # (n, N) bool of tokens, where samples differ in their number

    def __len__(self) -> int:
        return len(self.x)

    def select(self, rows: np.ndarray | Sequence[int]) -> Features:
        """The samples ``rows`` (indices or a bool per sample), in that order."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        return replace(
            self,
            x=self.x[rows],
            labels=self.labels[rows],
            ids=[self.ids[row] for row in rows],
            digests=None if self.digests is None else self.digests[rows],
            valid=None if self.valid is None else self.valid[rows],
        )

    @property
    def multilabel(self) -> bool:
        """Whether a sample may have several labels."""
        return self.labels.ndim == 2

    @property
    def has_label(self) -> np.ndarray:
        """(n,) bool"""
        return has_label(self.labels)

    @property
    def labelled(self) -> Features:
        """Only the samples that have a label."""
        has_label = self.has_label
        return self if has_label.all() else self.select(has_label)


def check_any(features: Features, total: int) -> None:
    """Raises :class:`MaemmError` with the first reason where none of ``total`` samples is left."""
    if len(features):
        return
    first = f" (first: {features.skipped[0].id}: {features.skipped[0].reason})" if features.skipped else ""
    raise MaemmError(f"none of {total:,} samples gave features{first}; check the data and the weights")


def complete(rows: int, skipped: int, total: int, advice: str) -> None:
    """Raises :class:`MaemmError` unless each of ``total`` samples is a row or was skipped: nothing is lost unseen."""
    if rows + skipped != total:
        raise MaemmError(f"{rows:,} rows and {skipped:,} skipped samples are not the {total:,} of the data; {advice}")


# ------------------------------------------------------------------------------------------- joining batches
def join(batches: Iterable[Mapping[str, Features]]) -> dict[str, Features]:
    """Concatenate the features of batches, by modality. Raises :class:`MaemmError` where their widths differ.

    Where nothing at all could be read, the only key is :data:`LOST`.
    """
    parts: dict[str, list[Features]] = {}
    for batch in batches:
        for name, features in batch.items():
            parts.setdefault(name, []).append(features)
    lost = parts.pop(LOST, [])
    if not parts:
        return {LOST: _concatenate(LOST, lost)} if lost else {}
    return {name: _concatenate(name, own + lost) for name, own in parts.items()}


def _concatenate(name: str, batches: list[Features]) -> Features:
    filled = [batch for batch in batches if len(batch)] or batches[:1]
    widths = sorted({batch.x.shape[-1] for batch in filled})
    if len(widths) > 1:
        raise MaemmError(f"features of {name!r} differ in width ({widths[0]} to {widths[-1]}); they are no table")
    x, valid = [batch.x for batch in filled], None
    if x[0].ndim == 3:
        x, valid = _pad_tokens(filled)
    digests = [batch.digests for batch in filled if batch.digests is not None]
    return Features(
        np.concatenate(x),
        concatenate_labels([batch.labels for batch in filled]),
        [id for batch in filled for id in batch.ids],
        sorted((bad for batch in batches for bad in batch.skipped), key=lambda bad: bad.index),
        np.concatenate(digests) if len(digests) == len(filled) else None,
        filled[0].classes,
        None if valid is None else np.concatenate(valid),
    )


def _pad_tokens(batches: list[Features]) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Token features and their validity, of one length; None where every token is valid."""
    x = [batch.x for batch in batches]
    longest = max(tokens.shape[1] for tokens in x)
    gaps = [longest - tokens.shape[1] for tokens in x]
    if not any(gaps) and all(batch.valid is None for batch in batches):
        return x, None
    valid = [np.ones(batch.x.shape[:2], bool) if batch.valid is None else batch.valid for batch in batches]
    return (
        [np.pad(tokens, ((0, 0), (0, gap), (0, 0))) for tokens, gap in zip(x, gaps, strict=True)],
        [np.pad(mask, ((0, 0), (0, gap))) for mask, gap in zip(valid, gaps, strict=True)],
    )


def concatenate_labels(parts: list[np.ndarray]) -> np.ndarray:
    """Labels of samples one after the other; multi-label tables get as many classes as the widest part has."""
    if all(labels.ndim == 1 for labels in parts):
        return np.concatenate(parts)
    width = max(labels.shape[1] for labels in parts if labels.ndim == 2)
    # A part with one label per sample stands beside multi-label ones only where none of its samples has a label.
    tables = [np.full((len(labels), width), -1, np.int8) if labels.ndim == 1 else labels for labels in parts]
    return np.concatenate([np.pad(table, ((0, 0), (0, width - table.shape[1]))) for table in tables])
