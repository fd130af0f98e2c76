"""``maemm probe`` and ``maemm knn`` as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.data.locks import writes
from maemm.tasks._shared.baselines import Show
from maemm.tasks._shared.comparison import Comparison
from maemm.tasks._shared.inputs import Data, Weights
from maemm.tasks._shared.records import refresh_page, save_record
from maemm.tasks.probe.compare import Protocol, Subject, compare


@writes("out")
def probe(
    weights: Weights,
    data: Data = None,
    *,
    test: Data = None,
    protocols: Sequence[str] = ("linear",),
    folds: int | None = None,
    groups: str | None = None,
    shots: Sequence[str | int] = (),
    seeds: int = 3,
    baselines: bool = False,
    balanced: bool = False,
    epochs: int | None = None,
    base_lr: float | list[float] | None = None,
    k: int = 20,
    temperature: float = 0.07,
    out: str | os.PathLike | None = None,
    verb: str = "probe",
    show: Show | None = None,
    **embedding: Any,
) -> Comparison:
    """Fit classifiers on frozen features of a run, a weights file or a model (``weights``), and test them.

    ``data`` as in :func:`maemm.tasks.embed.run.embed`. ``test``: the test data, with all of ``data`` for training;
    without, ``data`` are split into ``folds`` (5) that do not split the groups of ``groups``, a regular expression for
    ids. ``protocols``: linear, published, attentive, knn. ``shots``: training labels of each class, "5" or "10%".
    ``seeds``: how often splits, shots and fresh weights are drawn. ``baselines`` adds rows for raw values and for the
    untrained network. ``balanced`` weighs classes by the inverse of their frequency. ``epochs`` and ``base_lr`` are for
    published and attentive, ``k`` and ``temperature`` for knn. Metrics are written to ``out``, by default beside the
    run, as those of ``verb``. ``show(kind)`` gives an ``on_progress`` for a kind of features. ``embedding``: see
    :class:`maemm.tasks.probe.compare.Subject`. Raises :class:`MaemmError`.
    """
    _check_training(protocols, epochs, base_lr)
    trained: dict[str, Any] = {"balanced": balanced, "base_lr": base_lr}
    if epochs is not None:
        trained |= {"epochs": epochs, "warmup_epochs": epochs / 9}  # as long a part of the epochs as is published
    options: dict[str, dict[str, Any]] = {
        "linear": {"balanced": balanced},
        "published": trained,
        "attentive": trained,
        "knn": {"k": k, "temperature": temperature},
    }
    protocol = Protocol(list(protocols), options, folds, groups, [str(number) for number in shots], seeds)
    subject = Subject(weights, data, test, show=show, **embedding)
    comparison = compare(subject, protocol, baselines=baselines)
    refresh_page(save_record(comparison.record(), verb, weights, out, bf16=subject.model.bf16))
    return comparison


def _check_training(protocols: Sequence[str], epochs: int | None, base_lr: float | list[float] | None) -> None:
    """Raises :class:`MaemmError` for impossible training options, and for those that no protocol uses."""
    rates = [] if base_lr is None else base_lr if isinstance(base_lr, list) else [base_lr]
    if not all(0 < rate < inf for rate in rates) or base_lr == []:
        raise MaemmError(f"base_lr is {base_lr} (--base-lr); give numbers above 0")
    if epochs is not None and epochs < 1:
        raise MaemmError(f"{epochs} epochs train nothing (--epochs); give 1 or more")
    flags = [flag for flag, value in (("--epochs", epochs), ("--base-lr", base_lr)) if value is not None]
    if flags and not {"published", "attentive"} & set(protocols):
        raise MaemmError(
            f"{' and '.join(flags)} {'means' if len(flags) == 1 else 'mean'} nothing to {', '.join(protocols)}; add "
            "--protocol published or attentive"
        )
