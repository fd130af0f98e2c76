"""Refuse what cannot fit this machine before any of it is built, with the number.

The model is first built on the ``meta`` device, where tensors have shapes and no memory. All estimates are lower
bounds: what they refuse could not have run, what they accept may still be too much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from maemm import registry
from maemm.config.options import options_of
from maemm.contract import Modality
from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.data.memory import bytes_text, machine_memory
from maemm.model.sharded import local
from maemm.registry.make import part_of

FLOAT = 4  # bytes of a number
MOST_TENSORS = 50_000  # of weights; the deepest models have some thousands


class _TooMany(Exception):
    """A model has more than :data:`MOST_TENSORS` parameters. Not a MaemmError, so that nothing rephrases it."""


@contextmanager
def _counted_parameters() -> Iterator[None]:
    """Within the block, raise :class:`_TooMany` once modules have more than :data:`MOST_TENSORS` parameters.

    Options of outside plugins may have no bounds: a thousand million layers would be built one by one.
    """
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += parameter is not None
        if count > MOST_TENSORS:
            raise _TooMany

    hook = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        hook.remove()


_limited = True  # by the memory of this machine


@contextmanager
def shapes_alone(recipe: Mapping[str, Any]) -> Iterator[None]:
    """Within the block a model of the recipe is built that takes no memory: this machine's does not limit it.

    Raises :class:`MaemmError` for more tensors of weights, or numbers, than can be counted.
    """
    global _limited
    before, _limited = _limited, False
    try:
        with _counted_parameters():
            yield
    except _TooMany:
        raise _too_many(recipe) from None
    except Exception as error:
        if "overflow" not in str(error).lower():
            raise
        option = _largest_of_all(recipe)
        raise MaemmError(f"{option} makes more numbers than any machine can hold; lower it") from None
    finally:
        _limited = before


def _too_many(recipe: Mapping[str, Any]) -> MaemmError:
    return MaemmError(
        f"{_largest_of_all(recipe)} makes more than {MOST_TENSORS:,} tensors of weights, which would take hours to "
        "build; lower it"
    )


def refuse_too_large(recipe: Mapping[str, Any], build: Callable[[dict[str, Any]], nn.Module]) -> None:
    """Raise :class:`MaemmError` where ``build(recipe)`` needs more memory than this machine has.

    Its weights and one sample are counted. A part that cannot be built on ``meta`` is left to the real build.
    """
    available = machine_memory() if _limited else None
    if available is None:
        return
    try:
        with seeded("size"), torch.device("meta"), _counted_parameters():
            model = build(dict(recipe))
    except _TooMany:
        raise _too_many(recipe) from None
    except Exception as error:
        if "overflow" in str(error).lower():  # torch cannot even count them in 64 bits
            option = _largest_of_all(recipe)
            raise MaemmError(
                f"{option} makes more numbers than any machine can hold; this one has {bytes_text(available)} of "
                "memory, lower it"
            ) from None
        if isinstance(error, MaemmError) and error.__cause__ is None:
            raise
        return  # what does not work on meta alone, the real build tells
    sizes = {key: _bytes(module) for key, module in _parts(model)}
    total = sum(sizes.values())
    if total > available:
        key = max(sizes, key=lambda key: sizes[key])
        numbers = f"{sizes[key] / FLOAT:.2g} parameters ({bytes_text(sizes[key])})"
        raise MaemmError(
            f"{_largest_option(recipe, key)} makes about {numbers}; this machine has {bytes_text(available)} of "
            "memory, lower it"
        )
    refuse_too_many_rows(model, 1, available)


def refuse_too_many_rows(model: Any, rows: int, available: float, weights: int = 0) -> None:
    """Raise :class:`MaemmError` where ``rows`` samples at a time, beside ``weights`` bytes, exceed ``available`` bytes.

    Counted are the samples and, once each, the embeddings of their tokens in the decoder.
    """
    width = getattr(model.decoder, "dim", None) or 0
    for name, modality in model.modalities.items():
        size = modality.sample_size() if isinstance(modality, Modality) else None
        if size is None:
            continue
        tokens, values = size
        needed = weights + FLOAT * rows * (values + tokens * width)
        if needed <= available:
            continue
        count = f"{rows:,} samples" if rows > 1 else "a sample"
        todo = "lower train.micro_batch or the size" if rows > 1 else "lower the size"
        beside = f", beside {bytes_text(weights)} of weights and gradients," if weights else ""
        raise MaemmError(
            f"{count} of {tokens:,} tokens and {values:,} numbers each{beside} takes {bytes_text(needed)} at least "
            f"(modalities.{name}); this machine has {bytes_text(available)} of memory, {todo}"
        )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers of a model on this rank."""
    return _bytes(model)


def _bytes(module: nn.Module) -> int:
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(local(tensor).numel() * tensor.element_size() for tensor in tensors.values())


def _parts(model: Any) -> Iterator[tuple[str, nn.Module]]:
    """(dotted key in the recipe, module) of the parts of a model."""
    for group in ("modalities", "objectives", "targets"):
        for name, module in getattr(model, group).items():
            key = f"modalities.{name}.target" if group == "targets" else f"{group}.{name}"
            if isinstance(module, nn.Module):
                yield key, module
    for key in ("encoder", "decoder", "head"):
        if getattr(model, key) is not None:
            yield key, getattr(model, key)


def _largest_option(recipe: Mapping[str, Any], key: str) -> str:
    """``encoder.dim=1000000``: the whole number of a part that is furthest above its default, or else the part."""
    spec: Any = recipe
    for name in key.split("."):
        spec = (spec.get(name) or {}) if isinstance(spec, Mapping) else {}
    role = {"encoder": "encoders", "decoder": "decoders", "head": "heads"}.get(key, key.split(".")[0])
    factors = dict(_factors(role, spec, key.rpartition(".")[2]))
    if not factors:
        return key
    option = max(factors, key=lambda name: factors[name])
    return f"{key}.{option}={spec[option]}"


def _largest_of_all(recipe: Mapping[str, Any]) -> str:
    keys = [key for key in ("encoder", "decoder", "head") if recipe.get(key)]
    keys += [f"modalities.{name}" for name in recipe["modalities"]]
    options = [_largest_option(recipe, key) for key in keys]
    return max(options, key=lambda text: float(text.rpartition("=")[2]) if "=" in text else 0.0)


def _factors(role: str, spec: Any, default: str) -> Iterator[tuple[str, float]]:
    """(option, how many times its default) of the numbers that a part is given."""
    kind, given = part_of(spec, default)
    options = options_of(registry.find(role, kind)) if role in registry.ROLES else {}
    for name, value in given.items():
        usual = getattr(options.get(name), "default", None)
        usual = usual if isinstance(usual, (int, float)) and usual > 0 else 1
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield name, value / usual
