"""What a check of data found: the rows of its samples summed up, as text, JSON and CSV."""

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

_FEW = 4  # different values are listed, up to this number; of more numbers, range and median
_REASONS = 8  # reasons that are listed, the most frequent ones
_TEXTS = 1000  # different texts of a fact in JSON, the most frequent ones


@dataclass
class ModalityFindings:
    """One modality of all usable samples."""

    facts: dict[str, Counter] = field(default_factory=dict)  # {fact about what the source read: its values}
    loaded: Counter = field(default_factory=Counter)  # arrays that ``load`` returned
    tokens: Counter = field(default_factory=Counter)
    statistics: ChannelStatistics = field(default_factory=ChannelStatistics)

    def add(self, row: Row) -> None:
        """Add one sample: the part of its row that is about this modality."""
        for name, value in row["facts"].items():
            self.facts.setdefault(name, Counter())[value] += 1
        self.loaded[", ".join(row["loaded"])] += 1
        self.tokens[row["tokens"]] += 1
        self.statistics.add(row["moments"] or ())

    def table(self) -> list[tuple[str, str]]:
        """(title, values in words)."""
        table = [(name, range_text(values)) for name, values in self.facts.items()]
        table += [("loaded", counts_text(self.loaded)), ("tokens", range_text(self.tokens))]
        if len(self.statistics):
            low, high = min(self.statistics.low), max(self.statistics.high)
            table.append(("values", f"{number(low)}..{number(high)}"))
            table += [("mean", yaml_list(self.statistics.mean)), ("std", yaml_list(self.statistics.std))]
        return table

    def as_dict(self) -> dict[str, Any]:
        """The same for programs, with all digits; NaN and infinity as None."""
        facts: dict[str, Any] = {}
        for name, values in self.facts.items():
            if _all_numbers(values):
                facts[name] = {"low": min(values), "median": _median(values), "high": max(values)}
            else:
                facts[name] = dict(values.most_common(_TEXTS))
        statistics = {
            key: [value if math.isfinite(value) else None for value in getattr(self.statistics, key)]
            for key in ("mean", "std", "low", "high")
        }
        return {
            "facts": facts,
            "loaded": dict(self.loaded),
            "tokens": dict(sorted(self.tokens.items())),
            **statistics,
        }


