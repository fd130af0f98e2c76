"""The card of an exported model: what it is, what it takes, what it gives, where it comes from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maemm.contract import Modality, Preprocessed
from maemm.contract.version import __version__
from maemm.tasks._shared.inputs import weights_stamp
from maemm.tasks._shared.run_files import read_run
from maemm.tasks.export.subject import Subject

_RECORDS = 20  # of evaluations that a card holds


def card_of(subject: Subject, to: str, differences: Mapping[int, float] | None = None) -> dict[str, Any]:
    """A dict of plain values. ``differences``: of the exported answers from the model's, by batch."""
    model = subject.model
    found: dict[str, Any] = {
        "maemm": __version__,
        "target": to,
        "output": subject.output,
        "pool": subject.pool,
        "inputs": {
            name: {
                "shape": ["batch", *shape],
                "dtype": "float32",
                **_tokens(subject, name),
                "normalisation": normalisation(model.modalities[name], shape),
            }
            for name, shape in subject.shapes.items()
        },
        "outputs": {name: ["batch", *one.shape[1:]] for name, one in subject.answer(subject.example(1)).items()},
        "embed": embed_text(subject),
        "parameters": sum(one.numel() for one in model.parameters()),
        "encoder_parameters": sum(one.numel() for one in model.encoder.parameters()),
        "recipe": model.recipe,
        "provenance": {"from": subject.what, "kind": model.kind or "maemm", "weights": weights_stamp(model)},
        "versions": {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "metrics": {} if subject.run is None else metrics_of(subject.run),
    }
    if differences is not None:
        found["checked"] = {f"batch {batch}": value for batch, value in differences.items()}
    return json.loads(json.dumps(found, default=str))


def _tokens(subject: Subject, name: str) -> dict[str, Any]:
    tokens = subject.model.modalities[name].tokenize(Preprocessed(subject.example(1)[name]))
    return {"tokens": tokens.count, "grid": None if tokens.grid is None else list(tokens.grid)}


def normalisation(modality: Modality, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """``mean`` and ``std`` with x = (value - mean) / std, a number each or one per channel; None: there are none.

    Found by asking :meth:`Modality.denormalize_input` for what 0 and 1 stand for.
    """
    mean = modality.denormalize_input(torch.zeros(shape))
    std = modality.denormalize_input(torch.ones(shape)) - mean
    if mean.shape != torch.Size(shape) or bool((mean == 0).all() and (std == 1).all()):
        return None
    found = {}
    for key, value in (("mean", mean), ("std", std)):
        rows = value.reshape(value.shape[0], -1)
        if bool((rows == rows[0, 0]).all()):
            found[key] = round(float(rows[0, 0]), 7)
        elif bool((rows == rows[:, :1]).all()):
            found[key] = [round(float(one), 7) for one in rows[:, 0]]
        else:
            return None
    return found


def embed_text(subject: Subject) -> str:
    """Python that gives the answer with maemm."""
    batch = ", ".join(f'"{name}": x_{name}' if len(subject.names) > 1 else f'"{name}": x' for name in subject.names)
    method = {"features": "embed({%s})", "tokens": "embed({%s}, tokens=True)", "logits": "logits({%s})"}
    return f"maemm.load(FILE).{method[subject.output] % batch}"


def metrics_of(run: Path) -> dict[str, Any]:
    """The last figures of a run's training, and of its evaluations; empty where there is no run."""
    found: dict[str, Any] = {}
    if not (run / "metrics.jsonl").is_file():
        return found
    rows = read_run(run).rows
    if rows:
        found["training"] = {key: value for key, value in rows[-1].items() if isinstance(value, (int, float, str))}
    for path in sorted((run / "evaluate").glob("*.json"))[-_RECORDS:]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            found[path.stem] = {key: value for key, value in record.items() if key not in ("confusions", "classes")}
    return found
