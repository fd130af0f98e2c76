"""Stages of a recipe: named sets of overrides, which are trained in order, each in a folder of its own.

A stage is the resolved recipe with its overrides merged over it, as a file is over its base. It begins with the weights
of the stage before, unless its ``init`` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maemm.config.layers import Layer
from maemm.config.messages import value_text
from maemm.contract.errors import MaemmError, advice

NAME = re.compile(r"[A-Za-z_][\w-]*", re.ASCII)  # a stage: part of a dotted key, and the name of a folder
# What a run folder holds beside its stages.
RESERVED = ("best", "checkpoints", "evaluate", "pictures", "tensorboard", "trackers")
NOT_IN_STAGES = ("stages", "stage", "out", "name")

Check = Callable[[Layer, str | None, bool], dict[str, Any]]


def stage_layers(values: Mapping[str, Any], origins: Mapping[str, str]) -> dict[str, Layer]:
    """{stage: its layer, to be checked} of the resolved recipe ``values``, of which keys were set at ``origins``.

    Raises :class:`MaemmError` for a stage that begins with one that does not come before it.
    """
    out = values.get("out") or ""
    base = {key: value for key, value in values.items() if key not in ("stages", "out", "name", "init")}
    layers: dict[str, Layer] = {}
    for stage, overrides in values["stages"].items():
        where = f"stages.{stage}."
        own = {key.removeprefix(where): origin for key, origin in origins.items() if key.startswith(where)}
        others = {key: origin for key, origin in origins.items() if not key.startswith("stages.")}
        changes = {key: value for key, value in overrides.items() if key != "init"}
        layer = Layer(changes, own).over(Layer(base, others))
        init = _init(stage, overrides, values, layers)
        if init is not None:
            layer.values["init"] = init
        layer.values["out"] = str(Path(out, stage))
        layer.values["name"] = f"{values['name']}, stage {stage}" if values.get("name") else None
        layers[stage] = layer
    return layers


def _init(stage: str, overrides: Mapping[str, Any], values: Mapping[str, Any], before: Mapping[str, Layer]) -> Any:
    """``init`` of a stage: the stage before, one that it names, or what it says itself."""
    init = overrides.get("init")
    if not before and "init" not in overrides:
        return values.get("init")
    if init is None and "init" in overrides:
        return None
    if init is not None and not isinstance(init, dict):
        return init
    init = dict(init or {})
    if "weights" in init or "type" in init:
        return init
    if not before:
        base = values.get("init")
        base = base if isinstance(base, dict) else {"weights": base}
        return {**base, **init}
    chosen = init.pop("stage", list(before)[-1])
    if chosen not in before:
        raise MaemmError(
            f"stage {stage} begins with {value_text(chosen)}, which is no stage before it (stages.{stage}.init.stage); "
            f"{advice(str(chosen), before)}"
        )
    weights = str(Path(values.get("out") or "", chosen))
    return {"weights": weights, **init} if init else weights


def problems(stages: Any) -> list[tuple[str, str, str]]:
    """(what is wrong, at which key, what to do) with the section ``stages`` of a recipe."""
    if not isinstance(stages, dict) or not stages:
        return [
            (f"stages must map names to overrides, got {value_text(stages)}", "stages", "write stages: {NAME: ...}")
        ]
    found = []
    for name, overrides in stages.items():
        key = f"stages.{name}"
        if not NAME.fullmatch(name) or name in RESERVED:
            found.append((f"{name!r} cannot be the name of a stage", key, "use letters, digits, _ and -"))
        if not isinstance(overrides, dict):
            todo = f"write {key}: {{train: ..., objectives: ...}}"
            found.append((f"{key} must be a mapping of overrides, got {value_text(overrides)}", key, todo))
            continue
        for inner in NOT_IN_STAGES:
            if inner in overrides:
                found.append((f"{key}.{inner} cannot be set", f"{key}.{inner}", "set it for the whole recipe"))
    return found


def rows(stages: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A table of resolved stages: what each trains, for how long, and with what it begins."""
    table = [["stage", "length", "objectives", "begins with", "frozen", "data"]]
    for name, recipe in stages.items():
        train, init = recipe["train"], recipe.get("init")
        length = f"{train['steps']:,} steps" if train.get("steps") else f"{train.get('epochs') or '?'} epochs"
        parts = init.get("parts") if isinstance(init, dict) else None
        weights = (init["weights"] if isinstance(init, dict) else init) or "fresh weights"
        begins = f"{weights}: {', '.join(parts)}" if parts else str(weights)
        frozen = ", ".join(train.get("freeze") or ()) or (train.get("trainable") or "")
        data = recipe["data"].get("root") or (recipe["data"].get("source") or {}).get("type") or ""
        table.append([name, length, ", ".join(recipe["objectives"]) or "none", begins, frozen, str(data)])
    return table
