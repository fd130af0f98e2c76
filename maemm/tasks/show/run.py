"""``maemm show``: samples as a model gets them, before anything is trained."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from maemm import registry
from maemm.config.messages import MISSING
from maemm.config.options import options_of
from maemm.config.paths import expanded
from maemm.contract import Label, Plan, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded
from maemm.data.bad_samples import BadSample, printable, reason_of
from maemm.data.loader import name_of
from maemm.data.locks import writes
from maemm.model.build import build_masking, build_model
from maemm.model.masking.counts import as_sets
from maemm.registry.make import part_of
from maemm.tasks._shared.opened_data import Opened, Overrides, Recipe, open_data
from maemm.tasks._shared.sample_facts import shapes
from maemm.tasks.show.page import page
from maemm.tasks.show.plan_pictures import add_plans
from maemm.tasks.show.shown import Part, Shown
from maemm.train.compiling import on_gpu
from maemm.train.spikes import describe
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import draw_rows, put_together

VIEWS = 4  # augmented views of each sample


@writes("out")
def show(
    data: str | os.PathLike,
    out: str | os.PathLike = "show.html",
    *,
    recipe: Recipe = None,
    count: int = 6,
    seed: int = 0,
    augment: bool = False,
    overrides: Overrides = None,
) -> Shown:
    """Draw ``count`` evenly spaced samples of a file or folder as a recipe's model gets them.

    Each is shown after ``load`` and ``preprocess`` without augmentation, with its tokens, a plan of visible and hidden
    ones and the target, beside shapes, types and ranges. ``augment`` adds augmented views. ``out`` is a page (.html)
    or a picture (.png). ``seed`` chooses plans and augmentation. Samples that cannot be read are listed with their
    reasons. Raises :class:`MaemmError` when none can be read, and for data that fit no recipe.
    """
    path = expanded(out)
    if path.suffix.lower() not in (".html", ".png"):
        raise MaemmError(
            f"show writes .html or .png, not {path.suffix or path.name!r} ({out}); give such a name with -o"
        )
    if count < 1:
        raise MaemmError(f"count is {count}; show at least 1 sample")
    opened = open_data(data, recipe, overrides)
    read, refused = _read(opened, count, seed, VIEWS if augment else 0)
    if not read:
        others = f", and {len(refused) - 1:,} others" if len(refused) > 1 else ""
        raise MaemmError(f"{refused[0].id} cannot be read ({refused[0].reason}){others}; give other data")
    shown = Shown(opened, path, [sample.id for sample in read], [sample.label for sample in read], refused)
    shown.spikes = describe(opened.recipe["train"].get("spikes"))
    shown.steps = on_gpu(opened.recipe["train"]["compile"], opened.recipe)
    with torch.no_grad():
        shown.parts = _parts(opened, read, seed)
    _write(shown)
    return shown


def _write(shown: Shown) -> None:
    if shown.path.suffix.lower() == ".html":
        page(shown)
        return
    names = [id[-28:] for id in shown.ids]
    rows = {
        name: Rows({**part.rows.columns, **part.augmented.columns}, part.rows.note, names)
        for name, part in shown.parts.items()
    }
    draw_rows(shown.opened.modalities, rows, shown.path)


# ------------------------------------------------------------------------------------------------ reading
@dataclass
class _Read:
    """One sample: loaded once without augmentation, then augmented views."""

    id: str
    label: Label | None
    facts: dict[str, dict[str, Any]]  # {modality: facts}
    loaded: list[dict[str, dict[str, Any]]]  # of each reading: {modality: what load returned}


def _read(opened: Opened, count: int, seed: int, augmented: int) -> tuple[list[_Read], list[BadSample]]:
    total = len(opened.source)
    read: list[_Read] = []
    refused: list[BadSample] = []
    for row in range(min(count, total)):
        index = row * total // min(count, total)
        try:
            read.append(_read_sample(opened, index, seed, augmented))
        except Exception as error:  # whatever a broken file raises
            refused.append(BadSample(index, name_of(opened.source, index), reason_of(error)))
    return read, refused


def _read_sample(opened: Opened, index: int, seed: int, augmented: int) -> _Read:
    loaded: list[dict[str, Any]] = []
    facts: dict[str, dict[str, Any]] = {}
    for view in range(augmented + 1):  # read as in epoch ``view``, with another window of a long recording
        rng = Rng((seed, view, index, 0))
        sample = opened.source.read(index, rng)
        missing = [name for name in opened.modalities if name not in sample.raw]
        if missing:
            raise ValueError(f"the sample has no {missing[0]!r}, only {', '.join(map(repr, sample.raw)) or 'nothing'}")
        loaded.append(
            {
                name: modality.load(
                    sample.raw[name], rng.fold_in(name) if view and not modality.whole_samples else None
                )
                for name, modality in opened.modalities.items()
            }
        )
        if not view:
            facts = {name: modality.describe(sample.raw[name]) for name, modality in opened.modalities.items()}
    return _Read(printable(sample.id), sample.label, facts, loaded)


# ------------------------------------------------------------------------------------------------ what the model gets
def _parts(opened: Opened, read: Sequence[_Read], seed: int) -> dict[str, Part]:
    preprocessed = {name: _preprocessed(opened, read, name, 0, seed) for name in opened.modalities}
    tokens = {name: modality.tokenize(preprocessed[name]) for name, modality in opened.modalities.items()}
    masking = build_masking(opened.recipe)
    rng = Rng((seed, "show"), range(len(read)), len(read))
    guided = [name for name in tokens if masking.guide_of(name, 1.0)]
    if guided:
        rng = replace(rng, progress=1.0)  # as at the end of the training, where guidance has its whole share
        sets = _guided_plans(opened.recipe, preprocessed, rng, seed)
    else:
        sets = as_sets(masking(tokens, rng))
    notes = masking.notes(tokens, rng)
    for name in guided:
        notes.setdefault(name, []).append(
            "an encoder without training guides it here, as at the end of a training: another one hides other tokens"
        )
    parts = {}
    for name, modality in opened.modalities.items():
        part = Part(
            modality,
            [sample.facts[name] for sample in read],
            [shapes(sample.loaded[0][name]) for sample in read],
            preprocessed[name],
            tokens[name],
            [plans[name] for plans in sets],
            notes=[f"Masking: {line}." for line in notes.get(name, [])],
        )
        part.notes += _attention_notes(opened.recipe.get("encoder") or {})
        _add_target(part, opened.recipe["modalities"][name], opened.recipe.get("decoder"))
        _add_other_targets(part, name, opened.recipe.get("objectives") or {})
        _add_rows(part)
        if part.rows.columns:
            _add_side_pictures(part, read, name)
            for view in range(1, len(read[0].loaded)):
                augmented = modality.tokenize(_preprocessed(opened, read, name, view, seed))
                part.augmented.columns[f"augmented {view}"] = put_together(modality, augmented, _all(augmented))
        parts[name] = part
    return parts


def _guided_plans(
    recipe: dict[str, Any], preprocessed: dict[str, Preprocessed], rng: Rng, seed: int
) -> list[dict[str, Plan]]:
    """Plans of a masking that an encoder guides: one of the recipe's kind with fresh weights."""
    alone = {key: value for key, value in recipe.items() if key not in ("decoder", "objectives", "head")}
    specs = recipe["modalities"].items()
    alone["modalities"] = {name: {k: v for k, v in spec.items() if k != "target"} for name, spec in specs}
    with seeded("untrained", seed):
        model = build_model(alone).eval()
    return [{name: x.plan for name, x in inputs.items()} for inputs in model.plan_sets(preprocessed, rng)]


