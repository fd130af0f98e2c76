"""The audio modality: waveforms from the worker, log-mel spectrograms on the device, patches of them as tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Le, Len
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality, as_tuple
from maemm.contract.options import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from maemm.contract.positions import lattice
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor

from . import overlap
from . import preprocess as on_device
from .frontend import FilterBank
from .load import RATES, Cut, Sound, load_wave
from .positions import StoredTable
from .preprocess import CONSTANTS, Constants


class SpecAugment(BaseModel):
    """Largest widths of the bands that are zeroed: mels and frames."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    frequency: NonNegativeInt = Field(default=48, description="mels")
    time: NonNegativeInt = Field(default=192, description="frames")


class Audio(GridModality):
    """Sounds as log-mel spectrograms (B, frames, mels), the filter bank of AudioMAE and CAV-MAE.

    The worker reads, mixes channels and resamples; everything else is batched on the device. Clips have any length:
    ``size`` is the number of frames that position tables are made for, and the length of a sample unless ``seconds``
    is set. Shorter clips are padded at the end: with ``pad: masked`` padded patches are neither seen nor predicted
    nor counted, and a last patch that the clip does not fill is left out; with ``pad: seen`` all clips are padded to
    the full length and the model sees the padding, as published. A silent clip is unreadable unless ``silent: keep``.

    Options
        size: frames and mel bands that position tables are made for
        patch: frames and mel bands of a patch, one number or two
        stride: frames and mel bands from patch to patch; null: patches do not overlap
        order: time_major (AudioMAE): tokens, and values inside a patch, run over time first; mel_major (CAV-MAE)
        rate: samples per second; files of another rate are resampled
        channel: mean of all channels, or the index of one
        seconds: longest sample; null: the frames of size
        crop: part of a longer recording: random (in training), head or center
        pad: masked or seen
        bucket: padded lengths are multiples of this many frames; null: of a patch
        constants: mean, std and std_scale of audioset, esc50, speechcommands (AudioMAE) or cavmae
        mean: of the log-mel; null: from constants
        std: of the log-mel; null: from constants
        std_scale: std is multiplied by it: 2 in AudioMAE, 1 in CAV-MAE; null: from constants
        silent: refuse or keep clips whose samples are all equal
        gain: augmentation: multiply clips by Beta(10, 10) + 0.5
        roll: augmentation: roll clips by a random fraction of their length
        mixup: augmentation: probability that a clip is mixed with its neighbour in the batch
        spec_augment: augmentation: {frequency, time}, largest widths of the bands zeroed before normalisation
        noise: augmentation: scale of uniform noise after normalisation (CAV-MAE 0.1)
    """

    axes = 2

    def __init__(
        self,
        *,
        size: Annotated[Sequence[PositiveInt], Len(2, 2)] = (1024, 128),
        patch: PositiveInt | Sequence[PositiveInt] = 16,
        stride: PositiveInt | Sequence[PositiveInt] | None = None,
        order: Literal["time_major", "mel_major"] = "time_major",
        rate: Annotated[int, Ge(RATES[0]), Le(RATES[1])] = 16000,
        channel: Literal["mean"] | NonNegativeInt = "mean",
        seconds: Positive | None = None,
        crop: Literal["random", "head", "center"] = "random",
        pad: Literal["masked", "seen"] = "masked",
        bucket: PositiveInt | None = None,
        constants: Literal["audioset", "esc50", "speechcommands", "cavmae"] = "audioset",
        mean: float | None = None,
        std: Positive | None = None,
        std_scale: Positive | None = None,
        silent: Literal["refuse", "keep"] = "refuse",
        gain: bool = False,
        roll: bool = False,
        mixup: Fraction = 0.0,
        spec_augment: SpecAugment | None = None,
        noise: NonNegative = 0.0,
        **grid: Any,
    ):
        size, patch = as_tuple(size, 2), as_tuple(patch, 2)
        if len(size) != 2 or len(patch) != 2:
            raise MaemmError(f"audio has two axes, got size {size} and patch {patch}; give [frames, mels]")
        mel_major = order == "mel_major"
        super().__init__(size=_token_axes(size, mel_major), patch=_token_axes(patch, mel_major), **grid)
        self.mel_major = mel_major
        if self.channels != 1:
            raise MaemmError("a spectrogram has one channel (modalities.audio.channels); leave channels out")
        self.stride = self.patch if stride is None else _token_axes(as_tuple(stride, 2), mel_major)
        if self.stride != self.patch:
            self.grid = overlap.grid_of(self.size, self.patch, self.stride)
        self.bank = FilterBank(rate, size[1])
        self.patch_frames, self.step = patch[0], _token_axes(self.stride, mel_major)[0]  # frames from token to token
        self.frames = size[0] if seconds is None else self.covered(self.bank.frames(round(seconds * rate)))
        if self.frames < patch[0]:
            raise MaemmError(
                f"{seconds:g} s are shorter than one patch of {patch[0]} frames (modalities.audio.seconds)"
            )
        self.pad, self.bucket = pad, bucket or 1
        self.cut = Cut(rate, self.bank.samples(self.frames), self.bank.samples(patch[0]), channel, crop, silent)
        self.constants = _constants(CONSTANTS[constants], mean, std, std_scale)
        self.gain, self.roll, self.noise = gain, roll, noise
        self.spec_augment = SpecAugment(**spec_augment) if isinstance(spec_augment, Mapping) else spec_augment
        self.mixup = mixup

    def covered(self, frames: int) -> int:
        """How many of ``frames`` whole patches cover."""
        if frames < self.patch_frames:
            return 0
        return self.patch_frames + (frames - self.patch_frames) // self.step * self.step

    # ---- in the worker
    def load(self, raw: Sound, rng: Rng | None) -> dict[str, Tensor]:
        """A :class:`~.load.Sound` -> {"wave": (samples,) float32 at the modality's rate}."""
        return {"wave": load_wave(raw, self.cut, rng)}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Any]:
        """{"wave": (B, S) padded with zeros, "samples": lengths}; lengths stay on the host."""
        waves = [sample["wave"] for sample in samples]
        return {"wave": pad_sequence(waves, batch_first=True), "samples": [len(wave) for wave in waves]}

    def moves(self) -> list[str]:
        """A random part of longer recordings, rolled and mixed clips."""
        moves = ["crop: center"] if self.cut.crop == "random" else []
        return moves + (["roll: false"] if self.roll else []) + (["mixup: 0"] if self.mixup else [])

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Any], rng: Rng | None) -> Preprocessed:
        """{"wave": (B, S), "samples": B lengths} -> (B, T, F) normalised log-mel; ``valid`` (B, T) where padded."""
        wave = raw["wave"].float()
        lengths = [int(n) for n in raw["samples"]]
        samples = small_tensor(lengths, wave.device)
        wave, info = on_device.without_mean(wave, samples), dict[str, Tensor]()
        if rng is not None:
            wave, info = self._augmented(wave, samples, rng)
        frames = [min(self.bank.frames(n), self.frames) for n in lengths]
        length = self._length(max(frames, default=0))
        logmel = on_device.fit(self.bank(wave), length)
        valid = None
        if min(frames, default=length) < length:
            inside = on_device.inside(small_tensor(frames, wave.device), length)
            logmel = logmel.masked_fill(~inside[..., None], 0.0)  # on the raw log-mel, as published
            valid = inside if self.pad == "masked" else None
        if rng is not None and self.spec_augment is not None:
            logmel = on_device.spec_augment(logmel, rng, self.spec_augment.frequency, self.spec_augment.time)
        mean, std, std_scale = self.constants
        x = (logmel - mean) / (std * std_scale)
        if rng is not None and self.noise:
            x = on_device.noise(x, rng, self.noise)
        return Preprocessed(x, valid, info)

    def _augmented(self, wave: Tensor, samples: Tensor, rng: Rng) -> tuple[Tensor, dict[str, Tensor]]:
        if self.roll:
            wave = on_device.roll(wave, samples, rng)
        if self.gain:
            wave = on_device.gain(wave, rng)
        if not self.mixup:
            return wave, {}
        wave, mix = on_device.mixup(wave, samples, rng, self.mixup)
        return wave, {"mixed_with": mix.partner, "mix_share": mix.fraction}

    def token_shapes(self) -> int:
        """Padded clips may have any length that covers whole patches, or of those the multiples of ``bucket``."""
        return len({self._length(longest) for longest in range(self.patch_frames, self.frames + 1)})

    def _length(self, longest: int) -> int:
        """Frames of a batch, padded, whose longest clip has ``longest``."""
        if self.pad == "seen":
            return self.frames
        length = self.covered(longest)
        if not length:
            hop = 1000 * self.bank.hop / self.bank.rate
            raise MaemmError(
                f"the batch has {longest} frames of {hop:g} ms, a patch needs {self.patch_frames} "
                "(modalities.audio.patch); use longer clips or a smaller patch"
            )
        bucketed = min(-(-length // self.bucket) * self.bucket, self.frames)
        return max(length, self.covered(bucketed))

    # ---- tokens
    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """(B, T, F) -> patches; a patch is valid where all its frames are."""
        x, valid = preprocessed.x, preprocessed.valid
        if x.ndim != 3:
            raise MaemmError(f"audio expects (B, frames, mels), got {tuple(x.shape)}; give log-mel, one channel")
        if valid is not None:
            if valid.shape not in (x.shape, x.shape[:2]):
                raise MaemmError(f"audio: valid is {tuple(valid.shape)} for x {tuple(x.shape)}; give (B, frames)")
            valid = self._swapped(valid if valid.ndim == 3 else valid[..., None].expand(x.shape))
        tokens = self._cut(self._swapped(x), valid)
        # Maskings by time or frequency read which axis of the grid is time.
        return replace(tokens, context={"time_axis": int(self.mel_major), "size": x.shape[1:]})

    def _cut(self, x: Tensor, valid: Tensor | None) -> Tokens:
        if self.stride == self.patch:
            return super().tokenize(Preprocessed(x[:, None], valid))
        grid = overlap.grid_of(tuple(x.shape[1:]), self.patch, self.stride)
        valid = None if valid is None else overlap.cut(valid, self.patch, self.stride).all(-1)
        return Tokens(overlap.cut(x, self.patch, self.stride), lattice(grid, x.device)[None], grid, valid)

    def _swapped(self, x: Tensor) -> Tensor:
        """Time and frequency in the order of the token axes, or back."""
        return x.transpose(1, 2) if self.mel_major else x

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """(R, M, P) -> (R, T, F); NaN where no token is given. Where patches overlap, their mean."""
        if self.stride == self.patch:
            return self._swapped(super().untokenize(values, tokens, index)[:, 0])
        size = _token_axes(tokens.context["size"], self.mel_major)
        return self._swapped(overlap.put(values, index, tokens.count, size, self.patch, self.stride))

    def make_positions(self, kind: str, dim: int) -> nn.Module:
        if kind in ("fixed", "learned") and not self.mel_major:
            return StoredTable(dim, self.grid, learned=kind == "learned")
        return super().make_positions(kind, dim)

    # ---- pictures and tests
    def example(self, batch: int, rng: Rng) -> Preprocessed:
        frames, mels = _token_axes(self.size, self.mel_major)
        return Preprocessed((rng.uniform("example", batch, frames, mels)[0] - 0.5) * 12**0.5)

    def validity(self, x: Tensor) -> Tensor | None:
        """Of frames, (B, T); None where the model sees the padding."""
        return torch.ones(x.shape[:2], dtype=torch.bool) if self.pad == "masked" else None

    def plot(self, axes: Any, signal: Tensor) -> None:
        """One spectrogram (T, F): time to the right, mel bands upwards, grey where hidden."""
        from .pictures import draw_spectrogram

        scores = signal.detach().float().cpu() * self.constants.std_scale
        draw_spectrogram(axes, scores, self.bank.hop / self.bank.rate)

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """Players of input and reconstruction, made from the spectrograms alone."""
        from .sound import player

        return player({name: self.denormalize_input(signal) for name, signal in columns.items()}, self.bank)

    # ---- facts about data
    def describe(self, raw: Sound) -> dict[str, Any]:
        """Length, rate and channels of a recording."""
        facts: dict[str, Any] = {"seconds": raw.length / raw.rate, "rate": f"{raw.rate} Hz"}
        return facts | ({"channels": raw.channels} if hasattr(raw, "channels") else {})

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """What the model sees -> raw log-mel; NaN stays."""
        mean, std, std_scale = self.constants
        return signal.float() * (std * std_scale) + mean

    def by_channel(self, preprocessed: Preprocessed) -> Tensor:
        """(1, n) raw log-mel, NaN where padded."""
        x = self.denormalize_input(preprocessed.x)
        if preprocessed.valid is not None:
            valid = preprocessed.valid if preprocessed.valid.ndim == 3 else preprocessed.valid[..., None]
            x = x.masked_fill(~valid, float("nan"))
        return x.reshape(1, -1)


def _token_axes(pair: Sequence[int], mel_major: bool) -> tuple[int, int]:
    """(time, mel) -> the order of the token axes; its own inverse."""
    return (pair[1], pair[0]) if mel_major else (pair[0], pair[1])


#: option -> whether a value is allowed, and what is
def _constants(published: Constants, mean: float | None, std: float | None, std_scale: float | None) -> Constants:
    return Constants(
        published.mean if mean is None else mean,
        published.std if std is None else std,
        published.std_scale if std_scale is None else std_scale,
    )
