"""The smallest users of what latent targets, joint budgets, several sets of plans, side inputs and phases need."""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import Masking, Objective, PerModalityMasking, Phase, Plan, Target, Term
from maemm.model.masking.counts import noise_order, plan_from_order
from maemm.model.objectives.reconstruct import Reconstruct
from maemm.model.pooling import mean_of_tokens


# ------------------------------------------------------------------------------------------------------- maskings
class FourSets(PerModalityMasking):
    """Half of the tokens are visible; four sets of predicted ones share the encoder's pass (I-JEPA).

    Options
        sets: predicted sets
    """

    def __init__(self, *, sets: int = 4):
        self.sets = sets

    def plan(self, name, tokens, rng):
        order = noise_order(rng.uniform(f"mask/{name}", tokens.count, device=tokens.values.device), tokens)
        half = tokens.count // 2
        visible, size = order[:, :half].sort(1).values, half // self.sets
        predict = [order[:, half + k * size : half + (k + 1) * size].sort(1).values for k in range(self.sets)]
        samples = torch.arange(tokens.batch, device=visible.device)
        return Plan(
            visible.repeat(self.sets, 1),
            torch.cat(predict),
            rows=samples.repeat(self.sets),
            passes=samples.repeat(self.sets),
            first=samples,
        )


class TwoSizes(Masking):
    """Two plans of each sample, which hide different numbers of tokens (V-JEPA 2)."""

    def shapes(self, tokens):
        return 2

    def __call__(self, tokens, rng, guides=None):
        plans = []
        for ratio in (0.25, 0.75):
            one = {}
            for name, x in tokens.items():
                noise = rng.uniform(f"mask/{name}/{ratio}", x.count, device=x.values.device)
                one[name] = plan_from_order(noise_order(noise, x), x, ratio, "floor_visible")
            plans.append(one)
        return plans


class JointBudget(Masking):
    """``budget`` visible tokens over all modalities together, wherever the noise has them (MultiMAE).

    Options
        budget: visible tokens of a sample
    """

    def __init__(self, *, budget: int = 8):
        self.budget = budget

    def __call__(self, tokens, rng, guides=None):
        counts = [x.count for x in tokens.values()]
        first = next(iter(tokens.values()))
        noise = rng.uniform("mask/joint", sum(counts), device=first.values.device)
        rank = noise.argsort(1).argsort(1)
        plans = {}
        for (name, x), part in zip(tokens.items(), (rank < self.budget).split(counts, 1), strict=True):
            place = torch.arange(x.count, device=part.device).expand_as(part)
            visible, valid = _packed(place, part, min(x.count, self.budget))
            predict, predict_valid = _packed(place, ~part, x.count)
            plans[name] = Plan(visible, predict, visible_valid=valid, predict_valid=predict_valid, budget=self.budget)
        return plans


