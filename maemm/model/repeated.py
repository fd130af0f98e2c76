"""What is done to every block of a model alike: its activations are recomputed, or it is compiled.

A block gets a subclass of its own class, made here: names in state dicts, deep copies and ``isinstance`` stay as they
are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from maemm.model.precision import under_autocast
from maemm.model.sharded import calls_for_others

Forward = Callable[..., Any]
_recompute = True  # where recompute_activations() asks for it


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: what stands in a ``nn.ModuleList``, and not inside of another block."""
    blocks: list[nn.Module] = []
    for child in model.children():
        if isinstance(child, nn.ModuleList):
            blocks += [block for block in child if type(block).forward is not nn.Module.forward]
        else:
            blocks += repeated_blocks(child)
    return blocks


def keep_residual(blocks: Iterable[nn.Module], dtype: torch.dtype) -> None:
    """Under autocast, let every block begin with its input in ``dtype``, in which its residual sums then are."""
    _replace_forward(blocks, f"Residual{str(dtype).rpartition('.')[2].capitalize()}", lambda f: _residual(f, dtype))


def _residual(block_forward: Forward, dtype: torch.dtype) -> Forward:
    def forward(self: nn.Module, x: torch.Tensor, *args: Any, **options: Any) -> Any:
        return block_forward(self, under_autocast(x, dtype), *args, **options)

    return forward


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """Keep only the input of each block for the backward pass, which computes the block again (Chen et al. 2016).

    The same numbers for about a third more time. Dropout and drop path draw the same again.
    """
    _replace_forward(blocks, "Recomputed", _recomputed)


@contextmanager
def activations_kept() -> Iterator[None]:
    """Within the block nothing is computed again: for a forward pass whose operations are counted."""
    global _recompute
    before, _recompute = _recompute, False
    try:
        yield
    finally:
        _recompute = before


def call_for_others(blocks: Iterable[nn.Module]) -> None:
    """Let the blocks serve :func:`maemm.model.sharded.through`; before anything else is done to them."""
    _replace_forward(blocks, "Sharded", calls_for_others)
    for block in blocks:
        block.calls_for_others = True  # type: ignore[assignment]


def compile_blocks(blocks: Iterable[nn.Module], compiler: Callable[[Forward], Forward]) -> None:
    """Let ``compiler`` (forward -> compiled forward) compile the blocks, equal ones once."""

    def change(block_forward: Forward) -> Forward:
        compiled = compiler(block_forward)
        return lambda self, *args, **options: compiled(self, *args, **options)  # a function, so that instances bind it

    _replace_forward(blocks, "Compiled", change)


def _recomputed(block_forward: Forward) -> Forward:
    def forward(self: nn.Module, *args: Any, **options: Any) -> Any:
        if not (_recompute and torch.is_grad_enabled()):
            return block_forward(self, *args, **options)
        return checkpoint(block_forward, self, *args, use_reentrant=False, **options)

    return forward


def _replace_forward(blocks: Iterable[nn.Module], prefix: str, change: Callable[[Forward], Forward]) -> None:
    """Give blocks of one class one new class, with another ``forward``."""
    kinds: dict[type[nn.Module], type[nn.Module]] = {}
    for block in blocks:
        kind = type(block)
        if kind not in kinds:
            members = {"forward": change(kind.forward), "__doc__": kind.__doc__}
            kinds[kind] = type(f"{prefix}{kind.__name__}", (kind,), members)
        block.__class__ = kinds[kind]
