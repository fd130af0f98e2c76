"""A discriminator that shares the encoder and finds predicted tokens among real ones (GAN-MAE)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from maemm.contract import Modality, ModalityInput, Objective, Output, Phase, Plan, Term
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegative, PartOf, Positive
from maemm.model.blocks import init_linear
from maemm.model.model import Model
from maemm.model.planning import evaluating

PHASE = "discriminator"
EPS = 1e-6  # beside the norm of a gradient


@dataclass(frozen=True)
class Verdict:
    """What the discriminator says of one modality, (R, N) each, in the order in which it reads the tokens."""

    logits: Tensor  # float32: above 0 where it takes a token for real
    real: Tensor  # the labels: 1 exactly where a token is visible
    made: Tensor  # 1 where a token is predicted, and not visible too

    @property
    def asked(self) -> Tensor:
        """1 where the loss asks: for tokens that are visible or predicted."""
        return self.real + self.made

    def losses(self) -> Tensor:
        """Cross-entropy of each token (R, N), 0 where it is not asked for."""
        return binary_cross_entropy_with_logits(self.logits, self.real, reduction="none") * self.asked


class Adversarial(Objective):
    """Predictions are to be taken for real by a discriminator: the encoder itself, and a layer on it (GAN-MAE).

    Fei et al., "Masked Auto-Encoders Meet Generative Adversarial Networks and Beyond", CVPR 2023. No code of theirs is
    published, so this is a reading. The discriminator reads the whole picture, put together of visible tokens as they
    are and of predictions without their normalisation by patch, and says of each token how real it is. It learns in a
    phase of its own after the update, from the predictions of the step, with an optimiser of its own, which trains the
    encoder and the embeddings too; no gradient of that reaches the decoder. The term NAME.MODALITY is what the
    predictions are to minimise: its gradient goes through the discriminator, and moves none of its weights. Terms of
    weight 0 are the loss of the discriminator before its update, NAME_discriminator.MODALITY, and how many tokens it is
    right about, NAME_accuracy.MODALITY. With weight 0 nothing is trained: the terms are logged.

    Options
        weight: of the term in the loss
        adaptive: times the norm of the gradient of the reconstruction over that of the term, by the predictions of
            each sample (as third-party code has it, over the whole network): at weight 1 both pull equally
        generator: minimax: mean of log d over visible tokens + mean of log(1 - d) over predicted ones, d the
            probability of being real; non_saturating: minus the same with d and 1 - d exchanged (Goodfellow et al.
            2014)
        optimizer: of the discriminator, a name or {type: name, options}
        lr_scale: its learning rate over that of the step
    """

    def __init__(
        self,
        name: str,
        *,
        weight: NonNegative = 1.0,
        adaptive: bool = True,
        generator: Literal["minimax", "non_saturating"] = "minimax",
        optimizer: Annotated[str | dict[str, Any], PartOf("optimizers")] = "adamw",
        lr_scale: Positive = 1.0,
    ):
        super().__init__()
        self.name, self.weight, self.adaptive, self.generator = name, weight, adaptive, generator
        self.optimizer, self.lr_scale = optimizer, lr_scale

    def connect(self, model: Model) -> None:
        """Make the layer that judges. Weights without a decoder predict nothing.

        Raises :class:`MaemmError` where predictions are features, which are no part of a picture.
        """
        if model.targets:
            name = next(iter(model.targets))
            raise MaemmError(
                f"the predictions of {name!r} are those of a target, so no picture can be put together of them "
                f"(objectives.{self.name}, modalities.{name}.target); leave one of them out"
            )
        if model.decoder is None:
            return
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            self.heads = nn.ModuleDict({name: nn.Linear(model.encoder.dim, 1) for name in model.modalities})
            self.heads.apply(init_linear)
        self.heads.requires_grad_(self.weight > 0)

    # ------------------------------------------------------------------------------------------------ in a step
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        counts = self.counts(out.plans)
        leaves = {name: pred.detach() for name, pred in out.pred.items()}
        learns = self.weight > 0 and torch.is_grad_enabled()
        learns = learns and all(pred.requires_grad for pred in out.pred.values())
        if learns:
            for leaf in leaves.values():
                leaf.requires_grad_()
        # With weight 0 nothing may depend on it: no random number of a dropout, no statistic of a batch.
        mode = nullcontext() if self.weight else evaluating(model.encoder, model.modalities)
        with torch.set_grad_enabled(learns), mode:
            verdicts = self.verdicts(out, leaves, model)
            values = {name: self._value(verdict) for name, verdict in verdicts.items()}
        terms = {}
        with torch.autocast(next(iter(leaves.values())).device.type, enabled=False):
            if learns:
                links = self._links(out, leaves, values, model)
            for name, verdict in verdicts.items():
                value = values[name].detach().sum()
                # The value of the term, and the gradient that was found for the predictions: what the graph of the
                # discriminator would give, without moving its weights, and without keeping that graph.
                total = value + (links[name] - links[name].detach()) if learns else value
                terms[f"{self.name}.{name}"] = Term(total, counts[f"{self.name}.{name}"], self.weight)
                right = ((verdict.logits > 0) == (verdict.real > 0)) * verdict.asked
                for kind, of_tokens in (("discriminator", verdict.losses()), ("accuracy", right)):
                    key = f"{self.name}_{kind}.{name}"
                    terms[key] = Term(of_tokens.detach().float().sum(), counts[key], 0.0)
        return terms

    def _value(self, verdict: Verdict) -> Tensor:
        """What the predictions of each row are to minimise (R,): a mean over visible and one over predicted tokens.

        0 where nothing is predicted.
        """
        z = verdict.logits
        real, made = (
            (logsigmoid(z), logsigmoid(-z)) if self.generator == "minimax" else (-logsigmoid(-z), -logsigmoid(z))
        )
        of_real = (real * verdict.real).sum(1) / verdict.real.sum(1).clamp(min=1)
        of_made = (made * verdict.made).sum(1) / verdict.made.sum(1).clamp(min=1)
        return (of_real + of_made) * (verdict.made.sum(1) > 0)

    def _links(
        self, out: Output, leaves: Mapping[str, Tensor], values: Mapping[str, Tensor], model: Model
    ) -> dict[str, Tensor]:
        """{modality: a scalar with the gradient of its values by the predictions}, where ``adaptive`` scaled by row."""
        total = torch.stack([value.sum() for value in values.values()]).sum()
        gradients = torch.autograd.grad(total, list(leaves.values()))
        links = {}
        for (name, gradient), pred in zip(zip(leaves, gradients, strict=True), out.pred.values(), strict=True):
            gradient = gradient.float()
            if self.adaptive:
                counted = out.plans[name].counted
                known = out.inputs[name].tokens.gather_known(out.plans[name].predict)
                optional = () if known is None else (known,)
                loss = model.modalities[name].loss(leaves[name], out.target[name], *optional)
                losses = (loss * counted).sum(1) / counted.sum(1).clamp(min=1)
                (other,) = torch.autograd.grad(losses.sum(), [leaves[name]])
                scale = other.float().flatten(1).norm(dim=1) / (gradient.flatten(1).norm(dim=1) + EPS)
                gradient = gradient * scale.view(-1, *(1,) * (gradient.ndim - 1))
            links[name] = (pred.float() * gradient).sum()
        return links

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        """Rows with a predicted token; for the discriminator the tokens that are visible or predicted."""
        counts: dict[str, Tensor] = {}
        for name, plan in plans.items():
            made = plan.counted > 0
            if plan.visible_valid is None:
                visible = plan.counted.new_full((), float(plan.visible.numel()))
            else:
                visible = plan.visible_valid.sum().float()
            asked = made.sum().float() + visible
            counts |= {
                f"{self.name}.{name}": made.any(1).sum().float(),
                f"{self.name}_discriminator.{name}": asked,
                f"{self.name}_accuracy.{name}": asked,
            }
        return counts

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        return {f"{self.name}.{name}": None for name in out.plans}

    # ---------------------------------------------------------------------------------------- the discriminator
    def verdicts(self, out: Output, pred: Mapping[str, Tensor], model: Model) -> dict[str, Verdict]:
        """What the discriminator says of ``pred``, {modality: (R, M, O)}, among the visible tokens of ``out``."""
        inputs, labels = {}, {}
        for name, x in out.inputs.items():
            modality = model.modalities[name]
            inputs[name] = put_together(modality, x, pred[name], f"objectives.{self.name}, {name}")
            plan = inputs[name].plan
            real, made = (part.gather(1, plan.visible) for part in real_and_made(x.plan, x.tokens.count))
            valid = 1.0 if plan.visible_valid is None else plan.visible_valid.to(real.dtype)
            labels[name] = real * valid, made * valid
        tokens = model.encoder(inputs, model.modalities).tokens
        verdicts = {}
        for name, (real, made) in labels.items():
            verdicts[name] = Verdict(self.heads[name](tokens[name]).squeeze(-1).float(), real, made)
        return verdicts

    def phases(self, model: Model) -> Sequence[Phase]:
        """The discriminator: its layer, which is its own, and the encoder with the embeddings, which it shares."""
        if not self.weight or model.decoder is None:
            return ()
        shared = [parameter for parameter in _of_encoding(model) if parameter.requires_grad]
        return [Phase(PHASE, list(self.heads.parameters()), self.optimizer, self.lr_scale, shared)]

    def phase_loss(self, phase: str, out: Output, model: Model) -> Term:
        verdicts = self.verdicts(out, {name: pred.detach() for name, pred in out.pred.items()}, model)
        counts = self.counts(out.plans)
        with torch.autocast(next(iter(out.pred.values())).device.type, enabled=False):
            losses = torch.stack([verdict.losses().sum() for verdict in verdicts.values()])
        return Term(losses.sum(), torch.stack([counts[f"{self.name}_discriminator.{name}"] for name in verdicts]).sum())


def _of_encoding(model: Model) -> Iterator[nn.Parameter]:
    """Parameters of the encoder, and those of modalities that are not their decoder's."""
    yield from model.encoder.parameters()
    for modality in dict.fromkeys(model.modalities.values()):
        for name, parameter in modality.named_parameters():
            if not name.startswith("decoder."):
                yield parameter


