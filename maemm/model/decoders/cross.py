"""A decoder for each output, whose queries read the tokens of all modalities (MultiMAE's spatial output adapters)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import NonNegative, NonNegativeInt, Positive, PositiveInt
from maemm.model.blocks import check_width, init_linear, key_mask, make_blocks
from maemm.model.budget import budget_of, first_valid
from maemm.model.cross_attention import CrossAttention


class Cross(Decoder):
    """Every output has a small decoder of its own: all places of its modality ask the visible tokens of all modalities.

    MultiMAE (Bachmann et al. 2022, section 3.3; multimae/output_adapters.py): the encoder's tokens are projected; to
    each is added its position and a learned vector of its modality. Queries are all places of the output's modality,
    visible ones with their token, the others with a mask token. One cross-attention to the visible tokens and the
    class tokens (which have neither position nor vector), to which the queries are NOT added back, an MLP, then
    ``depth`` blocks of self-attention among the places. Nothing is shared between outputs. With a joint budget the
    context of a row is as long as the budget.

    Options
        dim: width
        depth: blocks of self-attention behind the cross-attention
        heads: attention heads
        mlp_ratio: hidden width of the MLPs over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        cross_attention: false: queries go straight to the blocks
        visible_queries: visible places ask with their token; false: with a mask token, as hidden ones do
        extra: {name: modality}: further decoders for the places of a modality, for objectives `predict` with
            `output: name` (MultiMAE: {norm_rgb: rgb})
    """

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 256,
        depth: NonNegativeInt = 2,
        heads: PositiveInt = 8,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        cross_attention: bool = True,
        visible_queries: bool = True,
        extra: dict[str, str] | None = None,
    ):
        super().__init__()
        check_width(dim, heads, "decoder", mlp_ratio)
        predicted = [name for name, size in outputs.items() if size]
        for name, modality in (extra or {}).items():
            if name in outputs:
                raise MaemmError(f"{name!r} is a modality (decoder.extra.{name}); give the output another name")
            if modality not in outputs:
                raise MaemmError(
                    f"{modality!r} is no modality of this recipe (decoder.extra.{name}); {advice(modality, outputs)}"
                )
        self.dim = self.decoded_dim = dim
        self.names = list(outputs)
        self.places = {name: name for name in predicted} | dict(extra or {})  # {output: modality of its places}
        self.adapters = nn.ModuleDict(
            {
                name: Adapter(
                    list(outputs),
                    encoder_dim,
                    dim=dim,
                    depth=depth,
                    heads=heads,
                    mlp_ratio=mlp_ratio,
                    qkv_bias=qkv_bias,
                    eps=eps,
                    cross_attention=cross_attention,
                    visible_queries=visible_queries,
                )
                for name in self.places
            }
        )
        self.heads = nn.ModuleDict({name: nn.Linear(dim, outputs[name]) for name in predicted})
        self.heads.apply(init_linear)

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        context = _context(latents, inputs, modalities, self.names)
        latents.decoded = {
            output: self.adapters[output](context, name, inputs[name], modalities[name])
            for output, name in self.places.items()
            if name in inputs
        }
        return {name: head(latents.decoded[name]) for name, head in self.heads.items() if name in inputs}


@dataclass(frozen=True)
class _Context:
    """What all outputs read: the encoder's tokens, side by side, before any output has projected them."""

    tokens: Tensor  # (R, K, D), prefix tokens first
    positions: Tensor  # (R, K, decoder's D), 0 for prefix tokens
    mask: Tensor | None  # (R, 1, 1, K) bool; None: all are valid
    owner: Tensor  # (R, K) number of the modality among those of the decoder; one behind them all: a prefix token
    own: Mapping[str, Tensor]  # (R, V) where in ``tokens`` the visible tokens of a modality stand


