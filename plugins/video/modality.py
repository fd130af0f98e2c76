"""The video modality: workers choose and crop uint8 frames; resizing and normalisation happen on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len
from torch import Tensor, nn

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import VARIANCE_EPS, GridModality
from maemm.contract.options import Channels, Fraction, Positive, PositiveInt, Repeats
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor

from .._augment.randaugment import RandAugment
from .._images.boxes import DRAWS, Box, random_box
from .._images.mirrors import MIRRORED, mirrored_with
from . import checks, crop, sampling
from .crop import RandomCrop
from .decoding import Video as File
from .positions import ClipTable, FlatSinCos, Separable, TimeFirstSinCos
from .resize import resize_clips, shrink
from .show import animation, contact_sheet
from .target import FrameChoice, Normaliser, per_colour

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FEWEST_FRAMES = 2  # videos with fewer are unreadable; those too short for the clip repeat a frame
_SHRINK = 2  # crops with both sides over this many times the model's are resized in the worker, to send fewer bytes

Position = Literal["flat", "separable", "sincos", "sincos_time_first", "learned", "fixed", "none"]


class Video(GridModality):
    """Clips (B, channels, time, height, width), and still pictures (B, channels, height, width).

    The worker chooses frames and one crop for all of them, as uint8; resizing, flip and normalisation are batched on
    the device. With ``rng=None`` it is the middle clip and the centre crop. A still picture is a clip of one time slot:
    the picture repeated over a token's frames (OmniMAE).

    Options
        size: frames, height and width of the model's input
        patch: frames, height and width of a token (VideoMAE: tubelet 2, patch 16)
        channels: colours: 3, or 1 for grey
        position: flat: one sinusoid over the token number (VideoMAE); separable: learned tables of time and space
            (MAE-ST); sincos: sinusoids of all three axes; sincos_time_first: the same with time first (V-JEPA 2's
            uniform_power); learned, fixed: one table; none
        decoder_position: the same in the decoder; null: like position
        normalize: colour: targets have mean 0 and variance 1 in each token and colour (VideoMAE); patch: in each
            token (MAE-ST); none: raw values; null: not recorded, refused
        eps_on: to which of them: std (VideoMAE) or var (MAE-ST, OmniMAE)
        units: of targets: display: pixels in 0 .. 1 (VideoMAE, OmniMAE); input: as the model sees them (MAE-ST)
        predict_frames: number of frames of the clip that are predicted, evenly spaced (MAE-ST: 8 of 16); null: all
        stride: use every stride-th frame of the video
        fps: frames per second, by their time stamps, instead of stride
        aug_repeats: what differs between the repeats of a video: crop, or also clip, the position in time (MAE-ST)
        crop: multiscale: VideoMAE's; {scale, ratio}: a random box (fraction of the area, width / height); center; null:
            the whole frame, whatever its shape
        region: the only part of the frame that is used, before any crop: top, left, height and width as fractions of
            the frame (a mouth, a road); null: all of it
        flip: mirror half of the clips
        segments: one frame from each of as many equal segments of the video as the clip has frames, instead of stride
            (Something-Something)
        tta_views: [clips, crops] over which a classifier averages its predictions: clips evenly spaced in time, crops
            along the longer side, from one decode (VideoMAE: [5, 3])
        randaugment: timm policy, the same for all frames, such as rand-m7-n4-mstd0.5-inc1; null: none
        mean: subtracted from pixels in 0 .. 1, one per colour; null: ImageNet's for 3 colours, else 0.5
        std: divisor after that; null: ImageNet's for 3 colours, else 0.5
    """

    axes = 3
    value_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        size: Annotated[Sequence[PositiveInt], Len(3, 3)] = (16, 224, 224),
        patch: Annotated[Sequence[PositiveInt], Len(3, 3)] = (2, 16, 16),
        channels: Channels = 3,
        position: Position = "flat",
        decoder_position: Position | None = None,
        normalize: Literal["colour", "patch", "none"] | None = "colour",
        eps_on: Literal["std", "var"] = "std",
        units: Literal["display", "input"] = "display",
        predict_frames: PositiveInt | None = None,
        stride: PositiveInt = 4,
        fps: Positive | None = None,
        aug_repeats: Literal["crop", "clip"] = "crop",
        crop: RandomCrop | Literal["multiscale", "center"] | None = "multiscale",
        region: Annotated[Sequence[Fraction], Len(4, 4)] | None = None,
        flip: bool = False,
        segments: bool = False,
        tta_views: tuple[Repeats, Repeats] = (1, 1),
        randaugment: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
    ):
        super().__init__(
            size=size, patch=patch, channels=channels,
            position=position,  # type: ignore[arg-type]  # make_positions below adds two kinds
            decoder_position=decoder_position,  # type: ignore[arg-type]
            normalize="patch" if normalize == "colour" else normalize,
        )  # fmt: skip
        self._frame_size = (self.size[1], self.size[2])
        self.normalize = normalize  # type: ignore[assignment]  # "colour" too
        self.units = units
        self.normaliser = None
        if normalize in ("colour", "patch"):
            self.normaliser = Normaliser(channels if normalize == "colour" else 1, VARIANCE_EPS, eps_on)
        self.choice = None if predict_frames is None else FrameChoice(self.size[0], self.patch[0], predict_frames)
        self.stride, self.fps, self.aug_repeats = stride, fps, aug_repeats
        self.crop = RandomCrop(**crop) if isinstance(crop, Mapping) else crop
        self.region, self.flip = checks.check_region(region), flip
        self.mean = checks.per_channel(mean, IMAGENET_MEAN if channels == 3 else (0.5,) * channels, channels, "mean")
        self.std = checks.per_channel(std, IMAGENET_STD if channels == 3 else (0.5,) * channels, channels, "std")
        self.segments, self._views = segments, (tta_views[0], tta_views[1])
        self.tta_views = self._views[0] * self._views[1]
        self.randaugment = None
        if randaugment is not None:
            self.randaugment = RandAugment(randaugment, self.mean, "bicubic", "modalities.video.randaugment")

    # ---- in the worker
    def load(self, raw: File | np.ndarray, rng: Rng | None) -> dict[str, Tensor]:
        """An opened video, frames (T, H, W, C) or a picture (H, W, C) -> {"x": (time, h, w, C) uint8}, cropped.

        Raises ValueError for videos with fewer than :data:`FEWEST_FRAMES` frames, OSError if decoding fails.
        """
        frames = self._read_frames(raw, None if _is_picture(raw) else self._clip(raw, rng))
        frames = _cut(frames, self._box(frames, rng))
        if rng is not None and self.randaugment is not None:
            frames = self.randaugment(frames, rng)
        return self._sample(frames)

    def load_tta_views(self, raw: File | np.ndarray) -> list[dict[str, Tensor]]:
        """``tta_views`` clips times crops of one decode; a single view of a still picture."""
        clips, crops = self._views
        if self.tta_views == 1 or _is_picture(raw):
            return [self.load(raw, None)]
        indices = self._spaced_clips(raw, clips)
        distinct = np.unique(np.concatenate(indices))
        frames = self._read_frames(raw, distinct)
        boxes = crop.view_boxes(frames.shape[1], frames.shape[2], self._frame_size, crops)
        return [self._sample(_cut(frames[np.searchsorted(distinct, index)], box)) for index in indices for box in boxes]

    def _clip(self, raw: File | np.ndarray, rng: Rng | None) -> np.ndarray:
        """(time,) int64: the frames of a random clip, or of the middle one."""
        if rng is None:
            return self._spaced_clips(raw, 1)[0] if self.segments else self._clip_at(raw, 0.5)
        if self.aug_repeats == "crop" and isinstance(raw, File) and raw.rng is not None:
            rng = raw.rng  # shared by all repeats of a video, so that it is decoded once
        if self.segments:
            offsets = rng.uniform("segments", self.size[0])[0].numpy()
            return sampling.by_segments(self._frame_count(raw), self.size[0], offsets)
        return self._clip_at(raw, rng.floats("time", 1)[0])

    def _spaced_clips(self, raw: File | np.ndarray, clips: int) -> list[np.ndarray]:
        """The frames of ``clips`` evenly spaced clips."""
        if self.segments:
            return sampling.views_by_segments(self._frame_count(raw), self.size[0], clips)
        if self.fps is None:
            return sampling.views_by_stride(self._frame_count(raw), self.size[0], self.stride, clips)
        return [self._clip_at(raw, (view + 0.5) / clips if clips == 1 else view / (clips - 1)) for view in range(clips)]

    def _clip_at(self, raw: File | np.ndarray, position: float) -> np.ndarray:
        """The frames of the clip at a ``position`` in 0 .. 1 of the video."""
        count = self._frame_count(raw)
        if self.fps is None:
            return sampling.by_stride(count, self.size[0], self.stride, position)
        if isinstance(raw, np.ndarray):
            raise ValueError("frames without time stamps cannot be sampled by fps; set stride")
        return sampling.by_time(raw.times, self.size[0], self.fps, position)

    def _frame_count(self, raw: File | np.ndarray) -> int:
        if len(raw) < FEWEST_FRAMES:
            frames = "1 frame" if len(raw) == 1 else f"{len(raw)} frames"
            raise ValueError(f"has {frames}, at least {FEWEST_FRAMES} are required")
        return len(raw)

    def _read_frames(self, raw: File | np.ndarray, index: np.ndarray | None) -> np.ndarray:
        """(time, h, w, C) uint8: the frames ``index``, or a picture (None), cut to the region, in C channels."""
        if isinstance(raw, np.ndarray):
            frames = checks.as_bytes(raw[None] if index is None else raw[index])
        else:
            assert index is not None
            frames = raw.frames_at(index)
        if self.region is not None:
            frames = _cut(frames, crop.region_box(frames.shape[1], frames.shape[2], self.region))
        return checks.as_colours(frames, self.channels)

    def _box(self, frames: np.ndarray, rng: Rng | None) -> Box:
        height, width = frames.shape[1:3]
        if self.crop is None:
            return 0, 0, height, width
        if rng is None or self.crop == "center":
            return crop.center_box(height, width, self._frame_size)
        if isinstance(self.crop, RandomCrop):
            return random_box(rng.floats("crop", DRAWS), height, width, self.crop.scale, self.crop.ratio)
        uniform = rng.floats("crop", crop.MULTISCALE_DRAWS)
        return crop.multiscale_box(uniform, height, width, self._frame_size)

    def _sample(self, frames: np.ndarray) -> dict[str, Tensor]:
        x = torch.from_numpy(frames)
        if min(frames.shape[1] / self.size[1], frames.shape[2] / self.size[2]) > _SHRINK:
            x = shrink(x, self._frame_size)
        return {"x": x}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Any]:
        """{"x": (B, time, H, W, C) uint8, "sides": B times (h, w)}: each clip is in the top left corner of its row."""
        clips = [sample["x"] for sample in samples]
        lengths = sorted({len(clip) for clip in clips})
        if len(lengths) > 1:
            raise MaemmError(f"clips of {lengths[0]} and {lengths[1]} frames do not make a batch; load them separately")
        sides = [tuple(clip.shape[1:3]) for clip in clips]
        height, width = (max(side) for side in zip(*sides, strict=True))
        x = torch.zeros(len(clips), lengths[0], height, width, clips[0].shape[-1], dtype=torch.uint8)
        for row, clip in zip(x, clips, strict=True):
            row[:, : clip.shape[1], : clip.shape[2]] = clip
        return {"x": x, "sides": sides}

    def moves(self) -> list[str]:
        """A random crop and RandAugment; ``follow`` mirrors with the clips."""
        moves = ["crop: center"] if self.crop not in (None, "center") else []
        return moves + (["randaugment: null"] if self.randaugment is not None else [])

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Any], rng: Rng | None) -> Preprocessed:
        """A batch of :meth:`collate` -> (B, C, time, height, width) float32: resized, flipped, (x - mean) / std."""
        x = resize_clips(raw["x"], raw["sides"], self._frame_size)
        info = {}
        if self.flip and rng is not None:
            info[MIRRORED] = coins = rng.uniform("flip", device=x.device) < 0.5
            x = torch.where(coins[:, None, None, None, None], x.flip(-1), x)
        mean, std = self._mean_and_std(x.device)
        return Preprocessed((x - mean) / std, info=info)

    def follow(self, stored: Tensor, tokens: Tokens, preprocessed: Preprocessed) -> Tensor:
        return mirrored_with(stored, tokens, preprocessed)

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """Clips (B, C, T, H, W), or pictures (B, C, [1,] H, W), which are repeated over a token's frames."""
        x, valid = preprocessed.x, preprocessed.valid
        if x.ndim == 4:
            x, valid = x.unsqueeze(2), None if valid is None else valid.unsqueeze(1)
        still = x.ndim == 5 and x.shape[2] == 1 < self.patch[0]
        if still:
            x = x.expand(-1, -1, self.patch[0], -1, -1)
            valid = None if valid is None else valid.expand(-1, self.patch[0], -1, -1)
        return replace(super().tokenize(replace(preprocessed, x=x, valid=valid)), context={"still": still})

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """(R, M, P) -> (R, C, time, H, W), NaN where no token is given; a still picture has one frame."""
        signal = super().untokenize(values, tokens, index)
        return signal[:, :, :1] if tokens.context.get("still") else signal

    # ---- model
    def make_positions(self, kind: str, dim: int) -> nn.Module:
        if kind == "flat":
            return FlatSinCos(dim)
        if kind == "sincos_time_first":
            return TimeFirstSinCos(dim)
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
        """(R, M, O) float32, as in VideoMAE (section 3.2), MAE-ST (section 3) or OmniMAE (section 3.2)."""
        if self.normalize is None:
            raise MaemmError("the checkpoint does not record whether targets were normalised; pass norm_pix=")
        values = self._values(tokens, index)
        return values if self.normaliser is None or not values.numel() else self.normaliser.apply(values)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Undo :meth:`target`, (R, M, O) -> (R, M, P); other frames repeat the nearest predicted one."""
        values = pred.float()
        if self.normaliser is not None:
            values = self.normaliser.undo(values, self._values(tokens, index))
        if self.units == "display":
            values = (values - per_colour(values, self.mean)) / per_colour(values, self.std)
        if self.choice is not None:
            values = self.choice.expand(values, *_time_slots(tokens, index))
        return values

    def _values(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, M, O) values of the predicted frames in the target's units."""
        values = tokens.gather(index).float()
        if self.choice is not None:
            values = self.choice.select(values, *_time_slots(tokens, index))
        if self.units == "display":
            values = values * per_colour(values, self.std) + per_colour(values, self.mean)
        return values

    # ---- pictures and facts
    def describe(self, raw: File | np.ndarray) -> dict[str, Any]:
        """Height and width in pixels, frames, seconds and frames per second."""
        if isinstance(raw, np.ndarray):
            return super().describe(raw)
        height, width = raw.frames_at([0]).shape[1:3]
        facts: dict[str, Any] = {"height": height, "width": width, "frames": len(raw)}
        if len(raw) > 1:
            facts |= {"seconds": round(raw.seconds, 2), "fps": round(len(raw) / max(raw.seconds, 1e-6), 2)}
        return facts

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """(..., C, time, H, W) as the model sees it -> pixels in 0 .. 1; NaN stays NaN."""
        mean, std = self._mean_and_std(signal.device)
        return signal.float() * std + mean

    def validity(self, x: Tensor) -> None:
        """None: all clips of a batch have the same frames, and nothing is padded."""
        return None

    def plot(self, axes: Any, signal: Tensor) -> None:
        """One clip (C, time, H, W) as a contact sheet of up to eight frames."""
        axes.set_axis_off()
        axes.imshow(contact_sheet(self.denormalize_input(signal.detach()).cpu()).numpy(), interpolation="nearest")

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """All clips (R, C, time, H, W) side by side, as an animated picture."""
        return animation({caption: self.denormalize_input(clips.detach()).cpu() for caption, clips in columns.items()})

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(C, 1, 1, 1) each. Not buffers, so that checkpoints do not hold them and a meta build does not lose them."""
        mean, std = small_tensor(self.mean, device), small_tensor(self.std, device)
        return mean[:, None, None, None], std[:, None, None, None]


def _time_slots(tokens: Tokens, index: Tensor) -> tuple[Tensor, int]:
    """The time slot of each token of ``index`` (R, M), and the number of slots."""
    assert tokens.grid is not None
    slots, height, width = tokens.grid
    return index // (height * width), slots


def _is_picture(raw: File | np.ndarray) -> bool:
    return isinstance(raw, np.ndarray) and raw.ndim == 3


def _cut(frames: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]
