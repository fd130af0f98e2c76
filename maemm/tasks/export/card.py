"""The card of an exported model: what it is, its inputs and outputs, where it comes from, how well it did."""

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
from maemm.tasks.export.inference_model import InferenceModel

_RECORDS = 20  # evaluations that a card holds, the last ones by name


def card_of(exported: InferenceModel, to: str, differences: Mapping[int, float] | None = None) -> dict[str, Any]:
    """A JSON object. ``differences``: {batch size: largest difference of the exported outputs from the model's}."""
    model = exported.model
    example = exported.example(1)
    inputs = {}
    for name, shape in exported.shapes.items():
        modality = model.modalities[name]
        tokens = modality.tokenize(Preprocessed(example[name]))
        inputs[name] = {
            "shape": ["batch", *shape],
            "dtype": "float32",
            "tokens": tokens.count,
            "grid": None if tokens.grid is None else list(tokens.grid),
            "normalisation": normalisation(modality, shape),
        }
    card: dict[str, Any] = {
        "maemm": __version__,
        "target": to,
        "output": exported.output,
        "pool": exported.pool,
        "inputs": inputs,
        "outputs": {name: ["batch", *x.shape[1:]] for name, x in exported.compute(example).items()},
        "embed": _maemm_call(exported),
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "recipe": model.recipe,
        "provenance": {"from": exported.origin, "kind": model.kind or "maemm", "weights": weights_stamp(model)},
        "versions": {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "metrics": {} if exported.run is None else metrics_of(exported.run),
    }
    if differences is not None:
        card["checked"] = {f"batch {batch}": difference for batch, difference in differences.items()}
    return json.loads(json.dumps(card, default=str))


def normalisation(modality: Modality, shape: tuple[int, ...]) -> dict[str, Any] | None:
    """``mean`` and ``std`` of x = (value - mean) / std, a number each or one per channel; None where x = value.

    Derived from :meth:`Modality.denormalize_input` of zeros and ones of ``shape``; None also where that is not of
    this form.
    """
    mean = modality.denormalize_input(torch.zeros(shape))
    std = modality.denormalize_input(torch.ones(shape)) - mean
    if mean.shape != torch.Size(shape) or bool((mean == 0).all() and (std == 1).all()):
        return None
    statistics: dict[str, float | list[float]] = {}
    for key, values in (("mean", mean), ("std", std)):
        channels = values.reshape(values.shape[0], -1)
        if bool((channels == channels[0, 0]).all()):
            statistics[key] = round(float(channels[0, 0]), 7)
        elif bool((channels == channels[:, :1]).all()):
            statistics[key] = [round(float(value), 7) for value in channels[:, 0]]
        else:
            return None
    return statistics


def _maemm_call(exported: InferenceModel) -> str:
    """Python that computes the same outputs with maemm."""
    batch = ", ".join(f'"{name}": x_{name}' if len(exported.names) > 1 else f'"{name}": x' for name in exported.names)
    method = {"features": "embed({%s})", "tokens": "embed({%s}, tokens=True)", "logits": "logits({%s})"}
    return f"maemm.load(FILE).{method[exported.output] % batch}"


def metrics_of(run: Path) -> dict[str, Any]:
    """The last metrics of a run's training and the records of its evaluations; empty where ``run`` is no run."""
    metrics: dict[str, Any] = {}
    if not (run / "metrics.jsonl").is_file():
        return metrics
    rows = read_run(run).rows
    if rows:
        metrics["training"] = {key: value for key, value in rows[-1].items() if isinstance(value, (int, float, str))}
    for path in sorted((run / "evaluate").glob("*.json"))[-_RECORDS:]:
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(record, dict):
            metrics[path.stem] = {key: value for key, value in record.items() if key not in ("confusions", "classes")}
    return metrics
