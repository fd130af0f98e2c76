"""What was found out about a run after its training: the figures in its ``evaluate/``, with their curves."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from maemm.ui.page import picture_figure

_TITLES = {"knn": "Nearest neighbours", "probe": "Probes of frozen features", "evaluate": "The classifier asked",
           "labels": "Few labels", "runs": "Several runs"}  # fmt: skip


def evaluations(folder: Path) -> str:
    """HTML of the newest figures of each verb; nothing where there are none."""
    newest: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted((folder / "evaluate").glob("*.json")):
        record = _read(path)
        if record is not None and record.get("verb") in _TITLES:
            newest[record["verb"]] = path, record
    parts = "".join(_part(path, record) for path, record in newest.values())
    return f"<h3>What it is good for</h3>{parts}" if parts else ""


def _read(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _part(path: Path, record: dict[str, Any]) -> str:
    results = record.get("results")
    try:
        rows = _cells(results) if isinstance(results, list) else _streams(results)
    except (KeyError, TypeError, AttributeError, IndexError):
        return f'<p class="note">Not shown: {escape(path.name)} (not figures as maemm writes them)</p>'
    title = f"{_TITLES[record['verb']]}, {record.get('time', '')}"
    warnings = "".join(f'<p class="note warn">{escape(str(one))}</p>' for one in record.get("warnings") or [])
    curve = path.with_suffix(".png")
    drawn = picture_figure(curve, f"{title}: over the number of labels") if curve.is_file() else ""
    return f"<h4>{escape(title)}</h4>{warnings}{_table(rows)}{drawn}"


def _cells(results: list[dict[str, Any]]) -> list[list[str]]:
    """A row by kind of features, a column by protocol and number of labels."""
    columns = list(dict.fromkeys((one["protocol"], one["shots"]) for one in results))
    found: dict[str, dict[tuple[str, str], str]] = {}
    for one in results:
        metric = "mAP" if "mAP" in one else "accuracy"
        std = "" if one.get("std") is None else f" ± {one['std']:.3f}"
        found.setdefault(one["features"], {})[one["protocol"], one["shots"]] = f"{one[metric]:.3f}{std}"
    metric = "mAP" if "mAP" in results[0] else "accuracy"
    head = [metric, *(f"{protocol}, {shots} labels" for protocol, shots in columns)]
    return [head, *([name, *(some.get(one, "") for one in columns)] for name, some in found.items())]


def _streams(results: dict[str, dict[str, Any]]) -> list[list[str]]:
    names = [name for name, value in next(iter(results.values())).items() if isinstance(value, float)]
    body = [[stream, *(f"{one[name]:.4f}" for name in names)] for stream, one in results.items()]
    return [["", *(name.replace("_", " ") for name in names)], *body]


def _table(rows: list[list[str]]) -> str:
    lines = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="card scroll"><table>{lines}</table></div>'
