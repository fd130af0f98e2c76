"""Plans that can teach nothing: nothing visible, or nothing predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from maemm.contract import ModalityInput, Plan
from maemm.contract.errors import MaemmError
from maemm.model.model import Model


def check_plans(model: Model, passes: Sequence[Mapping[str, ModalityInput]], counts: Mapping[str, Tensor]) -> list[str]:
    """What the plans of a step leave out, a line each; ``counts`` are those of its terms, on this rank.

    Raises :class:`MaemmError` where no batch of these shapes could be learned from: no token is visible, or none is
    predicted and nothing else compared. Ragged batches (whose tokens are not all valid) are told about in a line, as
    other batches may hold more.
    """
    plans = [{name: x.plan for name, x in inputs.items()} for inputs in passes]
    if not any(plan.visible.shape[1] for each in plans for plan in each.values()):
        raise MaemmError(
            "no token is visible, so there is nothing to learn from; lower the mask ratio (masking), or take samples "
            "of more tokens"
        )
    predicts = any(plan.predict.shape[1] for each in plans for plan in each.values())
    if model.masked and not predicts and not any(bool(count.any()) for count in counts.values()):
        raise MaemmError("no token is hidden, so there is nothing to learn; raise the mask ratio (masking)")

    lines = []
    seen = torch.cat([_rows([_any(p.visible, p.visible_valid) for p in each.values()]) for each in plans])
    if unseen := int((~seen).sum()):
        which = "no sample" if unseen == len(seen) else f"{unseen:,} of {len(seen):,} samples"
        has = "has a visible token" if unseen == len(seen) else "have no visible token"
        lines.append(
            f"warning: {which} of the first batch {has}, so there is nothing to learn from; lower the mask ratio "
            "(masking), or take samples of more tokens"
        )
    if model.masked:
        lines += _objectives_without_count(model, plans)
    return lines


def _objectives_without_count(model: Model, plans: Sequence[dict[str, Plan]]) -> list[str]:
    """A line for each objective of which every term is of nothing."""
    lines = []
    for name, objective in model.objectives.items():
        counts = [count for each in plans for count in objective.counts(each).values()]
        if counts and not any(bool(count.any()) for count in counts):
            lines.append(
                f"warning: objective {name!r} has nothing to learn in the first batch: no token is hidden, or none of "
                "its samples counts; raise the mask ratio (masking), or take samples of more tokens"
            )
    return lines


def _any(index: Tensor, valid: Tensor | None) -> Tensor:
    """(R, V) -> (R,) bool: whether a row has any token."""
    if valid is None:
        return torch.full((len(index),), index.shape[1] > 0, device=index.device)
    return valid.any(1)


def _rows(of_modalities: list[Tensor]) -> Tensor:
    """Whether a row has any token of any modality."""
    return torch.stack(of_modalities).any(0)
