"""The signal modality: rows of named channels are made in the worker, everything else on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import MinLen
from torch import Tensor, nn

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.options import Channels, Interval, NonNegativeInt, Positive, PositiveInt, Rate
from maemm.contract.patches import grid_of
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.data.arrays import as_float32

from . import pictures
from . import preprocess as on_device
from .channels import ChannelTime, checked_names, matching_rows

_EPS = 1e-6  # added to the scale of a channel


class Signal(GridModality):
    """Signals (B, channels, length) of named channels, in time order.

    A recording's channels are matched by name. Channels that the model does not have are dropped; channels that the
    recording does not have are rows that are not valid: their tokens are neither seen nor predicted nor counted. So
    recordings with different channels train together. Recordings longer than ``size`` are cropped (at random in
    training, else in the middle), shorter ones are padded, and padding is not valid; a patch with any invalid sample
    is not valid. A model accepts signals of any length that is a multiple of the patch.

    Options
        size: samples of a channel that the model is trained on
        patch: samples of a patch
        channels: names of the channels, or their number (then all recordings have the same channels in the same order)
        tokens: channel_time: a token is a patch of one channel, on a grid (channels, time); time: of all channels
        scale: robust: each channel of each sample minus its median, divided by its interquartile range in standard
            deviations; zscore: by mean and standard deviation; none
        mean: subtracted before anything else, a number per channel; null: nothing
        std: then divided by, a number per channel; null: nothing
        gaps: samples that are not finite: refuse the recording; fill: interpolate; hide: not valid
        flat: constant channels: keep; hide: as if missing; refuse the recording
        whole: do not crop: batches are padded to their longest recording
        gain: [low, high]: multiply each channel by a random factor in training; null: do not
        drop_channel: probability that a channel is treated as missing in training
        shift: largest shift of a signal in training, in samples, in both directions
    """

    axes = 1

    def __init__(
        self,
        *,
        size: PositiveInt = 1000,
        patch: PositiveInt = 20,
        channels: Channels | Annotated[Sequence[str], MinLen(1)] = 1,
        tokens: Literal["channel_time", "time"] = "channel_time",
        scale: Literal["robust", "zscore", "none"] = "robust",
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        gaps: Literal["refuse", "fill", "hide"] = "refuse",
        flat: Literal["keep", "hide", "refuse"] = "keep",
        whole: bool = False,
        gain: Interval[Positive] | None = None,
        drop_channel: Rate = 0.0,
        shift: NonNegativeInt = 0,
        **grid: Any,
    ):
        names = checked_names(channels)
        if tokens == "channel_time":
            super().__init__(size=(len(names), size), patch=(1, patch), channels=1, **grid)
        else:
            super().__init__(size=(size,), patch=(patch,), channels=len(names), **grid)
        self.names, self.by_name, self.per_channel = names, not isinstance(channels, int), tokens == "channel_time"
        self.length, self.step = size, patch
        self.scale, self.gap_rule, self.flat, self.whole = scale, gaps, flat, whole
        self.mean, self.std = _per_channel(mean, names, "mean"), _per_channel(std, names, "std")
        self.gain, self.drop_channel, self.shift = gain, drop_channel, shift
        self._check()

    def _check(self) -> None:
        if self.shift > self.length // 2:
            raise MaemmError(f"shift is {self.shift} (modalities.signal.shift); give 0 to half of size {self.length}")
        if not self.per_channel and (self.drop_channel or self.flat == "hide"):
            raise MaemmError(
                "tokens of all channels cannot leave one out (modalities.signal.tokens: time); "
                "set drop_channel 0 and flat keep, or tokens: channel_time"
            )

    # ---- in the worker
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Tensor]:
        """{"x": (C', L') numbers, "channels": names or None}, or a bare array -> {"x", "valid"}, both (C, size).

        A single channel may have shape (L',). ``rng=None``: the crop of the evaluation. Raises ValueError with what is
        wrong with the recording.
        """
        x, names = (raw["x"], raw.get("channels")) if isinstance(raw, Mapping) else (raw, None)
        x = _as_rows(np.asarray(x))
        rows = self._matched(names, len(x))
        if not self.whole and x.shape[1] > self.length:
            spare = x.shape[1] - self.length
            start = spare // 2 if rng is None else int(rng.floats("cut", 1)[0] * (spare + 1))
            x = x[:, start : start + self.length]
        x = x[[row for row, _ in rows]]
        if self.gap_rule == "refuse":
            x = as_float32(x)
        else:
            with np.errstate(over="ignore"):  # values out of range become infinite, which is a gap
                x = x.astype(np.float32)
        x, valid = self._repaired(x)
        signal = np.zeros((len(self.names), x.shape[1]), np.float32)
        signal_valid = np.zeros(signal.shape, bool)
        model_rows = [row for _, row in rows]
        signal[model_rows], signal_valid[model_rows] = x, valid
        self._check_any(signal_valid)
        length = -(-x.shape[1] // self.step) * self.step if self.whole else self.length
        padding = (0, length - x.shape[1])
        return {
            "x": nn.functional.pad(torch.from_numpy(signal), padding),
            "valid": nn.functional.pad(torch.from_numpy(signal_valid), padding),
        }

    def token_shapes(self) -> int | None:
        """Whole recordings have any length."""
        return None if self.whole else 1

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack, padded to the longest; without "valid" where everything is valid."""
        longest = max(sample["x"].shape[1] for sample in samples)
        raw = {
            key: torch.stack(
                [nn.functional.pad(sample[key], (0, longest - sample[key].shape[1])) for sample in samples]
            )
            for key in ("x", "valid")
        }
        return {"x": raw["x"]} if raw["valid"].all() else raw

    def moves(self) -> list[str]:
        return ["shift: 0"] if self.shift else []

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, C, L), "valid"} -> shifted, normalised, scaled by gain, with channels dropped; 0 where invalid."""
        x, valid = raw["x"].float(), raw.get("valid")
        if self.shift and rng is not None:
            by = (rng.uniform("shift", device=x.device) * (2 * self.shift + 1)).long() - self.shift
            x, valid = on_device.shift(x, valid, by)
        if self.mean is not None:
            x = x - self._on(x.device, "mean")
        if self.std is not None:
            x = x / self._on(x.device, "std")
        if self.scale != "none":
            x = (on_device.robust if self.scale == "robust" else on_device.zscore)(x, valid, _EPS)
        if self.gain is not None and rng is not None:
            x = on_device.gain(x, rng.uniform("gain", len(self.names), device=x.device), *self.gain)
        if self.drop_channel and rng is not None:
            valid = on_device.drop_channels(
                x, valid, rng.uniform("drop", len(self.names), device=x.device), self.drop_channel
            )
        return Preprocessed(x if valid is None else x.masked_fill(~valid, 0.0), valid)

    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """(C, n) before ``mean`` and ``std``; None where ``scale`` normalises each sample by itself."""
        if self.scale != "none":
            return None
        x, valid = preprocessed.x, preprocessed.valid
        if self.std is not None:
            x = x * self._on(x.device, "std")
        if self.mean is not None:
            x = x + self._on(x.device, "mean")
        if valid is not None:
            x = x.masked_fill(~(valid if valid.ndim == 3 else valid[:, None]), float("nan"))
        return x.movedim(1, 0).flatten(1)

    # ---- tokens
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """(B, C, L), validity (B, C, L) or (B, L) -> patches on the grid (channels, time), or (time,)."""
        x, valid = preprocessed.x, preprocessed.valid
        if x.ndim != 3 or x.shape[1] != len(self.names):
            shape = f"(B, {len(self.names)}, {self.length} or another length)"
            raise MaemmError(f"{type(self).__name__} expects {shape}, got {tuple(x.shape)}")
        grid_of((x.shape[2],), (self.step,), "length of the signal")
        if valid is not None and valid.shape not in (x.shape, x[:, 0].shape):
            raise MaemmError(f"{type(self).__name__} expects validity {tuple(x.shape)}, got {tuple(valid.shape)}")
        if valid is not None:
            valid = valid[:, None].expand_as(x) if valid.ndim == 2 else valid
            valid = valid if self.per_channel else valid.all(1)
        return super().tokenize(Preprocessed(x[:, None] if self.per_channel else x, valid))

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """(R, M, P) -> (R, C, L); NaN where no token is given."""
        signal = super().untokenize(values, tokens, index)
        return signal[:, 0] if self.per_channel else signal

    def make_positions(self, kind: str, dim: int) -> nn.Module:
        if not self.per_channel:
            return super().make_positions(kind, dim)
        return ChannelTime(kind, dim, self.names, self.grid[1])

    # ---- pictures and tests
    def example(self, batch: int, rng: Rng) -> Preprocessed:
        example = super().example(batch, rng)
        return replace(example, x=example.x[:, 0]) if self.per_channel else example

    def validity(self, x: Tensor) -> Tensor:
        """Of every sample of a channel, (B, C, L): channels may be missing, recordings be short."""
        return torch.ones_like(x, dtype=torch.bool)

    def plot(self, axes: Any, signal: Tensor) -> None:
        """A trace per channel (C, L), the first on top; hidden parts are shaded."""
        pictures.traces(axes, signal, self.names if self.by_name else None)

    # ---- helpers
    def _on(self, device: torch.device, name: Literal["mean", "std"]) -> Tensor:
        """``mean`` or ``std`` as (C, 1); no buffers, so that they are neither stored with weights nor lost on meta."""
        return small_tensor(getattr(self, name), device)[:, None]

    def _matched(self, names: Sequence[str] | None, count: int) -> list[tuple[int, int]]:
        """(row in the recording, row in the model) of the channels of a recording."""
        if names is None or not self.by_name:
            if count != len(self.names):
                raise ValueError(
                    f"has {count} channels, the model takes {len(self.names)}; name them (data.source.channels)"
                )
            return [(i, i) for i in range(count)]
        rows = matching_rows(names, self.names)
        if not rows:
            raise ValueError(f"has none of the model's channels, only {_shortened(names)}; set data.source.channels")
        if len(rows) < len(self.names) and not self.per_channel:
            matched = {i for _, i in rows}
            missing = [name for i, name in enumerate(self.names) if i not in matched]
            raise ValueError(f"lacks {_shortened(missing)}, and tokens are of all channels; set tokens: channel_time")
        return rows

    def _repaired(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(x, valid): the options ``gaps`` and ``flat`` applied."""
        finite = np.isfinite(x)
        if not finite.all():
            if self.gap_rule == "refuse":
                raise ValueError(f"{int((~finite).sum()):,} samples are not finite numbers; see gaps: fill or hide")
            if not finite.any():
                raise ValueError("no sample is a finite number")
            x = np.where(finite, x, 0) if self.gap_rule == "hide" else _interpolated(x, finite)
        if self.gap_rule == "fill":
            finite = np.broadcast_to(finite.any(1, keepdims=True), x.shape)  # a channel of gaps alone stays missing
        if self.flat != "keep":
            still = np.all(x == x[:, :1], axis=1)
            if still.any() and self.flat == "refuse":
                raise ValueError(f"{int(still.sum())} of {len(x)} channels never change")
            if still.all():
                raise ValueError("no channel ever changes")
            finite = finite & ~still[:, None]
        return x, finite

    def _check_any(self, valid: np.ndarray) -> None:
        """Raise ValueError where no patch is valid."""
        rows = valid if self.per_channel else np.all(valid, axis=0, keepdims=True)
        steps = rows.shape[1] // self.step
        if not rows[:, : steps * self.step].reshape(len(rows), steps, self.step).all(-1).any():
            reason = "too short" if valid.any(0).all() else "too many gaps"
            raise ValueError(f"{reason}: none of its {valid.shape[1]} samples make a whole patch of {self.step}")


def _as_rows(x: np.ndarray) -> np.ndarray:
    """(L,) or (C, L) -> (C, L)."""
    x = x[None] if x.ndim == 1 else x
    if x.ndim != 2:
        raise ValueError(f"a recording has channels and time, this one has shape {x.shape}")
    if not x.size:
        raise ValueError(f"no samples (shape {x.shape})")
    if x.dtype.kind not in "biuf":
        raise ValueError(f"samples are {x.dtype}, not numbers")
    return x


def _interpolated(x: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Gaps filled by linear interpolation; channels without a finite sample become 0."""
    filled = np.zeros_like(x)
    index = np.arange(x.shape[1])
    for row, ok, out in zip(x, finite, filled, strict=True):
        if ok.any():
            out[:] = np.interp(index, index[ok], row[ok])
    return filled


def _per_channel(values: Sequence[float] | None, names: Sequence[str], option: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    if len(values) != len(names):
        raise MaemmError(
            f"{option} has {len(values)} numbers for {len(names)} channels (modalities.signal.{option}); "
            f"give {len(names)}"
        )
    return tuple(map(float, values))


def _shortened(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
