"""An encoder with a trunk for each modality and joint blocks, whose norms each pass has of its own (CAV-MAE)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from maemm.blocks import key_mask, make_blocks
from maemm.contract import Encoder, Latents, MaskedInput


def run_block(block: nn.Module, x: Tensor, norms: nn.ModuleDict, mask: Tensor | None) -> Tensor:
    """timm's block with other norms than its own."""
    x = x + block.drop_path1(block.ls1(block.attn(norms["norm1"](x), attn_mask=mask)))
    return x + block.drop_path2(block.ls2(block.mlp(norms["norm2"](x))))


class Trunks(Encoder):
    """Latents are the joint pass; ``streams`` are the passes of each modality alone through the joint blocks.

    Feature extraction (nothing predicted) gives the single passes, chained, as published.

    Options
        dim, depth, heads, mlp_ratio, eps: of the trunks
        joint_depth: joint blocks
        chain_streams: single passes go through all joint blocks, not only through the last one (as published)
    """

    def __init__(
        self,
        names: list[str],
        *,
        dim: int = 768,
        depth: int = 11,
        joint_depth: int = 1,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        eps: float = 1e-5,
        chain_streams: bool = False,
    ):
        super().__init__()
        self.dim, self.chain_streams = dim, chain_streams

        def make(count: int) -> nn.ModuleList:
            return make_blocks(dim, count, heads, mlp_ratio=mlp_ratio, qkv_bias=True, eps=eps, drop_path=0.0)

        def norms() -> nn.ModuleDict:
            return nn.ModuleDict({key: nn.LayerNorm(dim, eps=eps) for key in ("norm1", "norm2")})

        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.trunks = nn.ModuleDict({name: make(depth) for name in names})
        self.joint, self.norm = make(joint_depth), nn.LayerNorm(dim, eps=eps)
        self.own = nn.ModuleDict({name: nn.ModuleList(norms() for _ in range(joint_depth)) for name in names})
        self.own_norm = nn.ModuleDict({name: nn.LayerNorm(dim, eps=eps) for name in names})

    def forward(self, inputs: dict[str, MaskedInput], *, taps: Iterable[int] = (), norm: bool = True) -> Latents:
        features = not any(one.plan.predict.shape[1] for one in inputs.values())
        masks = {name: _mask([one]) for name, one in inputs.items()}
        towers = {name: self._tower(one, masks[name]) for name, one in inputs.items()}
        first = 0 if features or self.chain_streams else len(self.joint) - 1
        streams = {name: self._alone(name, x, masks[name], first, norm) for name, x in towers.items()}
        if features:
            return Latents(streams, streams=streams)
        x, mask = torch.cat(list(towers.values()), 1), _mask(list(inputs.values()))
        for block in self.joint:
            x = block(x, attn_mask=mask)
        parts = (self.norm(x) if norm else x).split([part.shape[1] for part in towers.values()], 1)
        return Latents(dict(zip(inputs, parts, strict=True)), streams=streams)

    def _tower(self, one: MaskedInput, mask: Tensor | None) -> Tensor:
        visible = one.plan.visible
        x = one.embed(visible) + one.position(visible, "encoder") + self.vectors[one.name]
        for block in self.trunks[one.name]:
            x = block(x, attn_mask=mask)
        return x

    def _alone(self, name: str, x: Tensor, mask: Tensor | None, first: int, norm: bool) -> Tensor:
        for block, norms in list(zip(self.joint, self.own[name], strict=True))[first:]:
            x = run_block(block, x, norms, mask)
        return self.own_norm[name](x) if norm else x


def _mask(inputs: list[MaskedInput]) -> Tensor | None:
    visible = inputs[0].plan.visible
    lengths = [one.plan.visible.shape[1] for one in inputs]
    return key_mask([one.plan.visible_valid for one in inputs], lengths, len(visible), visible.device)
