"""Trunks per modality, then joint blocks that several streams pass through (CAV-MAE, section 2.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from maemm.contract import Encoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.model.blocks import check_width, key_mask, make_blocks


@dataclass(frozen=True)
class Tower:
    """What a trunk made of one modality, or of several side by side."""

    x: Tensor  # (R, V, D)
    valid: Tensor | None  # (R, V) bool


class Streams(Encoder):
    """A trunk of blocks for each modality, and joint blocks over all of them together.

    A stream is one pass through the joint blocks: the joint one, of all modalities side by side, whose tokens the
    decoder gets, and those declared in ``streams``, which have layer norms of their own in every joint block and at
    the end. Where nothing is predicted (feature extraction) a modality's tokens are those of its own stream, if it
    is declared, and the joint stream is there under the names of its modalities: ``audio+image``.

    Without trunks and streams this is one ViT over all modalities without class tokens (as MultiMAE).

    Options
        dim: width
        depth: blocks of each trunk
        joint_depth: blocks over all modalities
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        drop_path: rate of the last block, growing linearly from 0 over trunk and joint blocks
        streams: further passes, a modality each or several joined by "+", such as [audio, image]
        chain_streams: declared streams go through all joint blocks; false: in pre-training only through the last
            one, as the published loop does (feature extraction always chains)
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
        qkv_bias: bool = True,
        eps: float = 1e-6,
        drop_path: float = 0.0,
        streams: Sequence[str] = (),
        chain_streams: bool = True,
    ):
        super().__init__()
        check_width(dim, heads, "encoder")
        if joint_depth < 1:
            raise MaemmError("streams meet in joint blocks (encoder.joint_depth: 0); give at least 1")
        self.dim, self.depth, self.names, self.chain_streams = dim, depth, list(names), chain_streams
        self.members = {stream: self._members(stream) for stream in streams}
        last = max(depth + joint_depth - 1, 1)
        rates = [drop_path * number / last for number in range(depth + joint_depth)]

        def blocks(rates: list[float]) -> nn.ModuleList:
            return make_blocks(dim, len(rates), heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=rates)

        self.trunks = nn.ModuleDict({name: blocks(rates[:depth]) for name in names})
        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.joint, self.norm = blocks(rates[depth:]), nn.LayerNorm(dim, eps=eps)
        self.own = nn.ModuleDict({one: nn.ModuleList(_norms(dim, eps) for _ in self.joint) for one in streams})
        self.own_norm = nn.ModuleDict({one: nn.LayerNorm(dim, eps=eps) for one in streams})

    def _members(self, stream: str) -> list[str]:
        members = stream.split("+")
        unknown = [name for name in members if name not in self.names]
        if unknown or len(set(members)) < len(members):
            raise MaemmError(
                f"stream {stream!r} is not made of the modalities {', '.join(self.names)} (encoder.streams); "
                "join different ones by +"
            )
        return members

    # ------------------------------------------------------------------------------------------- forward
    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        features = not any(one.plan.predict.shape[1] for one in inputs.values())
        wanted, kept = set(layers), {}
        towers = {name: self.tower(name, one, modalities[name], wanted, kept) for name, one in inputs.items()}
        chain = features or self.chain_streams
        streams = {
            stream: self.join([towers[name] for name in members], stream, chain=chain, norm=norm)
            for stream, members in self.members.items()
            if all(name in towers for name in members)
        }
        joint = self._joint(towers, norm, wanted, kept)
        if not features:
            return Latents(joint, streams=streams, layers=kept)
        whole = torch.cat(list(joint.values()), 1)
        tokens = {name: streams.get(name, part) for name, part in joint.items()}
        return Latents(tokens, streams={"+".join(inputs): whole, **streams}, layers=kept)

    def tower(
        self, name: str, one: ModalityInput, modality: Modality, wanted: Iterable[int] = (), kept: dict | None = None
    ) -> Tower:
        """A modality's visible tokens after its trunk; ``kept[i][name]`` gets those after the ``wanted`` blocks i."""
        visible = one.plan.visible
        embedded = modality.embed(one.tokens, visible)
        x = embedded + modality.position(one.tokens, visible, "encoder").to(embedded.dtype) + self.vectors[name]
        tower = Tower(x, one.plan.visible_valid)
        mask = _mask([tower])
        for number, block in enumerate(self.trunks[name]):
            x = block(x, attn_mask=mask)
            if number in wanted:
                kept.setdefault(number, {})[name] = x
        return Tower(x, tower.valid)

    def join(self, towers: list[Tower], stream: str | None = None, *, chain: bool = True, norm: bool = True) -> Tensor:
        """Towers side by side through the joint blocks (R, sum of V, D), with the norms of ``stream`` or the shared.

        ``chain=False`` leaves all joint blocks but the last out.
        """
        x, mask = torch.cat([tower.x for tower in towers], 1), _mask(towers)
        for number in range(0 if chain else len(self.joint) - 1, len(self.joint)):
            block = self.joint[number]
            x = block(x, attn_mask=mask) if stream is None else _with(block, self.own[stream][number], x, mask)
        last = self.norm if stream is None else self.own_norm[stream]
        return last(x) if norm else x

    def _joint(self, towers: dict[str, Tower], norm: bool, wanted: set[int], kept: dict) -> dict[str, Tensor]:
        x, mask = torch.cat([tower.x for tower in towers.values()], 1), _mask(list(towers.values()))
        lengths = [tower.x.shape[1] for tower in towers.values()]

        def split(whole: Tensor) -> dict[str, Tensor]:
            return dict(zip(towers, whole.split(lengths, 1), strict=True))

        for number, block in enumerate(self.joint, self.depth):
            x = block(x, attn_mask=mask)
            if number in wanted:
                kept[number] = split(x)
        return split(self.norm(x) if norm else x)

    # ------------------------------------------------------------------------------------------- what others ask
    def norm_of(self, name: str) -> nn.Module:
        """A modality's own final norm where its own stream is declared, else the shared one."""
        return self.own_norm[name] if name in self.members else self.norm

    def layer_of(self, name: str) -> int:
        """Modality vectors 0, trunk block i: i + 1, joint block j: depth + 1 + j, final norms: one more."""
        block = re.match(r"(?:trunks\.[^.]+|(joint)|(own)\.[^.]+)\.(\d+)\.", name)
        if block:
            return int(block[3]) + 1 + (self.depth if block[1] or block[2] else 0)
        return 0 if name.startswith("vectors") else self.depth + len(self.joint) + 1


def _norms(dim: int, eps: float) -> nn.ModuleDict:
    return nn.ModuleDict({key: nn.LayerNorm(dim, eps=eps) for key in ("norm1", "norm2")})


def _with(block: nn.Module, norms: nn.ModuleDict, x: Tensor, mask: Tensor | None) -> Tensor:
    """timm's pre-norm block with other norms than its own."""
    x = x + block.drop_path1(block.ls1(block.attn(norms["norm1"](x), attn_mask=mask)))
    return x + block.drop_path2(block.ls2(block.mlp(norms["norm2"](x))))


def _mask(towers: list[Tower]) -> Tensor | None:
    x = towers[0].x
    return key_mask([one.valid for one in towers], [one.x.shape[1] for one in towers], x.shape[0], x.device)
