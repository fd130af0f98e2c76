"""k-means of token features, and pictures of the tokens in each cluster."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality, Preprocessed, Tokens
from maemm.data.transfer import Work, module_on_host
from maemm.model.measures import normalized
from maemm.model.model import Model
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import INPUT, put_together

CLUSTERS = 6
_FITTED = 20_000  # tokens that k-means is fitted on


@dataclass
class TokenFeatures:
    """Accumulates the token features of one modality over batches: the work ``measure`` and ``add`` for each."""

    model: Model
    name: str
    shown: int  # samples that pictures show
    features: list[np.ndarray] = field(default_factory=list)  # (n, D) of the valid tokens of each sample
    tokens: list[Tokens] = field(default_factory=list)  # each of the first ``shown`` samples, as a batch of one
    index: list[Tensor] = field(default_factory=list)  # (1, n) their valid tokens
    same_positions: bool = True  # token i of every sample has the same position
    measured: int = 0  # samples of which the work has begun

    def measure(self, preprocessed: Preprocessed) -> Work[Encoded]:
        """Encode a batch of this modality, with all tokens visible."""
        inputs, latents = self.model.encode({self.name: preprocessed})
        tokens, plan = inputs[self.name].tokens, inputs[self.name].plan
        shown = max(0, min(tokens.batch, self.shown - self.measured))
        self.measured += tokens.batch
        singles = [_single(tokens, row) for row in range(shown)]
        shared = tokens.coords.shape[0] == 1 and plan.visible_valid is None
        return (
            yield Encoded(latents.tokens[self.name].float(), plan.visible_valid, singles, plan.visible[:shown], shared)
        )

    def add(self, batch: Encoded) -> None:
        """Add what :meth:`measure` returned for a batch; batches in their order."""
        x, valid = batch.features.numpy(), batch.valid
        self.same_positions &= batch.same_positions
        self.same_positions &= not self.features or len(self.features[0]) == x.shape[1]
        for row in range(len(x)):
            self.features.append(x[row] if valid is None else x[row][valid[row].numpy()])
        for row, (single, index) in enumerate(zip(batch.tokens, batch.visible, strict=True)):
            self.tokens.append(single)
            self.index.append((index if valid is None else index[valid[row]])[None])


@dataclass(frozen=True)
class Encoded:
    """A batch of :class:`TokenFeatures`."""

    features: Tensor  # (B, N, D)
    valid: Tensor | None  # (B, N) bool; None: all are
    tokens: list[Tokens]  # each of the samples that are shown, as a batch of one
    visible: Tensor  # (shown, N) their tokens in the order of ``features``
    same_positions: bool  # token i of every sample has the same position


@dataclass(frozen=True)
class Clusters:
    """k-means of token features."""

    fractions: list[float]  # of the tokens in each cluster, the largest first
    rows: Rows  # pictures: the input, then each cluster's tokens
    position_variance: float = float("nan")  # fraction of the variance that the position explains; NaN: unknown


def clusters(tokens: TokenFeatures, modality: Modality, count: int = CLUSTERS, seed: int = 0) -> Clusters:
    """``count`` clusters of all tokens, or as many as there are different features, by cosine similarity.

    Where all samples have the same positions, the mean feature of each position is subtracted first: else clusters
    are positions.
    """
    features: list[np.ndarray] | np.ndarray = tokens.features
    position_variance = float("nan")
    if tokens.same_positions:
        features, position_variance = _without_position(tokens.features)
    x = np.nan_to_num(normalized(np.concatenate(features))).astype(np.float32)
    count = min(count, len(np.unique(x.round(4), axis=0)))
    if count < 2:
        return Clusters([], Rows(note="no clusters: all token features are equal"), position_variance)
    labels = _kmeans(x, count, seed)
    sizes = np.bincount(labels, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    labels = np.argsort(order)[labels]  # the largest cluster first
    fractions = (sizes[order] / len(labels)).tolist()
    return Clusters(fractions, _pictures(tokens, modality, labels, fractions), position_variance)


def _without_position(features: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """(samples, N, D) minus the mean of each position, and the fraction of the variance that this removed."""
    x = np.stack(features).astype(np.float64)
    rest = x - x.mean(0)
    total, remaining = x.var((0, 1)).sum(), rest.var((0, 1)).sum()
    rest[np.abs(rest) < 1e-6 * np.abs(x).max(initial=1e-30)] = 0  # rounding, where samples do not differ
    return rest, float(1 - remaining / total) if total > 0 else float("nan")


def _kmeans(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    rows = np.random.default_rng(seed).permutation(len(x))[:_FITTED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct clusters than requested: their fractions show that
        model = KMeans(count, n_init=4, random_state=seed).fit(x[np.sort(rows)])
    return model.predict(x)


def _pictures(tokens: TokenFeatures, modality: Modality, labels: np.ndarray, fractions: list[float]) -> Rows:
    captions = [INPUT, *(f"cluster {k + 1}: {100 * fraction:.0f} %" for k, fraction in enumerate(fractions))]
    columns: dict[str, list[Tensor]] = {caption: [] for caption in captions}
    modality, start = module_on_host(modality), 0
    for sample, index, features in zip(tokens.tokens, tokens.index, tokens.features, strict=False):
        if modality.untokenize(sample.values.float(), sample) is None:
            return Rows(note="no pictures: this modality has no picture of its tokens")
        cluster = torch.from_numpy(labels[start : start + len(features)])[None]
        start += len(features)
        for number, caption in enumerate(captions, start=-1):
            chosen = index if number < 0 else index[cluster == number][None]
            columns[caption].append(put_together(modality, sample, (sample.gather(chosen), chosen, None)))
    return Rows({caption: _stack(signals) for caption, signals in columns.items()})


def _stack(signals: list[Tensor]) -> Tensor:
    """[(1, ...)] -> (R, ...); shorter signals are followed by NaN."""
    shape = [max(signal.shape[axis] for signal in signals) for axis in range(1, signals[0].ndim)]
    stacked = signals[0].new_full((len(signals), *shape), float("nan"))
    for row, signal in zip(stacked, signals, strict=True):
        row[tuple(slice(side) for side in signal.shape[1:])] = signal[0]
    return stacked


def _single(tokens: Tokens, row: int) -> Tokens:
    """One sample of a batch, as a batch of one."""
    coords = tokens.coords if tokens.coords.shape[0] == 1 else tokens.coords[row : row + 1]
    valid = None if tokens.valid is None else tokens.valid[row : row + 1]
    return Tokens(tokens.values[row : row + 1], coords, tokens.grid, valid, None, tokens.context)
