"""Mask ratios, which may be drawn for each batch or change over the training: the same for all samples, micro-batches
and ranks of a step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from maemm.contract import PerModalityMasking, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, Interval, Positive
from maemm.contract.rng import Rng
from maemm.model.masking.course import Course
from maemm.model.masking.rectangles import batch_rng


class NormalRatio(BaseModel):
    """A normal distribution without its ends (MAETok: mean 0.6, std 0.25, low 0.4, high 0.6)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    mean: Fraction = Field(description="where the distribution is highest, before it is cut")
    std: Positive = Field(description="its standard deviation, before it is cut")
    low: Fraction = Field(default=0.0, description="the smallest ratio")
    high: Fraction = Field(default=1.0, description="the largest ratio")

    def at(self, uniform: float) -> float:
        """The ratio below which the fraction ``uniform`` of all draws lies."""
        normal = NormalDist(self.mean, self.std)
        below, above = normal.cdf(self.low), normal.cdf(self.high)
        if above - below < 1e-6:  # nearly all of it is cut
            return min(max(self.mean, self.low), self.high)
        return min(
            max(normal.inv_cdf(min(max(below + uniform * (above - below), 1e-12), 1 - 1e-12)), self.low), self.high
        )


def _kind_of_mapping(value: Any) -> str:
    """Which of the two mappings is meant, so that a mistake is not told of the other one."""
    keys = value if isinstance(value, Mapping) else getattr(type(value), "model_fields", ())
    return "course" if "start" in keys or "end" in keys else "normal"


_Mapped = Annotated[
    Annotated[NormalRatio, Tag("normal")] | Annotated[Course, Tag("course")], Discriminator(_kind_of_mapping)
]
# one ratio, how it is drawn for each batch, or how it changes over the training
Ratio = Fraction | Interval[Fraction] | _Mapped
Drawn = float | tuple[float, float] | NormalRatio | Course  # the same, read


def read_ratio(ratio: Ratio) -> Drawn:
    """A ratio as a recipe has it, with its bounds. Raises :class:`MaemmError` where low is above high."""
    if isinstance(ratio, Mapping):
        ratio = Course(**ratio) if _kind_of_mapping(ratio) == "course" else NormalRatio(**ratio)
    if isinstance(ratio, Course):
        return ratio
    if isinstance(ratio, NormalRatio):
        if ratio.low > ratio.high:
            raise MaemmError(f"low {ratio.low:g} is above high {ratio.high:g} (masking.ratio); exchange them")
        return ratio
    if isinstance(ratio, (int, float)):
        return ratio
    low, high = ratio
    return low, high


def ratio_of(ratio: Drawn, name: str, rng: Rng) -> float:
    """The ratio of this batch and modality; drawn by the host, since it decides shapes."""
    if isinstance(ratio, (int, float)):
        return ratio
    if isinstance(ratio, Course):
        return ratio.at(rng.progress)
    uniform = batch_rng(rng).floats(f"mask/{name}/ratio", 1)[0]
    if isinstance(ratio, NormalRatio):
        return ratio.at(uniform)
    low, high = ratio
    return low + uniform * (high - low)


def _bounds(ratio: tuple[float, float] | NormalRatio | Course) -> tuple[float, float]:
    if isinstance(ratio, Course):
        return min(ratio.start, ratio.end), max(ratio.start, ratio.end)
    return (ratio.low, ratio.high) if isinstance(ratio, NormalRatio) else ratio


class RatioMasking(PerModalityMasking):
    """A masking with an option ``ratio``, which may be drawn for each batch: take it from :meth:`ratio_of`.

    Shapes follow from the ratio: one that is drawn, or that changes, gives as many (:meth:`shapes`) as
    there are counts between its bounds, mostly too many to be compiled.
    """

    ratio: Drawn | None  # as :func:`read_ratio` returns it; None: the masking goes by something else

    def shapes(self, tokens: dict[str, Tokens]) -> int | None:
        if self.ratio is None or isinstance(self.ratio, (int, float)):
            return 1
        low, high = _bounds(self.ratio)
        # Of padded rows the most that is visible and the most that is predicted need not change at the same ratio.
        return math.prod(1 + math.ceil(x.count * (high - low)) * (1 if x.valid is None else 2) for x in tokens.values())

    def ratio_of(self, name: str, rng: Rng) -> float:
        """The ratio of this batch. It is drawn by the host, since it decides shapes."""
        assert self.ratio is not None
        return ratio_of(self.ratio, name, rng)

    def notes(self, tokens: dict[str, Tokens], rng: Rng) -> dict[str, list[str]]:
        """What ``maemm show`` says: nothing of a ratio that is always the same."""
        ratio = self.ratio
        if ratio is None or isinstance(ratio, (int, float)):
            return {}
        if isinstance(ratio, Course):
            return {name: [f"ratio {ratio.described(rng.progress)}"] for name in tokens}
        low, high = _bounds(ratio)
        how = f", normal around {ratio.mean:g}" if isinstance(ratio, NormalRatio) else ""
        return {
            name: [f"ratio {ratio_of(ratio, name, rng):.4f}, drawn for each batch from {low:g} to {high:g}{how}"]
            for name in tokens
        }
