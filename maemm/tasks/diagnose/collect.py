"""Read the samples once as they are and once as two views, and accumulate what is measured of each network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from maemm.contract import Modality, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.data.subset import Subset
from maemm.model.build import build_modalities
from maemm.model.model import Model, as_preprocessed
from maemm.tasks._shared.embedding import NOT_FINITE, evaluating
from maemm.tasks.diagnose.attention import AttentionStatistics
from maemm.tasks.diagnose.clusters import TokenFeatures, clusters
from maemm.tasks.diagnose.diagnosis import Findings
from maemm.tasks.diagnose.measures import spectrum, sphere
from maemm.tasks.diagnose.ratios import LossesByRatio
from maemm.tasks.diagnose.views import ViewFeatures, load_pairs

LEAST = 16  # samples; a spectrum of fewer means little
ATTENDED = 64  # samples, at most, of which attention and token features are taken
PREDICTED = 128  # samples, at most, of which the loss is taken at every ratio
SHOWN = 6  # samples in the pictures of clusters
INCOMPLETE = "lacks a modality"


class Network:
    """One network, and all that is accumulated of it."""

    def __init__(self, model: Model, seed: int, ratios: Sequence[float]):
        self.model, self.seed = model, seed
        self.features: dict[str, np.ndarray] = {}  # {modality: (n, D)}
        self.attention = {name: AttentionStatistics(model, name) for name in model.modalities}
        self.tokens = {name: TokenFeatures(model, name, SHOWN) for name in model.modalities}
        self.views, self.losses = ViewFeatures(seed), LossesByRatio(model, ratios, seed)
        self.samples = 0

    def add(self, batch: dict[str, Preprocessed], rows: Sequence[int]) -> None:
        """Add samples as they are; ``rows``: their indices in the source."""
        with evaluating(self.model):
            for name, embedded in self.model.embed(batch, pool="mean", norm="before").items():
                x = embedded.float().cpu().numpy()
                self.features[name] = np.concatenate([self.features[name], x]) if name in self.features else x
            attended = min(len(rows), ATTENDED - self.samples)
            for name, preprocessed in batch.items() if attended > 0 else ():
                first = select_rows(preprocessed, list(range(attended)))
                self.attention[name].add(first)
                self.tokens[name].add(first)
            predicted = min(len(rows), PREDICTED - self.samples)
            if predicted > 0:
                first_rows = list(range(predicted))
                self.losses.add({name: select_rows(x, first_rows) for name, x in batch.items()}, rows[:predicted])
        self.samples += len(rows)

    def findings(self, count: int) -> dict[str, Findings]:
        """{modality: ...}, with ``count`` clusters."""
        return {
            name: Findings(
                spectrum(x),
                sphere(x, *self.views.result(name, x.shape[1])),
                self.attention[name].result(),
                clusters(self.tokens[name], self.model.modalities[name], count, self.seed),
            )
            for name, x in self.features.items()
        }


class Collector:
    """Passes over the samples, for several networks at once."""

    def __init__(self, networks: Sequence[Network], source: Subset, *, batch: int, workers: int, seed: int):
        self.networks, self.source = networks, source
        self.batch, self.workers, self.seed = batch, workers, seed
        self.model = networks[0].model  # this network decides which samples can be used
        self.device = next(self.model.parameters()).device
        self.skipped: list[BadSample] = []
        self.samples = 0

    def run(self, on_progress: Progress | None) -> None:
        """Add every sample to every network. Raises :class:`MaemmError` where too few have finite features."""

        def half(number: int) -> Progress | None:
            return on_progress and (lambda done, total: on_progress(number * total + done, 2 * total))

        batches = each(
            self.source, self._modalities(), batch=self.batch, workers=self.workers, seed=self.seed, on_progress=half(0)
        )
        with closing(batches):
            for batch in batches:
                self.skipped += batch.bad
                if batch.raw:
                    self._add(batch.to(self.device))
        if self.samples < LEAST:
            first = f" (first: {self.skipped[0].id}: {self.skipped[0].reason})" if self.skipped else ""
            raise MaemmError(
                f"{self.samples} of {len(self.source):,} samples have finite features{first}; "
                f"a diagnosis needs {LEAST} or more"
            )
        self._add_views(half(1))

    def _modalities(self) -> dict[str, Modality]:
        """Without parameters where they are sent to worker processes."""
        return build_modalities(self.model.recipe) if self.workers else dict(self.model.modalities)

    def _add(self, batch: Batch) -> None:
        with evaluating(self.model):
            preprocessed = {
                name: as_preprocessed(x)
                for name, x in self.model.preprocess(batch.raw, None, batch.present, batch.side_inputs).items()
            }
            usable = self._usable(preprocessed, batch)
        if not usable:
            return
        self.samples += len(usable)
        selected = {name: select_rows(x, usable) for name, x in preprocessed.items()}
        for network in self.networks:
            network.add(selected, [batch.rows[i] for i in usable])

    def _usable(self, preprocessed: dict[str, Preprocessed], batch: Batch) -> list[int]:
        """Positions of the samples with all modalities and finite features; the others are counted as skipped."""
        features = self.model.embed(preprocessed, pool="mean", norm="before")
        finite = torch.stack([x.isfinite().all(-1) for x in features.values()]).all(0)
        complete = torch.ones_like(finite)
        for x in preprocessed.values():
            complete = complete if x.present is None else complete & x.present
        usable = []
        for i, (is_finite, is_complete) in enumerate(zip(finite.tolist(), complete.tolist(), strict=True)):
            if is_finite and is_complete:
                usable.append(i)
            else:
                reason = NOT_FINITE if is_complete else INCOMPLETE
                self.skipped.append(BadSample(batch.rows[i], batch.ids[i], reason))
        return usable

    def _add_views(self, on_progress: Progress | None) -> None:
        pairs = load_pairs(self.source, self._modalities(), batch=self.batch, workers=self.workers, seed=self.seed)
        with closing(pairs):
            for number, (first, second) in enumerate(pairs, start=1):
                pair = first.to(self.device), second.to(self.device)
                for network in self.networks:
                    with evaluating(network.model):
                        network.views.add(network.model, pair)
                if on_progress is not None:
                    on_progress(min(number * self.batch, len(self.source)), len(self.source))


def select_rows(preprocessed: Preprocessed, rows: list[int]) -> Preprocessed:
    """The samples ``rows`` of a batch."""
    size = preprocessed.x.shape[0]

    def cut(value: Any) -> Any:
        return value[rows] if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == size else value

    return replace(
        preprocessed,
        x=cut(preprocessed.x),
        valid=cut(preprocessed.valid),
        present=cut(preprocessed.present),
        info={key: cut(value) for key, value in preprocessed.info.items()},
    )
