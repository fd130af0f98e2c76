"""The generic modality for signals on a grid: series, images, clips, volumes, spectrograms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maemm.contract.data import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.modality import Modality
from maemm.contract.options import Channels, PositiveInt
from maemm.contract.patches import grid_of, patchify, unpatchify
from maemm.contract.positions import Table, TableResize, lattice, make_position
from maemm.contract.rng import Rng

VARIANCE_EPS = 1e-6  # added to the variance of a patch (MAE, published code)

PositionKind = Literal["sincos", "learned", "fixed", "sincos_table", "none"]


def as_tuple(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """A number for all axes, or one for each, as one for each."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


class _DecoderSide(nn.Module):
    """What only the decoder needs of a modality; its parameters are named ``decoder.positions...``."""

    def __init__(self, positions: nn.Module):
        super().__init__()
        self.positions = positions


class GridModality(Modality):
    """A signal (B, channels, *size), cut into patches of equal size.

    Options
        size: sides of the signal that position tables are made for, one number or one per axis
        patch: sides of a patch, one number or one per axis
        channels: channels of the signal
        position: position of tokens in the encoder: sincos, learned, fixed (stored, not trained), sincos_table (fixed,
            beginning as sines and cosines with the row first, MultiMAE) or none
        decoder_position: the same in the decoder; null: like position
        table_resize: how a stored table is resized to a grid of another size, on two axes: cubic or linear
        decoder_table_resize: the same in the decoder; null: like table_resize
        normalize: patch: each target patch has mean 0 and variance 1; none: raw values; null: not recorded, refused
        gaps: values may be missing, NaN in what is read: they are in no loss, statistic or picture
    """

    axes = 2  # number of axes besides channels; ``size`` or ``patch`` given for each axis override it
    embedding: nn.Linear  # patch values (R, V, P) -> (R, V, D)
    positions: nn.Module  # positions in the encoder: (tokens, index (R, V)) -> (R, V, D)
    decoder: _DecoderSide  # ``decoder.positions``: the same in the decoder, if there is one

    def __init__(
        self,
        *,
        size: PositiveInt | Sequence[PositiveInt],
        patch: PositiveInt | Sequence[PositiveInt],
        channels: Channels = 1,
        position: PositionKind = "sincos",
        decoder_position: PositionKind | None = None,
        table_resize: TableResize = "cubic",
        decoder_table_resize: TableResize | None = None,
        normalize: Literal["patch", "none"] | None = "patch",
        gaps: bool = False,
    ):
        super().__init__()
        axes = next((len(v) for v in (size, patch) if not isinstance(v, int)), self.axes)
        self.size, self.patch = as_tuple(size, axes), as_tuple(patch, axes)
        if min(*self.size, *self.patch, channels) < 1:  # the hints of a modality of its own may have no bounds
            raise MaemmError(f"size {self.size}, patch {self.patch} and channels {channels} must be positive")
        self.grid = grid_of(self.size, self.patch)
        self.channels = channels
        if normalize == "patch" and self.values_dim() < 2:
            raise MaemmError("a patch of one value has no variance; set normalize: none or a larger patch")
        self.position_kinds = {"encoder": position, "decoder": decoder_position or position}
        self.table_resizes = {"encoder": table_resize, "decoder": decoder_table_resize or table_resize}
        self.normalize, self.gaps = normalize, gaps

    # ---- in the worker
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Any]:
        """Crop an array (channels, *sides), or (*sides) for one channel -> {"x": (channels, *size)}.

        The crop is random, or central with ``rng=None``. Raises ValueError (the sample counts as unreadable) for a
        wrong number of axes or channels, a side shorter than ``size``, or values that are not finite; with ``gaps``
        where no value is.
        """
        x = torch.as_tensor(raw)
        if x.ndim == len(self.size) and self.channels == 1:
            x = x[None]
        shape = (self.channels, *self.size)
        if x.ndim != len(shape) or len(x) != self.channels or any(a < b for a, b in zip(x.shape, shape, strict=True)):
            raise ValueError(f"has shape {tuple(x.shape)}, the model expects {shape} or longer sides")
        margins = [have - need for have, need in zip(x.shape[1:], self.size, strict=True)]
        if any(margins):
            offsets = [0.5] * len(margins) if rng is None else rng.floats("crop", len(margins))
            starts = [int(offset * (margin + 1)) for offset, margin in zip(offsets, margins, strict=True)]
            for axis, (start, side) in enumerate(zip(starts, self.size, strict=True), start=1):
                x = x.narrow(axis, start, side)
        if self.gaps and not x.isfinite().any():
            raise ValueError("holds no value")
        if not self.gaps and not x.isfinite().all():
            raise ValueError("holds NaN or infinity; set gaps: true where values may be missing")
        return {"x": x}

    # ---- on the device
    def preprocess(self, raw: Any, rng: Rng | None) -> Preprocessed:
        """Floats. With ``gaps`` values that are not finite become 0 and not valid, in each channel by itself."""
        x = raw["x"].float()
        if not self.gaps:
            return Preprocessed(x)
        valid = x.isfinite()
        return Preprocessed(torch.where(valid, x, 0.0), valid)

    # ---- tokens
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """x (B, C, *size) -> patches (B, N, P). A patch is valid if all its elements are, with ``gaps`` if any is.

        ``preprocessed.valid`` is (B, *size), the same for all channels, or (B, C, *size). With ``gaps`` values of x
        that are not finite are missing too.
        """
        x = preprocessed.x
        if x.ndim != len(self.patch) + 2 or x.shape[1] != self.channels:
            axes = ", ".join(str(side) for side in self.size)
            raise MaemmError(f"{type(self).__name__} expects (B, {self.channels}, {axes}), got {tuple(x.shape)}")
        grid = grid_of(tuple(x.shape[2:]), self.patch)
        values, elements, valid, known = patchify(x, self.patch), preprocessed.valid, None, None
        if elements is not None and elements.ndim < x.ndim:
            elements = elements.unsqueeze(1)
        if self.gaps:
            finite = x.isfinite()
            known = patchify(finite if elements is None else finite & elements, self.patch)
            values, valid = torch.where(known, values, 0.0), known.any(-1)
        elif elements is not None:
            valid = patchify(elements, self.patch).all(-1)
        return Tokens(values, lattice(grid, x.device)[None], grid, valid, known=known)

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """Patches (R, M, P) -> signal (R, C, *size), NaN where no token is given."""
        assert tokens.grid is not None  # :meth:`tokenize` sets it
        if index is not None:
            whole = values.new_full((values.shape[0], tokens.count, values.shape[-1]), float("nan"))
            values = whole.scatter(1, index[..., None].expand(-1, -1, values.shape[-1]), values)
        if tokens.known is not None:  # what is missing stays missing
            known = tokens.known if tokens.rows is None else tokens.known[tokens.rows]
            values = values.masked_fill(~known, float("nan"))
        return unpatchify(values, tokens.grid, self.patch)

    # ---- model
    def values_dim(self) -> int:
        """P: values of one patch."""
        return torch.Size(self.patch).numel() * self.channels

    def output_dim(self) -> int:
        return self.values_dim()

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.embedding = nn.Linear(self.values_dim(), encoder_dim)
        nn.init.xavier_uniform_(self.embedding.weight)
        self.positions = self._positions_of("encoder", encoder_dim)
        if decoder_dim is not None:
            self.decoder = _DecoderSide(self._positions_of("decoder", decoder_dim))

    def _positions_of(self, role: str, dim: int) -> nn.Module:
        positions = self.make_positions(self.position_kinds[role], dim)
        if isinstance(positions, Table):
            positions.resize = self.table_resizes[role]
        return positions

    def make_positions(self, kind: str, dim: int) -> nn.Module:
        """A module (tokens, index (R, V)) -> (R, V, dim) for one role. Override it to add kinds of position."""
        return make_position(kind, dim, self.grid)

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return self.embedding(tokens.gather(index))

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return (self.positions if role == "encoder" else self.decoder.positions)(tokens, index)

    # ---- target
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Patch values (R, M, P); with ``normalize: patch`` (x - mean) / sqrt(var + eps) of each patch.

        The variance is the unbiased one, as in MAE's published code (He et al. 2022, section 4). Raises
        :class:`MaemmError` where the checkpoint does not record ``normalize``.
        """
        values = tokens.gather(index).float()
        if self.normalize is None:
            raise MaemmError("the checkpoint does not record whether targets were normalised; pass norm_pix=")
        if self.normalize == "none" or not values.numel():
            return values
        mean, scale = self._statistics(values, tokens.gather_known(index))
        return (values - mean) / scale

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        if self.normalize != "patch" or not pred.numel():
            return pred.float()
        mean, scale = self._statistics(tokens.gather(index).float(), tokens.gather_known(index))
        return pred.float() * scale + mean

    def _statistics(self, values: Tensor, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean and sqrt(unbiased variance + eps) of each patch (..., P), of its known values."""
        if known is None:
            mean = values.mean(-1, keepdim=True)
            return mean, (values.var(-1, keepdim=True) + VARIANCE_EPS).sqrt()
        count = known.sum(-1, keepdim=True)
        mean = torch.where(known, values, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
        variance = torch.where(known, values - mean, 0.0).square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)
        return mean, (variance + VARIANCE_EPS).sqrt()

    def sample_size(self) -> tuple[int, int]:
        return math.prod(self.grid), math.prod(self.size) * self.channels

    # ---- pictures, statistics and tests
    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """(C, n) from ``x`` (B, C, *size), or (B, *size) for one channel, and ``valid`` (B, *size) or (B, C, *size)."""
        x, valid = self.denormalize_input(preprocessed.x), preprocessed.valid
        if x.ndim == len(self.patch) + 1:
            x = x.unsqueeze(1)
        if valid is not None:
            valid = valid if valid.ndim == x.ndim else valid.unsqueeze(1)
            x = x.masked_fill(~valid, float("nan"))
        return x.movedim(1, 0).flatten(1)

    def validity(self, x: Tensor) -> Tensor | None:
        """With ``gaps`` of every value, (B, C, *size); otherwise as a subclass pads."""
        return torch.ones_like(x, dtype=torch.bool) if self.gaps else super().validity(x)

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        uniform = rng.uniform("example", batch, self.channels, *self.size)[0]
        return Preprocessed((uniform - 0.5) * 12**0.5)

    def plot(self, axes: Any, signal: Tensor) -> None:
        """One axis: a line per channel; two: an image of the channels' mean; three: a strip of up to six images."""
        signal = signal.detach().float().cpu()
        axes.set_axis_off()
        if signal.ndim == 2:
            finite = signal[~signal.isnan()]
            scale = (finite.std() if finite.numel() > 1 else finite.new_ones(())).clamp(min=1e-6) * 4
            for row, channel in enumerate(signal):
                axes.plot((channel - row * scale).numpy(), linewidth=0.8)
            return
        image = signal.mean(0)
        if image.ndim > 2:
            images = image.flatten(0, -3)
            chosen = torch.linspace(0, len(images) - 1, min(6, len(images))).long()
            image = torch.cat(list(images[chosen]), dim=-1)
        axes.set_facecolor("0.6")
        axes.imshow(image.numpy(), cmap="viridis", interpolation="nearest")
