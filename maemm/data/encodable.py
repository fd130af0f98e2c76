"""What is given to encoders and drawing libraries: numbers that they were made for."""

from __future__ import annotations

from torch import Tensor


def encodable(values: Tensor, low: float, high: float, empty: float = 0.0) -> Tensor:
    """Float ``values`` within ``low`` .. ``high``; NaN becomes ``empty``: NaN for what draws nothing there.

    A model that has diverged predicts infinity and NaN. Native encoders check nothing: LAME aborts the whole process,
    others write what no player opens. Whatever a model made passes here first.
    """
    return values.nan_to_num(empty, high, low).clamp(low, high)
