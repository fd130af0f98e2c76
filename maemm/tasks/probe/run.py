"""``maemm probe`` and ``maemm knn`` as functions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from math import inf
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.baselines import Show
from maemm.tasks._shared.comparison import Comparison
from maemm.tasks._shared.curves import draw_curves
from maemm.tasks._shared.inputs import Weights
from maemm.tasks._shared.records import refresh_page, save_record
from maemm.tasks.probe.compare import Protocol, Subject, compare


def probe(
    what: Weights,
    data: str | os.PathLike | None = None,
    *,
    test: str | os.PathLike | None = None,
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
    **subject: Any,
) -> Comparison:
    """Classifiers on the frozen features of ``what`` (a run, weights, or a model), learned and asked on ``data``.

    ``test``: data to ask about; without, ``data`` are cut into ``folds`` (5), or into those of ``groups``, a regular
    expression for ids. ``protocols``: linear, published, attentive, knn. ``shots``: labels of each class, "5" or
    "10%". ``baselines`` adds rows for raw values and for the untrained network. ``epochs`` and ``base_lr`` are for
    published and attentive, ``k`` and ``temperature`` for knn. Figures go to ``out``, or beside the run. ``subject``:
    see :class:`maemm.tasks.probe.compare.Subject`. Raises :class:`MaemmError`.
    """
    _check_training(protocols, epochs, base_lr)
    trained = {"balanced": balanced, "base_lr": base_lr}
    if epochs is not None:
        trained |= {"epochs": epochs, "warmup_epochs": epochs / 9}  # the published share of the warmup
    options = {
        "linear": {"balanced": balanced},
        "published": trained,
        "attentive": trained,
        "knn": {"k": k, "temperature": temperature},
    }
    protocol = Protocol(list(protocols), options, folds, groups, [str(one) for one in shots], seeds)
    found = compare(Subject(what, data, test, show=show, **subject), protocol, baselines=baselines)
    written = save_record(found.record(), verb, what, out)
    if written is not None and len(found.shots) > 1:
        draw_curves(found, written.with_suffix(".png"))
    refresh_page(written)
    return found


def _check_training(protocols: Sequence[str], epochs: int | None, base_lr: float | list[float] | None) -> None:
    """Whether options of training are ones, and have something to train."""
    rates = [] if base_lr is None else base_lr if isinstance(base_lr, list) else [base_lr]
    if not all(0 < one < inf for one in rates) or base_lr == []:
        raise MaemmError(f"base_lr is {base_lr} (--base-lr); give numbers above 0")
    if epochs is not None and epochs < 1:
        raise MaemmError(f"{epochs} epochs train nothing (--epochs); give 1 or more")
    given = [flag for flag, one in (("--epochs", epochs), ("--base-lr", base_lr)) if one is not None]
    if given and not {"published", "attentive"} & set(protocols):
        raise MaemmError(
            f"{' and '.join(given)} {'means' if len(given) == 1 else 'mean'} nothing to {', '.join(protocols)}; add "
            "--protocol published or attentive"
        )
