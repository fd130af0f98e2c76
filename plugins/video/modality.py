"""The video modality: frames chosen and cut in the worker as bytes, resized and normalised on the device."""

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
from maemm.contract.rng import Rng

from ..image.randaugment import RandAugment
from . import checks, crop, sampling
from .crop import Box, RandomCrop
from .decoding import Video as File
from .positions import ClipTable, FlatSinCos, Separable
from .resize import resize_clips, shrink
from .show import animation, contact_sheet
from .target import FrameChoice, Normaliser, per_colour

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SHRINK = 2  # crops whose sides are this many times too large are resized in the worker, to ship fewer bytes

Position = Literal["flat", "separable", "sincos", "learned", "fixed", "none"]


class Video(GridModality):
    """Clips (B, channels, time, height, width), and still pictures (B, channels, height, width).

    The worker chooses frames and a box, the same for all of them, and hands on bytes; resizing, flip and
    normalisation are batched on the device. With ``rng=None`` the clip is the middle of the video and the box its
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
        aug_repeats: what differs between the repeats of a video: crop, or also clip, its own place in time (MAE-ST)
        crop: multiscale: VideoMAE's; {scale, ratio}: a random box (share of the area, width / height); center; null:
            the whole frame, whatever its shape
        region: the only part of the frame that is used, before any crop: top, left, height and width as shares of
            the frame (a mouth, a road); null: all of it
        flip: mirror half of the clips
        segments: one frame of each of as many equal parts of the video as the clip has frames, in place of stride
            (Something-Something)
        tta_views: [clips, crops] of one decode over which a classifier averages its answers: clips evenly placed in
            time, crops along the longer side (VideoMAE: [5, 3])
        randaugment: policy in timm's words, the same for all frames, such as rand-m7-n4-mstd0.5-inc1; null: none
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
        aug_repeats: Literal["crop", "clip"] = "crop",
        crop: RandomCrop | Literal["multiscale", "center"] | None = "multiscale",
        region: Sequence[float] | None = None,
        flip: bool = False,
        segments: bool = False,
        tta_views: tuple[int, int] = (1, 1),
        randaugment: str | None = None,
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
        self.stride, self.fps, self.shortest, self.aug_repeats = stride, fps, shortest, aug_repeats
        self.crop, self.region, self.flip = checks.crop(crop), checks.region(region), flip
        self.mean = checks.per_channel(mean, IMAGENET_MEAN if channels == 3 else (0.5,) * channels, channels, "mean")
        self.std = checks.per_channel(std, IMAGENET_STD if channels == 3 else (0.5,) * channels, channels, "std")

        self.segments, self._views = segments, checks.tta_views(tta_views)
        self.tta_views = self._views[0] * self._views[1]
        self.randaugment = None
        if randaugment is not None:
            self.randaugment = RandAugment(randaugment, self.mean, "bicubic", "modalities.video.randaugment")

    # ---- in the worker
    def load(self, raw: File | np.ndarray, rng: Rng | None) -> dict[str, Tensor]:
        """An opened video, frames (T, H, W, C) or a picture (H, W, C) -> {"x": (time, h, w, C) uint8}, cut to a box.

        Raises ValueError for videos with fewer than ``shortest`` frames, OSError where decoding fails.
        """
        if _is_picture(raw):
            frames = self._within(checks.as_bytes(raw)[None])
        else:
            frames = self._within(self._taken(raw, self._index(raw, rng)))
        x = _cut(frames, self._box(*frames.shape[1:3], rng))
        if rng is not None and self.randaugment is not None:
            x = self.randaugment(x, rng)
        return self._small(x)

    def load_tta_views(self, raw: File | np.ndarray) -> list[dict[str, Tensor]]:
        """Clips times crops of one decode; of a still picture one."""
        clips, crops = self._views
        if self.tta_views == 1 or _is_picture(raw):
            return [self.load(raw, None)]
        indices = self._indices(raw, clips)
        wanted = np.unique(np.concatenate(indices))
        frames = self._within(self._taken(raw, wanted))
        boxes = crop.view_boxes(*frames.shape[1:3], self.size[1:], crops)
        return [self._small(_cut(frames[np.searchsorted(wanted, one)], box)) for one in indices for box in boxes]

    def _index(self, raw: File | np.ndarray, rng: Rng | None) -> np.ndarray:
        """Which frames make the clip."""
        if rng is None:
            return self._indices(raw, 1)[0] if self.segments else self._at(raw, 0.5)
        if self.segments:
            places = self._in_time(raw, rng).uniform("segments", self.size[0])[0].numpy()
            return sampling.by_segments(self._count(raw), self.size[0], places)
        return self._at(raw, float(self._in_time(raw, rng).uniform("time")[0]))

    def _indices(self, raw: File | np.ndarray, clips: int) -> list[np.ndarray]:
        """Frames of ``clips`` clips that are evenly placed."""
        if self.segments:
            return sampling.views_by_segments(self._count(raw), self.size[0], clips)
        if self.fps is None:
            return sampling.views_by_stride(self._count(raw), self.size[0], self.stride, clips)
        return [self._at(raw, (view + 0.5) / clips if clips == 1 else view / (clips - 1)) for view in range(clips)]

    def _at(self, raw: File | np.ndarray, place: float) -> np.ndarray:
        count = self._count(raw)
        if self.fps is None:
            return sampling.by_stride(count, self.size[0], self.stride, place)
        if isinstance(raw, np.ndarray):
            raise ValueError("frames without time stamps cannot be taken by fps; set stride")
        return sampling.by_time(raw.times, self.size[0], self.fps, place)

    def _count(self, raw: File | np.ndarray) -> int:
        if len(raw) < self.shortest:
            frames = "1 frame" if len(raw) == 1 else f"{len(raw)} frames"
            raise ValueError(f"has {frames}, at least {self.shortest} are asked for (modalities.video.shortest)")
        return len(raw)

    @staticmethod
    def _taken(raw: File | np.ndarray, index: np.ndarray) -> np.ndarray:
        """(time, H, W, C) uint8"""
        return checks.as_bytes(raw[index]) if isinstance(raw, np.ndarray) else raw.frames_at(index)

    def _within(self, frames: np.ndarray) -> np.ndarray:
        """The region that is used, in the model's colours."""
        if self.region is not None:
            frames = _cut(frames, crop.region_box(*frames.shape[1:3], self.region))
        return checks.colours(frames, self.channels)

    def _small(self, frames: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(frames)
        if min(frames.shape[1] / self.size[1], frames.shape[2] / self.size[2]) > _SHRINK:
            x = shrink(x, self.size[1:])
        return {"x": x}

    def _in_time(self, raw: File | np.ndarray, rng: Rng) -> Rng:
        """What chooses frames: one draw for all repeats of a video, so that it is decoded once, or that of each."""
        shared = raw.rng if self.aug_repeats == "crop" and isinstance(raw, File) else None
        return rng if shared is None else shared

    def _box(self, height: int, width: int, rng: Rng | None) -> Box:
        size = self.size[1:]
        if self.crop is None:
            return 0, 0, height, width
        if rng is None or self.crop == "center":
            return crop.center_box(height, width, size)
        if self.crop == "multiscale":
            return crop.multiscale_box(rng.uniform("crop", crop.MULTISCALE_DRAWS)[0].tolist(), height, width, size)
        return crop.random_box(rng.uniform("crop", crop.RANDOM_DRAWS)[0].tolist(), height, width, self.crop)

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
    def preprocess(self, raw: Mapping[str, Any], rng: Rng | None) -> Preprocessed:
        """What :meth:`collate` made -> (B, C, time, *size) float32: resized, flipped, minus mean, divided by std."""
        x = resize_clips(raw["x"], raw["sides"], self.size[1:])
        if self.flip and rng is not None:
            coins = (rng.uniform("flip") < 0.5).to(x.device)
            x = torch.where(coins[:, None, None, None, None], x.flip(-1), x)
        mean, std = self._statistics_of_data(x.device)
        return Preprocessed((x - mean) / std)

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """Clips, or pictures (B, C, H, W) or (B, C, 1, H, W), which are repeated over a token's frames."""
        x, valid = preprocessed.x, preprocessed.valid
        if x.ndim == 4:
            x, valid = x.unsqueeze(2), None if valid is None else valid.unsqueeze(1)
        still = x.ndim == 5 and x.shape[2] == 1 < self.patch[0]
        if still:
            x = x.expand(-1, -1, self.patch[0], -1, -1)
            valid = None if valid is None else valid.expand(-1, self.patch[0], -1, -1)
        return replace(super().tokenize(replace(preprocessed, x=x, valid=valid)), context={"still": still})

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
            raise MaemmError("the checkpoint does not record whether targets were normalised; pass norm_pix=")
        values = self._values(tokens, index)
        return values if self.normaliser is None or not values.numel() else self.normaliser.apply(values)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
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
        values = tokens.gather(index).float()
        if self.choice is not None:
            values = self.choice.select(values, self._slot(tokens, index), tokens.grid[0])
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
        height, width = raw.frames_at([0]).shape[1:3]
        facts = {"height": height, "width": width, "frames": len(raw)}
        if len(raw) > 1:
            facts |= {"seconds": round(raw.seconds, 2), "fps": round(len(raw) / max(raw.seconds, 1e-6), 2)}
        return facts

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """(..., C, time, H, W) as the model sees it -> pixels 0 .. 1; NaN stays."""
        mean, std = self._statistics_of_data(signal.device)
        return signal.float() * std + mean

    def plot(self, axes: Any, signal: Tensor) -> None:
        """One clip (C, time, H, W) as up to eight of its frames in their own colours, in reading order."""
        axes.set_axis_off()
        axes.imshow(contact_sheet(self.denormalize_input(signal.detach()).cpu()).numpy(), interpolation="nearest")

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """All clips moving at once, as an animated picture."""
        return animation({name: self.denormalize_input(one.detach()).cpu() for name, one in columns.items()})

    def _statistics_of_data(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std (C, 1, 1, 1); no buffers, so that they are neither stored nor lost on ``meta``."""
        cache = self.__dict__.setdefault("_on_device", {})
        if device not in cache:
            cache[device] = tuple(
                torch.tensor(one, device=device)[:, None, None, None] for one in (self.mean, self.std)
            )
        return cache[device]


def _is_picture(raw: File | np.ndarray) -> bool:
    return isinstance(raw, np.ndarray) and raw.ndim == 3


def _cut(frames: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]
