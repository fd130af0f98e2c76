"""What is done to point clouds: choosing and normalising one in the worker, augmenting a batch on the device.

The modality delegates to four functions: ``load_cloud`` (worker), ``collate_clouds``, ``augment`` (device) and
``check_options``. A cloud is (N, 3 + F): x y z, then F features of each point, which are left as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, derive

Normalization = Literal["unit_sphere", "unit_cube", "center", "none"]

_COARSE = 2.0**-24 * 1000  # float32 keeps less than a thousandth of the extent where extent / distance is below this
_MOST_COLUMNS = 64  # more are points in a row: an array that lies on its side


class Augment(BaseModel):
    """Random changes of the coordinates in training, in this order; features stay, normals turn along."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    scale: tuple[float, float] | None = (2 / 3, 3 / 2)  # factor, uniform; null: none
    per_axis: bool = True  # an own factor for each axis
    shift: float = 0.2  # up to this far along each axis, uniform
    rotate: Literal["x", "y", "z", "so3"] | None = None  # by any angle about an axis, or any rotation
    jitter: float = 0.0  # standard deviation of noise on each coordinate
    jitter_clip: float = 0.05  # noise is at most this large
    dropout: float = 0.0  # a cloud loses up to this share of its points, uniform


POINT_MAE = Augment()  # Point-MAE pre-training: scale and shift after normalisation, no rotation


def check_options(points: int | None, augment: Augment | None, name: str = "pointcloud") -> None:
    """Raise :class:`MaemmError` for numbers that make no sense; ``name`` is the modality's, for the message."""
    if points is not None and points < 2:
        raise MaemmError(f"points is {points} (modalities.{name}.points); give 2 or more, or null for all")
    if augment is None:
        return
    wrong = None
    if augment.scale is not None and not 0 < augment.scale[0] <= augment.scale[1] < math.inf:
        wrong = f"scale is {list(augment.scale)}", "0 < low <= high"
    elif not (0 <= augment.shift < math.inf and 0 <= augment.jitter < math.inf and 0 <= augment.jitter_clip < math.inf):
        wrong = "shift, jitter or jitter_clip is negative or not finite", "0 or more"
    elif not 0 <= augment.dropout < 1:
        wrong = f"dropout is {augment.dropout}", "0 to below 1"
    if wrong:
        raise MaemmError(f"augment.{wrong[0]} (modalities.{name}.augment); give {wrong[1]}")


# --------------------------------------------------------------------------------------- in the worker, one cloud
def load_cloud(
    raw: np.ndarray,
    rng: Rng | None,
    *,
    points: int | None = 1024,
    features: int = 0,
    normalize: Normalization = "unit_sphere",
) -> dict[str, Tensor]:
    """(N, 3 + more) numbers -> {"x": (n, 3 + features) float32}, n = min(N, points), all of them if ``points`` is null.

    The points are the beginning of a random permutation (Point-MAE's code; not farthest points), of a fixed one for
    ``rng=None``; then they are normalised, in float64. Columns behind 3 + ``features`` are left out. Raises
    ValueError for what cannot be learned from: too few columns, no points, not-finite numbers, all points equal.
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
    """The cloud as it is, if it is one of at least ``columns`` columns. Raises ValueError."""
    if raw.ndim != 2:
        raise ValueError(f"a point cloud has 2 dimensions (points, columns), this array has shape {raw.shape}")
    if raw.dtype.kind not in "fiu":
        raise ValueError(f"coordinates are {raw.dtype}, not real numbers")
    if raw.shape[1] < columns:
        need = "x y z" if columns == 3 else f"x y z and {columns - 3} features"
        raise ValueError(f"{raw.shape[1]} columns, {columns} are needed ({need})")
    if raw.shape[1] > _MOST_COLUMNS:
        raise ValueError(f"{raw.shape[1]} columns; store (points, columns), {_MOST_COLUMNS} columns at most")
    if len(raw) < 2:
        raise ValueError("no points" if not len(raw) else "a single point")
    broken = int((~np.isfinite(raw[:, :columns])).any(1).sum()) if raw.dtype.kind == "f" else 0
    if broken:
        raise ValueError(f"{broken} of {len(raw)} points are not finite numbers (NaN or infinity)")
    return raw


def normalized(xyz: np.ndarray, how: Normalization) -> np.ndarray:
    """(n, 3) float64 -> float64.

    ``unit_sphere``: minus the mean, divided by the largest distance from it. ``unit_cube``: minus the middle of the
    bounding box, divided by half of its longest side. ``center``: minus the mean. ``none``: as it is. Raises
    ValueError where nothing is left of the shape.
    """
    with np.errstate(over="ignore"):
        extent = float(np.ptp(xyz, axis=0).max())
    if extent == 0:  # exactly: the mean of equal numbers may differ from them by rounding
        raise ValueError(f"all {len(xyz)} points are equal")
    if not extent < 1e30:
        raise ValueError(f"coordinates reach over {extent:.3g}, too large for float32")
    if extent < 1e-30 and how in ("center", "none"):
        raise ValueError(f"coordinates reach over {extent:.3g} only, too small for float32; set normalize_cloud")
    if how == "none":
        if extent < np.abs(xyz).max() * _COARSE:
            raise ValueError(
                f"coordinates up to {np.abs(xyz).max():.4g} over an extent of {extent:.3g} lose their shape in "
                "float32; set normalize_cloud to center or unit_sphere"
            )
        return xyz
    first = xyz[0]
    xyz = xyz - first  # a sum of large coordinates would round
    if how == "unit_cube":
        return (xyz - (xyz.max(0) + xyz.min(0)) / 2) * (2 / extent)
    xyz = xyz - xyz.mean(0)
    if how == "center":
        return xyz
    xyz = xyz / extent  # squares of very small numbers would vanish
    return xyz / np.sqrt(np.square(xyz).sum(1).max())


def collate_clouds(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Clouds (n, C) -> {"x": (B, N, C)}, and "valid" (B, N) bool if they differ in length: padding is zero, behind."""
    clouds = [one["x"] for one in samples]
    counts = torch.tensor([len(one) for one in clouds])
    if int(counts.min()) == int(counts.max()):
        return {"x": torch.stack(clouds)}
    x = torch.nn.utils.rnn.pad_sequence(clouds, batch_first=True)
    return {"x": x, "valid": torch.arange(x.shape[1]) < counts[:, None]}


