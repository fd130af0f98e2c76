"""Where each head looks: mean distance and entropy of attention, recomputed beside an ordinary forward pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maemm.contract import Preprocessed
from maemm.model.model import Model


@dataclass
class Attention:
    """Of one modality, over the samples seen; layers in the order in which the forward pass meets them."""

    layers: list[str] = field(default_factory=list)  # names of the attention layers
    distance: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (layers, heads) in token coordinates
    entropy: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))  # (layers, heads) nats
    even_distance: float = math.nan  # of a head that looks everywhere alike
    even_entropy: float = math.nan
    note: str = ""  # why there is nothing


class AttentionOver:
    """Adds up over batches. ``add`` per batch of one modality, then ``found``."""

    def __init__(self, model: Model, name: str):
        self.model, self.name = model, name
        own = getattr(model.encoder, "prefix", None)
        self.prefix = 0 if own is None else own.shape[1]
        self.sums: dict[str, Tensor] = {}  # (2, heads) distance and entropy
        self.even = np.zeros(2)
        self.samples = 0

    def add(self, preprocessed: Preprocessed) -> None:
        """Runs the encoder on this modality alone, nothing hidden: a sequence then is [prefix, its tokens]."""
        inputs = self.model.everything({self.name: preprocessed})
        one = inputs[self.name]
        places = one.tokens.gather_coords(one.plan.visible).float()  # (B, N, A)
        valid = one.plan.visible_valid
        with recording(self.model.encoder, lambda title, *seen: self._take(title, places, valid, *seen)):
            self.model.encoder(inputs, self.model.modalities)
        self._add_even(places, valid)

    def _take(self, title: str, places: Tensor, valid: Tensor | None, weights: Tensor, row: int) -> None:
        """``weights`` (heads, L, L) of one sample."""
        count = places.shape[1]
        prefix = weights.shape[-1] - count
        if prefix not in (0, self.prefix):  # another sequence than the class tokens and these tokens
            return
        mine = slice(None) if valid is None else valid[row].nonzero()[:, 0]
        if valid is not None and not len(mine):
            return
        seen = weights[:, prefix:][:, mine]  # queries: tokens alone
        entropy = torch.special.entr(seen).sum(-1).mean(-1)
        to_tokens = seen[..., prefix:][..., mine]
        apart = torch.cdist(places[row][mine], places[row][mine])
        total = to_tokens.sum(-1).clamp(min=1e-12)
        distance = ((to_tokens * apart).sum(-1) / total).mean(-1)
        figures = torch.stack([distance, entropy]).double()
        self.sums[title] = self.sums.get(title, 0) + figures

    def _add_even(self, places: Tensor, valid: Tensor | None) -> None:
        for row, place in enumerate(places):
            place = place if valid is None else place[valid[row]]
            if len(place):
                self.even += [float(torch.cdist(place, place).mean()), math.log(len(place) + self.prefix)]
                self.samples += 1

    def found(self) -> Attention:
        if not self.sums or not self.samples:
            return Attention(note="no attention to show: this encoder has no attention layers of the usual kind")
        heads = {len(one[0]) for one in self.sums.values()}
        width = max(heads)
        rows = {
            title: np.pad(one.cpu().numpy() / self.samples, ((0, 0), (0, width - one.shape[1])), constant_values=np.nan)
            for title, one in self.sums.items()
        }
        even = self.even / self.samples
        stacked = np.stack(list(rows.values()), 1)
        return Attention(list(rows), stacked[0], stacked[1], float(even[0]), float(even[1]))


# ------------------------------------------------------------------------------------------------ the hooks
@contextmanager
def recording(encoder: nn.Module, take: Any) -> Iterator[None]:
    """``take(title, weights (heads, L, L), row)`` for every sample and attention layer of the passes inside.

    The layers run as ever; their weights are computed again from their inputs. A layer that runs twice in a pass has
    two titles.
    """
    met: dict[str, int] = {}
    layers = {name: one for name, one in encoder.named_modules() if _readable(one)}

    def hook(name: str) -> Any:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            met[name] = met.get(name, 0) + 1
            title = name if met[name] == 1 else f"{name} ({met[name]})"
            mask = kwargs.get("attn_mask", args[1] if len(args) > 1 else None)
            for row in range(len(args[0])):  # one at a time: all samples' weights would not fit
                take(title, weights_of(module, args[0][row : row + 1], _row(mask, row))[0], row)

        return look

    handles = [one.register_forward_pre_hook(hook(name), with_kwargs=True) for name, one in layers.items()]
    try:
        yield
    finally:
        for one in handles:
            one.remove()


def weights_of(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    """Weights (B, heads, L, L) of timm's attention for its input (B, L, D); ``mask``: True where keys are seen."""
    heads = layer.num_heads
    q, k, _ = layer.qkv(x).float().unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = layer.q_norm(q), layer.k_norm(k)
    scores = q @ k.transpose(-2, -1) * layer.scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).nan_to_num(0.0)


def _readable(module: nn.Module) -> bool:
    """timm's attention, and what looks like it."""
    wanted = ("qkv", "num_heads", "scale", "q_norm", "k_norm")
    return all(hasattr(module, one) for one in wanted) and isinstance(module.qkv, nn.Module)


def _row(mask: Tensor | None, row: int) -> Tensor | None:
    return None if mask is None else mask[row : row + 1] if mask.shape[0] > 1 else mask
