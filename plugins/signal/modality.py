"""The signal modality: recordings to rows of named channels in the worker, the rest of the way on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.patches import grid_of
from maemm.contract.rng import Rng

from . import pictures
from . import preprocess as on_device
from .channels import ChannelTime, checked_names, places

_EPS = 1e-6  # added to the spread of a channel


class Signal(GridModality):
    """Signals (B, channels, length) of named channels, in time order.

    A recording's channels are matched by name. Those that the model does not know are left out; those that the
    recording lacks are rows that are not valid: tokens neither seen nor predicted nor counted. So recordings with
    different channels train together. What is longer than ``size`` is cut (at a random place in training, in the
    middle otherwise), what is shorter is padded, and the padding is not valid either; nor is a patch with any sample
    that is not. A model takes signals of any length that is a multiple of the patch.

    Options
        size: samples of a channel that the model is trained on
        patch: samples of a patch
        channels: names of the channels, or how many (then recordings must have as many, in one order)
        tokens: channel_time: a token is a patch of one channel, on a grid (channels, time); time: of all channels
        scale: robust: each channel of each sample minus its median, divided by its interquartile range in standard
            deviations; zscore: by mean and standard deviation; none
        mean: subtracted before anything else, a number per channel; null: nothing
        std: then divided by, a number per channel; null: nothing
        gaps: samples that are not finite: refuse the recording; fill: interpolate; hide: not valid
        flat: channels that never change: keep; hide: as if missing; refuse the recording
        whole: do not cut: batches are padded to their longest recording
        gain: [low, high]: multiply each channel by a random factor in training; null: do not
        drop_channel: chance that a channel is treated as missing in training
        shift: most samples that a signal is moved by in training, to both sides
    """

    axes = 1

    def __init__(
        self,
        *,
        size: int = 1000,
        patch: int = 20,
        channels: int | Sequence[str] = 1,
        tokens: Literal["channel_time", "time"] = "channel_time",
        scale: Literal["robust", "zscore", "none"] = "robust",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        gaps: Literal["refuse", "fill", "hide"] = "refuse",
        flat: Literal["keep", "hide", "refuse"] = "keep",
        whole: bool = False,
        gain: tuple[float, float] | None = None,
        drop_channel: float = 0.0,
        shift: int = 0,
        **grid: Any,
    ):
        names = checked_names(channels)
        if tokens == "channel_time":
            super().__init__(size=(len(names), size), patch=(1, patch), channels=1, **grid)
        else:
            super().__init__(size=(size,), patch=(patch,), channels=len(names), **grid)
        self.names, self.by_name, self.per_channel = names, not isinstance(channels, int), tokens == "channel_time"
        self.length, self.step = size, patch
        self.scale, self.gaps, self.flat, self.whole = scale, gaps, flat, whole
        self.mean, self.std = _per_channel(mean, names, "mean"), _per_channel(std, names, "std")
        self.gain, self.drop_channel, self.shift = gain, drop_channel, shift
        self._check()

    def _check(self) -> None:
        if self.std is not None and min(self.std) <= 0:
            raise MaemmError(f"std is {list(self.std)} (modalities.signal.std); all numbers must be above 0")
        if self.gain is not None and not 0 < self.gain[0] <= self.gain[1]:
            raise MaemmError(f"gain is {list(self.gain)} (modalities.signal.gain); give 0 < low <= high")
        if not 0 <= self.drop_channel < 1:
            raise MaemmError(f"drop_channel is {self.drop_channel} (modalities.signal); give a share from 0 to below 1")
        if not 0 <= self.shift <= self.length // 2:
            raise MaemmError(f"shift is {self.shift} (modalities.signal.shift); give 0 to half of size {self.length}")
        if not self.per_channel and (self.drop_channel or self.flat == "hide"):
            raise MaemmError(
                "tokens over all channels cannot leave one out (modalities.signal.tokens: time); "
                "set drop_channel 0 and flat keep, or tokens: channel_time"
            )

    # ---- in the worker
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Tensor]:
        """{"x": (C', L') numbers, "channels": names or None}, or a bare array -> {"x", "valid"}, both (C, size).

        A single channel may come as (L',). ``rng=None``: the cut of the evaluation. Raises ValueError with what is
        wrong with the recording.
        """
        x, names = (raw["x"], raw.get("channels")) if isinstance(raw, Mapping) else (raw, None)
        x = self._rows(np.asarray(x))
        rows = self._places(names, len(x))
        if not self.whole and x.shape[1] > self.length:
            spare = x.shape[1] - self.length
            start = spare // 2 if rng is None else int(rng.uniform("cut").item() * (spare + 1))
            x = x[:, start : start + self.length]
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and told so
            x = x[[have for have, _ in rows]].astype(np.float32)
        x, valid = self._mended(x)
        whole = np.zeros((len(self.names), x.shape[1]), np.float32)
        known = np.zeros(whole.shape, bool)
        at = [place for _, place in rows]
        whole[at], known[at] = x, valid
        self._check_any(known)
        return self._padded(torch.from_numpy(whole), torch.from_numpy(known))

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack, padded to the longest; "valid" is left out where everything is."""
        longest = max(one["x"].shape[1] for one in samples)
        raw = {
            key: torch.stack([nn.functional.pad(one[key], (0, longest - one[key].shape[1])) for one in samples])
            for key in ("x", "valid")
        }
        return {"x": raw["x"]} if raw["valid"].all() else raw

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, C, L), "valid"} -> normalised, shifted, amplified, with channels dropped; 0 where not valid."""
        x, valid = raw["x"].float(), raw.get("valid")
        if self.shift and rng is not None:
            by = (rng.uniform("shift") * (2 * self.shift + 1)).long() - self.shift
            x, valid = on_device.shift(x, valid, by)
        for what, operation in (("mean", torch.sub), ("std", torch.div)):
            if getattr(self, what) is not None:
                x = operation(x, self._on(x.device, what))
        if self.scale != "none":
            x = (on_device.robust if self.scale == "robust" else on_device.zscore)(x, valid, _EPS)
        if self.gain is not None and rng is not None:
            x = on_device.gain(x, rng.uniform("gain", len(self.names)), *self.gain)
        if self.drop_channel and rng is not None:
            valid = on_device.drop_channels(x, valid, rng.uniform("drop", len(self.names)), self.drop_channel)
        return Preprocessed(x if valid is None else x.masked_fill(~valid, 0.0), valid)

    def by_channel(self, preprocessed: Preprocessed) -> Tensor | None:
        """(C, n) before ``mean`` and ``std``; None where ``scale`` normalises every sample by itself."""
        if self.scale != "none":
            return None
        x, valid = preprocessed.x, preprocessed.valid
        for what, operation in (("std", torch.mul), ("mean", torch.add)):
            if getattr(self, what) is not None:
                x = operation(x, self._on(x.device, what))
        if valid is not None:
            x = x.masked_fill(~(valid if valid.ndim == 3 else valid[:, None]), float("nan"))
        return x.movedim(1, 0).flatten(1)

    # ---- tokens
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """(B, C, L), validity (B, C, L) or (B, L) -> patches on the grid (channels, time), or (time,)."""
        x, valid = preprocessed.x, preprocessed.valid
        if x.ndim != 3 or x.shape[1] != len(self.names):
            wanted = f"(B, {len(self.names)}, {self.length} or another length)"
            raise MaemmError(f"{type(self).__name__} expects {wanted}, got {tuple(x.shape)}")
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
        one = super().example(batch, rng)
        return replace(one, x=one.x[:, 0]) if self.per_channel else one

    def plot(self, axes: Any, signal: Tensor) -> None:
        """A trace per channel (C, L), the first on top; what is hidden is shaded."""
        pictures.traces(axes, signal, self.names if self.by_name else None)

    # ---- pieces
    def _on(self, device: torch.device, what: str) -> Tensor:
        """``mean`` or ``std`` as (C, 1); no buffers, so that they are neither stored with weights nor lost on meta."""
        cache = self.__dict__.setdefault("_moved", {})
        if (device, what) not in cache:
            cache[device, what] = torch.tensor(getattr(self, what), device=device)[:, None]
        return cache[device, what]

    def _rows(self, x: np.ndarray) -> np.ndarray:
        x = x[None] if x.ndim == 1 else x
        if x.ndim != 2:
            raise ValueError(f"a recording has channels and time, this one has shape {x.shape}")
        if not x.size:
            raise ValueError(f"no samples (shape {x.shape})")
        if x.dtype.kind not in "biuf":
            raise ValueError(f"samples are {x.dtype}, not numbers")
        return x

    def _places(self, names: Sequence[str] | None, have: int) -> list[tuple[int, int]]:
        """(row in the recording, row in the model)."""
        if names is None or not self.by_name:
            if have != len(self.names):
                raise ValueError(
                    f"has {have} channels, the model takes {len(self.names)}; name them (data.source.channels)"
                )
            return [(i, i) for i in range(have)]
        found = places(names, self.names)
        if not found:
            raise ValueError(f"has none of the model's channels, only {_some(names)}; set data.source.channels")
        if len(found) < len(self.names) and not self.per_channel:
            lacking = {i for _, i in found}
            missing = [name for i, name in enumerate(self.names) if i not in lacking]
            raise ValueError(f"lacks {_some(missing)}, and tokens are over all channels; set tokens: channel_time")
        return found

    def _mended(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples that are not finite, and channels that never change."""
        finite = np.isfinite(x)
        if not finite.all():
            if self.gaps == "refuse":
                raise ValueError(f"{int((~finite).sum()):,} samples are not finite numbers; see gaps: fill or hide")
            if not finite.any():
                raise ValueError("no sample is a finite number")
            x = np.where(finite, x, 0) if self.gaps == "hide" else _interpolated(x, finite)
        if self.gaps == "fill":
            finite = np.broadcast_to(finite.any(1, keepdims=True), x.shape)  # a channel of gaps alone stays missing
        if self.flat != "keep":
            still = (x == x[:, :1]).all(1)
            if still.any() and self.flat == "refuse":
                raise ValueError(f"{int(still.sum())} of {len(x)} channels never change")
            if still.all():
                raise ValueError("no channel ever changes")
            finite = finite & ~still[:, None]
        return x, finite

    def _check_any(self, known: np.ndarray) -> None:
        """Raise ValueError where nothing is left to learn from: not one whole patch."""
        rows = known if self.per_channel else known.all(0, keepdims=True)
        steps = rows.shape[1] // self.step
        if not rows[:, : steps * self.step].reshape(len(rows), steps, self.step).all(-1).any():
            what = "too short" if known.any(0).all() else "too many gaps"
            raise ValueError(f"{what}: none of its {known.shape[1]} samples make a whole patch of {self.step}")

    def _padded(self, x: Tensor, valid: Tensor) -> dict[str, Tensor]:
        length = -(-x.shape[1] // self.step) * self.step if self.whole else self.length
        return {key: nn.functional.pad(one, (0, length - x.shape[1])) for key, one in (("x", x), ("valid", valid))}


def _interpolated(x: np.ndarray, finite: np.ndarray) -> np.ndarray:
    """Gaps filled on straight lines between their neighbours; channels without a finite sample become 0."""
    filled = np.zeros_like(x)
    place = np.arange(x.shape[1])
    for row, ok, out in zip(x, finite, filled, strict=True):
        if ok.any():
            out[:] = np.interp(place, place[ok], row[ok])
    return filled


def _per_channel(given: Sequence[float] | None, names: Sequence[str], what: str) -> tuple[float, ...] | None:
    if given is not None and len(given) != len(names):
        raise MaemmError(
            f"{what} has {len(given)} numbers for {len(names)} channels (modalities.signal.{what}); give {len(names)}"
        )
    return None if given is None else tuple(float(one) for one in given)


def _some(names: Sequence[str], most: int = 4) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
