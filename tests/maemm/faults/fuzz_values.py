"""What seeded generators of broken inputs share: a case, and odd values."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

LONGEST_LINE = 700  # characters of a line of a message
NUMBERS = (0, 1, 2, 3, 7, -1, -2, 10**3, 10**6, 10**9, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 10**25, 10**400)
FLOATS = (0.0, -0.0, 0.5, 1.0, -0.5, 1.5, 1e-30, 1e-320, 1e9, 1e18, 1e38, 1e300, -1e300, float("inf"), float("nan"))
TEXTS = (
    "", " ", "3", "0.5", "true", "null", "none", "random", "vit", "sincos", "a.b", "a\nb", "\x00", "ä", "../x", "=",
    "&a", "*a", "!!int 3", "{", "x" * 300, "y" * 20_000, "\udcff",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One broken input."""

    number: int  # with the seed, all that is needed to make it again
    note: str  # what was changed, for messages
    value: Any  # what is run

    def __str__(self) -> str:
        return f"case {self.number}: {self.note}"


def odd_value(draw: random.Random, depth: int = 0) -> Any:
    """A scalar, list or mapping of any shape."""
    kind = draw.random()
    if depth > 3 or kind < 0.6:
        return draw.choice((*NUMBERS, *FLOATS, *TEXTS, True, False, None))
    count = draw.choice((0, 1, 2, 3, 9))
    if kind < 0.8:
        return [odd_value(draw, depth + 1) for _ in range(count)]
    keys: tuple[Any, ...] = ("type", "x", "name", "ratio", "dim", "masking", "a b", "", "k" * 300)
    return {draw.choice(keys): odd_value(draw, depth + 1) for _ in range(count)}


def nested(value: Any, depth: int) -> Any:
    """``value`` in ``depth`` lists."""
    for _ in range(depth):
        value = [value]
    return value
