"""Initialise a model from the weights of another: a pre-trained encoder in a new recipe, one stage after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.errors import MaemmError, advice
from maemm.model.model import Model
from maemm.weights import fill, load, load_encoder

NEW = ("head.*", "objectives.*", "targets.*")  # keys of the new model that keep their own initialisation
DECODER = ("decoder.*", "modalities.*.decoder.*")
UNUSED = (*NEW, *DECODER)  # keys of the old model that the new one need not have


@dataclass
class InitReport:
    """What became of every tensor of a model that begins with weights, and weights without a place in it; by key."""

    weights: str  # where they came from
    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)  # position tables, computed from those of another size
    initial: dict[str, str] = field(default_factory=dict)  # not loaded, and why: random, or as the part makes it
    left_over: list[str] = field(default_factory=list)  # of the weights, without a place in the model

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the fields by name."""
        return asdict(self)

    def lines(self) -> list[str]:
        """What a run prints: counts of tensors by part, and every reason for one that was not loaded."""
        lines = [f"begins with the weights of {self.weights}: {_by_part(self.loaded)} loaded"]
        if self.resized:
            lines.append(f"  resized from a table of another size: {', '.join(self.resized)}")
        for reason in dict.fromkeys(self.initial.values()):
            keys = [key for key, other in self.initial.items() if other == reason]
            lines.append(f"  keeps its own initialisation ({reason}): {_by_part(keys)}")
        if self.left_over:
            lines.append(f"  left over in the weights: {_by_part(self.left_over)}")
        return lines


def part_of_key(key: str) -> str:
    """The part that a key of a state dict belongs to: encoder, decoder, head, modalities.NAME, objectives.NAME..."""
    names = key.split(".")
    return ".".join(names[:2] if names[0] in ("modalities", "objectives", "targets") else names[:1])


def _by_part(keys: Iterable[str]) -> str:
    """ "encoder 50, modalities.image 3 tensors"."""
    counts = Counter(map(part_of_key, keys))
    if not counts:
        return "no tensor"
    listed = ", ".join(f"{part} {count}" for part, count in counts.items())
    return f"{listed} tensor{'s' if sum(counts.values()) > 1 else ''}"


def initialize_from(model: Model, weights: str | Path | Model | Mapping[str, Any]) -> InitReport:
    """Fill ``model`` from a run folder, a weights file or a model; returns what became of every tensor.

    ``weights`` may be a mapping ``{weights: FILE, parts: [...], strict: bool, **settings}``. ``settings`` are what the
    file does not record (see :func:`maemm.load`); those of a decoder are not asked for where ``model`` has none, or
    loads none.

    Without ``parts`` all of the model is loaded but its head, objectives and targets, which keep their own
    initialisation, as do a decoder that the old model lacks, and class tokens where it has none (Point-MAE). With
    ``parts``, such as ``[encoder, modalities.image]``, these are loaded and nothing else; each name is a part or a
    module inside one. Position tables are computed for the new model's size from those of the old one, sin-cos tables
    too (MAE trains a copy of its table).

    ``strict`` (default): raises :class:`MaemmError` that names all other weights that are missing, unexpected or of
    another shape. Otherwise they keep their own initialisation, and are in the report.
    """
    settings: dict[str, Any] = dict(weights) if isinstance(weights, Mapping) else {"weights": weights}
    parts, strict = settings.pop("parts", None), settings.pop("strict", True)
    state = model.state_dict()
    _check_parts(parts, state)
    wanted = [key for key in state if parts is None or _inside(key, parts)]
    source = settings.pop("weights")
    if isinstance(source, Model):
        old, title = source, "a model"
    else:
        with_decoder = any(key.startswith("decoder.") for key in wanted) and model.decoder is not None
        old, title = (load if with_decoder else load_encoder)(source, **settings), str(source)
    report, result = InitReport(title), dict(state)
    _choose(model, old, wanted, parts, strict, report, result)
    fill(model, result, f"the weights of init ({title})")
    for target in model.all_targets():
        target.reset(model)
    return report


def _check_parts(parts: Sequence[str] | None, state: Mapping[str, Tensor]) -> None:
    """Raises :class:`MaemmError` for a name under which the model has no weights."""
    for part in parts or ():
        if not any(_inside(key, [part]) for key in state):
            known = list(dict.fromkeys(map(part_of_key, state)))
            raise MaemmError(f"the model has no weights in {part!r} (init.parts); {advice(part, known)}")


def _inside(key: str, parts: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in parts)


def _choose(
    model: Model,
    old: Model,
    wanted: Sequence[str],
    parts: Sequence[str] | None,
    strict: bool,
    report: InitReport,
    result: dict[str, Tensor],
) -> None:
    """Put what is loaded into ``result``, which begins as the state of ``model``, and everything into ``report``.

    Where ``strict``, what is missing is taken out of ``result``, what does not fit stays as it is in the weights and
    what has no place is added: for the error that names them all.
    """
    old_state, own, chosen = old.state_dict(), set(result), set(wanted)
    used: set[str] = set()
    new = () if parts is not None else (*NEW, *([] if "encoder.prefix" in old_state else ["encoder.prefix*"]))
    for key in list(result):
        value, old_value = result[key], old_state.get(key)
        if key not in chosen:
            report.initial[key] = "left out by init.parts"
        elif _matches(key, new):
            report.initial[key] = "never loaded unless init.parts names it"
            if key.startswith("encoder.prefix"):
                report.initial[key] = "the weights have no class token"
        elif parts is None and old_value is None and model.decoder is not None and _matches(key, DECODER):
            if (position := _position(key, model, old, value, None)) is not None:
                result[key] = position
                report.resized.append(key)
            else:
                report.initial[key] = "the weights have no such decoder"
        elif (position := _position(key, model, old, value, old_value)) is not None:
            result[key] = position
            report.resized.append(key)
            used.add(key)
        elif old_value is not None and (strict or old_value.shape == value.shape):
            result[key] = old_value
            report.loaded.append(key)
            used.add(key)
        elif strict:
            del result[key]
        else:
            report.initial[key] = (
                "not in the weights"
                if old_value is None
                else f"{tuple(old_value.shape)} in the weights, {tuple(value.shape)} here"
            )
    report.left_over = [key for key in old_state if key not in used]
    if strict and parts is None:
        unused = [*UNUSED, *(f"modalities.{name}.*" for name in old.modalities if name not in model.modalities)]
        if not any(key.startswith("encoder.norm.") for key in result):
            unused.append("encoder.norm.*")
        unknown = [key for key in report.left_over if key not in own and not _matches(key, unused)]
        result |= {key: old_state[key] for key in unknown}


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _position(key: str, model: Model, old: Model, value: Tensor, old_value: Tensor | None) -> Tensor | None:
    """The value of a position table that the old model has not, or in another size; None for any other key."""
    owner, _, leaf = key.rpartition(".")
    if old_value is not None and old_value.shape == value.shape:
        return None
    if leaf == "prefix_position":  # computed tables give class tokens no position
        return torch.zeros_like(value) if old_value is None else None
    module, old_module = _submodule(model, owner), _submodule(old, owner)
    if not (hasattr(module, "grid") and hasattr(module, "table") and hasattr(old_module, "table")):
        return None
    return old_module.table(module.grid).detach().reshape(value.shape).clone()


def _submodule(model: nn.Module, name: str) -> Any:
    """The submodule of that name, or None."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
