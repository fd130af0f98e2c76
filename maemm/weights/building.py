"""A model from a recipe and weights that may not belong to it, or come from anybody."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from maemm import config
from maemm.config.messages import join
from maemm.contract.errors import MaemmError
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.weights.describe import printable, some_of

_PARTS = ("modalities", "masking", "encoder", "decoder", "objectives", "head")  # of a recipe, what makes the model
_SPARE = 4  # a model registers that many times the parameters of its weights at most, and no larger ones
_FREE = 10_000, 1_000_000  # parameters, and values of one, that are built whatever the weights hold
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class _TooLarge(Exception):
    """The model is larger than the weights."""


def model_from(recipe: Any, state: dict[str, Tensor], description: str) -> Model:
    """The model of ``recipe`` with the weights ``state``, in eval mode.

    ``description``: the weights, for messages. Raises :class:`MaemmError` for a recipe that is not valid, and for
    weights that are not those of its model; one that is much larger than its weights is never built.
    """
    check_recipe(recipe, description)
    _check_numbers({key: recipe.get(key) for key in _PARTS}, state, description)
    with _reported(description), _bounded(state):
        shapes = _shapes_of(recipe)
    if shapes is not None:
        compare(shapes, state, description)  # before memory is taken for the model
    with _reported(description), _bounded(state):
        model = build_model(recipe)
    fill(model, state, description)
    return model.eval()


def check_recipe(recipe: Any, description: str) -> None:
    """Check what makes the model in a recipe that came with weights. Raises :class:`MaemmError`."""
    if not isinstance(recipe, Mapping):
        raise MaemmError(f"{description} hold no recipe but {printable(recipe)}; get the file again")
    for section in ("data", "train"):  # their values are checked where they are used
        if not isinstance(recipe.get(section, {}), Mapping | None):
            raise MaemmError(
                f"the recipe of {description} is not valid: {section} is {printable(recipe[section])}, not a mapping; "
                "get the file again"
            )
    with _reported(description):
        try:
            config.load({key: recipe[key] for key in _PARTS if key in recipe})
        except MaemmError as error:
            first, *others = str(error).splitlines()
            more = f" (and {len(others)} more mistakes)" if others else ""
            problem, separator, todo = first.partition("; ")
            raise MaemmError(
                f"the recipe of {description} is not valid: {printable(problem, 300)}{more}{separator}"
                f"{printable(todo, 300)}"
            ) from None


def _check_numbers(parts: Any, state: Mapping[str, Tensor], description: str, where: str = "") -> None:
    """Raises :class:`MaemmError` for a number that no side of a tensor and no count of them comes near.

    Parts make lists and tables of some numbers (depths, sizes) before the first parameter.
    """
    most = max(_FREE[1], _SPARE * max((side for tensor in state.values() for side in tensor.shape), default=0))
    if isinstance(parts, (Mapping, list, tuple)):
        items = parts.items() if isinstance(parts, Mapping) else enumerate(parts)
        for key, value in items:
            _check_numbers(value, state, description, join(where, str(key)))
    elif isinstance(parts, int) and abs(parts) > most:
        raise MaemmError(
            f"{description} do not fit: {printable(where)} is {printable(parts)}, and the largest side of a tensor is "
            f"far below; check the settings, or get the file again"
        )


@contextlib.contextmanager
def _reported(description: str) -> Iterator[None]:
    """Whatever a part raises for options of a stranger is an error of the weights. Raises :class:`MaemmError`."""
    try:
        yield
    except _TooLarge as error:
        raise MaemmError(
            f"{description} do not fit: the model of their recipe is larger ({error}); get the file again"
        ) from None
    except MaemmError as error:
        if ";" in str(error):
            raise
        raise MaemmError(f"{error} ({description}); check the settings") from None
    except MemoryError:
        raise
    except Exception as error:
        reason = printable(" ".join(str(error).split()), 160)
        raise MaemmError(
            f"the model of {description} cannot be built ({type(error).__name__}: {reason}); check the settings, or "
            "get the file again"
        ) from error


@contextlib.contextmanager
def _bounded(state: Mapping[str, Tensor]) -> Iterator[None]:
    """No model is built that is much larger than ``state``. Raises :class:`_TooLarge`."""
    most = _SPARE * len(state) + _FREE[0]
    largest = _SPARE * max((tensor.numel() for tensor in state.values()), default=0) + _FREE[1]
    count = 0

    def check(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise _TooLarge(f"over {most:,} parameters, {len(state):,} are stored")
        if parameter is not None and parameter.numel() > largest:
            raise _TooLarge(f"{printable(name)} {tuple(parameter.shape)}")

    hook = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        hook.remove()


def _shapes_of(recipe: dict[str, Any]) -> dict[str, Tensor] | None:
    """The state dict of a recipe's model without values; None where a part can only be built with values."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that a part fills in
            return build_model(recipe).state_dict()
    except (_TooLarge, MaemmError, MemoryError):
        raise
    except Exception:  # the second, real attempt reports it, if it is no matter of the device
        return None


# ------------------------------------------------------------------------------------------------------ filling
def fill(model: nn.Module, state: dict[str, Tensor], description: str) -> None:
    """Load a state dict strictly.

    Raises :class:`MaemmError` that names missing and unexpected keys, wrong shapes and types, and values that are not
    finite. It calls the weights ``description``.
    """
    own = model.state_dict()
    compare(own, state, description)
    check_values(own, state, description)
    model.load_state_dict(state)


def compare(own: Mapping[str, Tensor], state: Mapping[str, Tensor], description: str) -> None:
    """Raises :class:`MaemmError` unless ``state`` has the keys, shapes and kinds of numbers of ``own``."""
    problems = []
    for title, keys in (("missing", own.keys() - state.keys()), ("unexpected", state.keys() - own.keys())):
        if keys:
            problems.append(f"{len(keys)} {title} ({some_of(sorted(keys))})")
    both = sorted(own.keys() & state.keys())
    wrong = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in both
        if state[key].shape != own[key].shape
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape ({some_of(wrong)})")
    types = [
        f"{key} {_name(state[key].dtype)} for {_name(own[key].dtype)}"
        for key in both
        if not _same_kind(state[key].dtype, own[key].dtype)
    ]
    if types:
        problems.append(f"{len(types)} of another type ({some_of(types)})")
    if problems:
        raise MaemmError(f"{description} do not fit: {', '.join(problems)}; give the whole weights of this model")


def _same_kind(stored: torch.dtype, own: torch.dtype) -> bool:
    return stored == own or (stored in _FLOATS and own in _FLOATS)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_values(own: Mapping[str, Tensor], state: Mapping[str, Tensor], description: str) -> None:
    """Raises :class:`MaemmError` for values that are not finite where a new model's are."""
    bad = []
    for key, new in own.items():
        if new.is_floating_point() and not new.is_meta and not _finite(state[key].to(new.dtype)) and _finite(new):
            bad.append(key)
    if bad:
        raise MaemmError(
            f"{description} hold values that are no finite numbers ({some_of(bad)}); get the file again, or take a "
            "checkpoint from before the training diverged"
        )


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
