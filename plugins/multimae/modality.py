"""Maps that belong to a picture, pixel by pixel: any channels in any unit, cropped and mirrored as the picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.means import mean_over_known
from maemm.contract.options import Channels, Positive, PositiveInt
from maemm.contract.rng import Rng

from ..image import preprocess as on_device
from ..image.modality import Image
from .read import channels_last

Interpolation = Literal["bicubic", "bilinear", "nearest"]


class Map(Image):
    """Maps (B, channels, height, width) beside a picture: infrared, normals, elevation, bands of a satellite.

    Crops, flips and the sizes of files are those of the modality ``image``; with ``align: rgb`` they are drawn as for
    the modality rgb, so that one crop and one flip serve all. Values have any unit: 8 bits are read as 0 .. 1 of 255,
    16 bits of 65535, floats as they are; then ``mean`` and ``std`` of each channel are applied. With ``gaps`` values
    that are missing (NaN) are in no loss and no statistic, and maps are resized without mixing neighbours.

    Options
        size: height and width of the picture that the model sees, one number or two
        patch: height and width of a patch on the picture, one number or two
        stride: pixels of the picture for one of the map: 4 is a map of a quarter of its height and width
        channels: channels of the map
        mean: subtracted from values, a number per channel; null: 0
        std: then divided by, a number per channel; null: 1
        interpolation: bicubic, bilinear or nearest
        loss: of the values of a token: mse or l1
    """

    key = "map"  # what messages call its options

    def __init__(
        self,
        *,
        size: PositiveInt | Sequence[PositiveInt] = 224,
        patch: PositiveInt | Sequence[PositiveInt] = 16,
        stride: PositiveInt = 1,
        channels: Channels = 1,
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        interpolation: Interpolation = "bilinear",
        loss: Literal["mse", "l1"] = "mse",
        **image: Any,
    ):
        picture = (size, size) if isinstance(size, int) else tuple(size)
        steps = (patch, patch) if isinstance(patch, int) else tuple(patch)
        if any(side % stride for side in (*picture, *steps)):
            raise MaemmError(
                f"a stride of {stride} does not divide the size {picture} and the patch {steps} "
                f"(modalities.{self.key}.stride); use a divisor of both"
            )
        center = image.pop("center", None) or (0.875 if max(picture) <= 224 else 1.0)  # as of the picture
        super().__init__(
            size=[side // stride for side in picture],
            patch=[side // stride for side in steps],
            channels=channels,
            mean=[0.0] * channels if mean is None else mean,
            std=[1.0] * channels if std is None else std,
            interpolation="bilinear" if interpolation == "nearest" else interpolation,
            center=center,
            **image,
        )
        self.stride, self.picture, self.kernel, self.loss_kind = stride, picture, interpolation, loss
        if self.device_crop and self.nearest:
            raise MaemmError(
                f"the device crops with kernels, not the nearest value (modalities.{self.key}.device_crop); set false"
            )

    @property
    def frame(self) -> tuple[int, ...]:
        return self.picture

    @property
    def nearest(self) -> bool:
        """Whether maps are resized without mixing neighbouring values."""
        return self.kernel == "nearest" or self.gaps

    # ---- in the worker
    def load(self, raw: np.ndarray, rng: Rng | None) -> dict[str, Tensor]:
        """(H, W), (H, W, C) or (C, H, W) -> {"x": (channels, *size)}, see :meth:`Image.load`."""
        return super().load(channels_last(raw), rng)

    def _check_range(self, raw: np.ndarray) -> None:
        if raw.ndim != 3:
            raise ValueError(f"has shape {raw.shape}, a map is (height, width, channels)")
        if raw.shape[2] != self.channels:
            raise ValueError(
                f"has {raw.shape[2]} channel{'s' if raw.shape[2] > 1 else ''}, the model takes {self.channels} "
                f"(modalities.{self.key}.channels)"
            )
        if raw.dtype.kind == "f":
            known = np.isfinite(raw)
            if self.gaps and not known.any():
                raise ValueError("holds no value")
            if not self.gaps and not known.all():
                raise ValueError("holds NaN or infinity; set gaps: true where values may be missing")

    def _resized(self, x: Tensor, size: tuple[int, ...]) -> Tensor:
        if tuple(x.shape[1:]) == tuple(size):
            return x
        if self.nearest:
            return interpolate(x[None], size, mode="nearest-exact")[0]
        return interpolate(
            x[None].float() if x.dtype != torch.uint8 else x[None], size, mode=self.kernel, antialias=True
        )[0]

    # ---- on the device
    def preprocess(self, raw: Any, rng: Rng | None) -> Preprocessed:
        """{"x": (B, C, H, W)} -> float32, mirrored, minus mean, divided by std; missing values are 0 and not valid."""
        x, info = self._moved(raw["x"], rng)
        mean, std = self._mean_and_std(x.device)
        return self._known((on_device.as_float(x) - mean) / std, info)

    def _known(self, x: Tensor, info: dict[str, Any]) -> Preprocessed:
        """With ``gaps`` 0 where values are not finite, which are not valid."""
        if not self.gaps:
            return Preprocessed(x, info=info)
        valid = x.isfinite()
        return Preprocessed(torch.where(valid, x, 0.0), valid, info)

    # ---- target
    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """The mean squared or absolute error of each token: (R, M, P) twice -> (R, M) float32."""
        errors = pred.float() - target
        return mean_over_known(errors.square() if self.loss_kind == "mse" else errors.abs(), known)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Of squared errors the mean is the best constant, of absolute ones the median of each value."""
        weights = counted[..., None].expand_as(target)
        if known is not None:
            weights = weights * known
        if self.loss_kind == "mse":
            constant = (target * weights).sum((0, 1)) / weights.sum((0, 1)).clamp(min=1e-12)
        else:
            seen = target.masked_fill(weights <= 0, float("nan")).flatten(0, 1)
            constant = seen.nanmedian(0).values.nan_to_num(0.0) if len(seen) else seen.sum(0)
        return self.loss(constant.expand_as(target), target, known)

    # ---- pictures and statistics
    def describe(self, raw: np.ndarray) -> dict[str, Any]:
        """Height and width in pixels, channels, data type, the range of values."""
        raw = channels_last(raw)
        facts = super().describe(raw)
        values = raw[np.isfinite(raw)] if raw.dtype.kind == "f" else raw
        return {**facts, "lowest": float(values.min()), "highest": float(values.max())} if values.size else facts

    def plot(self, axes: Any, signal: Tensor) -> None:
        """The mean of the channels (C, H, W) from its lowest to its highest value; NaN is grey."""
        values = self.denormalize_input(signal.detach().float().cpu()).mean(0)
        _draw(axes, values)


def _draw(axes: Any, values: Tensor, colours: str = "viridis") -> None:
    """Values (H, W) from blue to yellow; what is not finite is grey."""
    hidden = ~values.isfinite()
    shown = values.masked_fill(hidden, 0.0)
    axes.set_axis_off()
    axes.imshow(np.ma.masked_array(shown.numpy(), hidden.numpy()), cmap=_with_grey(colours), interpolation="nearest")


def _with_grey(name: str) -> Any:
    import matplotlib

    return matplotlib.colormaps[name].with_extremes(bad=(0.6, 0.6, 0.6))