def _context(
    latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], names: list[str]
) -> _Context:
    prefix = list(latents.prefix.values())
    tokens = [*prefix, *(latents.tokens[name] for name in inputs)]
    rows, device = tokens[0].shape[0], tokens[0].device
    positions = [
        modalities[name].position(x.tokens, x.plan.visible, "decoder").expand(rows, -1, -1)
        for name, x in inputs.items()
    ]
    positions = [*(positions[0].new_zeros(rows, part.shape[1], positions[0].shape[-1]) for part in prefix), *positions]
    valid: list[Tensor | None] = [*(None for _ in prefix), *(x.plan.visible_valid for x in inputs.values())]
    lengths = [part.shape[1] for part in tokens]
    numbers = [*(len(names) for _ in prefix), *(names.index(name) for name in inputs)]
    x, position = torch.cat(tokens, 1), torch.cat(positions, 1)
    owner = torch.cat(
        [torch.full((length,), number, device=device) for number, length in zip(numbers, lengths, strict=True)]
    ).expand(rows, -1)
    place = torch.arange(x.shape[1], device=device).expand(rows, -1)
    if (budget := budget_of(inputs)) is not None:  # only the tokens that rows see, a static number
        count = sum(part.shape[1] for part in prefix) + budget
        index, valid = first_valid(valid, lengths, x, count)
        # Where each token of the longer sequence stands in the short one; of those that are left out nobody asks.
        behind = torch.arange(index.shape[1], device=device).expand_as(index)
        place = torch.zeros_like(place).scatter(1, index, behind)
        x, position = (t.gather(1, index[..., None].expand(-1, -1, t.shape[-1])) for t in (x, position))
        owner, lengths = owner.gather(1, index), [x.shape[1]]
        own = place.split([part.shape[1] for part in tokens], 1)[len(prefix) :]
    else:
        own = place.split(lengths, 1)[len(prefix) :]
    mask = key_mask(valid, lengths, rows, device)
    return _Context(x, position, mask, owner, dict(zip(inputs, own, strict=True)))


class Adapter(nn.Module):
    """The decoder of one output, see :class:`Cross`."""

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        eps: float,
        cross_attention: bool,
        visible_queries: bool,
    ):
        super().__init__()
        self.names, self.visible_queries = names, visible_queries
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.project = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in names})
        self.attention: CrossAttention | None = None
        if cross_attention:
            self.attention = CrossAttention(dim, heads, qkv_bias=qkv_bias)
            self.query_norm, self.context_norm, self.out_norm = norm(dim), norm(dim), norm(dim)
            self.mlp = Mlp(dim, int(dim * mlp_ratio))
            self.mlp.apply(init_linear)
            self.attention.init_separately()
        self.blocks = make_blocks(
            dim, depth, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=0.0, init="xavier_qkv"
        )
        self.project.apply(init_linear)

    def forward(self, context: _Context, name: str, inputs: ModalityInput, modality: Modality) -> Tensor:
        """What the last layer reads of the predicted tokens of the modality ``name``: (R, M, dim)."""
        projected = self.project(context.tokens)
        dtype = projected.dtype
        x = self._queries(projected, context.own[name], name, inputs, modality)
        if self.attention is not None:
            vectors = torch.stack(
                [*(self.vectors[other] for other in self.names), torch.zeros_like(self.vectors[name])]
            )
            read = projected + (context.positions + vectors[context.owner]).to(dtype)
            x = self.attention(self.query_norm(x), self.context_norm(read), context.mask)
            x = x + self.mlp(self.out_norm(x))
        valid = _valid_places(inputs)
        mask = key_mask([valid], [x.shape[1]], x.shape[0], x.device)
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return x.gather(1, inputs.plan.predict[..., None].expand(-1, -1, x.shape[-1]))

    def _queries(self, projected: Tensor, own: Tensor, name: str, inputs: ModalityInput, modality: Modality) -> Tensor:
        """All places of the modality (R, N, dim): its visible tokens, else the mask token; position and vector."""
        tokens, plan = inputs.tokens, inputs.plan
        index, places = plan.visible, tokens.all_indices()
        x = self.mask_token.to(projected.dtype).expand(len(index), tokens.count + 1, -1)
        if self.visible_queries and index.shape[1]:
            if plan.visible_valid is not None:  # padding goes behind the last place and is cut off
                index = index.masked_fill(~plan.visible_valid, tokens.count)
            visible = projected.gather(1, own[..., None].expand(-1, -1, projected.shape[-1]))
            x = x.scatter(1, index[..., None].expand_as(visible), visible)
        position = modality.position(tokens, places, "decoder")
        return x[:, : tokens.count] + (position + self.vectors[name]).to(x.dtype)


def _valid_places(inputs: ModalityInput) -> Tensor | None:
    """(R, N) bool: the places that a row has; None: all."""
    tokens = inputs.tokens
    if tokens.valid is None or tokens.rows is None:
        return tokens.valid
    return tokens.valid[tokens.rows]
