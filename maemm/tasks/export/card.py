"""The card of an exported model: what it is, its inputs and outputs, where it comes from, how well it did."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from maemm.contract import Modality
from maemm.contract.version import __version__
from maemm.data.line_files import record_in
from maemm.tasks._shared.inputs import weights_stamp
from maemm.tasks._shared.run_files import read_run
from maemm.tasks.export.inference_model import InferenceModel
from maemm.tasks.export.inputs import MEANINGS, input_name
from maemm.weights.checkpoints import run_of

_RECORDS = 20  # evaluations that a card holds, the last ones by name


def card_of(
    exported: InferenceModel,
    to: str,
    differences: Mapping[str, float] | None = None,
    elements: Mapping[str, tuple[int, int | None]] | None = None,
) -> dict[str, Any]:
    """A JSON object. ``differences``: {what was compared: largest difference of the exported outputs from the model's}.
    ``elements``: as in :class:`Written`.
    """
    model = exported.model
    card: dict[str, Any] = {
        "maemm": __version__,
        "target": to,
        "output": exported.output,
        "pool": exported.pool,
        "inputs": inputs_of(exported, elements or {}),
        "outputs": {name: ["batch", *x.shape[1:]] for name, x in exported.compute(exported.example(1)).items()},
        "embed": _maemm_call(exported),
        "parameters": sum(p.numel() for p in model.parameters()),
        "encoder_parameters": sum(p.numel() for p in model.encoder.parameters()),
        "recipe": model.recipe,
        "provenance": {"from": exported.origin, "kind": model.kind or "maemm", "weights": weights_stamp(model)},
        "versions": {"maemm": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "metrics": {} if exported.run is None else metrics_of(exported.run),
    }
    if differences is not None:
        card["checked"] = dict(differences)
    return json.loads(json.dumps(card, default=str))


def inputs_of(exported: InferenceModel, elements: Mapping[str, tuple[int, int | None]]) -> dict[str, dict[str, Any]]:
    """{input: shape, dtype, and what it means}; in shapes a text is a size that may vary."""
    example, inputs = exported.example(1), dict[str, dict[str, Any]]()
    for name, shape in exported.shapes.items():
        modality, tokens = exported.model.modalities[name], exported.tokens(example, name)
        inputs[name] = {
            "shape": ["batch", *shape],
            "dtype": "float32",
            "tokens": tokens.count,
            "grid": None if tokens.grid is None else list(tokens.grid),
            "normalisation": normalisation(modality, shape),
        }
    for kind, names in (("valid", exported.ragged), ("present", exported.optional)):
        for name in names:
            key = input_name(name, kind)
            meaning = MEANINGS[kind].format(name=name)
            inputs[key] = {"shape": ["batch", *example[key].shape[1:]], "dtype": "bool", "of": name, "meaning": meaning}
    for name, (least, largest) in elements.items():
        inputs[name]["elements"] = [least, largest]
        for key in (name, input_name(name, "valid")):
            inputs[key]["shape"][1] = f"{name} elements"
    return inputs


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
    parts = []
    for name in exported.shapes:
        x = f"x_{name}" if len(exported.shapes) > 1 else "x"
        further = [f"{kind}={input_name(name, kind)}" for kind in MEANINGS if input_name(name, kind) in exported.names]
        parts.append(f'"{name}": ' + (f"Preprocessed({', '.join([x, *further])})" if further else x))
    batch = ", ".join(parts)
    method = {
        "features": "embed({%s})",
        "tokens": "embed({%s}, tokens=True)",
        "logits": "logits({%s})",
        "latents": "embed({%s}, latents=True)",
    }
    return f"maemm.load(FILE).{method[exported.output] % batch}"


def metrics_of(run: Path) -> dict[str, Any]:
    """The last metrics of a run's training and the records of its evaluations; empty where ``run`` is no run."""
    metrics: dict[str, Any] = {}
    run = run_of(run)
    if not (run / "metrics.jsonl").is_file():
        return metrics
    rows = read_run(run).rows
    if rows:
        metrics["training"] = {key: value for key, value in rows[-1].items() if isinstance(value, (int, float, str))}
    for path in sorted((run / "evaluate").glob("*.json"))[-_RECORDS:]:
        record = record_in(path)
        if record is not None:
            metrics[path.stem] = {key: value for key, value in record.items() if key not in ("confusions", "classes")}
    return metrics
