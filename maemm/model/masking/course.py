"""Numbers of a masking that change over the training, as functions of the fraction of it that is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from maemm.contract.options import Fraction, PositiveFraction


class Course(BaseModel):
    """A number that goes from ``start`` to ``end`` over the first part of the training, and stays there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    start: Fraction = Field(description="its value at the first step")
    end: Fraction = Field(description="its value afterwards")
    over: PositiveFraction = Field(default=1.0, description="fraction of the training in which it changes")
    shape: Literal["cosine", "linear"] = Field(default="cosine", description="half a cosine, or a line")

    def at(self, progress: float) -> float:
        """Its value when the fraction ``progress`` of the training is done."""
        done = min(max(progress / self.over, 0.0), 1.0)
        if self.shape == "cosine":
            done = 0.5 * (1 - math.cos(math.pi * done))
        return self.start + (self.end - self.start) * done

    def described(self, progress: float, whole: str = "the training") -> str:
        """In words: one number where it stays, otherwise how it changes over a part of the ``whole``, and its value."""
        if self.start == self.end:
            return f"{self.end:g}"
        part = f"over {100 * self.over:g} % of {whole}"
        return f"from {self.start:g} to {self.end:g} {part} ({self.shape}), here {self.at(progress):g}"


Scheduled = Fraction | Course  # one number, or how it changes


def read_course(value: Scheduled) -> Course:
    """A number as a recipe has it, with a course that may be flat."""
    if isinstance(value, Mapping):
        return Course(**value)
    return value if isinstance(value, Course) else Course(start=value, end=value)
