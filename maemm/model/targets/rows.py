"""What a target computed for all tokens of all samples, for the predicted tokens of each row of a plan."""

from __future__ import annotations

from torch import Tensor

from maemm.contract import ModalityInput
from maemm.contract.data import gather_tokens
from maemm.contract.errors import MaemmError


def computed_of(inputs: ModalityInput, index: Tensor) -> Tensor:
    """``inputs.computed`` (B, N, ...) -> (R, M, ...) of the tokens ``index`` (R, M).

    Raises :class:`MaemmError` where the inputs were not made by the model that has the target.
    """
    if inputs.computed is None:
        raise MaemmError("the target has computed nothing for these inputs; make them with model.plan(batch, rng)")
    return gather_tokens(inputs.computed, index, inputs.tokens.rows)
