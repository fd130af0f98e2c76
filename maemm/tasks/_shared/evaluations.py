"""Evaluations of a run, as its page shows them: the newest metrics of each verb in ``evaluate/``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from maemm.data.line_files import record_in
from maemm.ui.charts import Line, charts

_TITLES = {
    "knn": "k nearest neighbours",
    "probe": "Probes of frozen features",
    "evaluate": "Evaluation of the classifier",
    "labels": "Few labels",
    "runs": "Several runs",
}
_STYLES = {"raw values": "soft", "untrained": "baseline", "trained": "main"}
_STYLES |= {"from scratch": "baseline", "fine-tuned": "main"}
_DASHES = ("", " dashed", " dotted")  # of protocols


@dataclass(frozen=True)
class Evaluation:
    """A section of the page."""

    title: str
    warnings: list[str]
    rows: list[list[str]]  # of a table; the first one names the columns; empty where the file is not as maemm writes it
    curve: Markup | str  # over the number of labels; "" where there is one number


def evaluations(folder: Path) -> list[Evaluation]:
    """The newest record of each verb."""
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted((folder / "evaluate").glob("*.json")):
        record = record_in(path)
        if record is not None and record.get("verb") in list(_TITLES):  # a list: the value may be of any type
            newest[record["verb"]] = path, record
    return [_evaluation(path, record) for path, record in newest.values()]


def _evaluation(path: Path, record: dict[str, Any]) -> Evaluation:
    results = record.get("results")
    try:
        if isinstance(results, list):
            rows, curve = _table(results), _label_curve(results, (record.get("data") or {}).get("majority"))
        else:
            rows, curve = _streams(results or {}), ""
    except (KeyError, TypeError, AttributeError, IndexError, StopIteration):
        return Evaluation(path.name, [], [], "")
    warnings = [str(warning) for warning in record.get("warnings") or []]
    return Evaluation(f"{_TITLES[record['verb']]}, {record.get('time', '')}", warnings, rows, curve)


def _metric(results: list[dict[str, Any]]) -> str:
    return "mAP" if "mAP" in results[0] else "accuracy"


def _table(results: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each kind of features, a column for each protocol and number of labels."""
    metric = _metric(results)
    columns = list(dict.fromkeys((cell["protocol"], cell["shots"]) for cell in results))
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for cell in results:
        std = "" if cell.get("std") is None else f" ± {cell['std']:.3f}"
        rows.setdefault(cell["features"], {})[cell["protocol"], cell["shots"]] = f"{cell[metric]:.3f}{std}"
    head = [metric, *(f"{protocol}, {_labels(shots)}" for protocol, shots in columns)]
    return [head, *([features, *(row.get(column, "") for column in columns)] for features, row in rows.items())]


def _labels(shots: str) -> str:
    if shots == "all":
        return "all labels"
    return f"{shots} of labels" if shots.endswith("%") else f"{shots} per class"


def _streams(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each stream of a classifier, a column for each metric."""
    names = [name for name, value in next(iter(results.values())).items() if isinstance(value, float)]
    body = [[stream, *(f"{metrics[name]:.4f}" for name in names)] for stream, metrics in results.items()]
    return [["", *(name.replace("_", " ") for name in names)], *body]


def _label_curve(results: list[dict[str, Any]], majority: float | None) -> Markup | str:
    """The metric over the number of labels: a line with its std for each kind of features and protocol."""
    metric = _metric(results)
    shots = list(dict.fromkeys(str(cell["shots"]) for cell in results))
    if len(shots) < 2:
        return ""
    x = [float(index) for index in range(len(shots))]
    protocols = list(dict.fromkeys(cell["protocol"] for cell in results))
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for cell in results:
        rows.setdefault((cell["features"], cell["protocol"]), {})[str(cell["shots"])] = cell
    lines = []
    for (features, protocol), cells in rows.items():
        y = [float(cells[count][metric]) if count in cells else math.nan for count in shots]
        std = [float(cells[count].get("std") or 0.0) if count in cells else 0.0 for count in shots]
        style = _STYLES.get(features.partition(",")[0], "other") + _DASHES[protocols.index(protocol) % len(_DASHES)]
        label = features if len(protocols) == 1 else f"{features}, {protocol}"
        lines.append(Line(label, x, y, style, std))
    if majority is not None:
        lines.append(Line("largest class", x, [float(majority)] * len(x), "soft dotted"))
    percent = any("%" in count for count in shots)
    x_label = "labels (of each class)" if percent else "labels of each class"
    return charts(lines, x_label=x_label, y_label=metric, width=1100, height=330, x_names=shots)
