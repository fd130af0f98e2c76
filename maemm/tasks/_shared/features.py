"""Features of a frozen model, with ids, labels and what had to be skipped.

``features`` reads a source once, without augmentation and without masks. Every sample also gets a digest of what its
modality loaded, so that the same content is found again under another name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality, Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.labels import known, multi_hot
from maemm.data.loader import Batch
from maemm.data.shots import has_label
from maemm.data.single_pass import Progress, each
from maemm.data.tta import TtaModality
from maemm.model.build import build_modalities
from maemm.model.model import Model

NOT_FINITE = "features are not finite"
LOST = ""  # key of a batch of which nothing could be read
Embed = Callable[[Model, dict[str, Preprocessed]], dict[str, Tensor]]


@dataclass(frozen=True)
class Features:
    """Features of n samples of one modality."""

    x: np.ndarray  # (n, D) float32, or (n, N, D) of tokens
    # (n,) int64, -1 where a sample has none; (n, classes) int8 of 0 and 1 where samples may have several, -1 for none
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
        some = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in ("digests", "valid")
        }
        return replace(self, x=self.x[rows], labels=self.labels[rows], ids=[self.ids[row] for row in rows], **some)

    @property
    def multilabel(self) -> bool:
        """Whether samples may have several labels."""
        return self.labels.ndim == 2

    @property
    def has_label(self) -> np.ndarray:
        """(n,) bool"""
        return has_label(self.labels)

    @property
    def labelled(self) -> Features:
        """Only the samples that have a label."""
        known = self.has_label
        return self if known.all() else self.select(known)


def features(
    model: Model,
    source: Source,
    *,
    batch: int = 64,
    workers: int = 0,
    pool: str | None = None,
    norm: str | None = None,
    layers: Iterable[int] | None = None,
    tokens: bool = False,
    embed: Embed | None = None,
    tta_views: int = 1,
    on_progress: Progress | None = None,
) -> dict[str, Features]:
    """{modality: features of all samples of ``source``}, nothing hidden; see :meth:`Model.embed` for the choices.

    The model works where its weights are, in eval mode. ``embed`` replaces :meth:`Model.embed` by another function of
    the model and a preprocessed batch, with ``tta_views`` neighbouring rows of each sample; it gives one
    row for each sample. ``on_progress(done, all)`` counts samples. Raises :class:`MaemmError` where no
    sample can be read, or none has finite features.
    """
    embed = embed or embedder(pool, norm, layers, tokens)
    found = join(
        pieces(model, source, embed, batch=batch, workers=workers, tta_views=tta_views, on_progress=on_progress)
    )
    for one in found.values():
        check_any(one, len(source))
    if not found:
        raise MaemmError("there are no samples to embed; give a data set that is not empty")
    return found


def embedder(
    pool: str | None = None, norm: str | None = None, layers: Iterable[int] | None = None, tokens: bool = False
) -> Embed:
    """:meth:`Model.embed` with these choices, as a function of the model and a prepared batch."""
    chosen = None if layers is None else list(layers)
    return lambda model, batch: model.embed(batch, pool=pool, norm=norm, layers=chosen, tokens=tokens)


def contents(model: Model, source: Source, *, workers: int = 0, on_progress: Progress | None = None) -> Features:
    """Ids and digests of what is loaded, without any features: to look for samples that two data sets share."""
    parts = build_modalities(model.recipe) if workers else dict(model.modalities)
    digested = {name: _Digested(one) for name, one in parts.items()}
    ids: list[str] = []
    digests = [np.zeros(0, np.int64)]
    with closing(each(source, digested, workers=workers, on_progress=on_progress)) as batches:
        for one in batches:
            if one.raw:
                ids += one.ids
                digests.append(_joint([part["digest"] for part in one.raw.values()]))
    return Features(np.zeros((len(ids), 0), np.float32), np.full(len(ids), -1), ids, [], np.concatenate(digests))


def raw_values(model: Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
    """The baseline of every representation: the numbers that the model sees, as one vector for each sample.

    Raises :class:`MaemmError` where samples have no vector of one length, as with padding.
    """
    for name, one in batch.items():
        if one.valid is not None and not bool(one.valid.all()):
            raise MaemmError(f"samples of {name!r} differ in size, so their raw values are no vector of one length")
    return {name: one.x.flatten(1) for name, one in batch.items()}


# ----------------------------------------------------------------------------------------------- reading once
def pieces(
    model: Model,
    source: Source,
    embed: Embed,
    *,
    batch: int = 64,
    workers: int = 0,
    tta_views: int = 1,
    on_progress: Progress | None = None,
) -> Iterator[dict[str, Features]]:
    """Features batch by batch, in the order of the source; :func:`join` puts them together."""
    parts: dict[str, Any] = build_modalities(model.recipe) if workers else dict(model.modalities)
    if tta_views > 1:
        parts = {name: TtaModality(one, tta_views) for name, one in parts.items()}
    loaded = each(
        source,
        {name: _Digested(one) for name, one in parts.items()},
        batch=max(1, batch // tta_views),
        workers=workers,
        on_progress=on_progress,
    )
    device = next(model.parameters()).device
    classes = None if source.classes is None else tuple(source.classes)
    with closing(loaded), evaluating(model):
        for one in loaded:
            yield _piece(model, one.to(device), embed, classes)


def _piece(model: Model, batch: Batch, embed: Embed, classes: tuple[str, ...] | None) -> dict[str, Features]:
    if not batch.raw:
        empty = Features(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), [], batch.bad, np.zeros(0, np.int64))
        return {LOST: empty}
    digests = _joint([one["digest"] for one in batch.raw.values()])
    preprocessed = model.preprocess({name: one["raw"] for name, one in batch.raw.items()}, None)
    labels = _labels(batch, classes)
    found = {}
    for name, values in embed(model, preprocessed).items():
        x = values.float().cpu().numpy()
        valid = _valid_tokens(model, name, preprocessed) if x.ndim == 3 else None
        found[name] = Features(x, labels, list(batch.ids), list(batch.bad), digests, classes, valid)
    return _finite(found, batch.rows)


def _labels(batch: Batch, classes: tuple[str, ...] | None) -> np.ndarray:
    if batch.labels is None:
        return np.full(len(batch.ids), -1, np.int64)
    labels = batch.labels.cpu()
    if labels.ndim == 1:
        return labels.numpy().astype(np.int64)
    hot = multi_hot(labels, max(len(classes or ()), int(labels.max()) + 1, 1)).to(torch.int8)
    return torch.where(known(labels)[:, None], hot, -1).to(torch.int8).numpy()


def _valid_tokens(model: Model, name: str, preprocessed: dict[str, Preprocessed]) -> np.ndarray | None:
    """(B, N) bool, valid tokens first as :meth:`Model.embed` orders them; None: all are."""
    tokens = model.modalities[name].tokenize(preprocessed[name])
    if tokens.valid is None:
        return None
    return (tokens.everything() < tokens.valid.sum(1, keepdim=True)).cpu().numpy()


def _finite(found: dict[str, Features], rows: list[int]) -> dict[str, Features]:
    """Without the samples that have a feature in any modality that is not finite; those are skipped."""
    good = np.logical_and.reduce([np.isfinite(one.x.reshape(len(one), -1)).all(1) for one in found.values()])
    if good.all():
        return found
    ids = next(iter(found.values())).ids
    bad = [BadSample(rows[i], ids[i], NOT_FINITE) for i in np.flatnonzero(~good)]
    return {name: replace(one.select(good), skipped=one.skipped + bad) for name, one in found.items()}


def join(found: Iterable[Mapping[str, Features]]) -> dict[str, Features]:
    """Features of one modality one after the other. Raises :class:`MaemmError` where their widths differ.

    Where nothing at all could be read, the only key is :data:`LOST`.
    """
    parts: dict[str, list[Features]] = {}
    for piece in found:
        for name, one in piece.items():
            parts.setdefault(name, []).append(one)
    lost = parts.pop(LOST, [])
    if not parts:
        return {LOST: _joined(LOST, lost)} if lost else {}
    return {name: _joined(name, some + lost) for name, some in parts.items()}


def _joined(name: str, some: list[Features]) -> Features:
    full = [one for one in some if len(one)] or some[:1]
    if len({one.x.shape[-1] for one in full}) > 1:
        widths = sorted({one.x.shape[-1] for one in full})
        raise MaemmError(f"features of {name!r} differ in width ({widths[0]} to {widths[-1]}); they are no table")
    x, valid = [one.x for one in full], [one.valid for one in full]
    if x[0].ndim == 3:
        x, valid = _padded(x, valid)
    return Features(
        np.concatenate(x),
        joined_labels([one.labels for one in full]),
        [id for one in full for id in one.ids],
        sorted((bad for one in some for bad in one.skipped), key=lambda bad: bad.index),
        np.concatenate([one.digests for one in full]),
        full[0].classes,
        None if valid[0] is None else np.concatenate(valid),
    )


def joined_labels(parts: list[np.ndarray]) -> np.ndarray:
    """Labels of samples one after the other; of several labels as many classes as any part has."""
    if all(one.ndim == 1 for one in parts):
        return np.concatenate(parts)
    width = max(one.shape[1] for one in parts if one.ndim == 2)
    whole = [np.full((len(one), width), -1, np.int8) if one.ndim == 1 else one for one in parts]  # no labels there
    return np.concatenate([np.pad(one, ((0, 0), (0, width - one.shape[1])), mode="constant") for one in whole])


def _padded(x: list[np.ndarray], valid: list[np.ndarray | None]) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """Token features of batches of different lengths -> one length, with validity where it is needed."""
    longest = max(one.shape[1] for one in x)
    if all(one is None for one in valid) and all(one.shape[1] == longest for one in x):
        return x, [None]
    known = [np.ones(one.shape[:2], bool) if v is None else v for one, v in zip(x, valid, strict=True)]
    gaps = [longest - one.shape[1] for one in x]
    return (
        [np.pad(one, ((0, 0), (0, gap), (0, 0))) for one, gap in zip(x, gaps, strict=True)],
        [np.pad(one, ((0, 0), (0, gap))) for one, gap in zip(known, gaps, strict=True)],
    )


def check_any(found: Features, total: int) -> None:
    """Raises :class:`MaemmError` that tells the first reason where nothing is left."""
    if len(found):
        return
    first = f" (first: {found.skipped[0].id}: {found.skipped[0].reason})" if found.skipped else ""
    raise MaemmError(f"none of {total:,} samples gave features{first}; check the data and the weights")


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode without gradients; the mode before it comes back."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


# ----------------------------------------------------------------------------------------------- same content
class _Digested:
    """A modality in the worker that also tells a digest of what it loaded."""

    def __init__(self, inner: Modality):
        self.inner = inner

    def load(self, raw: Any, rng: Any) -> tuple[dict[str, Any], int]:
        loaded = self.inner.load(raw, rng)
        return loaded, digest(loaded)

    def collate(self, samples: list[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        raw = self.inner.collate([one for one, _ in samples])
        return {"raw": raw, "digest": torch.tensor([one for _, one in samples])}


def digest(value: Any) -> int:
    """A signed 63-bit number of the tensors, arrays and numbers in ``value``."""
    state = hashlib.blake2b(digest_size=8)
    _feed(state, value)
    return int.from_bytes(state.digest(), "little") >> 1


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(str(key).encode())
            _feed(state, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _feed(state, one)
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    else:
        state.update(repr(value).encode())


def _joint(digests: list[Tensor]) -> np.ndarray:
    """One digest for each sample over all its modalities."""
    found = digests[0].cpu().numpy()
    for one in digests[1:]:
        found = found * np.int64(1_000_003) ^ one.cpu().numpy()
    return found
