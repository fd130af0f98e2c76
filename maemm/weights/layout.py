"""What readers of published layouts share: names, and sizes that follow from shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from maemm.contract.errors import MaemmError


def require(state: Mapping[str, Tensor], keys: Iterable[str], kind: str) -> None:
    """Raises :class:`MaemmError` that names the missing keys."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise MaemmError(f"weights are not of kind {kind!r}: missing {', '.join(missing)}")


def rename(key: str, names: Mapping[str, str]) -> str:
    """The longest fitting prefix is replaced; unknown keys keep their name, and the strict load names them."""
    start = max((one for one in names if key.startswith(one)), key=len, default="")
    return names.get(start, "") + key[len(start) :]


def depth_of(state: Mapping[str, Tensor], blocks: str) -> int:
    """How many blocks there are whose keys begin with ``blocks``."""
    return len({key[len(blocks) :].split(".")[0] for key in state if key.startswith(blocks)})


def blocks_of(state: Mapping[str, Tensor], blocks: str, width: int) -> dict[str, Any]:
    """``dim``, ``depth`` and ``mlp_ratio`` of the blocks whose keys begin with ``blocks``."""
    hidden = state.get(f"{blocks}0.mlp.fc1.weight")
    if hidden is None:
        raise MaemmError(f"the weights are not whole: {blocks}0.mlp.fc1.weight is missing")
    return {"dim": width, "depth": depth_of(state, blocks), "mlp_ratio": hidden.shape[0] / width}


def heads_of(size: int | tuple[int, int], given: int | None, known: Mapping[Any, int], name: str) -> int:
    """The number given, or that of the published model of this width, or of this width and depth.

    Raises :class:`MaemmError` that asks for ``name``: the number of heads follows from no shape.
    """
    if given is not None:
        return given
    if size not in known:
        told = f"width {size}" if isinstance(size, int) else f"width {size[0]} and depth {size[1]}"
        raise MaemmError(f"{told} is not that of a published model; give {name}=")
    return known[size]
