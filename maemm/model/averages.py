"""Moving averages of weights, with few launches. Of sharded weights each rank moves its own part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from maemm.model.sharded import local

_CHUNK = 1 << 26  # elements that one update of many tensors holds a second time


@torch.no_grad()
def move_averages(pairs: Iterable[tuple[Tensor, Tensor]], fraction: Tensor) -> None:
    """``average += fraction * (weights - average)`` of (average, weights) pairs of equal shapes.

    ``fraction``: a float32 scalar on their device, 0 where nothing is to change. Never waits for the device; three
    launches for many tensors together.
    """
    for averages, weights in _chunks(pairs):
        change = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(change, fraction)
        torch._foreach_add_(averages, change)


@torch.no_grad()
def copy_all(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """``target.copy_(source)`` of (target, source) pairs of equal shapes, many in one launch."""
    for targets, sources in _chunks(pairs):
        torch._foreach_copy_(targets, sources)


def _chunks(pairs: Iterable[tuple[Tensor, Tensor]]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """([own], [other]) of as many tensors as one update takes together, of one type and device."""
    groups: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = {}
    for own, other in pairs:
        own, other = local(own), local(other.detach())
        groups.setdefault((own.dtype, own.device), []).append((own, other))
    for group in groups.values():
        held: list[tuple[Tensor, Tensor]] = []
        for pair in group:
            if held and sum(own.numel() for own, _ in held) + pair[0].numel() > _CHUNK:
                yield [own for own, _ in held], [other for _, other in held]
                held = []
            held.append(pair)
        yield [own for own, _ in held], [other for _, other in held]
