"""A budget of visible tokens over all modalities together, shared out by a Dirichlet distribution (MultiMAE)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from maemm.contract import Masking, Plan, Tokens
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import Positive, PositiveInt
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import packed

TRIES = 8  # of a gamma variate, each accepted with more than 0.95 (Marsaglia and Tsang 2000)
LEFT_OUT = 1e-5  # concentration that the published code adds everywhere, so that it is above 0 outside of a subset


class Dirichlet(Masking):
    """Show ``budget`` tokens of all modalities together; the share of each is drawn for every sample (MultiMAE, 3.1).

    Shares are Dirichlet-distributed: a concentration of 1 makes all ways to share equally likely, a larger one more
    even, a smaller one more lopsided shares. A modality may get none of the budget, or, where the budget allows, show
    all its tokens. Samples that lack a modality share the budget over the others; rows with fewer valid tokens than the
    budget show all of them.

    ``count: exact`` (default) rounds the shares so that they add up to the budget (largest remainders), and adds tokens
    of all modalities at random only where one has fewer than its share. ``count: official`` is the published drawing:
    each share is rounded by itself, and what is then too much or missing is repaired at random over all modalities.

    Options
        budget: visible tokens of a sample (MultiMAE: 98 of 3 x 196)
        concentration: of the Dirichlet distribution, a number or {modality: number}
        subsets: first draw a non-empty subset of the modalities, all equally likely, then share the budget over it
        count: exact or official, see above
    """

    def __init__(
        self,
        *,
        budget: PositiveInt,
        concentration: Positive | dict[str, Positive] = 1.0,
        subsets: bool = False,
        count: Literal["exact", "official"] = "exact",
    ):
        self.budget, self.concentration, self.subsets = budget, concentration, subsets
        self.count = count

    def __call__(self, tokens: dict[str, Tokens], rng: Rng, guides: dict[str, Any] | None = None) -> dict[str, Plan]:
        counts = [x.count for x in tokens.values()]
        if self.budget >= sum(counts):
            raise MaemmError(
                f"a budget of {self.budget} leaves none of the {sum(counts)} tokens of {', '.join(tokens)} hidden "
                "(masking.budget); lower it"
            )
        device = next(iter(tokens.values())).values.device
        valid = None
        if any(x.valid is not None for x in tokens.values()):
            valid = torch.cat([_valid(x) for x in tokens.values()], 1)
        share = self.shares(tokens, rng)
        noise = [rng.uniform(f"mask/{name}", x.count, device=device) for name, x in tokens.items()]
        repair = rng.uniform("budget/repair", sum(counts), device=device)
        choose = official_candidates if self.count == "official" else exact_candidates
        kept = keep(choose(share, noise, self.budget, valid), repair, self.budget, valid)
        parts = zip(tokens.items(), kept.split(counts, 1), strict=True)
        return {name: self._plan(x, part, sum(counts)) for (name, x), part in parts}

    def _plan(self, tokens: Tokens, visible: Tensor, total: int) -> Plan:
        """The plan of a modality from its visible tokens (B, N) bool; ``total``: tokens of all modalities."""
        place = torch.arange(tokens.count, device=visible.device).expand_as(visible)
        shown, shown_valid = packed(place, visible, min(tokens.count, self.budget))
        options: dict[str, Any] = {"visible_valid": shown_valid, "budget": self.budget}
        hidden, width = ~visible, tokens.count
        if tokens.valid is None:  # where the others cannot take the whole budget, some are visible in every row
            width -= max(0, self.budget - (total - tokens.count))
        else:
            hidden = hidden & tokens.valid
        predicted, predicted_valid = packed(place, hidden, width)
        # A hidden token is never visible: counted is what is valid.
        return Plan(shown, predicted, predict_valid=predicted_valid, counted=predicted_valid.float(), **options)

    # ---- shares
    def shares(self, tokens: Mapping[str, Tokens], rng: Rng) -> Tensor:
        """(B, modalities): the fraction of the budget that each sample gives to each modality; sums are 1."""
        device, number = next(iter(tokens.values())).values.device, len(tokens)
        concentration = small_tensor(self._concentrations(tokens), device).expand(len(rng.rows), -1)
        present = _present(tokens)
        chosen = present
        if self.subsets:
            if present is None:
                present = torch.ones(1, 1, dtype=torch.bool, device=device).expand(len(rng.rows), number)
            chosen = draw_subset(rng.uniform("budget/subset", device=device), present)
            concentration = concentration * chosen + LEFT_OUT
        if not self.subsets and self.concentration == 1:  # gamma variates of shape 1 are exponential ones
            logs = (-torch.log1p(-rng.uniform("budget/share", number, device=device))).log()
        else:
            logs = log_gamma_variates(concentration, "budget/share", rng)
        if present is not None:
            logs = logs.masked_fill(~present, -math.inf)
            logs = torch.where(present.any(1, keepdim=True), logs, 0.0)  # a row with nothing shows nothing
        return logs.softmax(1)

    def _concentrations(self, names: Mapping[str, Any]) -> list[float]:
        if not isinstance(self.concentration, Mapping):
            return [float(self.concentration)] * len(names)
        for name in self.concentration:
            if name not in names:
                raise MaemmError(
                    f"{name!r} takes no part in the budget (masking.concentration.{name}); {advice(name, names)}"
                )
        return [float(self.concentration.get(name, 1.0)) for name in names]


def draw_subset(uniform: Tensor, present: Tensor) -> Tensor:
    """One of the non-empty subsets of what is ``present`` (B, n) bool, all equally likely: (B, n) bool.

    ``uniform`` (B,): a number of each row. Rows in which nothing is present have an empty subset.
    """
    subsets = 2.0 ** present.sum(1) - 1
    number = (1 + (uniform * subsets).floor().clamp(max=(subsets - 1).clamp(min=0))).long()
    bit = (present.long().cumsum(1) - 1).clamp(min=0)
    return ((number[:, None] >> bit) & 1).bool() & present


def log_gamma_variates(shape: Tensor, purpose: str, rng: Rng) -> Tensor:
    """Logarithms of gamma variates of the shapes (B, n), which may be tiny: the first of :data:`TRIES` that Marsaglia
    and Tsang (2000) accept, and below shape 1 theirs of shape + 1 times U^(1 / shape)."""
    device, number = shape.device, shape.shape[1]
    normal = rng.normal(f"{purpose}/normal", number, TRIES, device=device)
    accept = rng.uniform(f"{purpose}/accept", number, TRIES, device=device)
    boost = rng.uniform(f"{purpose}/boost", number, device=device)
    raised = torch.where(shape < 1, shape + 1, shape)
    d = (raised - 1 / 3)[..., None]
    root = 1 + normal / (9 * d).sqrt()
    v = root.clamp(min=1e-6) ** 3
    fits = (root > 1e-6) & (accept.clamp(min=1e-38).log() < 0.5 * normal.square() + d - d * v + d * v.log())
    first = fits.float().argmax(-1, keepdim=True)
    logs = (d.log() + v.log()).gather(-1, first).squeeze(-1)
    return torch.where(shape < 1, logs + torch.log1p(-boost).clamp(min=-88) / shape, logs)


# ------------------------------------------------------------------------------------------------ from shares to tokens
def exact_candidates(share: Tensor, noise: Sequence[Tensor], budget: int, valid: Tensor | None) -> Tensor:
    """Candidates (B, total) bool: of each modality as many tokens of the lowest noise as its share, sums are exact."""
    wanted = largest_remainders(share, budget)
    parts = []
    for number, (of, fits) in enumerate(zip(noise, _parts(valid, noise), strict=True)):
        of = of if fits is None else of.masked_fill(~fits, math.inf)
        rank = of.argsort(dim=1, stable=True).argsort(1)
        parts.append(rank < wanted[:, number : number + 1])
    chosen = torch.cat(parts, 1)
    return chosen if valid is None else chosen & valid


def official_candidates(share: Tensor, noise: Sequence[Tensor], budget: int, valid: Tensor | None) -> Tensor:
    """Candidates (B, total) bool as published: place j is one where ``argsort(noise)[j]`` is below its count.

    As likely as the tokens of the lowest noise, but others: the published code takes the inverse permutation's.
    """
    count = (share * budget).round()
    chosen = torch.cat([of.argsort(1) < count[:, k : k + 1] for k, of in enumerate(noise)], 1)
    return chosen if valid is None else chosen & valid


def keep(candidates: Tensor, repair: Tensor, budget: int, valid: Tensor | None) -> Tensor:
    """(B, total) bool: ``budget`` tokens of each row, candidates before others, by the numbers ``repair`` in [0, 1).

    Tokens that are not valid come last, and are not kept.
    """
    order = keep_order(candidates, repair, valid)[:, :budget]
    kept = torch.zeros_like(candidates).scatter(1, order, torch.ones_like(order, dtype=torch.bool))
    return kept if valid is None else kept & valid


def keep_order(candidates: Tensor, repair: Tensor, valid: Tensor | None = None) -> Tensor:
    """(B, total): all tokens, in the order in which they are kept."""
    key = (~candidates).float() + repair
    return (key if valid is None else key.masked_fill(~valid, math.inf)).argsort(1)


def largest_remainders(share: Tensor, total: int) -> Tensor:
    """Shares (B, n), which add up to 1 -> whole numbers (B, n) that add up to ``total``, each off by less than 1."""
    exact = share * total
    whole = exact.floor()
    missing = total - whole.sum(1, keepdim=True)
    rank = (whole - exact).argsort(dim=1, stable=True).argsort(1)
    return (whole + (rank < missing)).long()


# -------------------------------------------------------------------------------------------------------------- helpers
def _valid(tokens: Tokens) -> Tensor:
    """(B, N) bool."""
    if tokens.valid is not None:
        return tokens.valid
    return torch.ones(1, 1, dtype=torch.bool, device=tokens.values.device).expand(tokens.batch, tokens.count)


def _present(tokens: Mapping[str, Tokens]) -> Tensor | None:
    """(B, modalities) bool: whether a sample has any valid token of each; None: all have."""
    if all(x.valid is None for x in tokens.values()):
        return None
    return torch.stack([_valid(x).any(1) for x in tokens.values()], 1)


def _parts(valid: Tensor | None, like: Sequence[Tensor]) -> Sequence[Tensor | None]:
    return [None] * len(like) if valid is None else valid.split([x.shape[1] for x in like], 1)