@dataclass
class Findings:
    """Sums over all samples of a data set."""

    classes: Sequence[str] | None = None
    samples: int = 0
    reasons: Counter = field(default_factory=Counter)  # of broken samples; those that differ in numbers count as one
    labels: Counter = field(default_factory=Counter)
    modalities: dict[str, ModalityFindings] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)  # {sample: the first one with its content}
    other_label: int = 0  # repeated samples whose label differs from that of the first one
    first_bad: tuple[str, str] | None = None  # id and reason
    _first_reasons: dict[str, str] = field(default_factory=dict)  # {reason without its numbers: the first such reason}
    _first_samples: dict[str, tuple[int, Any]] = field(default_factory=dict)  # {digest: first sample and its label}

    @classmethod
    def from_rows(cls, rows: Iterable[Row], classes: Sequence[str] | None = None) -> Findings:
        """Sum up rows in the order of the source."""
        findings = cls(classes)
        for row in rows:
            findings.add(row)
        return findings

    @property
    def broken(self) -> int:
        """Samples that cannot be used."""
        return self.reasons.total()

    def add(self, row: Row) -> None:
        """Add the next sample of the source."""
        index = self.samples
        self.samples += 1
        if "bad" in row:
            reason = row["bad"]
            self.first_bad = self.first_bad or (row["id"], reason)
            self.reasons[self._first_reasons.setdefault(re.sub(r"\d+", "", reason), reason)] += 1
            return
        label = row["label"]
        self.labels.update(self._class_names(label))
        for name, part in row["of"].items():
            self.modalities.setdefault(name, ModalityFindings()).add(part)
        first, first_label = self._first_samples.setdefault(row["digest"], (index, label))
        if first != index:
            self.same[index] = first
            self.other_label += label != first_label

    def _class_names(self, label: int | list[int] | None) -> list[str]:
        """The names of a sample's classes; a number where a class has no name."""
        labels = [] if label is None else label if isinstance(label, list) else [label]
        classes = self.classes or ()
        return [str(classes[label]) if 0 <= label < len(classes) else str(label) for label in labels]

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
            table.append(("labels", counts_text(self.labels, most=10)))
        for name, findings in self.modalities.items():
            prefix = f"{name} " if len(self.modalities) > 1 else ""
            table += [(f"{prefix}{title}", text) for title, text in findings.table()]
        width = max((len(title) for title, _ in table), default=0)
        return [f"  {title:<{width}}  {text}" for title, text in table]

    def as_dict(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "samples": self.samples,
            "broken": self.broken,
            "reasons": dict(self.reasons.most_common()),
            "repeated": len(self.same),
            "repeated_other_label": self.other_label,
            "labels": dict(sorted(self.labels.items())),
            "modalities": {name: findings.as_dict() for name, findings in self.modalities.items()},
        }

    def write_csv(self, rows: Callable[[], Iterable[Row]], path: Path) -> None:
        """Write a line for each sample: first the broken ones, then those that repeat others, then the rest.

        ``rows()`` returns all rows anew at each call, so that they need not fit into memory.
        """
        facts = [(name, fact) for name, findings in self.modalities.items() for fact in findings.facts]
        titles = [f"{name} {fact}" if len(self.modalities) > 1 else fact for name, fact in facts]
        firsts = set(self.same.values())
        ids = {index: row["id"] for index, row in enumerate(rows()) if index in firsts}
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["status", "id", "label", "reason", *titles])
            for section in ("broken", "repeated", "ok"):
                for index, row in enumerate(rows()):
                    status = "broken" if "bad" in row else "repeated" if index in self.same else "ok"
                    if status != section:
                        continue
                    if status == "broken":
                        cells = ["", row["bad"], *[""] * len(facts)]
                    else:
                        reason = f"same content as {ids[self.same[index]]}" if status == "repeated" else ""
                        values = [row["of"].get(name, {}).get("facts", {}).get(fact, "") for name, fact in facts]
                        cells = [";".join(self._class_names(row["label"])), reason, *values]
                    table.writerow([status, row["id"], *cells])


# ------------------------------------------------------------------------------------------------ values as text
def range_text(values: Mapping[Any, int]) -> str:
    """{value: count} of numbers as "231..6,000, median 480"; texts and few different numbers with their counts."""
    if len(values) <= _FEW or not _all_numbers(values):
        return counts_text(values)
    return f"{number(min(values))}..{number(max(values))}, median {number(_median(values))}"


def counts_text(values: Mapping[Any, int], most: int = 5) -> str:
    """{value: count} as "jpeg (1,950), png (50)", the most frequent first; a single value without its count."""
    by_count = sorted(values.items(), key=lambda pair: (-pair[1], str(pair[0])))
    if len(by_count) == 1:
        return number(by_count[0][0])
    text = ", ".join(f"{number(value)} ({count:,})" for value, count in by_count[:most])
    return text + (f" and {len(by_count) - most:,} more" if len(by_count) > most else "")


def yaml_list(values: Sequence[float]) -> str:
    """Numbers as a list in YAML, four digits each."""
    return f"[{', '.join(f'{x:.4f}' if 0.01 <= abs(x) < 100 else f'{x:.4g}' for x in values)}]"


def _all_numbers(values: Iterable[Any]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def _median(values: Mapping[Any, int]) -> Any:
    """The lower median of {value: count}."""
    half, passed = sum(values.values()) / 2, 0
    for value in sorted(values):
        passed += values[value]
        if passed >= half:
            return value
    return math.nan
