"""Helpers for checkpoint formats: renaming keys, and sizes that follow from shapes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from maemm.contract.errors import MaemmError


def require(state: Mapping[str, Tensor], keys: Iterable[str], kind: str) -> None:
    """Raises :class:`MaemmError` that names the missing keys, if there are any."""
    missing = [key for key in keys if key not in state]
    if missing:
        raise MaemmError(f"weights are not of kind {kind!r}: missing {', '.join(missing)}")


@contextlib.contextmanager
def refusing(layout: str) -> Iterator[None]:
    """What a layout does with a model that it was not made for ends in :class:`MaemmError`, whatever it raises."""
    try:
        yield
    except (MaemmError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise MaemmError(
            f"layout {layout!r} cannot hold this model ({type(error).__name__}: {reason}); use another, or maemm's own"
        ) from error


def rename(key: str, names: Mapping[str, str]) -> str:
    """Replace the longest prefix of ``key`` that is in ``names``. Other keys stay, and the strict load reports them."""
    prefix = max((prefix for prefix in names if key.startswith(prefix)), key=len, default="")
    return names.get(prefix, "") + key[len(prefix) :]


def depth_of(state: Mapping[str, Tensor], blocks: str) -> int:
    """The number of blocks, whose keys begin with ``blocks`` and their index: ``blocks.0.``, ``blocks.1.``..."""
    return len({key[len(blocks) :].split(".")[0] for key in state if key.startswith(blocks)})


def blocks_of(state: Mapping[str, Tensor], blocks: str, width: int) -> dict[str, Any]:
    """{dim, depth, mlp_ratio} of the blocks whose keys begin with ``blocks``.

    Raises :class:`MaemmError` where there are none.
    """
    hidden = state.get(f"{blocks}0.mlp.fc1.weight")
    if hidden is None:
        raise MaemmError(f"the weights are incomplete: {blocks}0.mlp.fc1.weight is missing")
    return {"dim": width, "depth": depth_of(state, blocks), "mlp_ratio": hidden.shape[0] / width}


class MissingSettingError(MaemmError):
    """Weights do not record a setting that is needed; ``name`` is that of the setting."""

    def __init__(self, problem: str, name: str):
        self.name = name
        super().__init__(
            f"{problem}; give {name}= (in a recipe init.{name}=), or tell it once: maemm convert WEIGHTS "
            f"OUT.safetensors {name}=N"
        )


def heads_of(size: int | tuple[int, int], heads: int | None, published: Mapping[Any, int], name: str) -> int:
    """``heads``, or if None that of the published model of this size: a width, or a width and depth.

    Raises :class:`MissingSettingError` that asks for ``name`` where there is none: the number of heads follows from no
    shape.
    """
    if heads is not None:
        if heads < 1:
            raise MaemmError(f"{name} is {heads}; give a number of 1 or more")
        return heads
    if size not in published:
        title = f"width {size}" if isinstance(size, int) else f"width {size[0]} and depth {size[1]}"
        raise MissingSettingError(f"{title} is not that of a published model", name)
    return published[size]


def square_side(count: int, table: str, prefix: int, example: str = "size=[height, width]") -> int:
    """The side of a square grid of ``count`` patches, the rows of ``table`` without those of ``prefix`` class tokens.

    Raises :class:`MaemmError` for another number, and says where only the rows of the class tokens seem to be missing.
    """
    side = math.isqrt(max(count, 0))
    if count > 0 and side * side == count:
        return side
    rows = count + prefix
    if prefix and rows > 0 and math.isqrt(rows) ** 2 == rows:
        raise MaemmError(
            f"{table} has {rows} rows, a square of patches, and none for the class token that the weights have; put "
            f"{prefix} row{'s' if prefix > 1 else ''} of zeros in front, or give {example} if the patches are no square"
        )
    raise MaemmError(f"{table} has {rows} rows, and {count} patches are no square; give {example}")
