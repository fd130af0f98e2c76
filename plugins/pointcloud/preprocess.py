"""Preprocessing of point clouds: choose points and normalise in the worker, augment batches on the device.

A cloud is (N, 3 + F): x y z, then F features of each point, which stay unchanged.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from maemm.contract.options import Interval, NonNegative, Positive, Rate
from maemm.contract.rng import Rng, derive

Normalization = Literal["unit_sphere", "unit_cube", "center", "none"]

_COARSE = 2.0**-24 * 1000  # float32 keeps less than a thousandth of the extent where extent / distance is below this
MOST_COLUMNS = 64  # more columns are probably points: a transposed array


class Augment(BaseModel):
    """Random changes of the coordinates in training, in this order; of the features, only normals change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: Interval[Positive] | None = Field(default=(2 / 3, 3 / 2), description="factor, uniform; null: none")
    per_axis: bool = Field(default=True, description="a separate factor for each axis")
    shift: NonNegative = Field(default=0.2, description="up to this far along each axis, uniform")
    rotate: Literal["x", "y", "z", "so3"] | None = Field(
        default=None, description="by any angle about an axis, or any rotation"
    )
    jitter: NonNegative = Field(default=0.0, description="standard deviation of noise on each coordinate")
    jitter_clip: NonNegative = Field(default=0.05, description="bound of the noise")
    dropout: Rate = Field(default=0.0, description="a cloud loses up to this fraction of its points, uniform")


POINT_MAE = Augment()  # Point-MAE pre-training: scale and shift after normalisation, no rotation


# --------------------------------------------------------------------------------------- in the worker, one cloud
def load_cloud(
    raw: np.ndarray,
    rng: Rng | None,
    *,
    points: int | None = 1024,
    features: int = 0,
    normalize: Normalization = "unit_sphere",
) -> dict[str, Tensor]:
    """(N, 3 + more) numbers -> {"x": (n, 3 + features) float32}, n = min(N, points), or N if ``points`` is None.

    The points are a random choice (as in Point-MAE's code; not farthest points), a fixed one for ``rng=None``; then
    they are normalised, in float64. Columns after 3 + ``features`` are dropped. Raises ValueError for unusable clouds:
    too few columns, no points, numbers that are not finite, all points equal.
    """
    cloud = checked(raw, 3 + features)
    if points is not None and len(cloud) > points:
        seed = derive("points", len(cloud)) if rng is None else rng.seed("points")
        chosen = np.random.default_rng(seed).choice(len(cloud), points, replace=False)
        cloud = cloud[chosen]
    xyz = normalized(np.asarray(cloud[:, :3], np.float64), normalize)
    with np.errstate(over="ignore"):
        whole = np.concatenate([xyz.astype(np.float32), np.asarray(cloud[:, 3 : 3 + features], np.float32)], axis=1)
    if not np.isfinite(whole).all():
        raise ValueError("numbers are too large for float32")
    return {"x": torch.from_numpy(whole)}


def checked(raw: np.ndarray, columns: int = 3) -> np.ndarray:
    """The array, unchanged. Raises ValueError unless it is a cloud with at least ``columns`` columns."""
    if raw.ndim != 2:
        raise ValueError(f"a point cloud has 2 dimensions (points, columns), this array has shape {raw.shape}")
    if raw.dtype.kind not in "fiu":
        raise ValueError(f"coordinates are {raw.dtype}, not real numbers")
    if raw.shape[1] < columns:
        need = "x y z" if columns == 3 else f"x y z and {columns - 3} features"
        raise ValueError(f"{raw.shape[1]} columns, {columns} are needed ({need})")
    if raw.shape[1] > MOST_COLUMNS:
        raise ValueError(f"{raw.shape[1]} columns; store (points, columns), at most {MOST_COLUMNS} columns")
    if len(raw) < 2:
        raise ValueError("no points" if not len(raw) else "a single point")
    nonfinite = int((~np.isfinite(raw[:, :columns])).any(1).sum()) if raw.dtype.kind == "f" else 0
    if nonfinite:
        raise ValueError(f"{nonfinite} of {len(raw)} points are not finite numbers (NaN or infinity)")
    return raw


def normalized(xyz: np.ndarray, normalize: Normalization) -> np.ndarray:
    """(n, 3) float64 -> float64.

    ``unit_sphere``: minus the mean, divided by the largest distance from it. ``unit_cube``: minus the middle of the
    bounding box, divided by half of its longest side. ``center``: minus the mean. ``none``: unchanged. Raises
    ValueError if the shape would be lost in float32.
    """
    with np.errstate(over="ignore"):
        extent = float(np.ptp(xyz, axis=0).max())
    if extent == 0:  # exactly: the mean of equal numbers may differ from them by rounding
        raise ValueError(f"all {len(xyz)} points are equal")
    if not extent < 1e30:
        raise ValueError(f"coordinates reach over {extent:.3g}, too large for float32")
    if extent < 1e-30 and normalize in ("center", "none"):
        raise ValueError(f"coordinates reach over {extent:.3g} only, too small for float32; set normalize_cloud")
    if normalize == "none":
        if extent < np.abs(xyz).max() * _COARSE:
            raise ValueError(
                f"coordinates up to {np.abs(xyz).max():.4g} over an extent of {extent:.3g} lose their shape in "
                "float32; set normalize_cloud to center or unit_sphere"
            )
        return xyz
    first = xyz[0]
    xyz = xyz - first  # the mean of large coordinates would be inexact
    if normalize == "unit_cube":
        return (xyz - (xyz.max(0) + xyz.min(0)) / 2) * (2 / extent)
    xyz = xyz - xyz.mean(0)
    if normalize == "center":
        return xyz
    xyz = xyz / extent  # squares of very small numbers would underflow
    return xyz / np.sqrt(np.square(xyz).sum(1).max())


