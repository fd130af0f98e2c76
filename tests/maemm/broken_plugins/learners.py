"""Targets and objectives that break a rule of averages, teachers, baselines, phases or side inputs, one each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from maemm.contract import (
    ModalityInput,
    Objective,
    Output,
    Phase,
    Plan,
    Target,
    Term,
)
from maemm.contract.rng import Rng
from maemm.model.objectives.reconstruct import Reconstruct
from maemm.testing.toy_signal import Signal


class Average(Target):
    """Features of a moving average of the encoder."""

    def __init__(self, names: list[str], encoder_dim: int):
        super().__init__()
        self.names, self.dim = names, encoder_dim

    def output_dim(self) -> int:
        return self.dim

    def connect(self, model: nn.Module) -> None:
        self.encoder = copy.deepcopy(model.encoder).requires_grad_(False)
        self.modalities = nn.ModuleDict({name: copy.deepcopy(model.modalities[name]) for name in self.names})
        self.modalities.requires_grad_(False)

    def precompute(self, model: nn.Module, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        return self.encoder(inputs, self.modalities).tokens

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        latents = inputs.computed if inputs.plan.rows is None else inputs.computed[inputs.plan.rows]
        return latents.gather(1, index[..., None].expand(-1, -1, self.dim)).float()

    def after_step(self, model: nn.Module, step: int, bad: Tensor) -> None:
        self._follow(model, 0.1 * (~bad).float())

    def _follow(self, model: nn.Module, weight: Tensor | float) -> None:
        with torch.no_grad():
            for ours, theirs in zip(self.encoder.parameters(), model.encoder.parameters(), strict=True):
                ours.lerp_(theirs, weight)


class Restless(Average):
    """Follows the encoder after bad steps too."""

    def after_step(self, model: nn.Module, step: int, bad: Tensor) -> None:
        self._follow(model, 0.1)


class Reading(Average):
    """Looks at ``bad`` on the host, which waits for it."""

    def after_step(self, model: nn.Module, step: int, bad: Tensor) -> None:
        if not bad:
            self._follow(model, 0.1)


class EachTime(Average):
    """Runs its teacher for every set of predicted tokens."""

    def precompute(self, model: nn.Module, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        return dict(inputs)

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        (name,) = self.names
        with torch.no_grad():
            latents = self.encoder({name: inputs.computed}, self.modalities).tokens[name]
        return super().forward(replace(inputs, computed=latents), index)


class Twice(Average):
    """Runs its teacher twice."""

    def precompute(self, model: nn.Module, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        self.encoder(inputs, self.modalities)
        return super().precompute(model, inputs)


class FirstRows(Average):
    """Ignores which sample each row of a plan belongs to."""

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        latents = inputs.computed[torch.arange(len(index)).clamp(max=len(inputs.computed) - 1)]
        return latents.gather(1, index[..., None].expand(-1, -1, self.dim)).float()


class Attached(Average):
    """Its targets have a gradient."""

    def connect(self, model: nn.Module) -> None:
        super().connect(model)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        return super().forward(inputs, index) * self.scale


class Narrow(Average):
    """Its output_dim() is not the width of its targets."""

    def output_dim(self) -> int:
        return self.dim // 2


class TooLow(Average):
    """Its baseline ignores which tokens count."""

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor:
        return self.loss(target.mean((0, 1)).expand_as(target), target)


class TooHigh(Average):
    """Its baseline is a sum over values, its loss their mean."""

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor:
        return (target - 1.0).square().sum(-1)


class Critic(Reconstruct):
    """A critic of predictions, with a phase of its own."""

    def __init__(self, name: str):
        super().__init__(name)
        self.critic = nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 1))  # of a patch of 2 x 2 x 2 values

    def phases(self, model: nn.Module) -> list[Phase]:
        return [Phase("critic", list(self.critic.parameters()), "adam")]

    def phase_loss(self, phase: str, out: Output, model: nn.Module) -> Term:
        (pred,), (target,) = out.pred.values(), out.target.values()
        dtype = self.critic[0].weight.dtype
        real, made = (self.critic(x.to(dtype)).float() for x in (target, pred))
        return Term((functional.softplus(-real) + functional.softplus(made)).sum(), torch.tensor(float(real.numel())))


class Apart(Critic):
    """The loss of its phase is that of the reconstruction, which its parameters have no part in."""

    def phase_loss(self, phase: str, out: Output, model: nn.Module) -> Term:
        (loss,) = out.loss.values()
        return Term(loss.sum(), torch.tensor(float(loss.numel())))


class Shared(Critic):
    """Two phases train the same parameters."""

    def phases(self, model: nn.Module) -> list[Phase]:
        return [Phase(name, list(self.critic.parameters()), "adam") for name in ("first", "second")]


class Foreign(Critic):
    """Its phase trains what the model does not save."""

    def phases(self, model: nn.Module) -> list[Phase]:
        return [Phase("critic", [nn.Parameter(p.detach().clone()) for p in self.critic.parameters()], "adam")]


class KeepsCounting(Reconstruct):
    """Counts bad steps too, in a buffer that weighs nothing."""

    def __init__(self, name: str):
        super().__init__(name)
        self.register_buffer("steps", torch.zeros(()))

    def after_step(self, model: nn.Module, step: int, bad: Tensor) -> None:
        self.steps += 1


class _Asking(Reconstruct):
    """Asks for a side input and ignores it."""

    side: str

    def __init__(self, name: str, *, modality: str):
        super().__init__(name)
        self.side_inputs = {modality: [self.side]}


class AsksRandom(_Asking):
    side = "random"


class AsksChanging(_Asking):
    side = "changing"


class AsksRagged(_Asking):
    side = "ragged"


class AsksUnknown(_Asking):
    side = "unheard_of"


class Sides(Signal):
    """A modality whose side inputs are broken in different ways."""

    def side_input(self, name: str, loaded: Mapping[str, Any], rng: Rng | None) -> Tensor:
        x = torch.as_tensor(loaded["x"])
        if name == "random":
            return torch.rand(3)
        if name == "changing":
            x += 1.0
            return x.mean()
        if name == "ragged":
            return x[x > x.mean()]
        return super().side_input(name, loaded, rng)


# -------------------------------------------------------------------------------------------------- whole batches
class Spread(Objective):
    """The variance over the samples of the micro-batch, though it is told of the whole batch."""

    coupled = True

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def over_batch(self, model: nn.Module, inputs: Any) -> dict[str, Any]:
        return {}

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        (latents,) = out.encoded.values()
        spread = latents.float().mean(1).var(0).sum()
        return {self.name: Term(spread * len(latents), self.counts(out.plans)[self.name])}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        (plan,) = plans.values()
        return {self.name: torch.tensor(float(len(plan.visible)))}


class HalfGradient(Spread):
    """The mean product with the sum of the batch, whose own gradient is forgotten."""

    def over_batch(self, model: nn.Module, inputs: Any) -> dict[str, Any]:
        if len(inputs) == 1:
            return {}
        (name,) = inputs[0]
        return {name: sum(self._means(model.encode_rows(x).tokens[name]).sum(0) for x in inputs)}

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        ((name, x),) = out.inputs.items()
        own = self._means(out.encoded[name])
        total = x.of_batch.get(self.name, own.sum(0))
        return {self.name: Term((own * total).sum(), self.counts(out.plans)[self.name])}

    @staticmethod
    def _means(latents: Tensor) -> Tensor:
        return latents.float().mean(1)
