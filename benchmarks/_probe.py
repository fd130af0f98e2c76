"""What the probes of frozen features share: figures of one kind of features, rows with their spread, the file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _machine import about

from maemm.tasks._shared.features import Features
from maemm.tasks.probe.linear import linear
from maemm.tasks.probe.neighbours import knn_accuracy

Pair = tuple[Features, Features]  # what is learned from, what is asked
PROTOCOLS = ("knn", "linear")


def figures(pairs: Iterable[Pair], seed: int) -> dict[str, float]:
    """kNN (cosine, k = 20, exp(s / 0.07)) and logistic regression (C chosen inside the training part), mean over folds.

    Features are z-scored with the statistics of the training part.
    """
    found = [(knn_accuracy(train, test), linear(train, test, seed=seed)) for train, test in pairs]
    return dict(zip(PROTOCOLS, (float(one) for one in np.mean(found, axis=0)), strict=True))


def row(data: str, task: str, kind: str, values: Sequence[Mapping[str, float]], width: int) -> dict[str, Any]:
    """A row of the table, printed: mean and standard deviation over ``values``, one for each seed.

    Values that are all equal have no spread: nothing was drawn for them.
    """
    found: dict[str, Any] = {"data": data, "task": task, "features": kind, "width": width}
    for name in PROTOCOLS:
        each = [one[name] for one in values]
        spread = float(np.std(each, ddof=1)) if len(set(each)) > 1 else None
        found[name] = {"mean": float(np.mean(each)), "std": spread, "values": each}
    print(
        f"{data:12s} {task:10s} {kind:34s} " + "  ".join(f"{one} {shown(found[one])}" for one in PROTOCOLS), flush=True
    )
    return found


def shown(figure: Mapping[str, Any]) -> str:
    """0.554 ± 0.004"""
    spread = "" if figure["std"] is None else f" ± {figure['std']:.3f}"
    return f"{figure['mean']:.3f}{spread}"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as a table."""
    lines = ["| data | task | features | kNN | linear probe |", "|---|---|---|---|---|"]
    lines += [
        f"| {one['data']} | {one['task']} | {one['features']} | {shown(one['knn'])} | {shown(one['linear'])} |"
        for one in rows
    ]
    return "\n".join(lines)


def save(path: Path, report: Mapping[str, Any]) -> None:
    """A report as JSON, with the machine and the versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about(), **report}, indent=1, default=str) + "\n")
