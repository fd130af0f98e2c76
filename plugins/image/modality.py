"""The image modality: crops in the worker, flips and normalisation on the device, patches of the grid modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import default_collate

from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.options import Channels, Interval, Positive, PositiveFraction, PositiveInt
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.data.encodable import encodable

from .._augment.randaugment import RandAugment
from .._images.boxes import DRAWS, Box, random_box, random_boxes
from .._images.mirrors import MIRRORED, mirrored_with
from . import preprocess as on_device
from .regions import Felzenszwalb, painted, region_maps

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's grey


class RandomCrop(BaseModel):
    """A random box, resized to the model's size."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: Interval[PositiveFraction] = Field(default=(0.2, 1.0), description="fraction of the image's area")
    ratio: Interval[Positive] = Field(default=(3 / 4, 4 / 3), description="width / height")


MAE_CROP = RandomCrop()  # the published pre-training recipe
REGIONS = Felzenszwalb()


class Image(GridModality):
    """Images (B, channels, height, width) with any number of channels.

    In training a sample is cropped and resized (antialiased, on uint8) in the worker; flip and normalisation are
    batched on the device. In evaluation, ``load`` and ``preprocess`` with ``rng=None``, the image is resized and
    center-cropped, as in the published evaluation; an image of the model's size is not resized. Grey images are
    repeated over the model's channels; RGB becomes grey (BT.601) for a model of one channel; any other mismatch of
    channels is an error. 16-bit and float images are processed in float32.

    Options
        size: height and width of the image that the model sees, one number or two
        patch: height and width of a patch, one number or two
        channels: channels of the image
        crop: {scale, ratio}: a random box (fraction of the area, width / height) resized to size; center: as in
            evaluation; null: the whole image resized, whatever its aspect ratio
        flip: mirror half of the images
        randaugment: a timm policy, such as rand-m9-mstd0.5-inc1 (MAE's fine-tuning), for 8-bit RGB; null: none
        mean: subtracted from pixels of 0 .. 1, a number per channel; null: ImageNet's for 3 channels, else 0.5
        std: then divided by, a number per channel; null: ImageNet's for 3 channels, else 0.5
        interpolation: bicubic or bilinear
        device_crop: crop batches on the device instead of images in the worker; all files must have the same size
        center: fraction of the short side that a center crop keeps; null: 0.875 up to size 224, else 1
        regions: {scale, sigma, min_size} of Felzenszwalb's segmentation, where an objective asks for regions; several
            scales make several maps
    """

    axes = 2
    aligned_options = ("crop", "flip", "center", "frame")
    value_range = (0.0, 1.0)

    def __init__(
        self,
        *,
        size: PositiveInt | Sequence[PositiveInt] = 224,
        patch: PositiveInt | Sequence[PositiveInt] = 16,
        channels: Channels = 3,
        crop: RandomCrop | Literal["center"] | None = MAE_CROP,
        flip: bool = True,
        randaugment: str | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        interpolation: Literal["bicubic", "bilinear"] = "bicubic",
        device_crop: bool = False,
        center: PositiveFraction | None = None,
        regions: Felzenszwalb = REGIONS,
        **grid: Any,
    ):
        super().__init__(size=size, patch=patch, channels=channels, **grid)
        if len(self.size) != 2 or len(self.patch) != 2:
            raise MaemmError(
                f"an image has two axes, got size {self.size} and patch {self.patch}; give one number or two"
            )
        self.crop = RandomCrop(**crop) if isinstance(crop, Mapping) else crop
        self.regions = Felzenszwalb(**regions) if isinstance(regions, Mapping) else regions
        self.center = center or (0.875 if max(self.size) <= 224 else 1.0)
        self.flip, self.interpolation, self.device_crop = flip, interpolation, device_crop
        self.scaled = mean is not None or std is not None  # then pixels may have any range
        imagenet = channels == 3
        self.mean = _per_channel(mean, IMAGENET_MEAN if imagenet else (0.5,) * channels, channels, "mean")
        self.std = _per_channel(std, IMAGENET_STD if imagenet else (0.5,) * channels, channels, "std")
        self.randaugment = None
        if randaugment is not None:
            if channels != 3 or device_crop:
                raise MaemmError(
                    "randaugment is for 3 channels, cropped in the worker (modalities.image.randaugment); set null"
                )
            self.randaugment = RandAugment(randaugment, self.mean, interpolation, "modalities.image.randaugment")

    @property
    def frame(self) -> tuple[int, ...]:
        """Size of pictures that evaluation takes as they are, without a center crop."""
        return self.size

    # ---- in the worker
    def load(self, raw: np.ndarray, rng: Rng | None) -> dict[str, Tensor]:
        """(H, W, C) uint8, uint16 or float -> {"x": (channels, *size)} uint8, or float32 0 .. 1.

        With ``device_crop`` the image keeps its size. ``rng=None``: the crop of the evaluation.
        """
        self._check_range(raw)
        if self.device_crop:
            return {"x": self._with_channels(self._pixels(raw))}
        height, width = raw.shape[:2]
        if rng is not None and isinstance(self.crop, RandomCrop):
            box = self._random_box(rng.floats("crop", DRAWS), height, width)
            x = self._resized(self._pixels(_cut(raw, box)), self.size)
        elif (height, width) == self.frame or self.crop is None:
            x = self._resized(self._pixels(raw), self.size)
        else:
            resized, (top, left) = self._center_crop(height, width)
            x = self._resized(self._pixels(raw), resized)[:, top : top + self.size[0], left : left + self.size[1]]
        x = self._with_channels(x)
        return {"x": x if rng is None or self.randaugment is None else self.randaugment.on_tensor(x, rng)}

    def side_input(self, name: str, loaded: Mapping[str, Any], rng: Rng | None) -> Tensor:
        """ "regions": labels (S, *size) uint8 of the regions of the cropped picture, see :func:`region_maps`."""
        if name != "regions":
            return super().side_input(name, loaded, rng)
        return region_maps(loaded["x"], self.regions, rng)

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Stack; in a batch of 8-bit and deeper images all become float."""
        shapes = {tuple(sample["x"].shape) for sample in samples}
        if len(shapes) > 1:
            sizes = ", ".join(sorted(f"{h} x {w}" for _, h, w in shapes)[:3])
            raise MaemmError(
                f"images differ in size ({sizes}, ...; modalities.image.device_crop); set device_crop to false"
            )
        if len({sample["x"].dtype for sample in samples}) > 1:
            samples = [{"x": on_device.as_float(sample["x"])} for sample in samples]
        return default_collate(samples)

    def moves(self) -> list[str]:
        """A random crop and RandAugment; ``follow`` mirrors with the pictures."""
        moves = ["crop: center"] if isinstance(self.crop, RandomCrop) else []
        return moves + (["randaugment: null"] if self.randaugment is not None else [])

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, C, H, W)} -> float32, cropped if ``device_crop``, flipped, minus mean, divided by std."""
        x, info = self._moved(raw["x"], rng)
        mean, std = self._mean_and_std(x.device)
        return Preprocessed((on_device.as_float(x) - mean) / std, info=info)

    def _moved(self, x: Tensor, rng: Rng | None) -> tuple[Tensor, dict[str, Any]]:
        """The batch, cropped on the device and mirrored as the options say, and which samples were mirrored."""
        if self.device_crop:
            cropped = self._cropped(on_device.as_float(x), rng)
            x = cropped if self.scaled and x.dtype != torch.uint8 else cropped.clamp(0, 1)  # bicubic kernels overshoot
        info = {}
        if self.flip and rng is not None:
            info[MIRRORED] = rng.uniform("flip", device=x.device) < 0.5
            x = on_device.flip(x, info[MIRRORED])
        return x, info

    def _cropped(self, x: Tensor, rng: Rng | None) -> Tensor:
        """Crop a batch (B, C, H, W) float as :meth:`load` would have cropped each image."""
        height, width = x.shape[-2:]
        if rng is not None and isinstance(self.crop, RandomCrop):
            uniform = rng.uniform("crop", DRAWS)
            boxes = random_boxes(uniform, height, width, self.crop.scale, self.crop.ratio)
            return on_device.crop_resize(x, boxes, self.size, self.interpolation)
        if (height, width) == self.size:
            return x
        resized, (top, left) = (self.size, (0, 0)) if self.crop is None else self._center_crop(height, width)
        boxes = torch.tensor([[0, 0, height, width]]).expand(len(x), -1)
        x = on_device.crop_resize(x, boxes, resized, self.interpolation)
        return x[..., top : top + self.size[0], left : left + self.size[1]]

    def follow(self, stored: Tensor, tokens: Tokens, preprocessed: Preprocessed) -> Tensor:
        return mirrored_with(stored, tokens, preprocessed)

    # ---- pictures and statistics
    def describe(self, raw: np.ndarray) -> dict[str, Any]:
        """Height and width in pixels, channels, data type."""
        height, width, channels = raw.shape
        return {"height": height, "width": width, "channels": channels, "type": str(raw.dtype)}

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """(..., C, H, W) as the model sees it -> pixels 0 .. 1; NaN stays."""
        mean, std = self._mean_and_std(signal.device)
        return signal.float() * std + mean

    def side_picture(self, name: str, value: Tensor, preprocessed: Preprocessed) -> Tensor | None:
        """Every region in its mean colour."""
        return painted(value, preprocessed.x) if name == "regions" else None

    def plot(self, axes: Any, signal: Tensor) -> None:
        """One image (C, H, W): RGB of the first three channels, or grey of the first; NaN is grey."""
        pixels = self.denormalize_input(signal.detach()).cpu()
        pixels = pixels[: 3 if len(pixels) >= 3 else 1]
        hidden = pixels.isnan().any(0)
        pixels = encodable(pixels, 0, 1).expand(3, -1, -1)
        axes.set_axis_off()
        axes.imshow(torch.where(hidden, 0.6, pixels).permute(1, 2, 0).numpy(), interpolation="nearest")

    # ---- helpers
    def _pixels(self, raw: np.ndarray) -> Tensor:
        """(H, W, C) -> (C, H, W); 16 bits -> float32 0 .. 1."""
        if raw.dtype == np.uint16:
            raw = raw.astype(np.float32) / 65535
        return torch.from_numpy(raw).permute(2, 0, 1)

    def _random_box(self, uniform: Sequence[float], height: int, width: int) -> Box:
        assert isinstance(self.crop, RandomCrop)
        return random_box(uniform, height, width, self.crop.scale, self.crop.ratio)

    def _center_crop(self, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Size to resize to, and top and left of the model's size in it."""
        # int, as torchvision's Resize(256) truncates the longer side; the epsilon undoes rounding of quotients.
        cover = [int(side / self.center + 1e-6) for side in self.size]
        factor = max(cover[0] / height, cover[1] / width)
        resized = tuple(
            max(want, int(have * factor + 1e-6)) for have, want in zip((height, width), self.size, strict=True)
        )
        return resized, tuple(round((have - want) / 2) for have, want in zip(resized, self.size, strict=True))

    def _resized(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        if tuple(x.shape[1:]) == size:
            return x
        out = interpolate(x[None], size, mode=self.interpolation, antialias=True)[0]
        return out if x.dtype == torch.uint8 or self.scaled else out.clamp(0, 1)

    def _with_channels(self, x: Tensor) -> Tensor:
        have = x.shape[0]
        if have == self.channels:
            return x
        if have == 1:
            return x.expand(self.channels, -1, -1)
        if have == 3 and self.channels == 1:
            grey = torch.einsum("chw,c->hw", x.float(), torch.tensor(_LUMA))[None]
            return grey.round().to(torch.uint8) if x.dtype == torch.uint8 else grey
        raise ValueError(f"has {have} channels, the model takes {self.channels} (modalities.image.channels)")

    def _check_range(self, raw: np.ndarray) -> None:
        """Float images are not rescaled: unless mean and std are given they must be 0 .. 1."""
        if raw.dtype.kind == "f" and not self.scaled and (raw.min() < -0.01 or raw.max() > 1.01):
            raise ValueError(
                f"float pixels from {raw.min():.4g} to {raw.max():.4g} are not 0 to 1; "
                "set mean and std of the modality, or store uint8 or uint16"
            )

    def _mean_and_std(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and std (C, 1, 1); no buffers, so that they are neither stored with the weights nor lost on ``meta``."""
        return small_tensor(self.mean, device)[:, None, None], small_tensor(self.std, device)[:, None, None]


def _cut(raw: np.ndarray, box: Box) -> np.ndarray:
    top, left, height, width = box
    return raw[top : top + height, left : left + width]


def _per_channel(
    option: Sequence[float] | None, default: Sequence[float], channels: int, name: str
) -> tuple[float, ...]:
    values = tuple(float(value) for value in (default if option is None else option))
    if len(values) != channels:
        raise MaemmError(
            f"{name} has {len(values)} numbers for {channels} channels (modalities.image.{name}); give {channels}"
        )
    return values
