"""Read the samples once as they are and once as two views, and accumulate what is measured of each network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSample
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.data.subset import Subset
from maemm.data.transfer import Work, overlapped, sent, to_device, together
from maemm.model.build import build_modalities
from maemm.model.measures import spectrum, sphere
from maemm.model.model import Model, as_preprocessed
from maemm.tasks._shared.embedding import NOT_FINITE, evaluating
from maemm.tasks.diagnose.attention import AttentionStatistics
from maemm.tasks.diagnose.clusters import Encoded, TokenFeatures, clusters
from maemm.tasks.diagnose.diagnosis import Findings
from maemm.tasks.diagnose.ratios import LossesByRatio
from maemm.tasks.diagnose.views import Pair, ViewFeatures, load_pairs

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

    def measure(self, batch: dict[str, Preprocessed], rows: Sequence[int]) -> Work[_Measured]:
        """Run the network on samples as they are; ``rows``: their indices in the source."""
        attended = max(0, min(len(rows), ATTENDED - self.samples))
        predicted = max(0, min(len(rows), PREDICTED - self.samples))
        self.samples += len(rows)
        embedded = {name: x.float() for name, x in self.model.embed(batch, pool="mean", norm="before").items()}
        firsts = {name: select_rows(x, slice(attended)) for name, x in batch.items()} if attended else {}
        if predicted:
            self.losses.add({name: select_rows(x, slice(predicted)) for name, x in batch.items()}, rows[:predicted])
        works: list[Work[Any]] = [
            sent(embedded),
            together([self.attention[name].add(first) for name, first in firsts.items()]),
            together([self.tokens[name].measure(first) for name, first in firsts.items()]),
        ]
        features, _, tokens = yield from together(works)
        return _Measured(features, dict(zip(firsts, tokens, strict=True)))

    def add(self, measured: _Measured) -> None:
        """Add a batch; batches in their order."""
        for name, embedded in measured.features.items():
            x = embedded.numpy()
            self.features[name] = np.concatenate([self.features[name], x]) if name in self.features else x
        for name, encoded in measured.tokens.items():
            self.tokens[name].add(encoded)

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


class _Measured(NamedTuple):
    """What a network gives for a batch, beside what it adds up on the device."""

    features: dict[str, Tensor]  # {modality: (B, D)}
    tokens: dict[str, Encoded]


class _Batch(NamedTuple):
    """What a batch gives."""

    skipped: list[BadSample]
    samples: int
    by_network: list[_Measured]


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
        with closing(batches), self._evaluating():
            for result in overlapped(self._measured(batch) for batch in batches):
                self.skipped += result.skipped
                self.samples += result.samples
                for network, measured in zip(self.networks, result.by_network, strict=False):
                    network.add(measured)
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

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        with ExitStack() as stack:
            for network in self.networks:
                stack.enter_context(evaluating(network.model))
            yield

    def _measured(self, read: Batch) -> Work[_Batch]:
        if not read.raw:
            return _Batch(read.bad, 0, [])
        batch = read.to(self.device)
        preprocessed = {
            name: as_preprocessed(x)
            for name, x in self.model.preprocess(batch.raw, None, batch.present, batch.side_inputs).items()
        }
        usable, skipped = yield from self._usable(preprocessed, read)
        if not usable:
            return _Batch(read.bad + skipped, 0, [])
        index = to_device(torch.tensor(usable), self.device)
        selected = {name: select_rows(x, index) for name, x in preprocessed.items()}
        rows = [read.rows[i] for i in usable]
        by_network = yield from together(network.measure(selected, rows) for network in self.networks)
        return _Batch(read.bad + skipped, len(usable), by_network)

    def _usable(self, preprocessed: dict[str, Preprocessed], batch: Batch) -> Work[tuple[list[int], list[BadSample]]]:
        """Positions of the samples with all modalities and finite features, and the other samples."""
        features = self.model.embed(preprocessed, pool="mean", norm="before")
        finite = torch.stack([x.isfinite().all(-1) for x in features.values()]).all(0)
        complete = torch.ones_like(finite)
        for x in preprocessed.values():
            complete = complete if x.present is None else complete & x.present
        finite, complete = yield finite, complete
        usable, skipped = [], []
        for i, (is_finite, is_complete) in enumerate(zip(finite.tolist(), complete.tolist(), strict=True)):
            if is_finite and is_complete:
                usable.append(i)
            else:
                reason = NOT_FINITE if is_complete else INCOMPLETE
                skipped.append(BadSample(batch.rows[i], batch.ids[i], reason))
        return usable, skipped

    def _add_views(self, on_progress: Progress | None) -> None:
        pairs = load_pairs(self.source, self._modalities(), batch=self.batch, workers=self.workers, seed=self.seed)

        def measured(pair: Pair) -> Work[tuple[Pair, list[Any]]]:
            if not all(batch.raw for batch in pair):
                return pair, []
            first, second = (batch.to(self.device) for batch in pair)
            features = yield [network.views.measure(network.model, (first, second)) for network in self.networks]
            return pair, features

        with closing(pairs), self._evaluating():
            for number, (pair, by_network) in enumerate(overlapped(map(measured, pairs)), start=1):
                for network, features in zip(self.networks, by_network, strict=False):
                    network.views.add(pair, features)
                if on_progress is not None:
                    on_progress(min(number * self.batch, len(self.source)), len(self.source))


def select_rows(preprocessed: Preprocessed, rows: Tensor | slice) -> Preprocessed:
    """The samples ``rows`` of a batch: their index on its device, or a slice."""
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
