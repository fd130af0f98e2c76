"""Weights of other code: which checkpoint format they have, and what it makes of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maemm import registry
from maemm.config.options import check
from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.weights.describe import printable, some_of
from maemm.weights.wrappers import without_prefixes


def detect_format(kind: str | None, state: dict[str, Tensor], where: str) -> tuple[CheckpointFormat, dict[str, Tensor]]:
    """The checkpoint format called ``kind``, or if None the one that matches, and the state dict as it matches.

    Parts of names that all share are taken off where no format matches the names as they are. Raises
    :class:`MaemmError` where none matches, or several do.
    """
    if not isinstance(kind, str | None):
        raise MaemmError(f"kind is {printable(kind)}, no name of a kind of checkpoint; see: maemm plugins list")
    names = registry.names("weights") if kind is None else [kind]
    formats: list[CheckpointFormat] = [registry.find("weights", name)() for name in names]
    tried = list(without_prefixes(state))
    for candidate in tried:
        matches = [checkpoint_format for checkpoint_format in formats if _matches(checkpoint_format, candidate)]
        if len(matches) == 1:
            return matches[0], candidate
        if matches:
            kinds = ", ".join(match.name for match in matches)
            raise MaemmError(f"the weights match several kinds of checkpoint ({where}); give kind= one of {kinds}")
    if kind is not None:
        return formats[0], tried[0]  # its own message says what is missing
    if {"modalities", "encoder"} <= {key.partition(".")[0] for key in state}:
        raise MaemmError(f"these weights of maemm lost the recipe in their header ({where}); get the file again")
    raise MaemmError(
        f"the weights match no kind of checkpoint ({where}: {len(state)} tensors, {some_of(sorted(state))}); "
        f"known: {', '.join(names)}"
    )


def _matches(checkpoint_format: CheckpointFormat, state: dict[str, Tensor]) -> bool:
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    try:
        return checkpoint_format.match(set(shapes), shapes)
    except (IndexError, KeyError, ValueError, TypeError, ZeroDivisionError):  # names as in it, shapes of something else
        return False


def read_with(
    checkpoint_format: CheckpointFormat, state: dict[str, Tensor], settings: dict[str, Any], where: str
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """:meth:`CheckpointFormat.read` with checked settings.

    Raises :class:`MaemmError` for whatever it cannot make of tensors of strange shapes.
    """
    settings = check(checkpoint_format.read, settings, checkpoint_format.name)
    try:
        return checkpoint_format.read(state, **settings)
    except (MaemmError, MemoryError):
        raise
    except Exception as error:
        raise MaemmError(
            f"the weights do not have the shapes of kind {checkpoint_format.name!r} ({where}: {type(error).__name__}); "
            "get the complete file, or give another kind="
        ) from error


def setting_names() -> set[str]:
    """The settings that checkpoint formats have for what weights do not record."""
    from maemm.config.options import options_of

    formats = (registry.find("weights", name) for name in registry.names("weights"))
    return {name for checkpoint_format in formats for name in options_of(checkpoint_format.read)}
