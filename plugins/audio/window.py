"""AudioMAE's local decoder: attention in windows of the token lattice that shift in every second block.

The block is that of Swin Transformer V2 in its residual-post-norm form (Liu et al. 2022, arXiv 2111.09883): scaled
cosine attention with a learned temperature per head, and a bias from a small MLP over log-spaced offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput, Plan
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, NonNegativeInt, Positive, PositiveInt
from maemm.model.blocks import check_width, init_linear
from maemm.model.products import Linear

LOWEST_TAU = 0.01
LEAST_NORM = 1e-6  # of the product of two vectors' lengths, as published; fused: of the square of each
ACROSS = -100.0  # added between tokens that are neighbours only through the cyclic shift, as published
BIAS_DROPOUT = 0.1  # in the MLP of the position bias, as published
NOWHERE = -1e4  # added for padding


class Window(Decoder):
    """Mask tokens and visible tokens on their lattice, attention in windows (AudioMAE, section 3.1).

    Prefix tokens have no position on the lattice and are dropped. Any lattice of two axes is padded to whole windows;
    padding is not attended to. Several modalities are decoded each by itself.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        window: tokens of a window along each axis of the lattice
        shift: of the windows in every second block
        mlp_ratio: hidden width of the MLP over the width
        eps: of the layer norms
        bias_hidden: hidden width of the MLP that makes the relative bias
    """

    dim: int

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 512,
        depth: Depth = 16,
        heads: PositiveInt = 16,
        window: Annotated[Sequence[PositiveInt], Len(2, 2)] = (4, 4),
        shift: Annotated[Sequence[NonNegativeInt], Len(2, 2)] = (2, 0),
        mlp_ratio: Positive = 4.0,
        eps: NonNegative = 1e-6,
        bias_hidden: PositiveInt = 384,
    ):
        super().__init__()
        check_width(dim, heads, "decoder", mlp_ratio)
        window, shift = tuple(window), tuple(shift)
        if any(s >= w for s, w in zip(shift, window, strict=True)):
            raise MaemmError(f"shift {shift} must be below window {window} (decoder.shift)")
        self.dim = self.decoded_dim = dim
        self.window = window
        self.project = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(
            WindowBlock(dim, heads, window, shift if number % 2 else (0, 0), mlp_ratio, eps, bias_hidden)
            for number in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items() if size})
        self.apply(init_linear)

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        latents.decoded = {
            name: self._decode(name, latents, x, modalities[name]) for name, x in inputs.items() if name in self.heads
        }
        return {name: self.heads[name](part) for name, part in latents.decoded.items()}

    def _decode(self, name: str, latents: Latents, inputs: ModalityInput, modality: Modality) -> Tensor:
        tokens, plan = inputs.tokens, inputs.plan
        grid, index = tokens.grid, tokens.all_indices()
        if grid is None or len(grid) != 2:
            raise MaemmError(f"the window decoder needs tokens on a lattice of two axes, {name!r} has {grid}")
        x = self._filled(self.project(latents.tokens[name]), plan, index.shape[1])
        x = x + modality.position(tokens, index, "decoder").to(x.dtype)
        valid = tokens.valid
        if valid is not None and tokens.rows is not None:
            valid = valid[tokens.rows]
        x, lattice = x.unflatten(1, grid), Lattice(grid, self.window, valid, x)
        x = lattice.pad(x)
        for block in self.blocks:
            x = block(x, lattice)
        x = x[:, : grid[0], : grid[1]].flatten(1, 2)
        predicted = x.gather(1, plan.predict[..., None].expand(-1, -1, self.dim))
        return self.norm(predicted)

    def _filled(self, visible: Tensor, plan: Plan, count: int) -> Tensor:
        """(R, V, D) -> (R, N, D): visible tokens at their positions, mask tokens elsewhere."""
        position = plan.visible
        if plan.visible_valid is not None:  # padding goes behind the last token and is cut off
            position = position.masked_fill(~plan.visible_valid, count)
        x = self.mask_token.to(visible.dtype).expand(visible.shape[0], count + 1, -1)
        return x.scatter(1, position[..., None].expand_as(visible), visible)[:, :count]


class Lattice:
    """A lattice padded to whole windows, and the attention masks between tokens that may not see each other."""

    def __init__(self, grid: tuple[int, ...], window: tuple[int, ...], valid: Tensor | None, like: Tensor):
        self.window = window
        self.padding = tuple(-side % length for side, length in zip(grid, window, strict=True))
        self.size = tuple(side + extra for side, extra in zip(grid, self.padding, strict=True))
        self.like = like
        self.real: Tensor | None = None  # (R or 1, *size, 1) float, 0 for padding; None: no padding
        if valid is not None or any(self.padding):
            real = torch.ones(1, *grid, device=like.device) if valid is None else valid.float().unflatten(1, grid)
            self.real = F.pad(real, (0, self.padding[1], 0, self.padding[0]))[..., None]
        self._added: dict[tuple[int, ...], Tensor | None] = {}

    def pad(self, x: Tensor) -> Tensor:
        """(R, *grid, D) -> (R, *size, D)."""
        return F.pad(x, (0, 0, 0, self.padding[1], 0, self.padding[0])) if any(self.padding) else x

    def windows(self, x: Tensor) -> Tensor:
        """(R, *size, D) -> (R, windows, L, D), L tokens per window."""
        (rows, columns), (high, wide) = self.size, self.window
        x = x.reshape(x.shape[0], rows // high, high, columns // wide, wide, x.shape[-1])
        return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)

    def whole(self, x: Tensor) -> Tensor:
        """The inverse of :meth:`windows`."""
        (rows, columns), (high, wide) = self.size, self.window
        x = x.reshape(x.shape[0], rows // high, columns // wide, high, wide, x.shape[-1])
        return x.transpose(2, 3).reshape(x.shape[0], rows, columns, x.shape[-1])

    def added(self, shift: tuple[int, ...]) -> Tensor | None:
        """(R or 1, windows, 1, L or 1, L) to add to the attention logits of shifted windows; None: nothing."""
        if shift not in self._added:
            parts = [self._wrap(shift)] if any(shift) else []
            if self.real is not None:
                real = self.windows(rolled(self.real, shift))[..., 0]
                parts.append((1 - real)[:, :, None, None, :] * NOWHERE)
            self._added[shift] = sum(parts[1:], parts[0]).to(self.like.dtype) if parts else None
        return self._added[shift]

    def _wrap(self, shift: tuple[int, ...]) -> Tensor:
        """Mask between tokens of opposite edges, which the cyclic shift puts side by side."""
        rows, columns = (
            torch.arange(side, device=self.like.device) >= side - (step or -1)  # no shift: none of them
            for side, step in zip(self.size, shift, strict=True)
        )
        region = rows[:, None] * 2.0 + columns
        region = self.windows(region[None, ..., None])[..., 0]
        return (region[..., :, None] != region[..., None, :]).float()[:, :, None] * ACROSS


def rolled(x: Tensor, shift: tuple[int, ...]) -> Tensor:
    """(R, *size, D) rolled back by ``shift``."""
    return x.roll((-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x


class WindowBlock(nn.Module):
    """x + norm1(attention(x)), then x + norm2(mlp(x)), on a lattice (R, H, W, D) of whole windows."""

    def __init__(
        self,
        dim: int,
        heads: int,
        window: tuple[int, ...],
        shift: tuple[int, ...],
        mlp_ratio: float,
        eps: float,
        bias_hidden: int,
    ):
        super().__init__()
        self.shift = shift
        self.attn = WindowAttention(dim, heads, window, bias_hidden)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=eps), nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dim, nn.GELU())

    def forward(self, x: Tensor, lattice: Lattice) -> Tensor:
        inside = self.attn(lattice.windows(rolled(x, self.shift)), lattice.added(self.shift))
        x = x + self.norm1(rolled(lattice.whole(inside), (-self.shift[0], -self.shift[1])))
        return x + self.norm2(self.mlp(x))


class WindowAttention(nn.Module):
    """Scaled cosine attention inside windows, with a bias by relative position."""

    def __init__(self, dim: int, heads: int, window: tuple[int, ...], bias_hidden: int):
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = Linear(dim, 3 * dim), Linear(dim, dim)
        self.tau = nn.Parameter(torch.ones(heads))
        self.meta_mlp = Mlp(2, bias_hidden, heads, nn.ReLU(), BIAS_DROPOUT)

    def forward(self, x: Tensor, added: Tensor | None = None) -> Tensor:
        """(R, windows, L, D) -> the same; ``added`` (R or 1, windows, 1, L, L) to the logits."""
        # Windows have few tokens: on a CPU plain products are faster than fused ones, which save launches on a GPU.
        return (self._fused if x.device.type == "cuda" else self._plain)(x, added)

    def _plain(self, x: Tensor, added: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-2, -3)
        norms = q.float().norm(dim=-1)[..., :, None] * k.float().norm(dim=-1)[..., None, :]
        logits = (q @ k.transpose(-1, -2)) / norms.clamp(min=LEAST_NORM)
        logits = logits / self._temperature() + self.bias()
        if added is not None:
            logits = logits + added
        mixed = logits.softmax(-1).to(v.dtype) @ v  # (R, windows, heads, L, D / heads)
        return self.proj(mixed.transpose(-2, -3).flatten(-2))

    def _fused(self, x: Tensor, added: Tensor | None) -> Tensor:
        windows = x.shape[1]
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.bias()[None]  # (1, heads, L, L), or of every window where they differ
        if added is not None:
            bias = (bias + added).expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)
        q, k = q * (_inverse_length(q) / self._temperature()), k * _inverse_length(k)
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, bias.to(v.dtype), scale=1.0)
        return self.proj(mixed.transpose(1, 2).flatten(-2)).unflatten(0, (-1, windows))

    def _temperature(self) -> Tensor:
        return self.tau.clamp(min=LOWEST_TAU)[:, None, None]

    def bias(self) -> Tensor:
        """(heads, L, L): the MLP of sign(d) log(1 + |d|), d = position of the query minus that of the key."""
        like = self.tau
        sides = [torch.arange(side, device=like.device, dtype=like.dtype) for side in self.window]
        position = torch.stack(torch.meshgrid(*sides, indexing="ij"), -1).flatten(0, 1)
        offset = position[:, None] - position[None]
        return self.meta_mlp(offset.sign() * offset.abs().log1p()).movedim(-1, 0)


def _inverse_length(x: Tensor) -> Tensor:
    """(..., E) -> (..., 1) in fp32, also under autocast."""
    return x.float().square().sum(-1, keepdim=True).clamp(min=LEAST_NORM).rsqrt()


class Mlp(nn.Module):
    """Linear, activation, linear; dropout after each linear layer."""

    def __init__(self, width: int, hidden: int, out: int, activation: nn.Module, dropout: float = 0.0):
        super().__init__()
        self.fc1, self.activation, self.fc2 = Linear(width, hidden), activation, Linear(hidden, out)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.activation(self.fc1(x)))))
