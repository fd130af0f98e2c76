"""A decoder of convolutions over the whole grid (data2vec 2.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, PositiveInt
from maemm.contract.rng import Rng
from maemm.model.blocks import init_linear


class _Layer:
    """A layer with the weights of a convolution, so that it is compiled, or computed again, as a whole."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, D, *grid) -> the same: the convolution, a layer norm over the channels, a GELU, and x."""
        y = super().forward(x).movedim(1, -1)  # type: ignore[misc]  # of the convolution
        y = F.gelu(F.layer_norm(y, y.shape[-1:])).movedim(-1, 1)
        return x + y if x.shape[1] == y.shape[1] else y


class _Layer1d(_Layer, nn.Conv1d):
    """Of a line."""


class _Layer2d(_Layer, nn.Conv2d):
    """Of a plane."""


class _Layer3d(_Layer, nn.Conv3d):
    """Of a volume."""


_LAYERS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: _Layer1d, 2: _Layer2d, 3: _Layer3d}


class Conv(Decoder):
    """Latents at their places on the grid, noise at all others, layers of convolutions (data2vec 2.0, section 3.2).

    A layer is a grouped convolution, a layer norm over the channels without weights (eps 1e-5), a GELU and its input
    added, where that has as many channels. There are no positions and no class tokens. Each modality has a decoder of
    its own. The noise is drawn in training; otherwise its mean, 0, stands at hidden places.

    Options
        dim: channels
        depth: layers
        kernel: side of the kernels, an odd number
        groups: groups of channels that a convolution keeps apart
        axes: of the grid: 1, 2 or 3
        noise: standard deviation of the normal noise in place of hidden tokens
    """

    dim = None

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 768,
        depth: Depth = 6,
        kernel: PositiveInt = 3,
        groups: PositiveInt = 16,
        axes: Annotated[int, Ge(1), Le(3)] = 2,
        noise: NonNegative = 0.01,
    ):
        super().__init__()
        if kernel % 2 == 0:
            raise MaemmError(f"a kernel of {kernel} has no middle (decoder.kernel); give an odd number")
        for width, owner in ((encoder_dim, "encoder.dim"), (dim, "decoder.dim")):
            if width % groups:
                raise MaemmError(f"{owner} {width} is no multiple of {groups} groups (decoder.groups); give a divisor")
        self.axes, self.noise, self.encoder_dim = axes, noise, encoder_dim
        self.layers = nn.ModuleDict(
            {
                name: nn.ModuleList(
                    _LAYERS[axes](encoder_dim if number == 0 else dim, dim, kernel, padding=kernel // 2, groups=groups)
                    for number in range(depth)
                )
                for name, size in outputs.items()
                if size
            }
        )
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items() if size})
        self.heads.apply(init_linear)

    def draw(self, inputs: dict[str, ModalityInput], rng: Rng) -> dict[str, Tensor]:
        """Standard normal numbers (R, N, D) for all places, different in each row of a sample."""
        drawn = {}
        for name, x in inputs.items():
            rows, samples, device = x.plan.visible.shape[0], x.tokens.batch, x.plan.visible.device
            copies = -(-rows // samples)
            values = rng.normal(f"noise/{name}", copies, x.tokens.count, self.encoder_dim, device=device)
            if x.plan.rows is None:
                drawn[name] = values[:, 0]
                continue
            same = x.plan.rows[:, None] == x.plan.rows
            copy = same.tril(-1).sum(1) % copies  # how many earlier rows have the same sample
            drawn[name] = values[x.plan.rows, copy]
        return drawn

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        return {name: self._predict(name, latents.tokens[name], x) for name, x in inputs.items() if name in self.heads}

    def _predict(self, name: str, visible: Tensor, inputs: ModalityInput) -> Tensor:
        tokens, plan = inputs.tokens, inputs.plan
        grid = tokens.grid
        if grid is None or len(grid) != self.axes:
            shape = "no grid" if grid is None else f"a grid of {len(grid)} axes"
            raise MaemmError(
                f"the tokens of {name!r} lie on {shape}, the convolutions have {self.axes} (decoder.axes); set "
                "decoder.axes to that of the grid, or choose decoder full"
            )
        rows, _, width = visible.shape
        x = visible.new_zeros(rows, tokens.count + 1, width)  # padding is written behind the last place
        if inputs.drawn is not None:
            x[:, :-1] = inputs.drawn.to(visible.dtype) * self.noise
        index = plan.visible
        if plan.visible_valid is not None:
            index = torch.where(plan.visible_valid, index, tokens.count)
        x = x.scatter(1, index[..., None].expand_as(visible), visible)[:, :-1].mT
        x = x.reshape(rows, width, *grid)
        layers: nn.ModuleList = self.layers[name]  # type: ignore[assignment]
        for layer in layers:
            x = layer(x)
        whole = x.flatten(2).mT
        predicted = whole.gather(1, plan.predict[..., None].expand(-1, -1, whole.shape[-1]))
        return self.heads[name](predicted)
