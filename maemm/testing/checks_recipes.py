"""Rules of the recipes and of the checkpoint formats that a plugin brings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm import config, registry
from maemm.config.options import options_of
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.testing.case import Case, check
from maemm.testing.outcome import ALL, DoesNotApply
from maemm.weights import fill

DEPTH = 2


def _recipes(case: Case) -> dict[str, Path]:
    return {name: path for name, path in config.packaged().items() if name.startswith(f"{case.plugin.name}/")}


@check(ALL)
def recipes_are_sound(case: Case) -> None:
    """Each recipe has a first line of comment, can be trained, reads back as it is written, and builds a model."""
    recipes = _recipes(case)
    if not recipes:
        raise DoesNotApply("the plugin brings no recipe")
    for name, path in recipes.items():
        change = f"fix {path.name}"
        case.require(config.summary(path), f"recipe {name}: what it is", "no comment", "a first line # WHAT", change)
        try:
            recipe = config.load(name, training=True)
            with torch.device("meta"):
                build_model(_shallow(recipe))
        except MaemmError as error:
            case.require(False, f"recipe {name}", " / ".join(str(error).splitlines()), "a recipe that builds", change)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "again.yaml"
            file.write_text(config.dump(recipe), encoding="utf-8")
            differ = config.diff(recipe, config.load(file, training=True))
        case.require(not differ, f"recipe {name} written and read", ", ".join(differ), "the same", change)


@check("weights")
def weights_go_round(case: Case) -> None:
    """What write() wrote is recognised by match(), and read() and write() give back the same tensors."""
    kind: CheckpointFormat = registry.find("weights", case.part)()
    change = "let read() and write() undo each other, and pass on what has no use in extras"
    reason = "there is none"
    for recipe in _candidates(case):
        try:
            with seeded("conformance", 0):
                model = build_model(recipe).eval()
            state = {key: value.detach().clone() for key, value in kind.write(model, {}).items()}
        except Exception as error:  # not every model has this layout
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        if kind.match(set(shapes), shapes):
            _round(case, kind, model, state, change)
            return
        reason = "match() does not know what write() wrote"
    raise DoesNotApply(f"no recipe of the plugin has this layout ({reason})")


def _round(case: Case, kind: CheckpointFormat, model: Model, state: dict[str, Tensor], change: str) -> None:
    recipe, ours, extras = kind.read(dict(state), **_known(case, kind, model.recipe))
    again = build_model(recipe).eval()
    fill(again, ours, f"weights {case.part!r}")
    back = kind.write(again, extras)
    odd = sorted(back.keys() ^ state.keys())
    case.require(not odd, "names after reading and writing", ", ".join(odd[:3]), "the same names", change)
    for key in state:
        case.equal(back[key], state[key], f"tensor {key} after reading and writing", change)


def _known(case: Case, kind: CheckpointFormat, recipe: dict[str, Any]) -> dict[str, Any]:
    """What the tensors do not tell: heads of attention, and whatever the author's options say."""
    known = {"heads": recipe["encoder"].get("heads"), "decoder_heads": (recipe.get("decoder") or {}).get("heads")}
    takes = options_of(kind.read)
    return {key: value for key, value in known.items() if key in takes and value} | dict(
        case.given.get(f"weights.{case.part}", {})
    )


def _shallow(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with few blocks."""
    found = dict(recipe)
    for part in ("encoder", "decoder"):
        spec = recipe.get(part)
        if spec and isinstance(spec.get("depth"), int):
            found[part] = spec | {"depth": min(spec["depth"], DEPTH)}
    return found


def _candidates(case: Case) -> Iterator[dict[str, Any]]:
    """The plugin's recipes with few blocks, small ones first, with and without a decoder, and a tiny one."""
    recipes = [_shallow(config.load(name)) for name in _recipes(case)]
    for recipe in [case.recipe(), *sorted(recipes, key=lambda one: one["encoder"].get("dim", 0))]:
        yield recipe
        yield recipe | {"decoder": None, "objectives": {}}
