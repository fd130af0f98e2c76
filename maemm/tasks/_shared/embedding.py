"""Embed a source with a frozen model: read once, without augmentation, nothing hidden."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality, Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.labels import labelled, multi_hot
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.data.transfer import Work, overlapped
from maemm.data.tta import TtaModality
from maemm.model.build import build_modalities
from maemm.model.model import Model
from maemm.tasks._shared.digests import DigestingModality, combined
from maemm.tasks._shared.features import LOST, Features, check_any, complete, join

NOT_FINITE = "features are not finite"
# {modality: (B, D) or (B, N, D)} of a preprocessed batch; or such work, which may yield what it needs on the host
Embed = Callable[[Model, dict[str, Preprocessed]], dict[str, Tensor] | Work[dict[str, Tensor]]]


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
    """{modality: features of all samples of ``source``}; ``pool``, ``norm``, ``layers``, ``tokens``: see
    :meth:`Model.embed`.

    The model runs in eval mode on the device of its weights. ``embed`` replaces :meth:`Model.embed` by another
    function of the model and a preprocessed batch; with ``tta_views`` that batch has so many neighbouring rows for
    each sample, and ``embed`` returns one row for each sample. ``on_progress(done, all)`` counts samples. Raises
    :class:`MaemmError` where no sample can be read, or none has finite features.
    """
    embed = embed or embedder(pool, norm, layers, tokens)
    options: dict[str, Any] = {"batch": batch, "workers": workers, "tta_views": tta_views, "on_progress": on_progress}
    with closing(embed_batches(model, source, embed, **options)) as batches:
        by_modality = join(batches)
    for joined in by_modality.values():
        check_any(joined, len(source))
        complete(len(joined), len(joined.skipped), len(source), "start again, or set data.workers=0")
    if not by_modality:
        raise MaemmError("there are no samples to embed; give a data set that is not empty")
    return by_modality


def embedder(
    pool: str | None = None,
    norm: str | None = None,
    layers: Iterable[int] | None = None,
    tokens: bool = False,
    latents: bool = False,
) -> Embed:
    """:meth:`Model.embed` with these options, as a function of the model and a preprocessed batch."""
    blocks = None if layers is None else list(layers)
    options: dict[str, Any] = {"pool": pool, "norm": norm, "layers": blocks, "tokens": tokens}
    if latents:  # which few models have
        options["latents"] = True
    return lambda model, batch: model.embed(batch, **options)


def raw_values(model: Model, batch: dict[str, Preprocessed]) -> Work[dict[str, Tensor]]:
    """The baseline of every representation: {modality: (B, values)}, the input of the model itself.

    Raises :class:`MaemmError` where samples differ in size, as with padding.
    """
    all_valid = yield {name: x.valid.all() for name, x in batch.items() if x.valid is not None}
    for name, whole in all_valid.items():
        if not whole:
            raise MaemmError(f"samples of {name!r} differ in size, so their raw values are no vector of one length")
    return {name: x.x.flatten(1) for name, x in batch.items()}


def contents(model: Model, source: Source, *, workers: int = 0, on_progress: Progress | None = None) -> Features:
    """Ids and digests of what is loaded, with features of width 0: to look for samples that two data sets share."""
    modalities = _digesting(reading_modalities(model, workers))
    ids: list[str] = []
    digests = [np.zeros(0, np.int64)]
    with closing(each(source, modalities, workers=workers, on_progress=on_progress)) as batches:
        for batch in batches:
            if batch.raw:
                ids += batch.ids
                digests.append(combined([loaded["digest"] for loaded in batch.raw.values()]))
    return Features(np.zeros((len(ids), 0), np.float32), np.full(len(ids), -1), ids, [], np.concatenate(digests))


def embed_batches(
    model: Model,
    source: Source,
    embed: Embed,
    *,
    batch: int = 64,
    workers: int = 0,
    tta_views: int = 1,
    latents: bool = False,
    on_progress: Progress | None = None,
) -> Generator[dict[str, Features]]:
    """Features of each batch, in the order of the source; :func:`~maemm.tasks._shared.features.join` joins them.

    ``latents``: ``embed`` gives latent tokens, which are valid where tokens are padding.
    """
    modalities: Mapping[str, Any] = reading_modalities(model, workers)
    if tta_views > 1:
        modalities = {name: TtaModality(modality, tta_views) for name, modality in modalities.items()}
    loaded = each(
        source, _digesting(modalities), batch=max(1, batch // tta_views), workers=workers, on_progress=on_progress
    )
    classes = None if source.classes is None else tuple(source.classes)
    with closing(loaded), evaluating(model):
        yield from overlapped(_embed_batch(model, read, embed, classes, latents) for read in loaded)


def _embed_batch(
    model: Model, batch: Batch, embed: Embed, classes: tuple[str, ...] | None, latents: bool = False
) -> Work[dict[str, Features]]:
    """``batch``: on the host, where its labels and digests stay."""
    if not batch.raw:
        empty = Features(np.zeros((0, 0), np.float32), np.zeros(0, np.int64), [], batch.bad, np.zeros(0, np.int64))
        return {LOST: empty}
    digests = combined([loaded["digest"] for loaded in batch.raw.values()])
    raw = {name: loaded["raw"] for name, loaded in batch.raw.items()}
    moved = replace(batch, raw=raw, labels=None).to(next(model.parameters()).device)
    preprocessed = model.preprocess(moved.raw, None)
    values = embed(model, preprocessed)
    if isinstance(values, Generator):
        values = yield from values
    valid = {
        name: _valid_tokens(model, name, preprocessed) for name, x in values.items() if x.ndim == 3 and not latents
    }
    values, valid = yield {name: x.float() for name, x in values.items()}, valid
    labels = _labels(batch, classes)
    by_modality = {
        name: Features(x.numpy(), labels, list(batch.ids), list(batch.bad), digests, classes, _array(valid.get(name)))
        for name, x in values.items()
    }
    # A sample with a value that is not finite in any modality is left out of all.
    finite = np.logical_and.reduce([np.isfinite(part.x.reshape(len(part), -1)).all(1) for part in by_modality.values()])
    if finite.all():
        return by_modality
    bad = [BadSample(batch.rows[i], batch.ids[i], NOT_FINITE) for i in np.flatnonzero(~finite)]
    return {name: replace(part.select(finite), skipped=part.skipped + bad) for name, part in by_modality.items()}


def _labels(batch: Batch, classes: tuple[str, ...] | None) -> np.ndarray:
    """The labels of a batch as :class:`Features` hold them."""
    if batch.labels is None:
        return np.full(len(batch.ids), -1, np.int64)
    labels = batch.labels
    if labels.ndim == 1:
        return labels.numpy().astype(np.int64)
    hot = multi_hot(labels, max(len(classes or ()), int(labels.max()) + 1, 1)).to(torch.int8)
    return torch.where(labelled(labels)[:, None], hot, -1).to(torch.int8).numpy()


def _array(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.numpy()


def _valid_tokens(model: Model, name: str, preprocessed: dict[str, Preprocessed]) -> Tensor | None:
    """(B, N) bool, valid tokens first as :meth:`Model.embed` orders them; None: all are."""
    tokens = model.modalities[name].tokenize(preprocessed[name])
    if tokens.valid is None:
        return None
    return tokens.all_indices() < tokens.valid.sum(1, keepdim=True)


def reading_modalities(model: Model, workers: int) -> dict[str, Modality]:
    """The modalities that read samples: the model's own, or, to be sent to workers, copies without parameters."""
    return build_modalities(model.recipe) if workers else dict(model.modalities)


def _digesting(modalities: Mapping[str, Any]) -> dict[str, Any]:
    return {name: DigestingModality(modality) for name, modality in modalities.items()}


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Eval mode under ``torch.inference_mode``; the model's mode is restored at the end."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)
