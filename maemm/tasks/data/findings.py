"""What a check of data found: rows of samples summed up, as text, JSON and CSV."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.tasks._shared.channel_statistics import ChannelStatistics
from maemm.tasks._shared.sample_facts import Row
from maemm.ui.text import number

_FEW = 4  # so many different values are listed one by one
_REASONS = 8  # kinds of reasons that are listed


@dataclass
class Seen:
    """One modality of all usable samples."""

    facts: dict[str, Counter] = field(default_factory=dict)  # of what the source read
    loaded: Counter = field(default_factory=Counter)  # arrays that the model's side gets
    tokens: Counter = field(default_factory=Counter)
    statistics: ChannelStatistics = field(default_factory=ChannelStatistics)

    def add(self, row: Row) -> None:
        for name, value in row["facts"].items():
            self.facts.setdefault(name, Counter())[value] += 1
        self.loaded[", ".join(row["loaded"])] += 1
        self.tokens[row["tokens"]] += 1
        self.statistics.add(row["moments"] or ())


@dataclass
class Findings:
    """Sums over all samples of a data set."""

    classes: Sequence[str] | None = None
    samples: int = 0
    reasons: Counter = field(default_factory=Counter)  # of broken samples; those that differ in numbers are one
    labels: Counter = field(default_factory=Counter)
    modalities: dict[str, Seen] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)  # sample: the first one with its content
    other_label: int = 0  # repeated samples whose label differs from that of the first one
    first_bad: tuple[str, str] | None = None  # id and reason
    _kinds: dict[str, str] = field(default_factory=dict)  # reason without its numbers: the first such reason
    _first: dict[str, tuple[int, int | None]] = field(default_factory=dict)  # digest: first sample and its label

    @classmethod
    def of(cls, rows: Iterable[Row], classes: Sequence[str] | None = None) -> Findings:
        """Sum up rows in the order of the source."""
        found = cls(classes)
        for row in rows:
            found.add(row)
        return found

    @property
    def broken(self) -> int:
        """Samples that cannot be used."""
        return self.reasons.total()

    def add(self, row: Row) -> None:
        index = self.samples
        self.samples += 1
        if "bad" in row:
            self.first_bad = self.first_bad or (row["id"], row["bad"])
            self.reasons[self._kinds.setdefault(re.sub(r"\d+", "", row["bad"]), row["bad"])] += 1
            return
        label = row["label"]
        self.labels.update(self._class_names(label))
        for name, one in row["of"].items():
            self.modalities.setdefault(name, Seen()).add(one)
        first, its_label = self._first.setdefault(row["digest"], (index, label))
        if first != index:
            self.same[index] = first
            self.other_label += label != its_label

    def _class_names(self, label: int | list[int] | None) -> list[str]:
        """The classes of a sample in words: none, one, or several."""
        found = [] if label is None else label if isinstance(label, list) else [label]
        return [self.class_name(one) for one in found]

    def class_name(self, label: int) -> str:
        """A label in words."""
        known = self.classes is not None and 0 <= label < len(self.classes)
        return str(self.classes[label]) if known else str(label)

    # ---- as text and JSON
    def lines(self) -> list[str]:
        """A table for people."""
        table = [(f"{count:,} broken", reason) for reason, count in self.reasons.most_common(_REASONS)]
        if len(self.reasons) > _REASONS:
            rest = sum(count for _, count in self.reasons.most_common()[_REASONS:])
            table.append((f"{rest:,} broken", "other reasons"))
        if self.same:
            other = f", {self.other_label:,} of them under another label" if self.other_label else ""
            table.append((f"{len(self.same):,} repeated", f"the same content as an earlier sample{other}"))
        if self.labels:
            table.append(("labels", listed(self.labels, most=10)))
        for name, seen in self.modalities.items():
            table += [(f"{name} {key}" if len(self.modalities) > 1 else key, text) for key, text in _described(seen)]
        width = max((len(key) for key, _ in table), default=0)
        return [f"  {key:<{width}}  {text}" for key, text in table]

    def as_dict(self) -> dict[str, Any]:
        """The same for programs, with all digits."""
        return {
            "samples": self.samples,
            "broken": self.broken,
            "reasons": dict(self.reasons.most_common()),
            "repeated": len(self.same),
            "repeated_other_label": self.other_label,
            "labels": dict(sorted(self.labels.items())),
            "modalities": {name: _as_dict(seen) for name, seen in self.modalities.items()},
        }

    # ---- as CSV
    def write_csv(self, rows: Callable[[], Iterable[Row]], path: Path) -> None:
        """A line for each sample: first the broken ones, then those that repeat others, then the rest.

        ``rows()`` gives the rows anew at each call, so that they need not fit into memory.
        """
        facts = [(name, key) for name, seen in self.modalities.items() for key in seen.facts]
        titles = [f"{name} {key}" if len(self.modalities) > 1 else key for name, key in facts]
        firsts = set(self.same.values())
        ids = {index: row["id"] for index, row in enumerate(rows()) if index in firsts}
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["status", "id", "label", "reason", *titles])
            for status in ("broken", "repeated", "ok"):
                for index, row in enumerate(rows()):
                    if self._status(index, row) == status:
                        table.writerow([status, row["id"], *self._cells(index, row, ids, facts)])

    def _status(self, index: int, row: Row) -> str:
        return "broken" if "bad" in row else "repeated" if index in self.same else "ok"

    def _cells(self, index: int, row: Row, ids: Mapping[int, str], facts: list[tuple[str, str]]) -> list[Any]:
        if "bad" in row:
            return ["", row["bad"], *[""] * len(facts)]
        label = ";".join(self._class_names(row["label"]))
        reason = f"same content as {ids[self.same[index]]}" if index in self.same else ""
        return [label, reason, *[row["of"].get(name, {}).get("facts", {}).get(key, "") for name, key in facts]]


# ------------------------------------------------------------------------------------------------ words
def _described(seen: Seen) -> list[tuple[str, str]]:
    table = [(key, ranged(values)) for key, values in seen.facts.items()]
    table += [("loaded", listed(seen.loaded)), ("tokens", ranged(seen.tokens))]
    if len(seen.statistics):
        table.append(("values", f"{number(min(seen.statistics.low))}..{number(max(seen.statistics.high))}"))
        table += [("mean", numbers(seen.statistics.mean)), ("std", numbers(seen.statistics.std))]
    return table


def _as_dict(seen: Seen) -> dict[str, Any]:
    facts = {}
    for key, values in seen.facts.items():
        if _numeric(values):
            facts[key] = {"low": min(values), "median": _median(values), "high": max(values)}
        else:
            facts[key] = dict(values.most_common(1000))
    figures = {
        "mean": seen.statistics.mean,
        "std": seen.statistics.std,
        "low": seen.statistics.low,
        "high": seen.statistics.high,
    }
    clean = {key: [one if math.isfinite(one) else None for one in some] for key, some in figures.items()}
    return {"facts": facts, "loaded": dict(seen.loaded), "tokens": dict(sorted(seen.tokens.items())), **clean}


def ranged(values: Mapping[Any, int]) -> str:
    """Numbers as "231..6,000, median 480"; texts and few different numbers with their counts."""
    if len(values) <= _FEW or not _numeric(values):
        return listed(values)
    return f"{number(min(values))}..{number(max(values))}, median {number(_median(values))}"


def listed(values: Mapping[Any, int], most: int = 5) -> str:
    """ "jpeg (1,950), png (50)", the most frequent first; a single value alone."""
    shown = sorted(values.items(), key=lambda pair: (-pair[1], str(pair[0])))
    if len(shown) == 1:
        return number(shown[0][0])
    text = ", ".join(f"{number(value)} ({count:,})" for value, count in shown[:most])
    return text + (f" and {len(shown) - most:,} more" if len(shown) > most else "")


def _numeric(values: Mapping[Any, int]) -> bool:
    return all(isinstance(one, int | float) for one in values)


def _median(values: Mapping[Any, int]) -> Any:
    half, passed = sum(values.values()) / 2, 0
    for value in sorted(values):
        passed += values[value]
        if passed >= half:
            return value
    return math.nan


def numbers(values: Sequence[float]) -> str:
    """A list as one writes it in YAML, four digits each."""
    return f"[{', '.join(f'{one:.4f}' if 0.01 <= abs(one) < 100 else f'{one:.4g}' for one in values)}]"