def real_and_made(plan: Plan, count: int) -> tuple[Tensor, Tensor]:
    """Which of ``count`` tokens are visible, and which are predicted and not visible too: (R, N) float, 0 or 1."""
    zeros = plan.counted.new_zeros(len(plan.visible), count)
    seen = torch.ones_like(plan.visible, dtype=zeros.dtype)
    if plan.visible_valid is not None:
        seen = plan.visible_valid.to(zeros.dtype)
    real = zeros.scatter_add(1, plan.visible, seen).clamp(max=1)
    made = zeros.scatter_add(1, plan.predict, (plan.counted > 0).to(zeros.dtype)).clamp(max=1)
    return real, made


def put_together(modality: Modality, x: ModalityInput, pred: Tensor, where: str) -> ModalityInput:
    """All tokens of each row of a plan (R, N, ...), nothing hidden: real ones, and predictions ``pred`` (R, M, O).

    Values that are missing in the real tokens are missing in the predicted ones too, and those that no target has stay
    as they are. Raises :class:`MaemmError`, which names ``where``, if predictions are no values of tokens.
    """
    tokens, plan = x.tokens, x.plan
    old = tokens.gather(plan.predict)
    new = modality.denormalize_target(pred, tokens, plan.predict).to(old.dtype)
    if new.shape != old.shape:
        raise MaemmError(
            f"predictions {tuple(new.shape)} are no tokens {tuple(old.shape)}, so no picture can be put together of "
            f"them ({where}); leave the objective out"
        )
    used = (plan.counted > 0).view(*plan.counted.shape, *(1,) * (new.ndim - 2)) & ~new.detach().isnan()
    if (known := tokens.gather_known(plan.predict)) is not None:
        used = used & known
    # Padding repeats an index: a sum of differences, of which that of the padding is 0, has no order.
    change = torch.where(used, new - old, 0.0)
    index = plan.predict.view(*plan.predict.shape, *(1,) * (new.ndim - 2)).expand_as(change)
    whole = tokens.all_indices()
    every = replace(
        tokens,
        values=tokens.gather(whole).scatter_add(1, index, change),
        coords=tokens.coords if tokens.coords.shape[0] == 1 else tokens.gather_coords(whole),
        valid=tokens.valid if tokens.valid is None or tokens.rows is None else tokens.valid[tokens.rows],
        known=tokens.gather_known(whole),
        rows=None,
    )
    return ModalityInput(every, Plan.all_visible(every), x.preprocessed)
