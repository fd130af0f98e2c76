"""A masking of whole jets, and an encoder whose cost grows linearly with the size of a set."""

import torch
from torch import nn

from maemm.contract import Encoder, Latents, PerModalityMasking
from maemm.model.masking.counts import plan_from_hidden


class Jets(PerModalityMasking):
    """Hide all particles of random jets; one jet stays, so that something is visible.

    Options
        ratio: fraction of the jets that is hidden
    """

    def __init__(self, *, ratio: float = 0.5):
        self.ratio = ratio

    def plan(self, name, tokens, rng):
        jet, valid = tokens.context["jet"], tokens.valid
        noise = rng.uniform(f"mask/{name}", tokens.count, device=jet.device)  # of jets, at most one per particle
        is_there = torch.zeros_like(noise).scatter_add(1, jet, valid.to(noise)) > 0
        rank = noise.masked_fill(~is_there, torch.inf).argsort(1).argsort(1)
        count = is_there.sum(1, keepdim=True)
        hide = torch.minimum((count * self.ratio).round().clamp(min=1), count - 1)
        return plan_from_hidden((rank < hide).gather(1, jet), tokens, tokens.count, tokens.count)


class InducedSets(Encoder):
    """Each block: learned points attend to all tokens, and tokens attend to the points (Lee et al. 2019, equation 10).

    Options
        dim: width
        depth: blocks
        heads: attention heads
        points: learned points of each block
    """

    def __init__(self, names, *, dim: int = 64, depth: int = 2, heads: int = 4, points: int = 8):
        super().__init__()
        self.dim, self.norm = dim, nn.LayerNorm(dim)
        self.kinds = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.blocks = nn.ModuleList(InducedBlock(dim, heads, points) for _ in range(depth))

    def forward(self, inputs, modalities, *, layers=(), norm=True):
        parts, valid = [], []
        for name, x in inputs.items():
            embedded = modalities[name].embed(x.tokens, x.plan.visible)
            parts.append(embedded + modalities[name].position(x.tokens, x.plan.visible, "encoder") + self.kinds[name])
            ones = torch.ones_like(x.plan.visible, dtype=torch.bool)
            valid.append(ones if x.plan.visible_valid is None else x.plan.visible_valid)
        lengths, x, valid = [part.shape[1] for part in parts], torch.cat(parts, 1), torch.cat(valid, 1)
        padding = ~(valid | ~valid.any(1, keepdim=True))  # a row without a valid token must stay finite
        between = {}
        for number, block in enumerate(self.blocks):
            x = block(x, padding)
            if number in layers:
                between[number] = dict(zip(inputs, x.split(lengths, 1), strict=True))
        parts = (self.norm(x) if norm else x).split(lengths, 1)
        return Latents(dict(zip(inputs, parts, strict=True)), layers=between)


class InducedBlock(nn.Module):
    """Tokens (R, V, D) and padding (R, V) -> tokens (R, V, D)."""

    def __init__(self, dim: int, heads: int, points: int):
        super().__init__()
        self.points = nn.Parameter(torch.randn(1, points, dim) * 0.02)
        self.gather, self.spread = (nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, padding):
        tokens = self.norms[0](x)
        points = self.points.to(x.dtype).expand(x.shape[0], -1, -1)
        points = self.gather(points, tokens, tokens, key_padding_mask=padding, need_weights=False)[0]
        x = x + self.spread(tokens, points, points, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))
