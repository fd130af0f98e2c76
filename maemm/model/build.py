"""Build models from recipes."""

from __future__ import annotations

from typing import Any

from torch import nn

from maemm import registry
from maemm.config.options import check
from maemm.contract import Decoder, Encoder, Masking, Modality, Objective, Target
from maemm.contract.errors import MaemmError
from maemm.model.masking.each_modality import EachModality
from maemm.model.masking.only import Only
from maemm.model.model import Model
from maemm.model.size import refuse_too_large
from maemm.registry.make import make, part_of

_NAMES = nn.ModuleDict()  # of its attributes: no module in it can have one of these names
_NOT_OPTIONS = ("type", "masking", "target", "same_as", "align", "only")  # keys of a modality, not options of its class


def build_modality(recipe: dict[str, Any], name: str) -> Modality:
    """One modality without parameters, as workers need it to load samples."""
    spec = recipe["modalities"][name]
    options = {key: value for key, value in spec.items() if key not in _NOT_OPTIONS}
    modality = _make("modalities", {"type": spec.get("type", name), **options}, where=f"modalities.{name}")
    modality.aligned_with = spec.get("align")
    modality.side_inputs, modality.whole_samples = _side_inputs(recipe, name)
    return modality


def _make(role: str, spec: Any, *positional: Any, where: str, default: str | None = None) -> Any:
    """A part with its options checked, since a recipe may come from a file or from Python without having been read."""
    name, options = part_of(spec, default)
    check(registry.find(role, name), options, where)
    return make(role, spec, *positional, default=default, where=where)


def _side_inputs(recipe: dict[str, Any], name: str) -> tuple[tuple[str, ...], bool]:
    """What objectives and the modality's target want of its samples, made in the workers, and whether any of it is of
    whole samples."""
    requested: list[str] = []
    whole = False
    for objective in _objectives(recipe).values():
        sides = [*objective.side_inputs.get(name, ()), *objective.side_inputs.get("*", ())]
        requested += sides
        whole |= bool(sides) and objective.whole_samples
    if target := recipe["modalities"][name].get("target"):
        part = registry.find("targets", part_of(target)[0])
        requested += part.side_inputs
        whole |= part.whole_samples
    return tuple(dict.fromkeys(requested)), whole


def _objectives(recipe: dict[str, Any]) -> dict[str, Objective]:
    return {
        name: _make("objectives", spec, name, default=name, where=f"objectives.{name}")
        for name, spec in (recipe.get("objectives") or {"reconstruct": {}}).items()
    }


def _targets(recipe: dict[str, Any], modalities: dict[str, Modality], encoder_dim: int) -> dict[str, Target]:
    """A target for each modality that has one; modalities with equal options share it."""
    groups: list[tuple[Any, list[str]]] = []
    for name, spec in recipe["modalities"].items():
        if spec.get("target"):
            names = next((names for other, names in groups if other == spec["target"]), None)
            if names is None:
                groups.append((spec["target"], names := []))
            names.append(name)
    targets: dict[str, Target] = {}
    for spec, names in groups:
        target = _make("targets", spec, names, encoder_dim, where=f"modalities.{names[0]}.target")
        target.prepare({name: modalities[name] for name in names})
        targets |= dict.fromkeys(names, target)
    return targets


def _refuse_misaligned(name: str, modality: Modality, specs: dict[str, Any], own: dict[str, Modality]) -> None:
    """Raise :class:`MaemmError` where modalities draw the same crop or flip, and use it in different ways."""
    other = modality.aligned_with
    if other is None or other not in own:
        return
    for option in (option for option in modality.aligned_options if option in own[other].aligned_options):
        mine, theirs = getattr(modality, option), getattr(own[other], option)
        if mine != theirs:
            raise MaemmError(
                f"{name} is aligned with {other}, and their {option} differ ({specs[name].get(option, mine)} and "
                f"{specs[other].get(option, theirs)}, modalities.{name}.{option}); give both the same"
            )


def build_modalities(recipe: dict[str, Any]) -> dict[str, Modality]:
    """All modalities of a recipe, without parameters; ``same_as`` names share one module."""
    specs = recipe["modalities"]
    own = {name: build_modality(recipe, name) for name, spec in specs.items() if "same_as" not in spec}
    for name, modality in own.items():
        _refuse_misaligned(name, modality, specs, own)
    return {name: own[spec.get("same_as", name)] for name, spec in specs.items()}


