"""Maskings that an encoder guides: some tokens are hidden for what it says of them, the others by chance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import Count, noise_order, plan_by_counts, visible_count
from maemm.model.masking.ratio import RatioMasking


class GuidedMasking(RatioMasking):
    """Hides tokens by what the encoder computes of them, and by the noise of the masking ``random``.

    Where the encoder has no share its masks are those of ``random``, bit for bit, and nothing is computed for them.
    """

    count: Count

    @abstractmethod
    def guides(self, progress: float) -> bool:
        """Whether the encoder has a share when this fraction of the training is done."""

    @abstractmethod
    def order(self, name: str, tokens: Tokens, rng: Rng, guide: Any, rank: Tensor, hidden_of: list[int]) -> Tensor:
        """The tokens of each row, the visible ones first, as :func:`hidden_last` returns them: (B, N).

        ``rank`` (B, N): of each token in the order of the noise, the hidden ones of ``random`` last. ``hidden_of``: how
        many are hidden by how many are valid.
        """

    def hidden_of(self, ratio: float, progress: float, most: int) -> list[int]:
        """How many of n = 0 .. ``most`` tokens are hidden."""
        return [n - visible_count(n, ratio, self.count) for n in range(most + 1)]

    def guide_of(self, name: str, progress: float) -> str | None:
        return self.guide if self.guides(progress) else None

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        return {name: self._plan(name, x, rng, (guides or {}).get(name)) for name, x in tokens.items()}

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return self._plan(name, tokens, rng, None)

    def _plan(self, name: str, tokens: Tokens, rng: Rng, guide: Any) -> Plan:
        noise = rng.uniform(f"mask/{name}", tokens.count, device=tokens.values.device)
        order = noise_order(noise, tokens)
        ratio = self.ratio_of(name, rng)
        hidden_of = self.hidden_of(ratio, rng.progress, tokens.count)
        if self.guides(rng.progress):
            if guide is None:
                raise MaemmError(
                    f"an encoder guides this masking, and there is none (modalities.{name}.masking); draw its plans "
                    "with Model.plan"
                )
            order = self.order(name, tokens, rng, guide, order.argsort(1), hidden_of)
        return plan_by_counts(order, tokens, [n - hidden for n, hidden in enumerate(hidden_of)])


def by_valid(tokens: Tokens, count_of: Callable[[int], int] | list[int]) -> Tensor | int:
    """A number that depends on how many tokens of a row are valid: (B, 1), or one for all where all are."""
    at = count_of.__getitem__ if isinstance(count_of, list) else count_of
    if tokens.valid is None:
        return at(tokens.count)
    table = small_tensor([at(n) for n in range(tokens.count + 1)], tokens.valid.device)
    return table[tokens.valid.sum(1, keepdim=True)]


def highest(values: Tensor, chosen: Tensor | None, count: Tensor | int) -> Tensor:
    """(B, N) bool: the ``count`` (B, 1) tokens of the highest ``values`` (B, N) among those ``chosen`` (B, N) bool, the
    first of equal ones; all of them where there are fewer."""
    if chosen is not None:
        values = values.masked_fill(~chosen, -torch.inf)
    place = values.argsort(dim=1, descending=True, stable=True).argsort(1)
    return place < count if chosen is None else (place < count) & chosen


def hidden_last(rank: Tensor, valid: Tensor | None, candidates: Tensor | None, certain: Tensor | None) -> Tensor:
    """Order (B, N) of tokens for :func:`~maemm.model.masking.counts.plan_by_counts`, which hides the last.

    Those ``certain`` (B, N) bool to be hidden come last, before them ``candidates`` (None: all others), each by their
    ``rank`` (B, N) in the noise. Tokens that are not ``valid`` stand behind all.
    """
    kind = torch.zeros_like(rank) if candidates is None else candidates.long()
    if certain is not None:
        kind = torch.where(certain, 2, kind)
    if valid is not None:
        kind = kind.masked_fill(~valid, 3)
    return (kind * rank.shape[1] + rank).argsort(1)
