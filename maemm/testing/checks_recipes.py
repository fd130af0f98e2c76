"""Rules of a plugin's recipes and checkpoint formats."""

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
from maemm.testing.outcome import ALL, DoesNotApply, NotUsed
from maemm.weights import fill

DEPTH = 2


def _recipes(case: Case) -> dict[str, Path]:
    return {name: path for name, path in config.packaged().items() if name.startswith(f"{case.plugin.name}/")}


@check(ALL, needs=["part_can_be_imported"])
def recipes_are_sound(case: Case) -> None:
    """Each recipe starts with a comment, is valid for training, survives writing and reading, and builds a model."""
    recipes = _recipes(case)
    if not recipes:
        raise NotUsed("the plugin has no recipe")
    for name, path in recipes.items():
        change = f"fix {path.name}"
        case.require(config.summary(path), f"recipe {name}: summary", "no comment", "a first line # WHAT", change)
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


@check("weights", needs=["part_can_be_imported"])
def weights_go_round(case: Case) -> None:
    """match() recognises what write() writes, and reading and writing it again gives the same tensors."""
    checkpoint_format: CheckpointFormat = registry.find("weights", case.part)()
    change = "make read() and write() inverses; pass unused tensors on in extras"
    reason = "it has none"
    for recipe in _candidates(case):
        try:
            with seeded("conformance", 0):
                model = build_model(recipe).eval()
            state = {key: value.detach().clone() for key, value in checkpoint_format.write(model, {}).items()}
        except Exception as error:  # not every model has this layout
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        if checkpoint_format.match(set(shapes), shapes):
            _round_trip(case, checkpoint_format, model, state, change)
            return
        reason = "match() does not recognise what write() wrote"
    raise DoesNotApply(f"no recipe of the plugin has this layout ({reason})")


def _round_trip(
    case: Case, checkpoint_format: CheckpointFormat, model: Model, state: dict[str, Tensor], change: str
) -> None:
    # The tensors do not record the number of attention heads; the author's options may set the rest.
    encoder, decoder = model.recipe["encoder"], model.recipe.get("decoder") or {}
    heads = {"heads": encoder.get("heads"), "decoder_heads": decoder.get("heads")}
    accepted = options_of(checkpoint_format.read)
    settings = {key: value for key, value in heads.items() if key in accepted and value}
    settings |= case.options.get(f"weights.{case.part}", {})
    recipe, ours, extras = checkpoint_format.read(dict(state), **settings)
    again = build_model(recipe).eval()
    fill(again, ours, f"weights {case.part!r}")
    written = checkpoint_format.write(again, extras)
    differ = sorted(written.keys() ^ state.keys())
    case.require(not differ, "names after reading and writing", ", ".join(differ[:3]), "the same names", change)
    for key in state:
        case.equal(written[key], state[key], f"tensor {key} after reading and writing", change)


def _shallow(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with few blocks."""
    shallow = dict(recipe)
    for part in ("encoder", "decoder"):
        spec = recipe.get(part)
        if spec and isinstance(spec.get("depth"), int):
            shallow[part] = spec | {"depth": min(spec["depth"], DEPTH)}
    return shallow


def _candidates(case: Case) -> Iterator[dict[str, Any]]:
    """A tiny recipe and the plugin's recipes with few blocks, narrow ones first, each with and without a decoder."""
    recipes = [_shallow(config.load(name)) for name in _recipes(case)]
    for recipe in [case.recipe(), *sorted(recipes, key=lambda recipe: recipe["encoder"].get("dim", 0))]:
        yield recipe
        yield recipe | {"decoder": None, "objectives": {}}
