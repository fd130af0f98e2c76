"""What the type hint of an option says beyond its type: bounds, lengths, and that another part stands there.

``depth: Depth``, ``ratio: Fraction``, ``betas: tuple[Rate, Rate]``. The names below are ``Annotated`` types, which
recipes are checked against, and which ``maemm plugins show`` and error messages write out (``int >= 1``). Where none of
them fits, write your own: ``Annotated[int, Ge(8), MultipleOf(4)]`` with any constraint of the package
``annotated_types``; the summary of a ``Predicate``'s docstring is its text in messages. A hint without bounds accepts
every finite number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

from annotated_types import Ge, Gt, Le, Lt, Predicate

MOST_BLOCKS = 500  # ten times the deepest vision transformers; each takes milliseconds to build, whatever its width
MOST_REPEATS = 1000  # of what is done once for each: plans, views, votes
MOST_CHANNELS = 10_000  # each has a name, and may have parameters, of its own

PositiveInt = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
Depth = Annotated[int, Ge(1), Le(MOST_BLOCKS)]  # layers of a network
Repeats = Annotated[int, Ge(1), Le(MOST_REPEATS)]  # of work that is done again for each
Channels = Annotated[int, Ge(1), Le(MOST_CHANNELS)]

Positive = Annotated[float, Gt(0)]  # scales, temperatures, seconds
NonNegative = Annotated[float, Ge(0)]  # weights of losses, weight decay, epsilons
Fraction = Annotated[float, Ge(0), Le(1)]  # ratios of masks, probabilities
PositiveFraction = Annotated[float, Gt(0), Le(1)]
Rate = Annotated[float, Ge(0), Lt(1)]  # dropout, drop path, momentum: 1 would leave nothing


def _ascending(values: Sequence[float]) -> bool:
    """ascending"""
    return all(a <= b for a, b in zip(values, values[1:], strict=False))


Ascending = Predicate(_ascending)  # of a list: no number is below the one before it

_T = TypeVar("_T")
Interval = Annotated[tuple[_T, _T], Ascending]  # ``Interval[Positive]``: [low, high], low <= high


@dataclass(frozen=True)
class PartOf:
    """The option holds a part of a ``role``: a name, or {type: NAME, options}, which are checked like any part's.

    ``Annotated[str | dict[str, Any], PartOf("maskings")]``.
    """

    role: str
    default: str | None = None  # its type where none is given; with neither, the option must say
    besides: tuple[str, ...] = ()  # keys beside the options that whoever opens the part reads itself
