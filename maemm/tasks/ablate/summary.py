"""Means and spreads over seeds, and whether a difference is more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from maemm.tasks.ablate.trials import Outcome

LEVEL = 0.05  # p below which a difference is said to be beyond the noise
COMPARED = ("linear", "knn", "rank")  # measures whose differences are tested; of each modality
NAMES = {
    "linear": "linear",
    "knn": "kNN",
    "rank": "eff. rank",
    "loss": "loss",
    "validation": "val. loss",
    "cpu_seconds_per_step": "CPU s/step",
    "seconds_per_step": "s/step",
    "parameters": "parameters",
    "memory": "memory",
}
_DIGITS = {"linear": 3, "knn": 3, "rank": 1, "loss": 4, "validation": 4}


@dataclass(frozen=True)
class Spread:
    """Values of several seeds."""

    values: Mapping[int, float]  # by seed

    @property
    def mean(self) -> float:
        """NaN without values."""
        return mean(self.values.values()) if self.values else math.nan

    @property
    def std(self) -> float | None:
        """The sample standard deviation over seeds; None for fewer than two."""
        return stdev(self.values.values()) if len(self.values) > 1 else None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {"mean": self.mean, "std": self.std, "n": len(self.values), "values": {**self.values}}


@dataclass(frozen=True)
class Difference:
    """Differences from the reference, seed by seed."""

    values: Mapping[int, float]

    @property
    def spread(self) -> Spread:
        return Spread(self.values)

    @property
    def p(self) -> float | None:
        """Of a two-sided paired t-test; None where fewer than two differ, or all differ alike."""
        std = self.spread.std
        if std is None or std <= 1e-12 * max(1.0, abs(self.spread.mean)):
            return None
        from scipy import stats

        n = len(self.values)
        return float(2 * stats.t.sf(abs(self.spread.mean) / (std / math.sqrt(n)), n - 1))

    @property
    def verdict(self) -> str:
        """``yes``, ``no``, or that it cannot be told."""
        n, p = len(self.values), self.p
        if n and not any(self.values.values()):
            return f"no: equal (n {n})"
        if p is None:
            return f"unknown (n {n})"
        return f"{'yes' if p < LEVEL else 'no'} (p {p:.2g}, n {n})"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**self.spread.record(), "p": self.p, "beyond_noise": self.verdict}


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    spreads: Mapping[str, Spread]  # by measure
    differences: Mapping[str, Difference]  # by measure; none of the reference
    failed: Mapping[int, str]  # why, by seed
    marked: bool = False  # its loss is that of another prediction

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "variant": self.name,
            **{measure: spread.record() for measure, spread in self.spreads.items()},
            "differences": {measure: difference.record() for measure, difference in self.differences.items()},
            "failed": {**self.failed},
            "loss_of_another_prediction": self.marked,
        }


def rows_of(names: Sequence[str], outcomes: Sequence[Outcome], reference: str, marked: Sequence[str]) -> list[Row]:
    """A row for each variant of which something has come out, in their order."""
    rows: list[Row] = []
    base: dict[str, Spread] = {}
    for name in names:
        own = [outcome for outcome in outcomes if outcome.variant == name]
        measures = dict.fromkeys(measure for outcome in own for measure in outcome.values)
        spreads = {
            measure: Spread({x.seed: x.values[measure] for x in own if math.isfinite(x.values.get(measure, math.nan))})
            for measure in measures
        }
        if name == reference:
            base = spreads
        differences = {}
        for measure, spread in spreads.items():
            if name != reference and measure in base and measure.split(" ")[0] in COMPARED:
                pairs = {
                    seed: x - base[measure].values[seed]
                    for seed, x in spread.values.items()
                    if seed in base[measure].values
                }
                differences[measure] = Difference(pairs)
        failed = {outcome.seed: outcome.error for outcome in own if outcome.error}
        if own:
            rows.append(Row(name, spreads, differences, failed, name in marked))
    return rows


def title(measure: str) -> str:
    """The name of a measure as a column shows it: ``linear (audio)`` stays with its modality."""
    name, space, modality = measure.partition(" ")
    return NAMES.get(name, name) + space + modality


def text(measure: str, spread: Spread | None, *, sign: bool = False) -> str:
    """A mean and its spread as people read it."""
    if spread is None or not spread.values:
        return "-"
    name = measure.split(" ")[0]
    if name == "parameters":
        return f"{spread.mean / 1e6:.2f} M"
    if name == "memory":
        return f"{spread.mean / 2**30:.2f} GiB"
    digits = _DIGITS.get(name)
    if digits is None:  # seconds
        return f"{spread.mean:.3g}"
    std = "" if spread.std is None else f" ± {spread.std:.{digits}f}"
    return f"{spread.mean:{'+' if sign else ''}.{digits}f}{std}"


def columns(rows: Sequence[Row]) -> list[str]:
    """The measures of the table: all that some row has, without what says the same twice."""
    known = {measure for row in rows for measure in row.spreads}
    order = [*NAMES]
    shown = sorted(known, key=lambda measure: (order.index(measure.split(" ")[0]), measure))
    return [measure for measure in shown if not (measure == "seconds_per_step" and "cpu_seconds_per_step" in known)]


def table(rows: Sequence[Row], measures: Sequence[str]) -> list[list[str]]:
    """The table of some measures as texts; the first row names the columns."""
    head = ["variant", "seeds"]
    for measure in measures:
        head.append(title(measure))
        if measure.split(" ")[0] in ("linear", "knn"):
            head += ["difference", "beyond noise"]
    body = []
    for row in rows:
        seeds = max((len(spread.values) for spread in row.spreads.values()), default=0)
        cells = [row.name, f"{seeds}" + (f", {len(row.failed)} failed" if row.failed else "")]
        for measure in measures:
            mark = "*" if row.marked and measure in ("loss", "validation") else ""
            cells.append(text(measure, row.spreads.get(measure)) + mark)
            if measure.split(" ")[0] in ("linear", "knn"):
                difference = row.differences.get(measure)
                cells.append("" if difference is None else text(measure, difference.spread, sign=True))
                cells.append("" if difference is None else difference.verdict)
        body.append(cells)
    return [head, *body]


def notes(rows: Sequence[Row], reference: str) -> list[str]:
    """What must be known to read the table."""
    tested = [difference for row in rows for difference in row.differences.values() if difference.p is not None]
    lines = ["±: standard deviation over seeds, which draw weights, order and masks; the samples are the same"]
    if any(row.differences for row in rows):
        chance = f": of {len(tested)} comparisons about {LEVEL * len(tested):.1g} say yes by chance" if tested else ""
        lines.append(
            f"beyond noise: two-sided paired t-test against {reference!r} over the seeds that both have, p < {LEVEL}; "
            f"with few seeds it sees large differences only, and it is not corrected{chance}"
        )
    if any(row.marked for row in rows):
        lines.append(f"*: something else is predicted, or of other tokens, than in {reference!r}: not comparable")
    lines.append("loss: mean over the last tenth of the steps")
    return lines
