"""Weights in shards on several ranks (FSDP2): their local part, and blocks whose parts are called one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


def local(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this rank holds, without a copy; any other tensor as it is."""
    to_local = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a rank holds a part of it alone."""
    return hasattr(tensor, "to_local")


def through(block: nn.Module, function: Callable[..., T], *args: Any, **options: Any) -> T:
    """``function(block, *args, **options)``, which calls parts of ``block``, as a call of the block itself.

    Hooks that gather the weights of a block run around its own call alone.
    """
    if getattr(block, "calls_for_others", False):
        return block(*args, call_for=function, **options)
    return function(block, *args, **options)


def calls_for_others(block_forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward method of a block that serves :func:`through`."""

    def forward(self: nn.Module, *args: Any, call_for: Callable[..., Any] | None = None, **options: Any) -> Any:
        return (block_forward if call_for is None else call_for)(self, *args, **options)

    return forward