def _packed(place: Tensor, chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    index = torch.where(chosen, place, place.shape[1]).sort(1).values[:, :width]
    valid = index < place.shape[1]
    last = torch.where(valid, index, 0).amax(1, keepdim=True)
    return torch.where(valid, index, last), valid


class Guided(PerModalityMasking):
    """Hides the tokens that receive most attention, or have the largest features (SMA).

    Options
        guide: attention or features
    """

    def __init__(self, *, guide: str = "attention"):
        self.guide = guide

    def __call__(self, tokens, rng, guides=None):
        self.seen = guides
        plans = {}
        for name, x in tokens.items():
            weight = guides[name] if self.guide == "attention" else guides[name].norm(dim=-1)
            plans[name] = plan_from_order(weight.argsort(1), x, 0.5, "floor_visible")
        return plans

    def plan(self, name, tokens, rng):
        raise NotImplementedError


# -------------------------------------------------------------------------------------------------------- targets
class Teacher(Target):
    """Features of all tokens by a moving average of the encoder, of one pass for all plans and modalities (data2vec).

    Options
        decay: of the average
    """

    def __init__(self, names: list[str], encoder_dim: int, *, decay: float = 0.9):
        super().__init__()
        self.names, self.dim, self.decay, self.calls = names, encoder_dim, decay, 0

    def output_dim(self) -> int:
        return self.dim

    def connect(self, model: nn.Module) -> None:
        self.encoder = copy.deepcopy(model.encoder).requires_grad_(False)
        self.modalities = nn.ModuleDict({name: copy.deepcopy(model.modalities[name]) for name in self.names})
        self.modalities.requires_grad_(False)

    def precompute(self, model, inputs):
        self.calls += 1
        self.encoder.eval()
        return self.encoder(inputs, self.modalities).tokens

    def forward(self, inputs, index):
        rows = inputs.plan.rows
        latents = inputs.computed if rows is None else inputs.computed[rows]
        return nn.functional.layer_norm(
            latents.gather(1, index[..., None].expand(-1, -1, self.dim)).float(), (self.dim,)
        )

    def loss(self, pred, target):
        return nn.functional.smooth_l1_loss(pred.float(), target, reduction="none").mean(-1)

    def after_step(self, model, step, bad):
        weight = (1 - self.decay) * (~bad).float()
        own = [*self.encoder.parameters(), *self.modalities.parameters()]
        theirs = [*model.encoder.parameters()]
        theirs += [p for name in self.names for p in model.modalities[name].parameters()]
        with torch.no_grad():
            for average, parameter in zip(own, theirs, strict=True):
                average.lerp_(parameter.detach(), weight)


class Levels(Teacher):
    """Two blocks of the teacher, one behind the other."""

    def output_dim(self) -> int:
        return 2 * self.dim

    def precompute(self, model, inputs):
        self.encoder.eval()
        latents = self.encoder(inputs, self.modalities, layers=(0, 1))
        return {name: torch.cat([latents.layers[k][name] for k in (0, 1)], -1) for name in inputs}

    def forward(self, inputs, index):
        rows = inputs.plan.rows
        latents = inputs.computed if rows is None else inputs.computed[rows]
        return latents.gather(1, index[..., None].expand(-1, -1, 2 * self.dim)).float()

    def loss(self, pred, target):
        return (pred.float() - target).square().mean(-1)


class Codes(Target):
    """Whether a token is brighter than the mean of all, as one of two classes: cross entropy."""

    def __init__(self, names: list[str], encoder_dim: int):
        super().__init__()

    def output_dim(self) -> int:
        return 2

    def forward(self, inputs, index):
        bright = inputs.tokens.gather(index).float().mean(-1) > 0
        return torch.stack([~bright, bright], -1).float()  # one_hot() would look at the values, and wait for them

    def loss(self, pred, target):
        return -(pred.float().log_softmax(-1) * target).sum(-1)

    def baseline(self, target, counted):
        share = (target * counted[..., None]).sum((0, 1)) / counted.sum().clamp(min=1e-12)
        return self.loss(share.clamp(min=1e-12).log().expand_as(target), target)


# ----------------------------------------------------------------------------------------------------- objectives
class Adversary(Reconstruct):
    """Predictions are to be taken for targets by a network that learns to tell them apart (GAN-MAE).

    Options
        weight: of the reconstruction
        width: values of a predicted token
    """

    def __init__(self, name: str, *, width: int = 4, **rest: Any):
        super().__init__(name, **rest)
        self.critic = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Linear(8, 1))

    def forward(self, out, model):
        terms = super().forward(out, model)
        for name, pred in out.pred.items():
            counted = out.plans[name].counted
            fooled = nn.functional.softplus(-self.judged(pred))
            terms[f"fool.{name}"] = Term((fooled * counted).sum(), counted.sum(), 0.1)
        return terms

    def judged(self, x: Tensor) -> Tensor:
        return self.critic(x.to(self.critic[0].weight.dtype)).squeeze(-1)

    def counts(self, plans):
        return {**super().counts(plans), **{f"fool.{name}": plan.counted.sum() for name, plan in plans.items()}}

    def phases(self, model):
        return [Phase("critic", list(self.critic.parameters()), {"type": "adam"})]

    def phase_loss(self, phase, out, model):
        (name,) = out.pred
        counted = out.plans[name].counted
        real, made = (self.judged(x) for x in (out.target[name], out.pred[name]))
        loss = nn.functional.softplus(-real) + nn.functional.softplus(made)
        return Term((loss * counted).sum(), counted.sum())


class Columns(Objective):
    """Predicts a side input that the worker makes: how bright each column is (R-MAE's region maps).

    Options
        modality: whose
    """

    def __init__(self, name: str, *, modality: str = "toy"):
        super().__init__()
        self.modality, self.side_inputs = modality, {modality: ["brightness"]}

    def connect(self, model):
        self.head = nn.Linear(model.encoder.dim, 8)

    def forward(self, out, model):
        truth = out.inputs[self.modality].preprocessed.info["brightness"]
        latents = mean_of_tokens(out.encoded[self.modality], [out.plans[self.modality]])
        errors = (self.head(latents.to(self.head.weight.dtype)).float() - truth).square().mean(-1)
        return {"columns": Term(errors.sum(), errors.new_tensor(float(len(errors))))}

    def counts(self, plans):
        plan = plans[self.modality]
        return {"columns": plan.counted.new_tensor(float(len(plan.visible)))}


def without_passes(plan: Plan) -> Plan:
    """The same predictions with a pass of the encoder for every row."""
    return replace(plan, passes=None, first=None)
