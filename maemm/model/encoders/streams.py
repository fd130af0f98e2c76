"""A trunk per modality, then joint blocks that several streams pass through (CAV-MAE, section 2.3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Encoder, FirstAttention, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import MOST_BLOCKS, Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.blocks import check_width, key_mask, make_blocks, queries_and_keys
from maemm.model.precision import under_autocast
from maemm.model.sharded import through


@dataclass(frozen=True)
class Tower:
    """The output of the trunk of one modality."""

    x: Tensor  # (R, V, D)
    valid: Tensor | None  # (R, V) bool


class Streams(Encoder):
    """A trunk of blocks for each modality, and joint blocks over all modalities together.

    A stream is one pass through the joint blocks: the joint stream, of all modalities side by side, whose tokens the
    decoder gets, and the declared ones in ``streams``, which have their own layer norms in every joint block and at the
    end. Where nothing is predicted (feature extraction) the tokens of a modality are those of its own stream, if that
    is declared, and the joint stream is named after its modalities: ``audio+image``.

    Without trunks and streams this is one ViT over all modalities without class tokens, like MultiMAE.

    Options
        dim: width
        depth: blocks of each trunk
        joint_depth: blocks over all modalities
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        drop_path: rate of the last block, growing linearly from 0 over trunk and joint blocks
        streams: further streams, each a modality or several joined by "+", such as [audio, image]
        chain_streams: declared streams go through all joint blocks; false: in pre-training only through the last
            one, as in the published code (in feature extraction always through all)
    """

    residual: torch.dtype | None = None  # of the sums between blocks under autocast; None: float32, by the vectors
    trunks: Mapping[str, nn.ModuleList]  # this and the last two are nn.ModuleDict, ``joint`` is a ModuleList
    joint: Sequence[nn.Module]
    own: Mapping[str, Sequence[nn.ModuleDict]]
    own_norm: Mapping[str, nn.LayerNorm]

    def __init__(
        self,
        names: list[str],
        *,
        dim: PositiveInt = 768,
        depth: Annotated[int, Ge(0), Le(MOST_BLOCKS)] = 11,
        joint_depth: Depth = 1,
        heads: PositiveInt = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        drop_path: Rate = 0.0,
        streams: Sequence[str] = (),
        chain_streams: bool = True,
    ):
        super().__init__()
        check_width(dim, heads, "encoder", mlp_ratio)
        self.dim, self.depth, self.names, self.chain_streams = dim, depth, list(names), chain_streams
        self.members = {stream: self._members(stream) for stream in streams}
        last = max(depth + joint_depth - 1, 1)
        rates = [drop_path * number / last for number in range(depth + joint_depth)]

        def blocks(rates: list[float]) -> nn.ModuleList:
            return make_blocks(dim, len(rates), heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=rates)

        def norms() -> nn.ModuleDict:
            return nn.ModuleDict({key: nn.LayerNorm(dim, eps=eps) for key in ("norm1", "norm2")})

        def module_dict(modules: dict[str, Any]) -> Any:  # nn.ModuleDict does not say of what
            return nn.ModuleDict(modules)

        self.trunks = module_dict({name: blocks(rates[:depth]) for name in names})
        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.joint = blocks(rates[depth:])  # type: ignore[assignment]  # ModuleList is no Sequence
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.own = module_dict({stream: nn.ModuleList(norms() for _ in self.joint) for stream in streams})
        self.own_norm = module_dict({stream: nn.LayerNorm(dim, eps=eps) for stream in streams})

    def _members(self, stream: str) -> list[str]:
        members = stream.split("+")
        unknown = [name for name in members if name not in self.names]
        if unknown or len(set(members)) < len(members):
            raise MaemmError(
                f"stream {stream!r} is not made of the modalities {', '.join(self.names)} (encoder.streams); "
                "join different modalities by +"
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
        features = not any(x.plan.predict.shape[1] for x in inputs.values())
        numbers = set(layers)
        outputs: dict[int, dict[str, Tensor]] = {}
        towers = {name: self.tower(name, x, modalities[name], numbers, outputs) for name, x in inputs.items()}
        chain = features or self.chain_streams
        streams = {
            stream: self.join([towers[name] for name in members], stream, chain=chain, norm=norm)
            for stream, members in self.members.items()
            if all(name in towers for name in members)
        }
        joint = self._joint(towers, norm, numbers, outputs)
        if not features:
            return Latents(joint, streams=streams, layers=outputs)
        whole = torch.cat(list(joint.values()), 1)
        tokens = {name: streams.get(name, part) for name, part in joint.items()}
        return Latents(tokens, streams={"+".join(inputs): whole, **streams}, layers=outputs)

    def tower(
        self,
        name: str,
        inputs: ModalityInput,
        modality: Modality,
        layers: Iterable[int] = (),
        outputs: dict[int, dict[str, Tensor]] | None = None,
    ) -> Tower:
        """The visible tokens of a modality after its trunk. ``outputs[i][name]`` is set to those after each block i of
        ``layers``."""
        x = self._embedded(name, inputs, modality)
        tower = Tower(x, inputs.plan.visible_valid)
        mask = _mask([tower])
        for number, block in enumerate(self.trunks[name]):
            x = block(x, attn_mask=mask)
            if outputs is not None and number in layers:
                outputs.setdefault(number, {})[name] = x
        return Tower(x, tower.valid)

    def join(self, towers: list[Tower], stream: str | None = None, *, chain: bool = True, norm: bool = True) -> Tensor:
        """Pass towers side by side through the joint blocks: (R, sum of V, D).

        ``stream``: use the norms of that stream; None: the shared ones. ``chain=False`` uses the last joint block only.
        ``norm=False`` leaves the final norm out.
        """
        x, mask = torch.cat([tower.x for tower in towers], 1), _mask(towers)
        for number in range(0 if chain else len(self.joint) - 1, len(self.joint)):
            block = self.joint[number]
            x = (
                block(x, attn_mask=mask)
                if stream is None
                else through(block, _with_norms, x, self.own[stream][number], mask)
            )
        last = self.norm if stream is None else self.own_norm[stream]
        return last(x) if norm else x

    def _joint(
        self, towers: dict[str, Tower], norm: bool, layers: set[int], outputs: dict[int, dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The joint stream, {modality: (R, V, D)}. ``outputs[i]`` is set to the same after block i of ``layers``."""
        x, mask = torch.cat([tower.x for tower in towers.values()], 1), _mask(list(towers.values()))
        lengths = [tower.x.shape[1] for tower in towers.values()]

        def split(whole: Tensor) -> dict[str, Tensor]:
            return dict(zip(towers, whole.split(lengths, 1), strict=True))

        for number, block in enumerate(self.joint, self.depth):
            x = block(x, attn_mask=mask)
            if number in layers:
                outputs[number] = split(x)
        return split(self.norm(x) if norm else x)

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict[str, Any]:
        """ "features": as in feature extraction (B, N, D). "first_attention": queries and keys of the first block that
        the tokens of a modality pass, that of its trunk or the first joint one."""
        if kind == "features":
            return self.forward(inputs, modalities).tokens
        if kind != "first_attention":
            return super().guide(inputs, modalities, kind)
        return {
            name: FirstAttention(
                *through(
                    [*self.trunks[name], *self.joint][0], queries_and_keys, self._embedded(name, x, modalities[name])
                )
            )
            for name, x in inputs.items()
        }

    def _embedded(self, name: str, inputs: ModalityInput, modality: Modality) -> Tensor:
        """The visible tokens of a modality before its trunk (R, V, D)."""
        visible = inputs.plan.visible
        embedded = under_autocast(modality.embed(inputs.tokens, visible), self.residual)
        return embedded + modality.position(inputs.tokens, visible, "encoder").to(embedded.dtype) + self.vectors[name]

    # -------------------------------------------------------------------------------------- about the parameters
    def norm_of(self, name: str) -> nn.Module:
        """The final norm of the modality's own stream, if it is declared, otherwise the shared one."""
        return self.own_norm[name] if name in self.members else self.norm

    def layer_of(self, name: str) -> int:
        """Modality vectors 0, trunk block i: i + 1, joint block j: depth + 1 + j, final norms: one more."""
        block = re.match(r"(?:trunks\.[^.]+|(joint)|(own)\.[^.]+)\.(\d+)\.", name)
        if block:
            return int(block[3]) + 1 + (self.depth if block[1] or block[2] else 0)
        return 0 if name.startswith("vectors") else self.depth + len(self.joint) + 1


def _with_norms(block: Any, x: Tensor, norms: nn.ModuleDict, mask: Tensor | None) -> Tensor:
    """timm's pre-norm ``Block`` with ``norms`` instead of its own norms."""
    x = x + block.drop_path1(block.ls1(block.attn(norms["norm1"](x), attn_mask=mask)))
    return x + block.drop_path2(block.ls2(block.mlp(norms["norm2"](x))))


def _mask(towers: list[Tower]) -> Tensor | None:
    x = towers[0].x
    return key_mask([tower.valid for tower in towers], [tower.x.shape[1] for tower in towers], x.shape[0], x.device)