def only_of(recipe: dict[str, Any]) -> dict[str, str]:
    """{modality: "encode" or "decode"} of those that a recipe only encodes or only decodes."""
    return {name: spec["only"] for name, spec in recipe["modalities"].items() if spec.get("only")}


def build_masking(recipe: dict[str, Any]) -> Masking:
    """A joint masking where the recipe has one, else one per modality; in :class:`Only` where some have ``only``."""
    masking, only = _masking(recipe), only_of(recipe)
    return Only(masking, only) if only else masking


def _masking(recipe: dict[str, Any]) -> Masking:
    if recipe.get("masking"):
        return _make("maskings", recipe["masking"], where="masking")
    maskings = {}
    for name, spec in recipe["modalities"].items():
        shared = recipe["modalities"].get(spec.get("same_as", ""), {})
        chosen = spec.get("masking") or shared.get("masking") or "random"
        maskings[name] = _make("maskings", chosen, where=f"modalities.{name}.masking")
    return EachModality(maskings)


def build_model(recipe: dict[str, Any]) -> Model:
    """A model with fresh weights from a resolved recipe (a plain dict).

    Raises :class:`MaemmError` where an option has a wrong value, or where the model cannot fit this machine.
    """
    for section in ("modalities", "objectives"):
        for name in recipe.get(section) or {}:
            if hasattr(_NAMES, name):
                raise MaemmError(
                    f"{name!r} cannot be a name in {section}, as torch's ModuleDict has a {name!r} of its own "
                    f"({section}.{name}); choose another, such as {name}_1"
                )
    refuse_too_large(recipe, _build)
    return _build(recipe)


def _build(recipe: dict[str, Any]) -> Model:
    modalities = build_modalities(recipe)
    encoder = _make("encoders", recipe["encoder"], list(modalities), where="encoder")
    encoder.prepare(modalities)
    targets = _targets(recipe, modalities, encoder.dim)
    decoder = None
    if recipe.get("decoder"):
        encoded = [name for name, role in only_of(recipe).items() if role == "encode"]
        outputs = {
            name: 0 if name in encoded else targets.get(name, modality).output_dim()
            for name, modality in modalities.items()
        }
        prefix = getattr(encoder, "prefix", None)
        prefix_count = 0 if prefix is None else prefix.shape[1]
        decoder = _make("decoders", recipe["decoder"], outputs, encoder.dim, prefix_count, where="decoder")
        _connect(decoder, encoder)
    for modality in dict.fromkeys(modalities.values()):
        modality.connect(encoder.dim, None if decoder is None else decoder.dim)
    head = _make("heads", recipe["head"], encoder.dim, where="head") if recipe.get("head") else None
    masking, objectives = build_masking(recipe), _objectives(recipe)
    model = Model(modalities, masking, encoder, decoder, objectives, targets, head, recipe=recipe)
    parts: list[Target | Objective] = [*dict.fromkeys(targets.values()), *objectives.values()]
    for part in parts:
        part.connect(model)
    _add_stored_options(model)
    return model


def _connect(decoder: Decoder, encoder: Encoder) -> None:
    """Raises :class:`MaemmError` where the decoder would leave the encoder's latent tokens without any training."""
    if encoder.latent_shape is not None and not decoder.reads_latent_tokens:
        raise MaemmError(
            f"the encoder writes into latent tokens, which {type(decoder).__name__} does not read (decoder.type); set "
            "decoder.type=latent, or encoder.type=vit"
        )
    decoder.connect(encoder)


def _add_stored_options(model: Model) -> None:
    """Complete the recipe that is stored with the weights by what targets have read from files."""
    places = [("modalities", name, target) for name, target in model.targets.items()]
    for name, objective in model.objectives.items():
        if isinstance(target := getattr(objective, "target", None), Target):
            places.append(("objectives", name, target))
    for section, name, target in places:
        if options := target.stored_options():
            spec = model.recipe[section][name]
            kind, given = part_of(spec["target"])
            parts = {**model.recipe[section], name: {**spec, "target": {"type": kind, **given, **options}}}
            model.recipe = {**model.recipe, section: parts}


def build(recipe: str | dict[str, Any], **overrides: Any) -> Model:
    """``build("image/mae_base", **{"encoder.depth": 6})``: a model with fresh weights from a recipe.

    ``recipe``: the name of a recipe, a YAML file, a run folder, or a resolved recipe. Raises :class:`MaemmError` for a
    recipe that is not found or not valid.
    """
    if isinstance(recipe, dict) and not overrides:
        return build_model(recipe)
    from maemm import config  # reads schemas and YAML, which a resolved recipe does not need

    return build_model(config.load(recipe, overrides))
