"""The plain Vision Transformer encoder on visible tokens (MAE, section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Encoder, FirstAttention, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.blocks import (
    BlockInit,
    BlockNorm,
    QkvBias,
    attention_received,
    check_width,
    key_mask,
    make_blocks,
    queries_and_keys,
    register_position,
    with_ffn,
)
from maemm.model.budget import budget_of, first_valid
from maemm.model.precision import under_autocast
from maemm.model.relative import RelativeBias, RelativeBiasKind, make_relative_bias
from maemm.model.rotary import AnyRotary, make_rotary
from maemm.model.sharded import through

MOST_PREFIX = 1000  # class tokens; published models have one to sixteen
Axes = Annotated[int, Ge(1), Le(8)]  # of coordinates, where frequencies are learned for each
Section = tuple[Tensor, Tensor | None, Tensor | None]  # tokens (R, V, D), their index (None: all), which are valid


class ViT(Encoder):
    """Embed visible tokens, add positions, prepend prefix tokens, run blocks, norm.

    The tokens of several modalities form one sequence; a learned vector per modality is added to them. With a joint
    budget (masking dirichlet) the blocks run on as many tokens as the budget has, whatever the modalities could show.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values; no_key: of queries and values alone (BEiT)
        eps: of the layer norms
        prefix: class tokens in front of the sequence
        prefix_position: position of the class tokens: none, fixed (stored, not trained) or learned
        position_every_block: add positions before every block instead of once (Point-MAE)
        drop_path: rate of the last block, growing linearly from 0
        final_norm: a norm after the last block; false for fine-tuned weights without
        init: initial weights of linear layers: xavier (MAE), xavier_qkv, of queries, keys and values each by itself
            (MultiMAE), normal with std 0.02 (Point-MAE), or normal_by_depth: in block i those of the last layers of
            attention and MLP are divided by sqrt(2 i) (BEiT, V-JEPA 2)
        block_norm: layer norms before attention and MLP (pre), or behind their residuals (post, data2vec 2.0)
        input_norm: a layer norm before the first block
        hidden: whether hidden tokens are removed from the sequence, or replaced by a learned vector (BEiT, MaskFeat)
        layer_scale: initial value of learned factors of the channels behind attention and MLP (BEiT); null: none
        vectors: with several modalities, the learned vector of each; false: none, the bias of each embedding tells
            modalities apart (MultiMAE)
        rotary: positions inside attention, beside those of the modality (position: none leaves them out): pairs, the
            usual rotation of neighbouring channels; vjepa2, with two angles in a pair, as its weights need; mixed,
            pairs whose frequencies are learned, along all axes at once (MAETok); null: none
        rotary_axes: with rotary mixed: axes of the tokens' coordinates, 2 for pictures
        relative_bias: a learned number of each head for each offset between two tokens on their grid, added to the
            scores of attention: shared by all blocks (BEiT's pre-training), per_block, or null: none
    """

    has_ffn_features = True
    residual: torch.dtype | None = None  # of the sums between blocks under autocast; None: that of the embedding

    def __init__(
        self,
        names: list[str],
        *,
        dim: PositiveInt = 768,
        depth: Depth = 12,
        heads: PositiveInt = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: QkvBias = True,
        eps: NonNegative = 1e-6,
        prefix: Annotated[int, Ge(0), Le(MOST_PREFIX)] = 1,
        prefix_position: Literal["none", "fixed", "learned"] = "none",
        position_every_block: bool = False,
        drop_path: Rate = 0.0,
        final_norm: bool = True,
        init: BlockInit = "xavier",
        block_norm: BlockNorm = "pre",
        input_norm: bool = False,
        hidden: Literal["remove", "replace"] = "remove",
        layer_scale: Positive | None = None,
        vectors: bool = True,
        rotary: AnyRotary | None = None,
        rotary_axes: Axes = 2,
        relative_bias: RelativeBiasKind | None = None,
    ):
        super().__init__()
        check_width(dim, heads, "encoder", mlp_ratio)
        self.dim, self.names, self.position_every_block = dim, list(names), position_every_block
        self.blocks = make_blocks(
            dim,
            depth,
            heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eps=eps,
            drop_path=drop_path,
            init=init,
            block_norm=block_norm,
            layer_scale=layer_scale,
            rotary=rotary is not None,
        )
        self.rotary = make_rotary(rotary, dim // heads, heads, depth, rotary_axes)
        self.relative_kind, self.heads = relative_bias, heads
        self.relative_bias: RelativeBias | None = None  # made in prepare(), for the grids of its modalities
        self.key_bias = qkv_bias != "no_key"
        self.layer_scale = layer_scale
        self.block_norm = block_norm
        self.input_norm = nn.LayerNorm(dim, eps=eps) if input_norm else None
        self.norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.prefix, self.prefix_position = None, None
        if prefix:
            self.prefix = nn.Parameter(torch.randn(1, prefix, dim) * 0.02)
            register_position(self, prefix_position, prefix, dim)
        self.reads_predict = hidden == "replace"
        if self.reads_predict:
            self.hidden_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.has_vectors = vectors and len(self.names) > 1
        if self.has_vectors:
            self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in self.names})

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        if self.relative_kind is not None:
            tables = len(self.blocks) if self.relative_kind == "per_block" else 1
            self.relative_bias = make_relative_bias(
                modalities, self.heads, tables=tables, prefix=self.prefix is not None
            )

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        x, position, mask, lengths, index = self._start(inputs, modalities)
        numbers, outputs, prefixes = set(layers), {}, {}
        if -1 in numbers:
            entering = self._split(x, lengths, inputs, index)
            outputs[-1], prefixes[-1] = entering.tokens, entering.prefix
        rotations, masks = self._rotations(inputs, index), self._masks(inputs, index, mask, x)
        for number, (block, block_mask) in enumerate(zip(self.blocks, masks, strict=True)):
            x, options = x + position if self.position_every_block else x, rotations[number]
            features = None
            if number in numbers and self.layer_features == "ffn":
                x, features = through(block, with_ffn, x, block_mask, **options)
            else:
                x = block(x, attn_mask=block_mask, **options)
            if number in numbers:
                parts = self._split(x if features is None else features, lengths, inputs, index)
                outputs[number], prefixes[number] = parts.tokens, parts.prefix
        latents = self._split(self.norm(x) if norm else x, lengths, inputs, index)
        latents.layers, latents.prefix_layers = outputs, prefixes
        return latents

    def _start(
        self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> tuple[Tensor, Tensor, Tensor | None, list[int], Tensor | None]:
        """What enters the first block: the sequence x (R, L, D), its positions (R, L, D), the attention mask, the
        lengths of its parts, and where it comes from in a longer sequence, (R, L) or None."""
        parts, positions, valid = self._sequence(inputs, modalities)
        lengths = [part.shape[1] for part in parts]
        x, position = torch.cat(parts, 1), torch.cat(positions, 1)
        index = None
        if (budget := self._budget(inputs)) is not None:  # only the tokens that rows see, a static number
            prefix_count = 0 if self.prefix is None else lengths[0]
            index, valid = first_valid(valid, lengths, x, prefix_count + budget)
            x, position = (t.gather(1, index[..., None].expand(-1, -1, t.shape[-1])) for t in (x, position))
        mask = key_mask(valid, lengths if index is None else [x.shape[1]], x.shape[0], x.device)
        x = x if self.position_every_block else x + position
        x = x if self.input_norm is None else self.input_norm(x)
        return x, position, mask, lengths, index

    def _sequence(
        self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """The parts of the sequence (prefix, then visible and, where they stay, hidden tokens of each modality): their
        embeddings and positions, (R, length, D) each, and which are valid, (R, length) or None."""
        parts, positions, valid = [], [], []
        for name, x in inputs.items():
            vector = self.vectors[name] if self.has_vectors else None
            embedded = under_autocast(modalities[name].embed(x.tokens, x.plan.visible), self.residual)
            for section, index, section_valid in self._sections(x, embedded):
                parts.append(section if vector is None else section + vector)
                index = x.tokens.all_indices() if index is None else index
                position = modalities[name].position(x.tokens, index, "encoder")
                positions.append(position.to(embedded.dtype).expand_as(section))
                valid.append(section_valid)
        if self.prefix is not None:
            prefix = self.prefix.to(parts[0].dtype).expand(parts[0].shape[0], -1, -1)
            if self.prefix_position is None:
                position = torch.zeros_like(prefix)
            else:
                position = self.prefix_position.expand_as(prefix)
            parts, positions, valid = [prefix, *parts], [position.to(prefix.dtype), *positions], [None, *valid]
        return parts, positions, valid

    def _sections(self, x: ModalityInput, embedded: Tensor) -> list[Section]:
        """What of a modality is in the sequence, from the embeddings of its visible tokens (R, V, D)."""
        sections: list[Section] = [(embedded, x.plan.visible, x.plan.visible_valid)]
        if self.reads_predict:
            hidden = self.hidden_token.to(embedded.dtype).expand(embedded.shape[0], x.plan.predict.shape[1], -1)
            sections.append((hidden, x.plan.predict, x.plan.predict_valid))
        return sections

    def _budget(self, inputs: dict[str, ModalityInput]) -> int | None:
        """How many tokens of all modalities the blocks run on; None: on the whole sequence."""
        return budget_of(inputs)

    def _places(self, inputs: dict[str, ModalityInput]) -> list[Tensor]:
        """Rotary positions of the parts of :meth:`_sequence`, as :class:`Rotary` makes them."""
        assert self.rotary is not None
        parts = []
        for x in inputs.values():
            parts.append(self.rotary(x.tokens, x.plan.visible))
            if self.reads_predict:
                parts.append(self.rotary(x.tokens, x.plan.predict))
        if self.prefix is not None:
            parts.insert(0, self.rotary.none(parts[0].shape[-4], self.prefix.shape[1], parts[0].device))
        return parts

    def _masks(
        self, inputs: dict[str, ModalityInput], index: Tensor | None, mask: Tensor | None, x: Tensor
    ) -> list[Tensor | None]:
        """What the attention of each block gets beside x (R, L, D): ``mask``, or with relative biases what is added to
        its scores, (R or 1, H, L, L)."""
        if self.relative_kind is None:
            return [mask] * len(self.blocks)
        assert self.relative_bias is not None  # prepare() made it
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        prefix = 0 if self.prefix is None else self.prefix.shape[1]
        entries = self.relative_bias.index(inputs, prefix, self.reads_predict, index)
        biases = [
            self.relative_bias(inputs, number, entries, mask, dtype) for number in range(len(self.relative_bias.tables))
        ]
        return biases if len(biases) == len(self.blocks) else biases * len(self.blocks)

    def _rotations(self, inputs: dict[str, ModalityInput], index: Tensor | None) -> list[dict[str, Tensor]]:
        """For each block {"rotation": that of the sequence, (2, R or 1, 1 or H, L, W)}; {} without rotary positions."""
        if self.rotary is None:
            return [{} for _ in self.blocks]
        places = torch.cat(self._places(inputs), -2)
        if index is not None:
            rows = index[:, None, :, None].expand(*places.shape[:-4], -1, places.shape[-3], -1, places.shape[-1])
            places = places.gather(-2, rows)
        return [{"rotation": self.rotary.of_block(number, places)} for number in range(len(self.blocks))]

    def _split(self, x: Tensor, lengths: list[int], inputs: dict[str, ModalityInput], index: Tensor | None) -> Latents:
        """The whole sequence (R, L, D) -> visible tokens of each modality, prefix tokens, hidden tokens.

        ``index`` (R, L): where x comes from in a longer sequence, of which the rest is 0.
        """
        if index is not None:
            whole = x.new_zeros(len(x), sum(lengths), x.shape[-1])
            x = whole.scatter(1, index[..., None].expand_as(x), x)
        parts = list(x.split(lengths, dim=1))
        prefix, hidden = {}, {}
        if self.prefix is not None:
            prefix["joint" if len(inputs) > 1 else next(iter(inputs))] = parts.pop(0)
        if self.reads_predict:
            parts, hidden = parts[::2], dict(zip(inputs, parts[1::2], strict=True))
        return Latents(dict(zip(inputs, parts, strict=True)), prefix, hidden=hidden)

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict[str, Any]:
        """ "features": tokens after the last block and the norm (B, N, D). "attention": how much attention each token
        receives in the last block, mean over heads and queries (B, N). "first_attention": queries and keys of the first
        block, which costs the embedding and one linear layer."""
        if kind == "features":
            return self.forward(inputs, modalities).tokens
        if kind not in ("attention", "first_attention"):
            return super().guide(inputs, modalities, kind)
        if kind == "first_attention" and self.relative_bias is not None:
            raise MaemmError(
                "the masking goes by queries and keys of the first attention, which relative biases are no part of "
                "(encoder.relative_bias); leave them out, or choose another masking"
            )
        x, position, mask, _, index = self._start(inputs, modalities)
        rotations, masks = self._rotations(inputs, index), self._masks(inputs, index, mask, x)
        *before, last = list(self.blocks)[: 1 if kind == "first_attention" else None]
        # The last mask is that of the last block
        for block, block_mask, options in zip(before, masks, rotations, strict=False):
            x = x + position if self.position_every_block else x
            x = block(x, attn_mask=block_mask, **options)
        x = x + position if self.position_every_block else x
        queries, keys = through(last, queries_and_keys, x, **rotations[len(before)])
        lengths = [part.plan.visible.shape[1] for part in inputs.values()]
        prefix = x.shape[1] - sum(lengths)
        if kind == "attention":
            received = attention_received(queries, keys, masks[-1])[:, prefix:]
            return dict(zip(inputs, received.split(lengths, dim=1), strict=True))
        class_tokens = queries[:, :, :prefix]
        parts = zip(inputs, *(part[:, :, prefix:].split(lengths, 2) for part in (queries, keys)), strict=True)
        return {name: FirstAttention(torch.cat([class_tokens, own], 2), key, prefix) for name, own, key in parts}

    def layer_of(self, name: str) -> int:
        """Prefix and hidden tokens, modality vectors, the norm before the blocks, learned rotations: 0, block i and its
        relative biases: i + 1, the rest (the final norm, relative biases of all blocks): depth + 1."""
        block = re.match(r"blocks\.(\d+)\.", name)
        if self.relative_kind == "per_block":
            block = block or re.match(r"relative_bias\.tables\.(\d+)", name)
        if block:
            return int(block.group(1)) + 1
        first = ("prefix", "hidden_token", "vectors", "input_norm", "rotary")
        return 0 if name.startswith(first) else len(self.blocks) + 1


def plain_vit(model: nn.Module, layout: str, *, rotary: bool = False) -> ViT:
    """``model.encoder``, if it is the plain ViT of one modality, as other libraries have it.

    ``rotary``: positions inside attention are allowed.

    Raises :class:`MaemmError`, which names the ``layout`` that needs it, for any other encoder.
    """
    encoder = model.encoder
    if (
        type(encoder) is not ViT
        or encoder.position_every_block
        or len(encoder.names) > 1
        or encoder.block_norm == "post"
        or encoder.input_norm is not None
        or encoder.layer_scale is not None
        or encoder.relative_kind is not None
        or not encoder.key_bias
        or (encoder.rotary is not None and not rotary)
    ):
        raise MaemmError(
            f"layout {layout!r} holds a plain ViT of one modality, which this encoder is not; use another layout"
        )
    return encoder