# ------------------------------------------------------------------------------------------- on the device, batched
def augment(
    x: Tensor, valid: Tensor | None, rng: Rng | None, how: Augment | Mapping[str, Any] | None, normals: bool = False
) -> tuple[Tensor, Tensor | None]:
    """A batch (B, N, 3 + F) float32 and its validity (B, N) or None -> the same, changed at random.

    ``rng=None`` or ``how=None`` change nothing. ``normals``: the first three features are normals, which turn with
    the surface and keep length 1. Dropped points become invalid and zero; a cloud keeps two points at least.
    """
    if rng is None or how is None:
        return x, valid
    how = Augment(**how) if isinstance(how, Mapping) else how
    linear, shift = _affine(rng, how, len(x))
    with torch.autocast(x.device.type, enabled=False):
        linear, shift = linear.to(x.device), shift.to(x.device)
        xyz = x[..., :3] @ linear.transpose(-1, -2) + shift
        rest = x[..., 3:]
        if normals:
            turned = rest[..., :3] @ torch.linalg.inv(linear)  # the inverse transposed, for row vectors
            turned = torch.nn.functional.normalize(turned, dim=-1)
            rest = torch.cat([turned, rest[..., 3:]], -1)
    if how.jitter:
        xyz = xyz + _noise(rng, how, x.shape[1]).to(x.device)
    x = torch.cat([xyz, rest], -1)
    if how.dropout:
        valid = _kept(rng, how.dropout, x.shape[:2], x.device, valid)
    if valid is not None:
        x = x * valid[..., None]  # padding was shifted too
    return x, valid


def _affine(rng: Rng, how: Augment, rows: int) -> tuple[Tensor, Tensor]:
    """(B, 3, 3) and (B, 1, 3) on the CPU: scaled, shifted, then turned, as PCP-MAE does it."""
    scale = torch.ones(rows, 3)
    if how.scale is not None:
        low, high = how.scale
        scale = low + (high - low) * rng.uniform("scale", 3 if how.per_axis else 1).expand(-1, 3)
    shift = (2 * rng.uniform("shift", 3) - 1) * how.shift if how.shift else torch.zeros(rows, 3)
    turn = torch.eye(3).expand(rows, 3, 3)
    if how.rotate == "so3":
        turn = any_rotation(rng.uniform("rotate", 3))
    elif how.rotate is not None:
        turn = axis_rotation(rng.uniform("rotate"), how.rotate)
    return turn * scale[:, None], (turn @ shift[..., None]).transpose(-1, -2)


def axis_rotation(uniform: Tensor, axis: str) -> Tensor:
    """(B,) in [0, 1) -> (B, 3, 3): by that share of a full turn about x, y or z."""
    angle = 2 * math.pi * uniform
    sin, cos = angle.sin(), angle.cos()
    at = "xyz".index(axis)
    a, b = (at + 1) % 3, (at + 2) % 3
    turn = torch.eye(3).repeat(len(uniform), 1, 1)
    turn[:, a, a], turn[:, a, b], turn[:, b, a], turn[:, b, b] = cos, -sin, sin, cos
    return turn


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


def _noise(rng: Rng, how: Augment, count: int) -> Tensor:
    """(B, N, 3) normal noise from uniform numbers, cut off at ``jitter_clip``."""
    uniform = rng.uniform("jitter", count, 3).clamp(min=2.0**-25)
    return (math.sqrt(2) * torch.erfinv(2 * uniform - 1) * how.jitter).clamp(-how.jitter_clip, how.jitter_clip)


def _kept(rng: Rng, most: float, shape: torch.Size, device: torch.device, valid: Tensor | None) -> Tensor:
    """(B, N) bool: each cloud loses a share of its points that is uniform in 0 .. ``most``."""
    fraction = rng.uniform("dropout", 1) * most
    each = rng.uniform("dropped", shape[1]).to(device)
    if valid is not None:
        each = each.masked_fill(~valid, -1.0)
    kept = each >= fraction.to(device)
    best = each.topk(2, dim=1).indices  # two points are the least that is a cloud
    return kept.scatter(1, best, True)
