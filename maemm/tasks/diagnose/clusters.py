"""Patch-token clustering: k-means of token features, and each cluster's tokens drawn as the modality draws them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch

from maemm.contract import Modality, Preprocessed, Tokens
from maemm.model.model import Model
from maemm.tasks.diagnose.sphere import on_sphere
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import INPUT, put_together

CLUSTERS = 6
_FITTED = 20_000  # tokens that k-means is fitted on


@dataclass
class TokensOver:
    """Token features of the samples of one modality, added up over batches."""

    model: Model
    name: str
    shown: int  # samples that pictures show
    features: list[np.ndarray] = field(default_factory=list)  # (n, D) of the valid tokens of each sample
    tokens: list[Tokens] = field(default_factory=list)  # of each of the first samples, on their own
    index: list[torch.Tensor] = field(default_factory=list)  # (1, n) their valid tokens
    same_places: bool = True  # token i of every sample stands at the same place

    def add(self, preprocessed: Preprocessed) -> None:
        """A batch of this modality."""
        inputs, latents = self.model.encode({self.name: preprocessed})
        one, x = inputs[self.name], latents.tokens[self.name].float().cpu().numpy()
        self.same_places &= one.tokens.coords.shape[0] == 1 and one.plan.visible_valid is None
        self.same_places &= not self.features or len(self.features[0]) == x.shape[1]
        for row in range(len(x)):
            valid = one.plan.visible_valid
            mine = slice(None) if valid is None else valid[row].cpu().numpy()
            self.features.append(x[row][mine])
            if len(self.tokens) < self.shown:
                self.tokens.append(_only(one.tokens, row))
                index = one.plan.visible[row : row + 1]
                self.index.append(index if valid is None else index[:, valid[row]])


@dataclass(frozen=True)
class Clusters:
    """k-means of token features."""

    shares: list[float]  # of the tokens in each cluster, the largest first
    rows: Rows  # pictures: the input, then each cluster's tokens
    of_place: float = float("nan")  # share of the variance of token features that their place explains; NaN: unknown


def clusters(over: TokensOver, modality: Modality, count: int = CLUSTERS, seed: int = 0) -> Clusters:
    """``count`` clusters of all tokens added, or as many as there are different features, by their cosine.

    Where all samples have the same places, the mean of each place is taken off first: else clusters are places.
    """
    x, of_place = _without_place(over.features) if over.same_places else (over.features, float("nan"))
    x = np.nan_to_num(on_sphere(np.concatenate(x))).astype(np.float32)
    count = min(count, len(np.unique(x.round(4), axis=0)))
    if count < 2:
        return Clusters([], Rows(note="no clusters: all token features are equal"), of_place)
    labels = _labels(x, count, seed)
    sizes = np.bincount(labels, minlength=count)
    order = np.argsort(-sizes, kind="stable")
    labels = np.argsort(order)[labels]  # the largest cluster first
    shares = (sizes[order] / len(labels)).tolist()
    return Clusters(shares, _pictures(over, modality, labels, shares), of_place)


def _without_place(features: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """(samples, N, D) less the mean of each place, and the share of the variance that went with it.

    What rounding leaves where nothing else differs is set to 0.
    """
    x = np.stack(features).astype(np.float64)
    rest = x - x.mean(0)
    whole, left = x.var((0, 1)).sum(), rest.var((0, 1)).sum()
    rest[np.abs(rest) < 1e-6 * np.abs(x).max(initial=1e-30)] = 0
    return rest, float(1 - left / whole) if whole > 0 else float("nan")


def _labels(x: np.ndarray, count: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    rows = np.random.default_rng(seed).permutation(len(x))[:_FITTED]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct clusters than asked for: their shares say so
        fitted = KMeans(count, n_init=4, random_state=seed).fit(x[np.sort(rows)])
    return fitted.predict(x)


def _pictures(over: TokensOver, modality: Modality, labels: np.ndarray, shares: list[float]) -> Rows:
    starts = np.cumsum([0, *(len(one) for one in over.features)])
    columns: dict[str, list[torch.Tensor]] = {}
    for number, (tokens, index) in enumerate(zip(over.tokens, over.index, strict=True)):
        values = tokens.values.float()
        if modality.untokenize(values, tokens) is None:
            return Rows(note="no pictures: this modality cannot be put together from its tokens")
        own = torch.from_numpy(labels[starts[number] : starts[number + 1]]).to(index.device)[None]
        captions = [INPUT, *(f"cluster {k + 1}: {100 * fraction:.0f} %" for k, fraction in enumerate(shares))]
        for cluster, caption in enumerate(captions, start=-1):
            chosen = index if cluster < 0 else index[own == cluster][None]
            columns.setdefault(caption, []).append(
                put_together(modality, tokens, (tokens.gather(chosen), chosen, None))
            )
    return Rows({caption: _stacked(signals) for caption, signals in columns.items()})


def _stacked(signals: list[torch.Tensor]) -> torch.Tensor:
    """One after the other, (R, ...), shorter ones with NaN behind them."""
    size = [max(one.shape[axis] for one in signals) for axis in range(1, signals[0].ndim)]
    whole = signals[0].new_full((len(signals), *size), float("nan"))
    for row, one in enumerate(signals):
        whole[(row, *(slice(side) for side in one.shape[1:]))] = one[0]
    return whole


def _only(tokens: Tokens, row: int) -> Tokens:
    """One sample of a batch."""
    coords = tokens.coords if tokens.coords.shape[0] == 1 else tokens.coords[row : row + 1]
    valid = None if tokens.valid is None else tokens.valid[row : row + 1]
    return Tokens(tokens.values[row : row + 1], coords, tokens.grid, valid, None, tokens.context)
