"""The video modality: frames chosen and cut in the worker as bytes, resized and normalised on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from maemm.contract import Prepared, Tokens
from maemm.draws import Draw
from maemm.errors import MaemmError
from maemm.grid import GridModality

from . import checks, crop, sampling
from .crop import Box, RandomCrop
from .decoding import Video as File
from .positions import ClipTable, FlatSinCos, Separable
from .resize import resize_clips, shrink
from .show import contact_sheet
from .target import FrameChoice, Normaliser, per_colour

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHRINK = 2  # crops whose sides are this many times too large are resized in the worker, to ship fewer bytes

Position = Literal["flat", "separable", "sincos", "learned", "fixed", "none"]


class Video(GridModality):
    """Clips (B, channels, time, height, width), and still pictures (B, channels, height, width).

    The worker chooses frames and a box, the same for all of them, and hands on bytes; resizing, flip and
    normalisation are batched on the device. With ``draw=None`` the clip is the middle of the video and the box its
    centre. A still picture is a clip of one time slot: the picture repeated over a token's frames (OmniMAE).

    Options
        size: frames, height and width of the clip that the model sees
        patch: frames, height and width of a token (VideoMAE: tubelet 2, patch 16)
        channels: colours: 3, or 1 for grey
        position: flat: one sinusoid over the token number (VideoMAE); separable: learned tables of time and space
            (MAE-ST); sincos: sinusoids of all three axes; learned, fixed: one table; none
        decoder_position: the same in the decoder; null: like position
        normalize: colour: targets have mean 0 and variance 1 in each token and colour (VideoMAE); patch: in each
            token (MAE-ST); none: raw; null: unknown, ask
        normalize_eps: what keeps the division finite
        eps_on: where it is added: std (VideoMAE) or var (MAE-ST, OmniMAE)
        units: of targets: display: pixels of 0 .. 1 (VideoMAE, OmniMAE); input: as the model sees them (MAE-ST)
        predict_frames: how many frames of the clip are predicted, evenly spaced (MAE-ST: 8 of 16); null: all
        stride: distance of frames in the video
        fps: frames a second, by their time stamps, in place of stride
        shortest: videos with fewer frames are unreadable; those too short for the clip repeat a frame
        repeats: what differs between data.repeats of a video: crop, or also clip, its own place in time (MAE-ST)
        crop: multiscale: VideoMAE's; {scale, ratio}: a random box (share of the area, width / height); center; null:
            the whole frame, whatever its shape
        flip: mirror half of the clips
        mean: subtracted from pixels of 0 .. 1, a number per colour; null: ImageNet's for 3 colours, else 0.5
        std: then divided by; null: ImageNet's for 3 colours, else 0.5
    """

    axes = 3

    def __init__(
        self,
        *,
        size: Sequence[int] = (16, 224, 224),
        patch: Sequence[int] = (2, 16, 16),
        channels: int = 3,
        position: Position = "flat",
        decoder_position: Position | None = None,
        normalize: Literal["colour", "patch", "none"] | None = "colour",
        normalize_eps: float = 1e-6,
        eps_on: Literal["std", "var"] = "std",
        units: Literal["display", "input"] = "display",
        predict_frames: int | None = None,
        stride: int = 4,
        fps: float | None = None,
        shortest: int = 2,
        repeats: Literal["crop", "clip"] = "crop",
        crop: RandomCrop | Literal["multiscale", "center"] | None = "multiscale",
        flip: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        checks.three_axes(size, patch)
        checks.numbers(channels=channels, stride=stride, shortest=shortest, fps=fps)
        super().__init__(
            size=size, patch=patch, channels=channels, position=position, decoder_position=decoder_position,
            normalize="patch" if normalize == "colour" else normalize, normalize_eps=normalize_eps,
        )  # fmt: skip
        self.normalize, self.units = normalize, units
        self.normaliser = None
        if normalize in ("colour", "patch"):
            self.normaliser = Normaliser(channels if normalize == "colour" else 1, normalize_eps, eps_on)
        self.choice = None if predict_frames is None else FrameChoice(self.size[0], self.patch[0], predict_frames)
        self.stride, self.fps, self.shortest, self.repeats = stride, fps, shortest, repeats
        self.crop, self.flip = checks.crop(crop), flip
        self.mean = checks.per_channel(mean, IMAGENET_MEAN if channels == 3 else (0.5,) * channels, channels, "mean")
        self.std = checks.per_channel(std, IMAGENET_STD if channels == 3 else (0.5,) * channels, channels, "std")

    # ---- in the worker
    def load(self, raw: File | np.ndarray, draw: Draw | None) -> dict[str, Tensor]:
        """An opened video, frames (T, H, W, C) or a picture (H, W, C) -> {"x": (time, h, w, C) uint8}, cut to a box.

        Raises ValueError for videos with fewer than ``shortest`` frames, OSError where decoding fails.
        """
        frames = checks.colours(self._frames(raw, draw), self.channels)
        top, left, height, width = self._box(*frames.shape[1:3], draw)
        x = torch.from_numpy(frames[:, top : top + height, left : left + width])
        if min(height / self.size[1], width / self.size[2]) > _SHRINK:
            x = shrink(x, self.size[1:])
        return {"x": x}

    def _frames(self, raw: File | np.ndarray, draw: Draw | None) -> np.ndarray:
        """(time, H, W, C) uint8; one frame where a picture is given."""
        if isinstance(raw, np.ndarray) and raw.ndim == 3:
            return checks.as_bytes(raw)[None]
        count = len(raw)
        if count < self.shortest:
            raise ValueError(f"has {count} frames, at least {self.shortest} are asked for (modalities.video.shortest)")
        place = 0.5 if draw is None else self._place(raw, draw)
        if self.fps is None:
            index = sampling.by_stride(count, self.size[0], self.stride, place)
        elif isinstance(raw, np.ndarray):
            raise ValueError("frames without time stamps cannot be taken by fps; set stride")
        else:
            index = sampling.by_time(raw.times, self.size[0], self.fps, place)
        return checks.as_bytes(raw[index]) if isinstance(raw, np.ndarray) else raw.take(index)

    def _place(self, raw: File | np.ndarray, draw: Draw) -> float:
        """Where in time: once for all repeats of a sample, so that it is decoded once, or for each."""
        if self.repeats == "crop" and isinstance(raw, File) and raw.place is not None:
            return raw.place
        return float(draw.rand("time")[0])

    def _box(self, height: int, width: int, draw: Draw | None) -> Box:
        size = self.size[1:]
        if self.crop is None:
            return 0, 0, height, width
        if draw is None or self.crop == "center":
            return crop.center_box(height, width, size)
        if self.crop == "multiscale":
            return crop.multiscale_box(draw.rand("crop", crop.MULTISCALE_DRAWS)[0].tolist(), height, width, size)
        return crop.random_box(draw.rand("crop", crop.RANDOM_DRAWS)[0].tolist(), height, width, self.crop)

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Any]:
        """{"x": (B, time, H, W, C) uint8, "sides": B times (h, w)}: each clip stands in the top left corner."""
        clips = [one["x"] for one in samples]
        lengths = sorted({len(clip) for clip in clips})
        if len(lengths) > 1:
            raise MaemmError(f"clips of {lengths[0]} and {lengths[1]} frames do not make a batch; read them apart")
        sides = [tuple(clip.shape[1:3]) for clip in clips]
        height, width = (max(side) for side in zip(*sides, strict=True))
        x = torch.zeros(len(clips), lengths[0], height, width, clips[0].shape[-1], dtype=torch.uint8)
        for place, clip in zip(x, clips, strict=True):
            place[:, : clip.shape[1], : clip.shape[2]] = clip
        return {"x": x, "sides": sides}

    # ---- on the device
    def prepare(self, raw: Mapping[str, Any], draw: Draw | None) -> Prepared:
        """What :meth:`collate` made -> (B, C, time, *size) float32: resized, flipped, minus mean, divided by std."""
        x = resize_clips(raw["x"], raw["sides"], self.size[1:])
        if self.flip and draw is not None:
            coins = (draw.rand("flip") < 0.5).to(x.device)
            x = torch.where(coins[:, None, None, None, None], x.flip(-1), x)
        mean, std = self._statistics_of_data(x.device)
        return Prepared((x - mean) / std)

    def tokenize(self, prepared: Prepared) -> Tokens:
        """Clips, or pictures (B, C, H, W) or (B, C, 1, H, W), which are repeated over a token's frames."""
        x, valid = prepared.x, prepared.valid
        if x.ndim == 4:
            x, valid = x.unsqueeze(2), None if valid is None else valid.unsqueeze(1)
        still = x.ndim == 5 and x.shape[2] == 1 < self.patch[0]
        if still:
            x = x.expand(-1, -1, self.patch[0], -1, -1)
            valid = None if valid is None else valid.expand(-1, self.patch[0], -1, -1)
        return replace(super().tokenize(replace(prepared, x=x, valid=valid)), context={"still": still})

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """(R, M, P) -> (R, C, time, H, W), NaN where no token is given; one frame of a still picture."""
        signal = super().untokenize(values, tokens, index)
        return signal[:, :, :1] if tokens.context.get("still") else signal

    # ---- model
    def make_positions(self, kind: str, dim: int) -> nn.Module:
        if kind == "flat":
            return FlatSinCos(dim)
        if kind == "separable":
            return Separable(dim, self.grid)
        if kind in ("learned", "fixed"):
            return ClipTable(dim, self.grid, learned=kind == "learned")
        return super().make_positions(kind, dim)

    # ---- target
    def output_dim(self) -> int:
        frames = self.patch[0] if self.choice is None else self.choice.per_slot
        return self.values_dim() // self.patch[0] * frames

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, M, O) float32: VideoMAE (section 3.2), MAE-ST (section 3) or OmniMAE (section 3.2), by the options."""
        if self.normalize is None:
            raise MaemmError("the weights do not tell the target's normalisation; load with norm_pix=True or False")
        values = self._values(tokens, index)
        return values if self.normaliser is None or not values.numel() else self.normaliser.apply(values)

    def restore(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Undo :meth:`target`; frames that are not predicted repeat the nearest that is."""
        values = pred.float()
        if self.normaliser is not None:
            values = self.normaliser.undo(values, self._values(tokens, index))
        if self.units == "display":
            values = (values - per_colour(values, self.mean)) / per_colour(values, self.std)
        if self.choice is not None:
            values = self.choice.put(values, self._slot(tokens, index), tokens.grid[0])
        return values

    def _values(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, M, O) values of the predicted frames in the target's units."""
        values = tokens.take(index).float()
        if self.choice is not None:
            values = self.choice.take(values, self._slot(tokens, index), tokens.grid[0])
        if self.units == "display":
            values = values * per_colour(values, self.std) + per_colour(values, self.mean)
        return values

    @staticmethod
    def _slot(tokens: Tokens, index: Tensor) -> Tensor:
        return index // (tokens.grid[1] * tokens.grid[2])

    # ---- what people see
    def describe(self, raw: File | np.ndarray) -> dict[str, Any]:
        """Height and width in pixels, frames, seconds and frames a second."""
        if isinstance(raw, np.ndarray):
            return super().describe(raw)
        height, width = raw.take([0]).shape[1:3]
        facts = {"height": height, "width": width, "frames": len(raw)}
        if len(raw) > 1:
            facts |= {"seconds": round(raw.seconds, 2), "fps": round(len(raw) / max(raw.seconds, 1e-6), 2)}
        return facts

    def denormalize(self, signal: Tensor) -> Tensor:
        """(..., C, time, H, W) as the model sees it -> pixels 0 .. 1; NaN stays."""
        mean, std = self._statistics_of_data(signal.device)
        return signal.float() * std + mean

    def draw(self, axes: Any, signal: Tensor) -> None:
        """One clip (C, time, H, W) as up to eight of its frames in their own colours, in reading order."""
        axes.set_axis_off()
        axes.imshow(contact_sheet(self.denormalize(signal.detach()).cpu()).numpy(), interpolation="nearest")

    def _statistics_of_data(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std (C, 1, 1, 1); no buffers, so that they are neither stored nor lost on ``meta``."""
        cache = self.__dict__.setdefault("_on_device", {})
        if device not in cache:
            cache[device] = tuple(
                torch.tensor(one, device=device)[:, None, None, None] for one in (self.mean, self.std)
            )
        return cache[device]
