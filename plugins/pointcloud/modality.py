"""The point cloud modality: groups of neighbours as tokens (Point-MAE, Pang et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le, MultipleOf
from torch import Tensor, nn

from maemm.contract import Modality, Preprocessed, Tokens, gather_tokens
from maemm.contract.errors import MaemmError
from maemm.contract.means import mean_of_counted
from maemm.contract.options import PositiveInt, Repeats
from maemm.contract.positions import sincos
from maemm.contract.rng import Rng

from . import preprocess as clouds
from .chamfer import Kind, chamfer
from .embedding import WIDTH, MiniPointNet, Stats
from .grouping import farthest_points, gather_points, neighbours
from .preprocess import MOST_COLUMNS, POINT_MAE, Augment, Normalization


class PointCloud(Modality):
    """Clouds (B, N, 3 + features): x y z, then further numbers of each point.

    A token is a group: a centre, chosen by farthest point sampling, and its ``group_size`` nearest points relative to
    it, (group_size, 3 + features). Groups may overlap. Grouping, target and loss use x y z only; features enter the
    embedding. Clouds of different sizes are batched with ``valid``. A cloud with fewer distinct points than ``groups``
    has as many groups as distinct points; one with fewer than ``group_size`` is refused.

    Options
        groups: tokens of a cloud
        group_size: points of a group
        points: points of a cloud that are used, a random choice; null: all
        features: columns of each point after x y z
        normals: the first three features are normals, which augmentation rotates too
        normalize_cloud: unit_sphere, unit_cube, center or none
        augment: random changes in training (scale, per_axis, shift, rotate, jitter, jitter_clip, dropout); null: none
        loss: Chamfer distance of a group: cdl2, squared, or cdl1
        width: width of the group embedding's widest layer, a multiple of 4; most of a step's time is spent there
        stats: groups in the embedding's batch statistics in training: all, as published, or visible, which is faster
            but changes the result
        position: mlp: an MLP of the centre, one for the encoder and one for the decoder (Point-MAE); sincos: of the
            centre's sin-cos code, shared by both (PCP-MAE)
        votes: views of a cloud over which a classifier averages its predictions, each of other points of it and
            augmented as in training (Point-MAE: 10)
        up: the upward axis, for pictures only
        skip_origin: never choose centres within 0.0316 of the origin, as the published code
        per_micro_batch: compute batch statistics per micro-batch
    """

    def __init__(
        self,
        *,
        groups: PositiveInt = 64,
        group_size: PositiveInt = 32,
        points: Annotated[int, Ge(2)] | None = 1024,
        features: Annotated[int, Ge(0), Le(MOST_COLUMNS - 3)] = 0,
        normals: bool = False,
        normalize_cloud: Normalization = "unit_sphere",
        augment: Augment | None = POINT_MAE,
        loss: Kind = "cdl2",
        width: Annotated[int, Ge(8), MultipleOf(4)] = WIDTH,
        stats: Stats = "all",
        position: Literal["mlp", "sincos"] = "mlp",
        skip_origin: bool = False,
        votes: Repeats = 1,
        up: Literal["y", "z"] = "y",
        per_micro_batch: bool = False,
    ):
        super().__init__()
        _check_sizes(groups, group_size, points, features, normals)
        self.augment = Augment(**augment) if isinstance(augment, Mapping) else augment
        self.groups, self.group_size, self.points = groups, group_size, points
        self.features, self.normals, self.normalize_cloud = features, normals, normalize_cloud
        self.loss_kind, self.stats, self.position_kind = loss, stats, position
        self.skip_origin, self.per_micro_batch = skip_origin, per_micro_batch
        self.up, self.width, self.tta_views = up, width, votes

    # ---- in the worker
    def load(self, raw: np.ndarray, rng: Rng | None) -> dict[str, Tensor]:
        """(N, 3 + more) numbers -> {"x": (n, 3 + features)}; see :func:`.preprocess.load_cloud`."""
        x = clouds.load_cloud(raw, rng, points=self.points, features=self.features, normalize=self.normalize_cloud)["x"]
        need = max(self.groups, self.group_size)
        distinct = np.unique(x[: 8 * need, :3].numpy(), axis=0, return_index=True)[1]  # usually enough, and fast
        if len(distinct) < need:
            distinct = np.unique(x[:, :3].numpy(), axis=0, return_index=True)[1]
        if len(distinct) < self.group_size:
            raise ValueError(
                f"{len(distinct)} distinct points, a group needs {self.group_size} (modalities.pointcloud.group_size)"
            )
        # With duplicates, one point could be the centre of a visible and a hidden group.
        return {"x": x if len(distinct) >= self.groups else x[np.sort(distinct)]}

    def load_tta_views(self, raw: np.ndarray) -> list[dict[str, Tensor]]:
        """``votes`` clouds, augmented; a single one is not augmented."""
        if self.tta_views == 1:
            return [self.load(raw, None)]
        views = []
        for vote in range(self.tta_views):
            rng = Rng(("vote", vote))
            x, valid = clouds.augment(self.load(raw, rng)["x"][None], None, rng, self.augment, self.normals)
            views.append({"x": x[0] if valid is None else x[valid]})
        return views

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """{"x": (B, N, 3 + features)}; if clouds differ in length, padded, with "valid" (B, N)."""
        return clouds.collate_clouds(samples)

    def moves(self) -> list[str]:
        """Augmented clouds have other groups."""
        return ["augment: null"] if self.augment is not None else []

    # ---- on the device
    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, N, 3 + features), "valid": (B, N) or none} -> augmented."""
        x, valid = clouds.augment(raw["x"].float(), raw.get("valid"), rng, self.augment, self.normals)
        return Preprocessed(x, valid)

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """(B, N, 3 + features) -> groups (B, G, K, 3 + features) around their centres (B, G, 3)."""
        x, valid = self._checked(preprocessed)
        center, gap = farthest_points(x[..., :3], self.groups, valid, skip_origin=self.skip_origin)
        centers = gather_tokens(x, center)[..., :3]
        values = gather_points(x, neighbours(x, centers, self.group_size, valid))
        values = torch.cat([values[..., :3] - centers[:, :, None], values[..., 3:]], -1)
        if valid is None:
            return Tokens(values, centers)
        # Beyond the distinct points of a cloud, centres repeat: those groups are padding.
        distinct = (gap > 0) & valid.any(1, keepdim=True)
        values = values.masked_fill(~distinct[..., None, None], 0.0)
        return Tokens(values, centers.masked_fill(~distinct[..., None], 0.0), valid=distinct)

    def _checked(self, preprocessed: Preprocessed) -> tuple[Tensor, Tensor | None]:
        x, valid, columns = preprocessed.x, preprocessed.valid, 3 + self.features
        if x.ndim != 3 or x.shape[-1] != columns:
            raise MaemmError(f"PointCloud expects (B, N, {columns}), got {tuple(x.shape)} (modalities.pointcloud)")
        if valid is not None and valid.shape != x.shape[:2]:
            raise MaemmError(
                f"PointCloud expects valid {tuple(x.shape[:2])}, one bool per point, got {tuple(valid.shape)}"
            )
        if valid is None and x.shape[1] < self.groups:
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        return x, valid

    # ---- in the model
    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.embedding = MiniPointNet(3 + self.features, encoder_dim, self.stats, self.width)
        self.code_dim, hidden = (encoder_dim, encoder_dim) if self.position_kind == "sincos" else (3, 128)
        self.positions = _mlp(self.code_dim, hidden, encoder_dim)
        for layer in (self.positions[0], self.positions[2]):  # published initialisation; the decoder's is torch's own
            assert isinstance(layer, nn.Linear)
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if decoder_dim is None:
            return
        self.decoder = nn.Module()
        if self.position_kind == "mlp" or decoder_dim != encoder_dim:
            hidden = 128 if self.position_kind == "mlp" else decoder_dim
            self.decoder.positions = _mlp(self.code_dim, hidden, decoder_dim)

    def output_dim(self) -> int:
        return 3 * self.group_size

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        """(R, V, D). In training with ``stats: all``, batch statistics include hidden groups, once per cloud."""
        return self.embedding(tokens, index)

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return self.position_of(self.code(tokens, index), role)

    def code(self, tokens: Tokens, index: Tensor) -> Tensor:
        """The input of :meth:`position_of`: centres (R, V, 3), or their sin-cos codes (R, V, D), x first."""
        centers = tokens.gather_coords(index)
        if self.position_kind == "mlp":
            return centers
        return sincos(centers.flip(-1), self.code_dim).to(centers.dtype)

    def position_of(self, code: Tensor, role: str) -> Tensor:
        """Codes (R, V, 3 or D) -> position embeddings of the role (R, V, D)."""
        own = self.decoder if role == "decoder" else None
        return getattr(own, "positions", self.positions)(code)

    # ---- target and loss
    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """Points of the groups relative to their centres, (R, M, 3 K): x0, y0, z0, x1, ..."""
        return tokens.gather(index)[..., :3].flatten(2).float()

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Chamfer distance of each group, (R, M)."""
        a, b = (x.float().unflatten(-1, (self.group_size, 3)) for x in (pred, target))
        return chamfer(a, b, self.loss_kind)

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        """Of the better of two groups: the mean one, averaged point by point in the order of the targets, and all
        points at the centre, which loses less where distances are not squared. No formula gives the best one."""
        mean = mean_of_counted(target, counted)
        of_mean, of_center = (self.loss(group.expand_as(target), target) for group in (mean, torch.zeros_like(mean)))
        return torch.where((of_center * counted).sum() < (of_mean * counted).sum(), of_center, of_mean)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        """Predicted points (R, M, K, 3 + features) relative to their centres; features are not predicted: NaN."""
        points = pred.float().unflatten(-1, (self.group_size, 3))
        return nn.functional.pad(points, (0, self.features), value=float("nan"))

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """Groups (R, M, K, 3 + features) -> their points (R, M K, 3 + features); those in two groups occur twice."""
        index = tokens.all_indices() if index is None else index
        centers = tokens.gather_coords(index)[:, :, None].to(values.dtype)
        return torch.cat([values[..., :3] + centers, values[..., 3:]], -1).flatten(1, 2)

    # ---- pictures, facts and examples
    def plot(self, axes: Any, signal: Tensor) -> None:
        """One cloud (P, 3 + features) seen from the front and above; points that are NaN are left out."""
        from .pictures import plot

        plot(axes, signal, self.up)

    def interactive(self, columns: Mapping[str, Tensor]) -> str | None:
        """Clouds that rotate with the mouse or a finger."""
        from .view import interactive

        return interactive(columns, self.up)

    def by_channel(self, preprocessed: Preprocessed) -> None:
        """None: each cloud is normalised separately, and there are no data statistics to set."""
        return None

    def describe(self, raw: np.ndarray) -> dict[str, Any]:
        """Points, columns, and the longest side of the bounding box in the file's unit."""
        points, columns = raw.shape
        box = np.asarray(raw[:, :3], np.float64)
        extent = float(np.ptp(box, axis=0).max()) if points else 0.0
        return {"points": points, "columns": columns, "extent": extent, "type": str(raw.dtype)}

    def sample_shape(self) -> tuple[int, ...] | None:
        """(points, 3 + features); None if all points of a cloud are used."""
        return None if self.points is None else (self.points, 3 + self.features)

    def sample_size(self) -> tuple[int, int]:
        return self.groups, self.groups * self.group_size * (3 + self.features)

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        """Points on ellipsoids, 1.5 times as many as groups or as points of a group, whichever is more."""
        count = max(self.groups, self.group_size) * 3 // 2
        uniform = rng.uniform("example", batch, count, 3 + self.features)[0] * 2 - 1
        radii = rng.uniform("radii", batch, 1, 3)[0] + 0.5
        surface = nn.functional.normalize(uniform[..., :3] + 1e-3, dim=-1) * radii
        return Preprocessed(torch.cat([surface, uniform[..., 3:]], -1))


def _mlp(code: int, hidden: int, dim: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(code, hidden), nn.GELU(), nn.Linear(hidden, dim))


def _check_sizes(groups: int, group_size: int, points: int | None, features: int, normals: bool) -> None:
    if points is not None and points < max(groups, group_size):
        raise MaemmError(
            f"points {points} is less than {max(groups, group_size)}, the larger of groups and group_size "
            "(modalities.pointcloud.points); increase it"
        )
    if normals and features < 3:
        raise MaemmError(f"features is {features} (modalities.pointcloud.features); give 3 or more, for normals")
