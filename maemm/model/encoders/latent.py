"""A Vision Transformer that writes a signal into a few latent tokens (MAETok)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Encoder, Latents, Modality, ModalityInput
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.blocks import BlockInit, init_linear, select
from maemm.model.encoders.vit import MOST_PREFIX, Axes, Section, ViT
from maemm.model.rotary import AnyRotary

LatentCount = Annotated[int, Ge(1), Le(65536)]


class LatentViT(ViT):
    """Tokens and learned latent tokens in one sequence; the latents leave it, projected to a few channels (MAETok: Chen
    et al. 2025, arXiv 2502.03444, section 3; TiTok before it).

    Class tokens come first, then the tokens of each modality, then the latent tokens, which are shared by all
    modalities. What is hidden stays in the sequence as a learned vector, whether it is predicted or not, so that the
    encoder has the same length with and without a mask. ``Latents.latent_tokens`` are the latents (R, L, C);
    ``Latents.tokens`` are the visible tokens as in the encoder vit, which the decoder latent does not read. Features
    are the mean of the latent tokens (pool: latents) where nothing else is asked for.

    Options
        latents: latent tokens, L
        latent_dim: channels C that each is projected to; null: it keeps the width
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        prefix: class tokens in front of the sequence
        prefix_position: position of the class tokens: none, fixed (stored, not trained) or learned
        drop_path: rate of the last block, growing linearly from 0
        final_norm: a norm after the last block
        init: initial weights of linear layers: xavier, normal with std 0.02, or normal_by_depth, see the encoder vit
        hidden: hidden tokens are replaced by a learned vector, or removed from the sequence
        layer_scale: initial value of learned factors of the channels behind attention and MLP; null: none
        rotary: positions of the tokens inside attention, beside those of the modality; class and latent tokens are not
            turned: pairs, mixed or vjepa2, see the encoder vit; null: none
        rotary_axes: with rotary mixed: axes of the tokens' coordinates, 2 for pictures
    """

    pool = "latents"
    decoder_options = {"type": "latent"}

    def __init__(
        self,
        names: list[str],
        *,
        latents: LatentCount = 128,
        latent_dim: PositiveInt | None = 32,
        dim: PositiveInt = 768,
        depth: Depth = 12,
        heads: PositiveInt = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        prefix: Annotated[int, Ge(0), Le(MOST_PREFIX)] = 1,
        prefix_position: Literal["none", "fixed", "learned"] = "none",
        drop_path: Rate = 0.0,
        final_norm: bool = True,
        init: BlockInit = "xavier",
        hidden: Literal["remove", "replace"] = "replace",
        layer_scale: Positive | None = None,
        rotary: AnyRotary | None = None,
        rotary_axes: Axes = 2,
    ):
        super().__init__(
            names,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eps=eps,
            prefix=prefix,
            prefix_position=prefix_position,
            drop_path=drop_path,
            final_norm=final_norm,
            init=init,
            hidden=hidden,
            layer_scale=layer_scale,
            rotary=rotary,
            rotary_axes=rotary_axes,
        )
        self.replaces = hidden == "replace"
        self.reads_predict = False  # what is hidden follows from what is visible
        self.latent_shape = latents, latent_dim or dim
        self.latent_tokens = nn.Parameter(torch.randn(1, latents, dim) * 0.02)
        self.latent_positions = nn.Parameter(torch.randn(1, latents, dim) * 0.02)
        self.project = nn.Identity() if latent_dim is None else nn.Linear(dim, latent_dim)
        self.project.apply(init_linear)

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        latents = super().forward(inputs, modalities, layers=layers, norm=norm)
        latents.latent_tokens = {name: self.project(x) for name, x in latents.latent_tokens.items()}
        return latents

    # ---- the sequence: [class tokens, tokens of each modality, latent tokens]
    def _sections(self, x: ModalityInput, embedded: Tensor) -> list[Section]:
        if not self.replaces:
            return super()._sections(x, embedded)
        tokens, visible, valid = x.tokens, x.plan.visible, x.plan.visible_valid
        # Padding of the list of visible tokens is written behind the last token, and cut off.
        index = visible if valid is None else visible.masked_fill(~valid, tokens.count)
        hidden = self.hidden_token.to(embedded.dtype).expand(len(embedded), tokens.count + 1, -1)
        whole = hidden.scatter(1, index[..., None].expand_as(embedded), embedded)[:, :-1]
        return [(whole, None, _valid_rows(x))]

    def _budget(self, inputs: dict[str, ModalityInput]) -> int | None:
        return None  # the latents stand behind the tokens: nothing is cut out of the sequence

    def _sequence(
        self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        parts, positions, valid = super()._sequence(inputs, modalities)
        rows, dtype = len(parts[0]), parts[0].dtype
        parts.append(self.latent_tokens.to(dtype).expand(rows, -1, -1))
        positions.append(self.latent_positions.to(dtype).expand(rows, -1, -1))
        return parts, positions, [*valid, None]

    def _places(self, inputs: dict[str, ModalityInput]) -> list[Tensor]:
        assert self.rotary is not None
        parts = [self.rotary(x.tokens, None if self.replaces else x.plan.visible) for x in inputs.values()]
        rows = max(part.shape[-4] for part in parts)  # 1 where the tokens of all rows stand at the same places
        parts = [part.expand(*part.shape[:-4], rows, *part.shape[-3:]) for part in parts]
        counts = (0 if self.prefix is None else self.prefix.shape[1], self.latent_tokens.shape[1])
        prefix, latents = (self.rotary.none(rows, count, parts[0].device) for count in counts)
        return [prefix, *parts, latents]

    def _split(self, x: Tensor, lengths: list[int], inputs: dict[str, ModalityInput], index: Tensor | None) -> Latents:
        *parts, latents = x.split(lengths, dim=1)
        joint = "joint" if len(inputs) > 1 else next(iter(inputs))
        prefix = {} if self.prefix is None else {joint: parts.pop(0)}
        by_name = dict(zip(inputs, parts, strict=True))
        if self.replaces:
            by_name = {name: select(part, inputs[name].plan.visible) for name, part in by_name.items()}
        return Latents(by_name, prefix, latent_tokens={joint: latents})

    def guide(self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality], kind: str) -> dict[str, Any]:
        """The features of all tokens. Its attention also serves the latents, and is no guide."""
        if kind != "features":
            return Encoder.guide(self, inputs, modalities, kind)
        return super().guide(inputs, modalities, kind)

    def layer_of(self, name: str) -> int:
        """As in the encoder vit; latent tokens: 0, their projection: depth + 1."""
        return 0 if name.startswith("latent_") else super().layer_of(name)


def _valid_rows(x: ModalityInput) -> Tensor | None:
    """(R, N) bool, which tokens of each row of the plan are no padding; None: all."""
    valid, rows = x.tokens.valid, x.tokens.rows
    return valid if valid is None or rows is None else valid[rows]
