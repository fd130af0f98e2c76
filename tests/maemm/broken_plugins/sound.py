"""Parts that keep all rules, although they are unlike the suite's own modality: ragged, mixed, with odd losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from maemm.contract import MaemmError, Modality, Preprocessed, Tokens
from maemm.contract.means import mean_of_counted, mean_over_known
from maemm.contract.rng import Rng
from maemm.testing.toy_signal import Signal

KINDS = 4


class Particles(Modality):
    """Ragged sets of up to 40 particles: two coordinates, two numbers, some of them missing, and a kind.

    The numbers are regressed, the kind is classified: squared errors and cross-entropy in one loss.
    """

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        x = preprocessed.x
        if x.ndim != 3 or x.shape[-1] != 4 + KINDS:
            raise MaemmError(f"{type(self).__name__} expects (B, N, {4 + KINDS}), got {tuple(x.shape)}")
        known = torch.ones(*x.shape[:2], 2 + KINDS, dtype=torch.bool, device=x.device)
        known[..., 0] = x[..., 0] > -1.0  # where a particle is too far to the left, its first number is not measured
        values = torch.where(known, x[..., 2:], 0.0)
        return Tokens(values, x[..., :2], valid=preprocessed.valid, known=known)

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.embedding, self.place = nn.Linear(2 + KINDS, encoder_dim), nn.Linear(2, encoder_dim)
        if decoder_dim is not None:
            self.decoder = nn.Module()
            self.decoder.place = nn.Linear(2, decoder_dim)

    def output_dim(self) -> int:
        return 2 + KINDS

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return self.embedding(tokens.gather(index))

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        return (self.place if role == "encoder" else self.decoder.place)(tokens.gather_coords(index))

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return tokens.gather(index).float()

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        measured = None if known is None else known[..., :2]
        squared = mean_over_known((pred[..., :2].float() - target[..., :2]).square(), measured)
        return squared - (pred[..., 2:].float().log_softmax(-1) * target[..., 2:]).sum(-1)

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        uniform = rng.uniform("example", batch, 40, 5)[0]
        numbers = (uniform[..., :4] - 0.5) * 12**0.5
        kind = functional.one_hot((uniform[..., 4] * KINDS).long(), KINDS).float()
        count = 12 + 9 * torch.arange(batch)  # of each set
        return Preprocessed(torch.cat([numbers, kind], -1), torch.arange(40) < count[:, None])


class Few(Particles):
    """Sets of a single particle among others that are larger, so that some rows have nothing to predict."""

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        example = super().example(batch, rng)
        count = 1 + 9 * torch.arange(batch)
        return Preprocessed(example.x, torch.arange(40) < count[:, None])


class Cosine(Signal):
    """A loss that is below 0: minus the cosine of the angle between prediction and target."""

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return -functional.cosine_similarity(pred.float(), target, dim=-1)


class Likelihood(Signal):
    """A loss without a bound: minus the logarithm of a likelihood, of which the model predicts the scale too."""

    def output_dim(self) -> int:
        return super().output_dim() + 1

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        target = super().target(tokens, index)
        return functional.pad(target, (0, 1))

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return super().denormalize_target(pred[..., :-1], tokens, index)

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        scale = pred[..., -1].float()
        return (pred[..., :-1].float() - target[..., :-1]).square().mean(-1) * torch.exp(-scale) + scale


class SoftKinds(Signal):
    """Cross-entropy with soft labels, which cannot fall to 0."""

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return (2 * tokens.gather(index).float()).softmax(-1)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        return tokens.gather(index)

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return -(pred.float().log_softmax(-1) * target).sum(-1)


class SeenOnly(Signal):
    """Values of which the last ones are seen, but not predicted."""

    UNPREDICTED = 2

    def output_dim(self) -> int:
        return super().output_dim() - self.UNPREDICTED

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return super().target(tokens, index)[..., : -self.UNPREDICTED]

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        return super().loss(pred, target, None if known is None else known[..., : -self.UNPREDICTED])

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        predicted = None if known is None else known[..., : -self.UNPREDICTED]
        return self.loss(mean_of_counted(target, counted, predicted).expand_as(target), target, known)

    def denormalize_target(self, pred: Tensor, tokens: Tokens, index: Tensor) -> Tensor:
        whole = functional.pad(pred.float(), (0, self.UNPREDICTED), value=torch.nan)
        return super().denormalize_target(whole, tokens, index)