def collate_clouds(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Clouds (n, C) -> {"x": (B, N, C)}; if they differ in length, padded with zeros, and "valid" (B, N) bool."""
    clouds = [sample["x"] for sample in samples]
    counts = torch.tensor([len(cloud) for cloud in clouds])
    if int(counts.min()) == int(counts.max()):
        return {"x": torch.stack(clouds)}
    x = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    return {"x": x, "valid": torch.arange(x.shape[1]) < counts[:, None]}


# ------------------------------------------------------------------------------------------- on the device, batched
def augment(
    x: Tensor, valid: Tensor | None, rng: Rng | None, options: Augment | Mapping[str, Any] | None, normals: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A batch (B, N, 3 + F) float32 and its ``valid`` (B, N) or None -> the same, augmented.

    ``rng=None`` or ``options=None``: unchanged. ``normals``: the first three features are normals, which rotate with
    the surface and keep length 1. Dropped points become invalid and zero; a cloud keeps at least two points.
    """
    if rng is None or options is None:
        return x, valid
    options = Augment(**options) if isinstance(options, Mapping) else options
    with torch.autocast(x.device.type, enabled=False):
        linear, inverse, shift = _affine(rng, options, len(x), x.device)
        xyz = x[..., :3] @ linear.transpose(-1, -2) + shift
        rest = x[..., 3:]
        if normals:
            turned = rest[..., :3] @ inverse  # transposed twice: normals go by the inverse transposed, and are rows
            turned = torch.nn.functional.normalize(turned, dim=-1)
            rest = torch.cat([turned, rest[..., 3:]], -1)
    if options.jitter:
        xyz = xyz + _noise(rng, options, x.shape[1], x.device)
    x = torch.cat([xyz, rest], -1)
    if options.dropout:
        valid = _drop_points(rng, options.dropout, x, valid)
    if valid is not None:
        x = x * valid[..., None]  # padding was shifted too
    return x, valid


def _affine(rng: Rng, options: Augment, rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, 3), its inverse, and (B, 1, 3): scale, shift, then rotation, as in PCP-MAE."""
    scale, shift = torch.ones(rows, 3, device=device), torch.zeros(rows, 3, device=device)
    if options.scale is not None:
        low, high = options.scale
        scale = low + (high - low) * rng.uniform("scale", 3 if options.per_axis else 1, device=device).expand(-1, 3)
    if options.shift:
        shift = (2 * rng.uniform("shift", 3, device=device) - 1) * options.shift
    rotation = torch.eye(3, device=device).expand(rows, 3, 3)
    if options.rotate == "so3":
        rotation = any_rotation(rng.uniform("rotate", 3, device=device))
    elif options.rotate is not None:
        rotation = axis_rotation(rng.uniform("rotate", device=device), options.rotate)
    inverse = (rotation / scale[:, None]).transpose(-1, -2)
    return rotation * scale[:, None], inverse, (rotation @ shift[..., None]).transpose(-1, -2)


def axis_rotation(uniform: Tensor, axis: str) -> Tensor:
    """(B,) in [0, 1) -> (B, 3, 3): rotations by that fraction of a full turn about x, y or z."""
    angle = 2 * math.pi * uniform
    sin, cos = angle.sin(), angle.cos()
    at = "xyz".index(axis)
    a, b = (at + 1) % 3, (at + 2) % 3
    rotation = torch.eye(3, device=uniform.device).repeat(len(uniform), 1, 1)
    rotation[:, a, a], rotation[:, a, b], rotation[:, b, a], rotation[:, b, b] = cos, -sin, sin, cos
    return rotation


def any_rotation(uniform: Tensor) -> Tensor:
    """(B, 3) in [0, 1) -> (B, 3, 3) rotations, uniform over all of them (Shoemake, Graphics Gems III, 1992)."""
    u, a, b = uniform[:, 0], 2 * math.pi * uniform[:, 1], 2 * math.pi * uniform[:, 2]
    x, y, z, w = (1 - u).sqrt() * a.sin(), (1 - u).sqrt() * a.cos(), u.sqrt() * b.sin(), u.sqrt() * b.cos()
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _noise(rng: Rng, options: Augment, count: int, device: torch.device) -> Tensor:
    """(B, N, 3) normal noise, from uniform numbers by the inverse of the normal CDF, clipped at ``jitter_clip``."""
    uniform, clip = rng.uniform("jitter", count, 3, device=device).clamp(min=2.0**-25), options.jitter_clip
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1) * options.jitter).clamp(-clip, clip)


def _drop_points(rng: Rng, dropout: float, x: Tensor, valid: Tensor | None) -> Tensor:
    """(B, N) bool: ``valid`` without a fraction of the points of each cloud that is uniform in 0 .. ``dropout``."""
    fraction = rng.uniform("dropout", 1, device=x.device) * dropout
    noise = rng.uniform("dropped", x.shape[1], device=x.device)
    if valid is not None:
        noise = noise.masked_fill(~valid, -1.0)
    remaining = noise >= fraction
    return remaining.scatter(1, noise.topk(2, dim=1).indices, True)  # a cloud needs two points
