"""Read samples once as they are and once as two views, and add up what is asked of each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.data.subset import Subset
from maemm.model.build import build_modalities
from maemm.model.model import Model, as_preprocessed
from maemm.tasks._shared.features import NOT_FINITE, evaluating
from maemm.tasks.diagnose.attention import Attention, AttentionOver
from maemm.tasks.diagnose.clusters import Clusters, TokensOver, clusters
from maemm.tasks.diagnose.ratios import LossesOver
from maemm.tasks.diagnose.spectrum import Spectrum, spectrum
from maemm.tasks.diagnose.sphere import Sphere, sphere
from maemm.tasks.diagnose.view_similarity import ViewsOver, pairs

LEAST = 16  # samples, below which a spectrum says nothing
LOOKED_AT = 64  # samples whose attention and tokens are looked at
PREDICTED = 128  # samples whose loss is taken at every ratio
SHOWN = 6  # samples in the pictures of clusters
LACKING = "lacks a modality"


@dataclass(frozen=True)
class Findings:
    """What is known of one modality's features in one network."""

    spectrum: Spectrum
    sphere: Sphere
    attention: Attention
    clusters: Clusters


class Measurement:
    """One pass over the samples as they are, one over two views of each."""

    def __init__(self, models: Mapping[str, Model], source: Subset, *, batch: int, workers: int, seed: int):
        self.source, self.batch, self.workers, self.seed = source, batch, workers, seed
        self.model = next(iter(models.values()))  # the one that says which samples can be used
        self.device = next(self.model.parameters()).device
        self.skipped: list[BadSample] = []
        self.count = 0

    def run(self, networks: Mapping[str, Network], on_progress: Progress | None) -> None:
        """Adds every sample to every network. Raises :class:`MaemmError` where too few have finite features."""

        def half(number: int) -> Progress | None:
            return on_progress and (lambda done, total: on_progress(number * total + done, 2 * total))

        self._whole(networks, half(0))
        if self.count < LEAST:
            first = f" (first: {self.skipped[0].id}: {self.skipped[0].reason})" if self.skipped else ""
            raise MaemmError(
                f"{self.count} of {len(self.source):,} samples have finite features{first}; "
                f"a diagnosis needs {LEAST} or more"
            )
        self._views(networks, half(1))

    def _parts(self) -> dict[str, Any]:
        return build_modalities(self.model.recipe) if self.workers else dict(self.model.modalities)

    def _whole(self, networks: Mapping[str, Network], on_progress: Progress | None) -> None:
        loaded = each(
            self.source, self._parts(), batch=self.batch, workers=self.workers, seed=self.seed, on_progress=on_progress
        )
        with closing(loaded):
            for one in loaded:
                self.skipped += one.bad
                if one.raw:
                    self._add(networks, one.to(self.device))

    def _add(self, networks: Mapping[str, Network], batch: Batch) -> None:
        with evaluating(self.model):
            preprocessed = self.model.preprocess(batch.raw, None, batch.present)
            whole = {name: as_preprocessed(one) for name, one in preprocessed.items()}
            good = self._finite(whole, batch.rows, batch.ids)
        if not good:
            return
        self.count += len(good)
        some = {name: select_rows(one, good) for name, one in whole.items()}
        for network in networks.values():
            network.add(some, [batch.rows[i] for i in good])

    def _finite(self, preprocessed: dict[str, Preprocessed], rows: Sequence[int], ids: Sequence[str]) -> list[int]:
        """Places of the samples that have all modalities, and finite features; others are counted as skipped."""
        features = self.model.embed(preprocessed, pool="mean", norm="before")
        finite = torch.stack([one.isfinite().all(-1) for one in features.values()]).all(0)
        whole = torch.ones_like(finite)
        for one in preprocessed.values():
            whole = whole if one.present is None else whole & one.present
        reasons = [LACKING if not has else NOT_FINITE for has in whole.tolist()]
        good = (finite & whole).tolist()
        self.skipped += [BadSample(rows[i], ids[i], reasons[i]) for i, ok in enumerate(good) if not ok]
        return [i for i, ok in enumerate(good) if ok]

    def _views(self, networks: Mapping[str, Network], on_progress: Progress | None) -> None:
        both = pairs(self.source, self._parts(), batch=self.batch, workers=self.workers, seed=self.seed)
        with closing(both):
            for number, (first, second) in enumerate(both, start=1):
                pair = first.to(self.device), second.to(self.device)
                for network in networks.values():
                    with evaluating(network.model):
                        network.views.add(network.model, pair)
                if on_progress is not None:
                    on_progress(min(number * self.batch, len(self.source)), len(self.source))


class Network:
    """Everything that is added up of one network."""

    def __init__(self, model: Model, seed: int, ratios: Sequence[float]):
        self.model, self.seed = model, seed
        self.features: dict[str, np.ndarray] = {}
        self.attention = {name: AttentionOver(model, name) for name in model.modalities}
        self.tokens = {name: TokensOver(model, name, SHOWN) for name in model.modalities}
        self.views, self.losses = ViewsOver(seed), LossesOver(model, ratios, seed)
        self.seen = 0

    def add(self, batch: dict[str, Preprocessed], rows: Sequence[int]) -> None:
        with evaluating(self.model):
            for name, x in self.model.embed(batch, pool="mean", norm="before").items():
                x = x.float().cpu().numpy()
                self.features[name] = np.concatenate([self.features[name], x]) if name in self.features else x
            few = range(max(0, min(len(rows), LOOKED_AT - self.seen)))
            for name, one in batch.items() if few else ():
                some = select_rows(one, list(few))
                self.attention[name].add(some)
                self.tokens[name].add(some)
            few = range(max(0, min(len(rows), PREDICTED - self.seen)))
            if few:
                self.losses.add({name: select_rows(one, list(few)) for name, one in batch.items()}, rows[: len(few)])
        self.seen += len(rows)

    def findings(self, count: int) -> dict[str, Findings]:
        """By modality."""
        return {
            name: Findings(
                spectrum(x),
                sphere(x, *self.views.found(name, x.shape[1])),
                self.attention[name].found(),
                clusters(self.tokens[name], self.model.modalities[name], count, self.seed),
            )
            for name, x in self.features.items()
        }


def select_rows(one: Preprocessed, rows: list[int]) -> Preprocessed:
    """Some samples of a batch."""
    size = one.x.shape[0]

    def cut(value: Any) -> Any:
        return value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == size else value

    info = {key: cut(value) for key, value in one.info.items()}
    return replace(one, x=cut(one.x), valid=cut(one.valid), present=cut(one.present), info=info)