def _preprocessed(opened: Opened, read: Sequence[_Read], name: str, view: int, seed: int) -> Preprocessed:
    modality = opened.modalities[name]
    try:
        raw = modality.collate([sample.loaded[view][name] for sample in read])
    except MaemmError:
        raise
    except Exception as error:
        raise MaemmError(f"samples do not make a batch ({reason_of(error)}); give them equal sizes") from error
    rng = Rng((seed, view), range(len(read)), len(read)).fold_in(name)
    return modality.preprocess(raw, rng if view else None)


def _attention_notes(encoder: dict[str, Any]) -> list[str]:
    """How attention itself knows the places of tokens, where it does."""
    notes = []
    if kind := encoder.get("relative_bias"):
        tables = "of all blocks" if kind == "shared" else "of each block"
        notes.append(f"Attention adds a learned bias for each offset between two tokens, {tables} ({kind}).")
    if kind := encoder.get("rotary"):
        notes.append(f"Attention turns queries and keys by the places of tokens (rotary: {kind}).")
    return notes


def _add_target(part: Part, spec: dict[str, Any], decoder: dict[str, Any] | None) -> None:
    """The modality's own target of the hidden tokens, or a note why there is none to show and who predicts what."""
    if spec.get("target"):
        part.notes.append(
            f"The model predicts features ({_described(spec['target'])}), which are not part of the signal, with the "
            f"decoder {_described(decoder)}."
        )
    else:
        try:
            part.target = part.modality.target(replace(part.tokens, rows=part.plan.rows), part.plan.predict)
        except Exception as error:  # it may need parameters, which only a model has
            part.notes.append(f"The target cannot be shown without a model ({reason_of(error)}).")


