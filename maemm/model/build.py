"""From a resolved recipe to a model."""

from __future__ import annotations

from typing import Any

from maemm.contract import Masking, Modality, Objective, Target
from maemm.model.masking.per_modality import Each
from maemm.model.model import Model
from maemm.registry.make import make

_MODALITY_EXTRAS = ("type", "masking", "target", "same_as")


def build_modality(recipe: dict[str, Any], name: str) -> Modality:
    """One modality without parameters: what workers need to load samples."""
    spec = recipe["modalities"][name]
    options = {key: value for key, value in spec.items() if key not in _MODALITY_EXTRAS}
    return make("modalities", {"type": spec.get("type", name), **options}, where=f"modalities.{name}")


def build_modalities(recipe: dict[str, Any]) -> dict[str, Modality]:
    """All modalities of a recipe, without parameters; ``same_as`` names share one module."""
    specs = recipe["modalities"]
    made = {name: build_modality(recipe, name) for name, spec in specs.items() if "same_as" not in spec}
    return {name: made[spec["same_as"]] if "same_as" in spec else made[name] for name, spec in specs.items()}


def build_masking(recipe: dict[str, Any]) -> Masking:
    """A joint masking where the recipe has one, otherwise one per modality."""
    if recipe.get("masking"):
        return make("maskings", recipe["masking"], where="masking")
    each = {}
    for name, spec in recipe["modalities"].items():
        shared = recipe["modalities"].get(spec.get("same_as", ""), {})
        chosen = spec.get("masking") or shared.get("masking") or "random"
        each[name] = make("maskings", chosen, where=f"modalities.{name}.masking")
    return Each(each)


def build_model(recipe: dict[str, Any]) -> Model:
    """A model with fresh weights from a resolved recipe (plain dict); see ``docs/recipes.md`` for the keys."""
    modalities = build_modalities(recipe)
    encoder = make("encoders", recipe["encoder"], list(modalities), where="encoder")
    decoder_spec = recipe.get("decoder")
    targets = _targets(recipe)
    decoder = None
    if decoder_spec:
        outputs = {n: targets.get(n, m).output_dim() for n, m in modalities.items()}
        prefix = getattr(encoder, "prefix", None)
        prefix_count = 0 if prefix is None else prefix.shape[1]
        decoder = make("decoders", decoder_spec, outputs, encoder.dim, prefix_count, where="decoder")
    for modality in dict.fromkeys(modalities.values()):
        modality.connect(encoder.dim, None if decoder is None else decoder.dim)
    head = make("heads", recipe["head"], encoder.dim, where="head") if recipe.get("head") else None
    return Model(modalities, build_masking(recipe), encoder, decoder, _objectives(recipe), targets, head, recipe=recipe)


def _objectives(recipe: dict[str, Any]) -> dict[str, Objective]:
    specs = recipe.get("objectives") or {"reconstruct": {}}
    return {
        name: make("objectives", spec, name, default=name, where=f"objectives.{name}") for name, spec in specs.items()
    }


def _targets(recipe: dict[str, Any]) -> dict[str, Target]:
    return {
        name: make("targets", spec["target"], name, where=f"modalities.{name}.target")
        for name, spec in recipe["modalities"].items()
        if spec.get("target")
    }


def build(what: str | dict[str, Any], **overrides: Any) -> Model:
    """``build("image/mae_base", **{"encoder.depth": 6})``: a model with fresh weights from a recipe.

    ``what`` is a recipe's name, a YAML file, a run folder, or a resolved recipe.
    """
    if isinstance(what, dict) and not overrides:
        return build_model(what)
    from maemm import config

    return build_model(config.load(what, overrides))
