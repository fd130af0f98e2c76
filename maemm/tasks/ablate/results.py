"""The result of a comparison: the table, ``results.json``, ``results.csv``."""

from __future__ import annotations

import csv
import io
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maemm.contract.version import __version__
from maemm.data.atomic import write_json, write_text
from maemm.tasks._shared.baselines import RAW, UNTRAINED
from maemm.tasks.ablate import summary
from maemm.tasks.ablate.study import Study
from maemm.tasks.ablate.summary import Row, Spread
from maemm.tasks.ablate.trials import Outcome
from maemm.ui.text import aligned

RESULTS, TABLE, PAGE, BASELINES = "results.json", "results.csv", "report.html", "baselines.json"
ADVICE = "free space: the same command continues"


@dataclass
class Ablation:
    """What is known of a comparison so far."""

    study: Study
    folder: Path
    protocol: dict[str, Any]
    protocol_words: list[str]
    outcomes: list[Outcome] = field(default_factory=list)
    baselines: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)  # values by kind and seed
    notes: list[str] = field(default_factory=list)  # on the data and the measures

    @property
    def rows(self) -> list[Row]:
        """The variants, the reference first."""
        variants = self.study.variants
        reference = next(variant for variant in variants if variant.name == self.study.reference)
        marked = [variant.name for variant in variants if variant.predicts() != reference.predicts()]
        return summary.rows_of([variant.name for variant in variants], self.outcomes, reference.name, marked)

    @property
    def baseline_rows(self) -> list[Row]:
        """Raw values, and the reference untrained."""
        rows = []
        for kind in (UNTRAINED, RAW):
            by_seed = self.baselines.get(kind) or {}
            measures = dict.fromkeys(measure for values in by_seed.values() for measure in values)
            spreads = {
                name: Spread({seed: values[name] for seed, values in by_seed.items() if name in values})
                for name in measures
            }
            if spreads:
                rows.append(Row(kind, spreads, {}, {}))
        return rows

    @property
    def failed(self) -> list[Outcome]:
        """The runs of which nothing came."""
        return [outcome for outcome in self.outcomes if outcome.error]

    def table(self) -> list[list[str]]:
        """All rows with all measures, see :func:`maemm.tasks.ablate.summary.table`."""
        rows = [*self.rows, *self.baseline_rows]
        return summary.table(rows, summary.columns(rows))

    def all_notes(self) -> list[str]:
        """What must be known to read the table, and what happened."""
        failed = [f"failed: {x.variant}, seed {x.seed}: {x.error}" for x in self.failed]
        reading = summary.notes(self.rows, self.study.reference)
        return [*failed, *self.study.notes, *self.notes, *reading, *self.protocol_words]

    def __str__(self) -> str:
        lines = aligned(self.table())
        return "\n".join([*lines, "", *self.all_notes()])

    def record(self) -> dict[str, Any]:
        """Everything, for JSON; what is not finite is None."""
        study = self.study
        versions = {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()}
        about: dict[str, Any] = {"verb": "ablate", "time": time.strftime("%Y-%m-%d %H:%M:%S"), "versions": versions}
        about |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
        return {
            **about,
            "study": study.name,
            "recipe": study.base,
            "reference": study.reference,
            "seeds": study.seeds,
            "steps": study.steps,
            "variants": [
                {"name": x.name, "folder": x.folder, "changes": x.overrides, "differs": [*x.differs]}
                for x in study.variants
            ],
            "protocol": {**self.protocol, "words": self.protocol_words},
            "results": [row.record() for row in self.rows],
            "baselines": [row.record() for row in self.baseline_rows],
            "runs": [self._run(outcome) for outcome in self.outcomes],
            "notes": self.all_notes(),
        }

    def _run(self, outcome: Outcome) -> dict[str, Any]:
        place = outcome.folder.relative_to(self.folder)
        own = {"variant": outcome.variant, "seed": outcome.seed, "run": place.as_posix(), **outcome.values}
        return own | ({"error": outcome.error} if outcome.error else {})

    def csv(self) -> str:
        """A line for each run, then for the baselines."""
        runs = [{key: value for key, value in self._run(x).items() if key != "run"} for x in self.outcomes]
        for kind, by_seed in self.baselines.items():
            runs += [{"variant": kind, "seed": seed, **values} for seed, values in by_seed.items()]
        heads = dict.fromkeys(key for run in runs for key in run)
        file = io.StringIO()
        writer = csv.DictWriter(file, [*heads], lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
        return file.getvalue()

    def write(self) -> None:
        """Write results.json and results.csv. Raises :class:`maemm.MaemmError` where that is impossible."""
        write_json(self.folder / RESULTS, finite(self.record()), "the results", advice=ADVICE)
        write_text(self.folder / TABLE, self.csv(), "the results", advice=ADVICE)


def finite(value: Any) -> Any:
    """Numbers that JSON does not have as None, keys as texts."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
