"""The modality: an event is a set of particles, each with four numbers, a type, a charge and the jet it belongs to."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from maemm.contract import MaemmError, Modality, Preprocessed, Tokens
from maemm.contract.means import mean_of_counted
from maemm.contract.rng import Rng

Four = tuple[float, float, float, float]
NUMBERS, CHARGES, COLUMNS = 4, 3, 7  # pt, eta, phi, mass; -1, 0, 1; with type, charge and jet


class Events(Modality):
    """Events (B, N, 7). Particles are ordered by pt: their rank is the only thing that the decoder is told of them.

    The loss of a particle is the mean squared error of its numbers and the cross entropies of type and charge.

    Options
        types: number of particle types
        most: particles of an event at most, those with the largest pt
        mean: of log pt, eta, phi and log mass
        std: of the same
    """

    def __init__(
        self, *, types: int = 5, most: int = 32, mean: Four = (1.0, 0.0, 0.0, -1.0), std: Four = (1.0, 1.5, 1.8, 1.0)
    ):
        super().__init__()
        self.types, self.most, self.mean, self.std = types, most, mean, std
        self.widths = (NUMBERS, types, CHARGES)

    def load(self, raw: Any, rng: Rng | None) -> dict[str, Tensor]:
        x = torch.as_tensor(raw, dtype=torch.float32)
        if x.ndim != 2 or not len(x) or x.shape[1] != COLUMNS or not x.isfinite().all() or x[:, [0, 3]].min() <= 0:
            raise ValueError(f"is no table of particles ({COLUMNS} finite columns, pt and mass above 0)")
        if x[:, 4].min() < 0 or x[:, 4].max() >= self.types or x[:, 5].abs().max() > 1:
            raise ValueError(f"has types outside 0 to {self.types - 1} or charges outside -1 to 1")
        x = x[x[:, 0].argsort(descending=True, stable=True)[: self.most]]
        x[:, [0, 3]] = x[:, [0, 3]].log()
        if rng is not None:  # rotated around the beam
            phi = x[:, 2] + 2 * torch.pi * rng.uniform("turn")
            x[:, 2] = torch.atan2(phi.sin(), phi.cos())
        x[:, :NUMBERS] = (x[:, :NUMBERS] - torch.tensor(self.mean)) / torch.tensor(self.std)
        x[:, 6] = x[:, 6].unique(return_inverse=True)[1].float()  # jets of the event: 0, 1, ...
        return {"x": x}

    def collate(self, samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        sets = [sample["x"] for sample in samples]
        valid = pad_sequence([torch.ones(len(x), dtype=torch.bool) for x in sets], batch_first=True)
        return {"x": pad_sequence(sets, batch_first=True), "valid": valid}

    def preprocess(self, raw: dict[str, Tensor], rng: Rng | None) -> Preprocessed:
        return Preprocessed(raw["x"], raw["valid"])

    def tokenize(self, preprocessed: Preprocessed) -> Tokens:
        x = preprocessed.x
        if x.ndim != 3 or x.shape[-1] != COLUMNS:
            raise MaemmError(f"Events expects (B, N, {COLUMNS}), got {tuple(x.shape)}")
        numbers, kind, charge, jet = x.split([NUMBERS, 1, 1, 1], -1)
        kinds, charges = torch.arange(self.types, device=x.device), torch.arange(-1, 2, device=x.device)
        rank = torch.arange(x.shape[1], device=x.device)[None, :, None].float()
        values = torch.cat([numbers, (kind == kinds).to(x), (charge == charges).to(x)], -1)
        jet = jet[..., 0].long().clamp(0, x.shape[1] - 1)  # padding may hold anything
        return Tokens(values, rank, valid=preprocessed.valid, context={"jet": jet})

    def connect(self, encoder_dim: int, decoder_dim: int | None) -> None:
        self.dim, self.embedding = encoder_dim, nn.Linear(sum(self.widths), encoder_dim)
        if decoder_dim is not None:
            self.decoder = nn.ModuleDict({"ranks": nn.Embedding(self.most, decoder_dim)})

    def output_dim(self) -> int:
        return sum(self.widths)

    def embed(self, tokens: Tokens, index: Tensor) -> Tensor:
        return self.embedding(tokens.gather(index))

    def position(self, tokens: Tokens, index: Tensor, role: str) -> Tensor:
        if role == "encoder":  # a set has no order
            return self.embedding.weight.new_zeros(1, index.shape[1], self.dim)
        return self.decoder["ranks"](tokens.gather_coords(index)[..., 0].long())

    def target(self, tokens: Tokens, index: Tensor) -> Tensor:
        return tokens.gather(index).float()

    def loss(self, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        (numbers, *classes), (true_numbers, *true_classes) = (x.float().split(self.widths, -1) for x in (pred, target))
        loss = (numbers - true_numbers).square().mean(-1)
        for logits, truth in zip(classes, true_classes, strict=True):
            loss = loss - (logits.log_softmax(-1) * truth).sum(-1)
        return loss

    def baseline(self, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
        """The mean of the numbers; of classes their frequencies, as logits."""
        best = mean_of_counted(target, counted)
        best[NUMBERS:] = best[NUMBERS:].clamp(min=1e-12).log()
        return self.loss(best.expand_as(target), target)

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        """Eta, phi, log pt (all standardised) and type (R, M, 4), NaN for the particles that are left out."""
        columns = torch.cat([values[..., [1, 2, 0]], values.split(self.widths, -1)[1].argmax(-1, keepdim=True)], -1)
        if index is None:
            return columns
        empty = columns.new_full((len(values), tokens.count, 4), float("nan"))
        return empty.scatter(1, index[..., None].expand_as(columns), columns)

    def plot(self, axes: Any, signal: Tensor) -> None:
        eta, phi, log_pt, kind = signal[signal.isfinite().all(-1)].detach().cpu().T.numpy()
        axes.scatter(eta, phi, s=6 * 2.0**log_pt, c=kind, vmin=0, vmax=self.types - 1, cmap="viridis")
        axes.set(xlim=(-3, 3), ylim=(-2, 2), xticks=[], yticks=[])

    def example(self, batch: int, rng: Rng) -> Preprocessed:
        uniform = rng.uniform("example", batch, 12, COLUMNS)[0]
        classes = (uniform[..., NUMBERS:] * torch.tensor([self.types, CHARGES, 4])).floor() - torch.tensor([0, 1, 0])
        numbers = (uniform[..., :NUMBERS] - 0.5) * 12**0.5
        return Preprocessed(torch.cat([numbers, classes], -1), torch.ones(batch, 12, dtype=torch.bool))
