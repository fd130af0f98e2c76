"""Features and losses of a joint model from every subset of its modalities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from maemm.contract import ModalityInput, Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Batch
from maemm.data.single_pass import Progress, each
from maemm.data.transfer import on_host
from maemm.model.masking.each_modality import EachModality
from maemm.model.masking.only import Only
from maemm.model.masking.random import Random
from maemm.model.model import Model
from maemm.tasks._shared.baselines import RAW, UNTRAINED, untrained
from maemm.tasks._shared.embedding import evaluating, features, reading_modalities
from maemm.tasks._shared.features import Features
from maemm.tasks.probe.compare import Subject
from maemm.train.step import baselines_of

MOST_INPUTS = 6  # 63 subsets
COMPONENTS = 256  # principal components of raw values: classifiers on tens of thousands of numbers take minutes each
PLUS = " + "

Subset = tuple[str, ...]


def subsets_of(names: Sequence[str]) -> list[Subset]:
    """All non-empty subsets, the smallest first, in the order of ``names``."""
    return [subset for size in range(1, len(names) + 1) for subset in combinations(names, size)]


def title(subset: Subset) -> str:
    """``rgb + depth``."""
    return PLUS.join(subset)


class Subsets(Subject):
    """Features of every subset, as if each were a modality of its own.

    A feature is the mean, over the modalities of the subset that a sample has, of the mean over their tokens, all of
    them visible: (B, D) for every subset. Raw values of a subset stand side by side; where they are more than
    ``COMPONENTS``, their principal components, fitted on the training part. All subsets are computed in one pass.
    """

    subsets: Sequence[Subset]

    def _features(self, kind: str, seed: int, tokens: bool) -> tuple[dict[str, Features], dict[str, Features] | None]:
        model = self.model if kind != UNTRAINED else untrained(self.model, seed)
        embed = self._raw if kind == RAW else self._embedded
        parts = [
            None
            if data is None
            else features(
                model, data.source, batch=self.batch, workers=data.workers, embed=embed, on_progress=self.show(kind)
            )
            for data in (self.train, self.test)
        ]
        train, test = parts
        assert train is not None
        return _components(train, test) if kind == RAW else (train, test)

    def _embedded(self, model: Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        result = {}
        for subset in self.subsets:
            own = model.embed({name: batch[name] for name in subset}, pool="mean")
            weights = torch.stack([_present(batch[name], len(own[name])) for name in subset])
            values = torch.stack([own[name].float() for name in subset])
            result[title(subset)] = (values * weights[..., None]).sum(0) / weights.sum(0).clamp(min=1)[..., None]
        return result

    def _raw(self, model: Model, batch: dict[str, Preprocessed]) -> dict[str, Tensor]:
        return {title(subset): torch.cat([batch[name].x.flatten(1) for name in subset], 1) for subset in self.subsets}


def _present(x: Preprocessed, count: int) -> Tensor:
    """(B,) 1 where a sample has the modality."""
    return torch.ones(count, device=x.x.device) if x.present is None else x.present.float()


def _components(
    train: dict[str, Features], test: dict[str, Features] | None
) -> tuple[dict[str, Features], dict[str, Features] | None]:
    """Raw values as principal components, where they are many."""
    for name, part in train.items():
        count = min(COMPONENTS, len(part) - 1, part.x.shape[1])
        if part.x.shape[1] <= COMPONENTS or count < 1:
            continue
        fitted = PCA(count, svd_solver="randomized", random_state=0).fit(part.x.astype(np.float32))
        train[name] = replace(part, x=fitted.transform(part.x).astype(np.float32))
        if test is not None:
            test[name] = replace(test[name], x=fitted.transform(test[name].x).astype(np.float32))
    return train, test


# ------------------------------------------------------------------------------------------------------------ losses
@dataclass
class Losses:
    """Mean losses of every output from every subset, and those of predicting the mean target."""

    mean: dict[str, dict[str, float]]  # {title of the subset: {output: loss}}
    baseline: dict[str, dict[str, float]]

    def relative(self, subset: str, output: str) -> float | None:
        """The loss as a fraction of that of predicting the mean; None where either is not there."""
        loss, baseline = self.mean[subset].get(output), self.baseline[subset].get(output)
        return None if loss is None or not baseline else loss / baseline

    @property
    def outputs(self) -> list[str]:
        """All outputs, in order."""
        return list(dict.fromkeys(output for own in self.mean.values() for output in own))


def losses_of(
    model: Model,
    source: Source,
    subsets: Sequence[Subset],
    *,
    visible: float,
    seed: int,
    batch: int,
    workers: int,
    on_progress: Progress | None = None,
) -> Losses:
    """Show the fraction ``visible`` of the tokens of a subset, nothing of the others; the loss of all that is hidden.

    Masks depend on the seed and the sample alone. Raises :class:`MaemmError` where no sample can be read.
    """
    device = next(model.parameters()).device
    sums: dict[str, dict[str, Tensor]] = {title(subset): {} for subset in subsets}
    baselines: dict[str, dict[str, Tensor]] = {title(subset): {} for subset in subsets}
    loaded = each(source, reading_modalities(model, workers), batch=batch, workers=workers, on_progress=on_progress)
    with closing(loaded), evaluating(model):
        for read in loaded:
            if not read.raw:
                continue
            for subset, inputs in _planned(model, read.to(device), subsets, visible, seed):
                out = model(inputs)
                own_baselines, _ = baselines_of(out, model)
                for term, value in out.parts.items():
                    modality, output = term.rpartition(".")[2], _output(term, out.parts)
                    _add(sums[title(subset)], output, torch.stack([value.sum, value.count.float()]))
                    if (baseline := own_baselines.get(term, own_baselines.get(modality))) is not None:
                        _add(baselines[title(subset)], output, baseline)
    if not any(sums.values()):
        raise MaemmError("no sample can be read; look at the data with maemm data check")
    return Losses(_means(sums), _means(baselines))


def planned(
    model: Model, batch: Mapping[str, Preprocessed], subset: Subset, visible: float, rng: Rng
) -> dict[str, ModalityInput]:
    """A batch of which ``subset`` is given: the fraction ``visible`` of its tokens, nothing of other modalities."""
    inputs = model.plan(dict(batch), rng)
    tokens = {name: x.tokens for name, x in inputs.items()}
    hidden = {name: "decode" for name in tokens if name not in subset}
    masking = Only(EachModality({name: Random(ratio=1 - visible) for name in subset}), {**model.only, **hidden})
    plans = masking(tokens, rng)
    assert isinstance(plans, dict)
    return {name: replace(x, plan=plans[name]) for name, x in inputs.items()}


def _planned(
    model: Model, read: Batch, subsets: Sequence[Subset], visible: float, seed: int
) -> Iterator[tuple[Subset, dict[str, ModalityInput]]]:
    batch = model.preprocess(read.raw, None, read.present, read.side_inputs)
    rng = Rng((seed, "modalities"), read.rows, max(read.rows) + 1)
    for subset in subsets:
        yield subset, planned(model, batch, subset, visible, rng)


def _output(term: str, terms: Iterable[str]) -> str:
    """What a term of the loss is called: ``reconstruct.rgb`` as its modality, others as their objective where they are
    its only one."""
    objective, _, modality = term.partition(".")
    if objective == "reconstruct":
        return modality or term
    return objective if sum(other.partition(".")[0] == objective for other in terms) == 1 else term


def _add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    sums[name] = sums[name] + value if name in sums else value


def _means(sums: dict[str, dict[str, Tensor]]) -> dict[str, dict[str, float]]:
    of_host = on_host(sums)
    return {
        subset: {name: float(x[0] / x[1]) for name, x in own.items() if float(x[1]) > 0}
        for subset, own in of_host.items()
    }


def check_inputs(model: Model, inputs: Sequence[str] | None) -> list[str]:
    """The modalities that are given in every combination. Raises :class:`MaemmError`."""
    encoded: list[Any] = [name for name in model.modalities if model.only.get(name) != "decode"]
    chosen = [*(inputs or encoded)]
    for name in chosen:
        if name not in encoded:
            raise MaemmError(f"{name!r} is no input of this model (--inputs); choose from {', '.join(encoded)}")
    if len(encoded) < 2:
        raise MaemmError(f"the model has one input, {encoded[0]}; subsets need two or more modalities")
    if len(chosen) > MOST_INPUTS:
        raise MaemmError(
            f"{len(chosen)} inputs have {2 ** len(chosen) - 1} subsets; choose at most {MOST_INPUTS} (--inputs A,B)"
        )
    return chosen
