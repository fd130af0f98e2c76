"""What a run has left in its folder, or in those of its stages, and whether two runs are equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

FIGURES = ("step", "epoch", "loss", "grad_norm", "terms", "baseline", "lr", "nonfinite_steps", "validation")


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def folders(run: Path) -> list[Path]:
    """The folders of a run's stages that have begun, in the order of their names in reverse; or its own."""
    return sorted((path.parent for path in run.glob("*/checkpoints")), reverse=True) or [run]


def rows(run: Path) -> list[dict[str, Any]]:
    """The whole log lines of a run, without what time changes."""
    lines = [line for part in folders(run) for line in text_of(part / "metrics.jsonl").splitlines(keepends=True)]
    return [{key: row.get(key) for key in FIGURES} for row in map(json.loads, (x for x in lines if x.endswith("\n")))]


def checkpoints(part: Path) -> list[Path]:
    """The checkpoints of a run, or of a stage, the newest last."""
    return sorted(part.glob("checkpoints/step-*"))


def unfinished(run: Path) -> list[str]:
    """What writers of checkpoints have left half written."""
    return [path.name for part in folders(run) for path in part.glob("checkpoints/.*")]


def equal(run: Path, other: Path) -> bool:
    """Whether two runs have the same log and the same last weights, bit for bit."""
    if json.dumps(rows(run)) != json.dumps(rows(other)):
        return False
    for part, beside in zip(folders(run), folders(other), strict=True):
        ours, theirs = checkpoints(part)[-1], checkpoints(beside)[-1]
        names = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*.safetensors"))
        assert names, f"no weights in {theirs}"
        for name in names:
            one, two = load_file(ours / name), load_file(theirs / name)
            if one.keys() != two.keys() or not all(torch.equal(one[key], two[key]) for key in one):
                return False
    return True
