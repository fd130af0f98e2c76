"""Values at the edges of the bounds of a type hint, and beyond them."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from maemm.config.bounds import constraints


def at_edges(hint: Any) -> Iterator[int | float]:
    """The smallest and the largest number that a bounded number may be, where they are numbers themselves.

    Also of each number in a union; lists are left out, as their numbers may depend on each other.
    """
    for kind, bounds in _numbers(hint):
        if not any(isinstance(bound, MultipleOf) for bound in bounds):
            yield from (kind(bound.ge) for bound in bounds if isinstance(bound, Ge))
            yield from (kind(bound.le) for bound in bounds if isinstance(bound, Le))


def beyond_edges(hint: Any) -> Iterator[Any]:
    """Values just beyond each bound: numbers, lists of numbers, and lists that are too short or too long."""
    for kind, bounds in _numbers(hint):
        yield from _beyond(kind, bounds)
    for lists, bounds in _lists(hint):
        args = typing.get_args(lists)
        items = [arg for arg in args if arg is not Ellipsis]
        usual = [next(iter(_usual(item)), None) for item in items]
        least = next((bound.min_length for bound in bounds if isinstance(bound, MinLen)), None)
        most = next((bound.max_length for bound in bounds if isinstance(bound, MaxLen)), None)
        if least:
            yield usual[:1] * (least - 1)
        if most is not None:
            yield usual[:1] * (most + 1)
        fixed = typing.get_origin(lists) is tuple and Ellipsis not in args
        for index, item in enumerate(items):
            for kind, inner in _numbers(item):
                row = list(usual) if fixed else usual[:1] * max(least or 1, 1)
                for value in _beyond(kind, inner):
                    yield [*row[:index], value, *row[index + 1 :]]


def _beyond(kind: type, bounds: Sequence[Any]) -> Iterator[int | float]:
    for bound in bounds:
        if isinstance(bound, Ge):
            yield _next(kind, bound.ge, -math.inf)
        elif isinstance(bound, Gt):
            yield kind(bound.gt)
        elif isinstance(bound, Le):
            yield _next(kind, bound.le, math.inf)
        elif isinstance(bound, Lt):
            yield kind(bound.lt)


def _next(kind: type, value: Any, towards: float) -> int | float:
    if kind is int:
        return value + (1 if towards > 0 else -1)
    return value + math.copysign(1e-6, towards)


def _usual(hint: Any) -> Iterator[int | float | str]:
    """A value that a hint accepts."""
    for kind, bounds in _numbers(hint):
        above: list[Any] = [bound.gt for bound in bounds if isinstance(bound, Gt)]
        least: list[Any] = [bound.ge for bound in bounds if isinstance(bound, Ge)]
        yield kind(above[0] + (1 if kind is int else 1e-3) if above else least[0] if least else 0)
    if hint is str:
        yield "a"


def _numbers(hint: Any) -> Iterator[tuple[type, list[Any]]]:
    """(int or float, its bounds) of the number that a hint is, or of each one in a union."""
    yield from ((kind, bounds) for kind, bounds in _arms(hint) if kind in (int, float))


def _lists(hint: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(list type, its bounds) of each list or tuple that a value may be."""
    for kind, bounds in _arms(hint):
        base = typing.get_origin(kind)
        if isinstance(base, type) and issubclass(base, Sequence):
            yield kind, bounds


def _arms(hint: Any, bounds: Sequence[Any] = ()) -> Iterator[tuple[Any, list[Any]]]:
    """(type, constraints) of each type of a union, the constraints of what stands around it included."""
    base, args = typing.get_origin(hint), typing.get_args(hint)
    if base is Annotated:
        yield from _arms(args[0], [*bounds, *constraints(args[1:])])
    elif base is typing.Union or base is types.UnionType:
        for arm in args:
            yield from _arms(arm, bounds)
    else:
        yield hint, list(bounds)
