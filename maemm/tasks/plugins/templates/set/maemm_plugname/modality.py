"""The plugname modality: a set of elements, each at its coordinates. An element is a token."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from maemm.contract import Modality, Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Positive, PositiveInt
from maemm.contract.rng import Rng


class Positions(nn.Module):
    """Coordinates (R, V, A) -> (R, V, dim): sine and cosine features of several frequencies, then an MLP."""

    def __init__(self, axes: int, dim: int, frequencies: int = 4):
        super().__init__()
        self.frequencies = frequencies
        self.net = nn.Sequential(nn.Linear(2 * frequencies * axes, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, coords: Tensor) -> Tensor:
        scales = 2.0 ** torch.arange(self.frequencies, device=coords.device, dtype=coords.dtype)
        angles = (coords[..., None] * scales).flatten(-2)
        return self.net(torch.cat([angles.sin(), angles.cos()], -1))


class PlugName(Modality):
    """Sets (B, N, coords + features): the decoder knows where hidden elements are, and predicts their features.

    A sample is an array (elements, coords + features). Sets of different sizes are padded to one batch.

    Options
        coords: number of columns with coordinates
        features: number of columns with features
        most: elements of a sample at most; of more, a random subset, in evaluation the first
        mean: subtracted from all features
        std: features are then divided by it
        scale: coordinates are divided by it, so that they are around 1
    """

    def __init__(
        self,
        *,
        coords: PositiveInt = 3,
        features: PositiveInt = 1,
        most: PositiveInt = 256,
        mean: float = 0.0,
        std: Positive = 1.0,
        scale: Positive = 1.0,
    ):
        super().__init__()
        self.coords, self.features, self.most = coords, features, most
        self.mean, self.std, self.scale = mean, std, scale

    # ---- in the worker, one sample
    def load(self, raw: Any, rng: Rng | None) -> dict[str, Any]:
        """(elements, columns) -> {"x": float32}. An exception makes a bad sample, which is counted and named."""
        x = torch.as_tensor(np.asarray(raw, dtype=np.float32))
        columns = self.coords + self.features
        if x.ndim != 2 or not len(x) or x.shape[1] != columns:
            raise ValueError(f"has shape {tuple(x.shape)}, expected (elements, {columns})")
        if not x.isfinite().all():
            raise ValueError("holds NaN or infinity")
        if len(x) > self.most and rng is not None:
            x = x[rng.uniform("part", len(x))[0].argsort()[: self.most].sort().values]
        return {"x": x[: self.most]}

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Pad to the largest set; ``valid`` is False for padding."""
        sets = [sample["x"] for sample in samples]
        valid = pad_sequence([torch.ones(len(x), dtype=torch.bool) for x in sets], batch_first=True)
        return {"x": pad_sequence(sets, batch_first=True), "valid": valid}

    # ---- on the device, batched
    def preprocess(self, raw: dict[str, Tensor], rng: Rng | None) -> Preprocessed:
        """Scale. Augment here (rotate, shift, drop); not where ``rng`` is None."""
        coords, features = raw["x"].float().split([self.coords, self.features], -1)
        x = torch.cat([coords / self.scale, (features - self.mean) / self.std], -1)
        return Preprocessed(x, raw["valid"])

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        """Features as values, coordinates as coords. Where features may be missing, add ``known`` (B, N, features)."""
        x, columns = preprocessed.x, self.coords + self.features
        if x.ndim != 3 or x.shape[-1] != columns:
            raise MaemmError(f"{type(self).__name__} expects (B, N, {columns}), got {tuple(x.shape)}")
        if preprocessed.valid is not None and preprocessed.valid.shape != x.shape[:2]:
            raise MaemmError(
                f"{type(self).__name__} expects valid {tuple(x.shape[:2])}, got {preprocessed.valid.shape}"
            )
        return Tokens(x[..., self.coords :], x[..., : self.coords], valid=preprocessed.valid)

    # ---- in the model
    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.embedding, self.positions = nn.Linear(self.features, encoder_dim), Positions(self.coords, encoder_dim)
        if decoder_dim is not None:
            self.decoder = nn.Module()
            self.decoder.positions = Positions(self.coords, decoder_dim)

    def output_dim(self) -> int:
        return self.features

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return self.embedding(tokens.gather(index))

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        """What tells hidden elements apart: without it the decoder would predict the same for all of them."""
        positions = self.positions if role == "encoder" else self.decoder.positions
        return positions(tokens.gather_coords(index))

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        """What is predicted. For a loss other than the mean squared error, add loss() and baseline()."""
        return tokens.gather(index).float()

    # ---- pictures and tests
    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """Features (R, M, features) -> (R, N, coords + features), NaN where no element is given."""
        if index is not None:
            empty = values.new_full((len(values), tokens.count, self.features), float("nan"))
            values = empty.scatter(1, index[..., None].expand_as(values), values)
        return torch.cat([tokens.coords.to(values), values], -1)

    def plot(self, axes: Any, signal: Tensor) -> None:
        """The first two coordinates as position, the first feature as colour; hidden elements in grey."""
        x, y, colour = signal.detach().cpu()[:, [0, 1, self.coords]].T.numpy()
        hidden = np.isnan(colour)
        axes.scatter(x[hidden], y[hidden], c="0.85", s=4)
        axes.scatter(x[~hidden], y[~hidden], c=colour[~hidden], s=8, cmap="viridis")
        axes.set_xticks([])
        axes.set_yticks([])

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        uniform = rng.uniform("example", batch, 16, self.coords + self.features)[0]
        valid = torch.ones(batch, 16, dtype=torch.bool)
        return Preprocessed((uniform - 0.5) * 12**0.5, valid)