def _add_other_targets(part: Part, name: str, objectives: dict[str, Any]) -> None:
    """Notes on what objectives predict or compare beside the target of the modality."""
    for key, spec in objectives.items():
        kind, options = part_of(spec, key)
        objective = registry.find("objectives", kind)
        defaults = {
            key: option.default for key, option in options_of(objective).items() if option.default is not MISSING
        }
        options = {**defaults, **options}
        served = options.get("modalities") or [options.get("modality") or name]
        if not objective.masked or kind == "reconstruct" or name not in served:
            continue
        weight = options.get("weight", 1.0)
        if kind == "predict":
            part.notes.append(
                f"The objective {key} predicts {_described(options['target'])} beside it, with weight {weight:g}."
            )
        else:
            summary = " ".join((inspect.getdoc(objective) or "").partition("\n\n")[0].replace("``", "").split())
            network = f" The network is {_described(options['target'])}." if options.get("target") else ""
            part.notes.append(f"The objective {key}, with weight {weight:g}. {summary}{network}")


def _described(spec: str | dict[str, Any] | None) -> str:
    """A part of a recipe in words: its type, then its options."""
    if not isinstance(spec, dict):
        return spec or "none"
    options = ", ".join(f"{key} {value}" for key, value in spec.items() if key != "type" and value is not None)
    return f"{spec.get('type')}: {options}" if options else str(spec.get("type"))


def _all(tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
    return tokens.values.float(), replace(tokens, rows=None).all_indices(), tokens.valid


def _add_rows(part: Part) -> None:
    modality, tokens = part.modality, part.tokens
    if modality.untokenize(tokens.values.float(), tokens) is None:
        part.rows.note = "no pictures: this modality cannot be put together from its tokens"
        return
    values, everything, valid = _all(tokens)
    columns = part.rows.columns
    columns["as the model gets it"] = put_together(modality, tokens, (values, everything, valid))
    other = _every_second(tokens) if valid is None else _every_second(tokens) & valid
    columns["every second token"] = put_together(modality, tokens, (values, everything, other))
    add_plans(part)


def _add_side_pictures(part: Part, read: Sequence[_Read], name: str) -> None:
    """What objectives and targets ask for beside the signal, where it can be drawn, such as regions."""
    for side in part.modality.side_inputs:
        try:
            loaded = [part.modality.side_input(side, sample.loaded[0][name], None) for sample in read]
        except MaemmError as error:  # it comes from the source, or a package is not installed
            part.notes.append(f"The side input {side} is not shown: {error}.")
            continue
        picture = part.modality.side_picture(side, torch.stack(loaded), part.preprocessed)
        if picture is not None:
            part.rows.columns[side] = picture


def _every_second(tokens: Tokens) -> Tensor:
    """(B, N) bool: a chessboard on a grid, otherwise every second one in order. It shows the borders of tokens."""
    if tokens.grid is None:
        return (torch.arange(tokens.count) % 2 == 0).expand(tokens.batch, -1)
    cells = torch.meshgrid(*(torch.arange(side) for side in tokens.grid), indexing="ij")
    return (torch.stack(cells).sum(0).flatten() % 2 == 0).expand(tokens.batch, -1)
