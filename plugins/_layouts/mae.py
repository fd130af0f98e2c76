"""Names and tables of the MAE code base (He et al. 2022), which other models took over: MAE, Pixio, AudioMAE."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.model.heads import Linear
from maemm.weights.layout import rename

KERNEL = "patch_embed.proj.weight"


def names_of(modality: str) -> dict[str, str]:
    """{our prefix: published prefix} of what only needs another name."""
    return {
        "encoder.blocks.": "blocks.",
        "encoder.norm.": "norm.",
        "encoder.prefix": "cls_token",
        f"modalities.{modality}.embedding.": "patch_embed.proj.",
        "decoder.blocks.": "decoder_blocks.",
        "decoder.norm.": "decoder_norm.",
        "decoder.project.": "decoder_embed.",
        "decoder.mask_token": "mask_token",
        f"decoder.heads.{modality}.": "decoder_pred.",
        "head.linear.": "head.",
        "head.norm.": "fc_norm.",
    }


def tables_of(modality: str) -> dict[str, tuple[str, str]]:
    """{published position table: (our class-token rows, our patch rows)}."""
    return {
        "pos_embed": ("encoder.prefix_position", f"modalities.{modality}.positions.values"),
        "decoder_pos_embed": ("decoder.prefix_position", f"modalities.{modality}.decoder.positions.values"),
    }


def to_ours(state: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """Published names -> ours; the patch convolution becomes a matrix, tables are cut into class and patch rows."""
    tables = tables_of(modality)
    ours_of = {theirs: ours for ours, theirs in names_of(modality).items()}
    prefix = state["cls_token"].shape[1]
    result = {}
    for key, value in state.items():
        if key in tables:
            first, patches = tables[key]
            result[first], result[patches] = value[:, :prefix].contiguous(), value[:, prefix:].contiguous()
        else:
            value = conv_to_linear(value) if key == KERNEL else value
            result[rename(key, ours_of)] = value.contiguous()
    return result


def check_parts(model: Any, modality: str, layout: str, decoders: tuple[type, ...] = (Full,)) -> None:
    """Raises :class:`MaemmError` for parts that MAE's code does not have: another encoder than a ViT with class tokens
    and positions, another decoder than these, another classifier than a linear one of the mean or the class token."""
    encoder, decoder, head = plain_vit(model, layout), model.decoder, model.head
    kinds = model.modalities[modality].position_kinds
    if encoder.prefix is None:
        raise MaemmError(f"layout {layout!r} has class tokens, and this encoder has none (encoder.prefix: 0)")
    if encoder.reads_predict:
        raise MaemmError(f"layout {layout!r} has no token for hidden patches in the encoder (encoder.hidden: replace)")
    if decoder is not None and type(decoder) not in decoders:
        raise MaemmError(f"layout {layout!r} has no place for this decoder ({type(decoder).__name__}); leave it out")
    if type(decoder) is Full and (decoder.prefix_kind != "from_encoder" or decoder.position_every_block):
        raise MaemmError(
            f"layout {layout!r} has a decoder that takes the encoder's class tokens and adds positions once; "
            "this one is another (decoder.prefix, decoder.position_every_block)"
        )
    if "none" in (kinds["encoder"], kinds["decoder"] if decoder is not None else None):
        raise MaemmError(f"layout {layout!r} holds tables of positions, and this model has none (position: none)")
    if head is not None and (
        type(head) is not Linear or (head.pool, head.norm_when) not in (("mean", "after"), ("cls", "before"))
    ):
        raise MaemmError(
            f"layout {layout!r} has a linear classifier of the mean, with a norm after it, or of the class token, with "
            "the norm before; this head is another"
        )


def to_published(
    model: Any, modality: str, prefix_rows: Callable[[str, Any, Tensor], Tensor], *, decoder: bool = True
) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`, for a model of this modality alone; sin-cos tables are written out.

    ``prefix_rows(table, part, rows)`` -> (1, K, D): the first rows of a published table, where the part is encoder or
    decoder and ``rows`` (1, N, D) are those of the patches. ``decoder=False``: leave out what only pre-training needs.
    """
    signal, names = model.modalities[modality], names_of(modality)
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("prefix_position") or ".positions." in key:
            continue
        if not decoder and key.startswith(("decoder.", "encoder.hidden_token")):
            continue
        if key == f"modalities.{modality}.embedding.weight":
            value = linear_to_conv(value, signal.channels, signal.patch)
        state[rename(key, names)] = value
    tables = {"pos_embed": (model.encoder, signal.positions)}
    if decoder and model.decoder is not None:
        tables["decoder_pos_embed"] = (model.decoder, signal.decoder.positions)
    for table, (part, positions) in tables.items():
        rows = positions.table(signal.grid).detach()
        rows = rows if rows.ndim == 3 else rows[None]
        state[table] = torch.cat([prefix_rows(table, part, rows), rows], 1)
    return state


def check_alone(model: Any, modality: str, plural: str, layout: str) -> None:
    """Raises :class:`MaemmError` for a model of anything but ``modality``."""
    if list(model.modalities) != [modality]:
        raise MaemmError(f"layout {layout!r} holds {plural} alone, this model has {', '.join(model.modalities)}")


def normalize_of(norm_pix: bool | None) -> str | None:
    """The option ``normalize`` for ``norm_pix``; None: the checkpoint does not record it."""
    return None if norm_pix is None else "patch" if norm_pix else "none"
