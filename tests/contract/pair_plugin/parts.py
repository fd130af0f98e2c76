"""The spectrogram modality and the contrastive objective of CAV-MAE (Gong et al. 2023)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maemm.contract import Objective, Output, Plan, Prepared, Term, Tokens
from maemm.grid import GridModality

__all__ = ["Contrastive", "GridModality", "Spectrogram"]


class Spectrogram(GridModality):
    """(B, time, mel); tokens run along time first, then along frequency. ``size`` and ``patch`` are (mel, time)."""

    def tokenize(self, prepared: Prepared) -> Tokens:
        valid = None if prepared.valid is None else prepared.valid.transpose(1, 2)
        return super().tokenize(replace(prepared, x=prepared.x.transpose(1, 2).unsqueeze(1), valid=valid))

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        return super().untokenize(values, tokens, index).squeeze(1).transpose(1, 2)


class Contrastive(Objective):
    """Each sample of the second modality picks its partner among the first's: mean tokens of single passes."""

    coupled = True

    def __init__(self, name: str, *, pair: list[str], weight: float = 0.01, temperature: float = 0.05):
        super().__init__()
        self.name, self.pair, self.weight, self.temperature = name, pair, weight, temperature

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        first, second = (F.normalize(out.streams[name].float().mean(1), dim=-1) for name in self.pair)
        own = torch.arange(len(first), device=first.device)
        total = F.cross_entropy(second @ first.T / self.temperature, own, reduction="sum")
        return {self.name: Term(total, self.counts(out.plans)[self.name], self.weight)}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        visible = plans[self.pair[1]].visible
        return {self.name: torch.tensor(float(len(visible)), device=visible.device)}
