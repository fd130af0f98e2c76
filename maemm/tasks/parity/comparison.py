"""What two trainings that should be alike have in common, and what the comparison could not have seen."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from maemm.config import dump

ROUNDING = 1e-4  # of a gradient: what another order of sums may change
WORSE = 2.0  # how much farther than the plain training's a gradient may be from that in fp32
SPREADS = 2.0  # standard deviations between seeds within which the losses are taken for equal


@dataclass(frozen=True)
class Gradient:
    """How far the gradient of a parameter is from that in fp32, relative to its norm."""

    parameter: str
    plain: float
    changed: float

    @property
    def excess(self) -> float:
        """Above 1 where the changed training's is too far; NaN counts as far."""
        ratio = self.changed / (WORSE * self.plain + ROUNDING)
        return math.inf if math.isnan(ratio) else ratio


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`maemm.parity`. Losses are lists, one number for each step."""

    recipe: str
    change: dict[str, Any]
    precision: str
    gradients: list[Gradient]
    plain: list[float]
    changed: list[float]
    seeds: list[list[float]]

    @property
    def worst(self) -> Gradient:
        """The gradient that is farthest from what is allowed."""
        return max(self.gradients, key=lambda gradient: gradient.excess)

    @property
    def last(self) -> int:
        """How many steps at the end are averaged: a third."""
        return max(1, len(self.plain) // 3)

    def level(self, losses: list[float]) -> float:
        """The mean loss of the last steps."""
        return sum(losses[-self.last :]) / self.last

    @property
    def gap(self) -> float:
        """By how much the changed training's loss is higher at the end."""
        return self.level(self.changed) - self.level(self.plain)

    @property
    def noise(self) -> float:
        """Standard deviation of the loss at the end between seeds, the plain training's among them."""
        levels = [self.level(losses) for losses in [self.plain, *self.seeds]]
        mean = sum(levels) / len(levels)
        return math.sqrt(sum((level - mean) ** 2 for level in levels) / (len(levels) - 1))

    @property
    def gradients_alike(self) -> bool:
        """Whether every gradient of the first step is as near to that in fp32 as allowed."""
        return self.worst.excess <= 1

    @property
    def losses_alike(self) -> bool:
        """Whether the losses at the end differ by no more than seeds do."""
        return abs(self.gap) <= SPREADS * self.noise  # not so for NaN

    @property
    def alike(self) -> bool:
        """Whether the change has made no difference that can be seen here."""
        return self.gradients_alike and self.losses_alike

    def record(self) -> dict[str, Any]:
        """For JSON."""
        worst = self.worst
        return {
            "recipe": self.recipe,
            "change": self.change,
            "precision": self.precision,
            "steps": len(self.plain),
            "alike": self.alike,
            "gradients_alike": self.gradients_alike,
            "losses_alike": self.losses_alike,
            "worst_gradient": {"parameter": worst.parameter, "plain": worst.plain, "changed": worst.changed},
            "loss": {"plain": self.level(self.plain), "changed": self.level(self.changed)},
            "noise": self.noise,
            "losses": {"plain": self.plain, "changed": self.changed, "seeds": self.seeds},
        }

    def __str__(self) -> str:
        steps, worst = len(self.plain), self.worst
        change = " ".join(
            f"{key}={dump(value).strip().removesuffix('...').strip()}" for key, value in self.change.items()
        )
        allowed = WORSE * worst.plain + ROUNDING
        plain, changed = self.level(self.plain), self.level(self.changed)
        visible = SPREADS * self.noise / abs(plain) if plain else math.inf
        gradients = f"{worst.changed:.1e} from fp32, allowed {allowed:.1e} ({worst.parameter})"
        losses = f"{changed:.6g}, unchanged {plain:.6g}; std of {len(self.seeds) + 1} seeds {self.noise:.2g}"
        lines = [
            f"{self.recipe}: {change}, {self.precision}, {steps} steps",
            f"  {'gradients of the first step':<28}{_word(self.gradients_alike)}  {gradients}",
            f"  {f'loss of the last {self.last} steps':<28}{_word(self.losses_alike)}  {losses}",
            "NOT alike: the change makes another training of it",
        ]
        if self.alike:
            lines[-1] = f"alike, as far as this can see: in {steps} steps a gap of {visible:.2%} of the loss and more"
            lines.append("would have been noticed, one that opens later would not")
        return "\n".join(lines)


def _word(alike: bool) -> str:
    return "ok    " if alike else "DIFFER"
