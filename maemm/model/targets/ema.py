"""Latents of a moving average of the model: what data2vec, I-JEPA and V-JEPA predict."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from itertools import chain
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MinLen
from torch import Tensor, nn

from maemm.contract import Encoder, Latents, Modality, ModalityInput, Plan, Target
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, Fraction, NonNegativeInt, Positive, PositiveInt
from maemm.model.averages import copy_all, move_averages
from maemm.model.model import Model
from maemm.model.targets.losses import FeatureLoss, Reduction, feature_baseline, feature_loss
from maemm.model.targets.rows import computed_of


class EMA(Target):
    """Features that a moving average of the encoder and the embedding has of all tokens of the whole sample.

    The average is in float32 and in evaluation mode. One pass of it serves all plans and modalities of a batch. After
    each optimiser step it becomes m * average + (1 - m) * new weights (BYOL; I-JEPA, section 3; data2vec 2.0, section
    3.1); buffers are copied.

    Options
        momentum: m of the first step
        momentum_end: m at the end of its schedule; null: m stays as it is
        momentum_schedule: from momentum to momentum_end: linear (I-JEPA), cosine, or anneal: linear too, one step
            ahead (data2vec)
        momentum_steps: steps after which m stays at momentum_end; null: those of the whole training
        layers: blocks whose features are averaged: last (behind the encoder's final norm), the number of last ones, or
            a list of blocks, from 0, without that norm
        features: of a block: block, its output; ffn, the output of its feed-forward part before the residual (data2vec)
        instance_norm: normalise each block's features per channel over the tokens (eps 1e-5)
        layer_norm_each: normalise each block's features over the channels, without weights (eps 1e-5)
        layer_norm: normalise the averaged features over the channels, without weights (eps 1e-5)
        loss: smooth_l1, mse, l1 or cosine
        beta: error from which smooth_l1 is linear
        exponent: p of l1, which is |error|^p / p (V-JEPA 2)
        reduction: of a token's loss over the channels: mean, or sum_by_root: their sum / sqrt(D) (data2vec 2.0)
    """

    autocast = True
    eps = 1e-5  # of the norms without weights

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        *,
        momentum: Fraction = 0.996,
        momentum_end: Fraction | None = None,
        momentum_schedule: Literal["linear", "cosine", "anneal"] = "linear",
        momentum_steps: PositiveInt | None = None,
        layers: Literal["last"] | Depth | Annotated[list[NonNegativeInt], MinLen(1)] = "last",
        features: Literal["block", "ffn"] = "block",
        instance_norm: bool = False,
        layer_norm_each: bool = False,
        layer_norm: bool = True,
        loss: FeatureLoss = "smooth_l1",
        beta: Positive = 1.0,
        exponent: Annotated[float, Ge(1), Le(16)] = 1.0,
        reduction: Reduction = "mean",
    ):
        super().__init__()
        if exponent != 1 and loss != "l1":
            raise MaemmError(f"an exponent is that of l1, not of {loss} (target.exponent); set target.loss=l1")
        if features == "ffn" and layers == "last":
            raise MaemmError(
                "features: ffn are those of blocks (target.layers: last); set layers to a number or a list"
            )
        self.names, self.dim = list(names), encoder_dim
        self.momentum, self.momentum_end = momentum, momentum_end
        self.momentum_schedule, self.momentum_steps = momentum_schedule, momentum_steps
        self.layers, self.features = layers, features
        self.instance_norm, self.layer_norm_each, self.layer_norm = instance_norm, layer_norm_each, layer_norm
        self.kind, self.beta, self.reduction, self.exponent = loss, beta, reduction, exponent
        self.steps: int | None = None  # of the training

    def output_dim(self) -> int:
        return self.dim

    # ---- the copy
    def connect(self, model: Model) -> None:
        """Copy the encoder, and of the modalities what embeds. Raises :class:`MaemmError` for blocks that it lacks."""
        encoder: Encoder = model.encoder
        self.blocks = self._blocks(encoder)
        copied: dict[str, Any] = copy.deepcopy(
            {"encoder": encoder, "modalities": {n: model.modalities[n] for n in self.names}}
        )
        self.encoder: Encoder = copied["encoder"]
        for modality in copied["modalities"].values():
            if "decoder" in modality._modules:
                del modality.decoder
        self.modalities = nn.ModuleDict(copied["modalities"])
        if self.features == "ffn":
            self.encoder.layer_features = "ffn"
        self.requires_grad_(False)
        self.train(False)

    def _blocks(self, encoder: Encoder) -> list[int]:
        if self.features == "ffn" and not encoder.has_ffn_features:
            raise MaemmError(
                f"{type(encoder).__name__} has no features of feed-forward parts (target.features: ffn); use block"
            )
        if self.layers == "last":
            return []
        depth = encoder.layer_of("norm.weight") - 1
        if isinstance(self.layers, int):
            return list(range(max(depth - self.layers, 0), depth))
        if beyond := [layer for layer in self.layers if layer >= depth]:
            raise MaemmError(f"the encoder has no blocks {beyond} (target.layers); they go from 0 to {depth - 1}")
        return list(dict.fromkeys(self.layers))

    def train(self, mode: bool = True) -> EMA:
        """Stays in evaluation mode."""
        return super().train(False)

    def reset(self, model: Model) -> None:
        for average, new in self._pairs(model):
            average.data.copy_(new.data)

    def _pairs(self, model: Model) -> Iterator[tuple[Tensor, Tensor]]:
        """(of the average, of the model), parameters and buffers."""
        theirs: list[tuple[nn.Module, nn.Module]] = [(self.encoder, model.encoder)]
        theirs += [(self.modalities[name], model.modalities[name]) for name in self.names]
        seen: set[int] = set()
        for own, module in theirs:
            named = dict(chain(module.named_parameters(), module.named_buffers()))
            for name, average in chain(own.named_parameters(), own.named_buffers()):
                if id(average) not in seen:  # modalities may share a module
                    seen.add(id(average))
                    yield average, named[name]

    # ---- the update
    def before_training(self, steps: int) -> None:
        self.steps = steps

    def momentum_at(self, step: int) -> float:
        """m of the update after ``step``, counted from 0: a pure function of the step and the length of the training.

        linear: m0 + (m1 - m0) step / steps (I-JEPA, train.py); anneal: the same with step + 1 (data2vec 2.0).
        """
        steps = self.momentum_steps or self.steps
        if self.momentum_end is None or steps is None:
            return self.momentum
        done = min((step + (self.momentum_schedule == "anneal")) / steps, 1.0)
        if self.momentum_schedule == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2
        return self.momentum + (self.momentum_end - self.momentum) * done

    @torch.no_grad()
    def after_step(self, model: Model, step: int, bad: Tensor) -> None:
        fraction = (1.0 - self.momentum_at(step)) * (~bad).float()
        pairs = list(self._pairs(model))
        move_averages((pair for pair in pairs if isinstance(pair[0], nn.Parameter)), fraction)
        copy_all(pair for pair in pairs if not isinstance(pair[0], nn.Parameter))

    # ---- the features
    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        """{modality: features of all its tokens, (B, N, D) float32, in the order of the tokens}."""
        modalities: dict[str, Modality] = dict(self.modalities.items())  # type: ignore[arg-type]
        latents = self.encoder(inputs, modalities, layers=self.blocks, norm=not self.blocks)
        device = next(iter(latents.tokens.values())).device.type
        with torch.autocast(device, enabled=False):
            return {name: self._features(latents, name, x.plan) for name, x in inputs.items()}

    def _features(self, latents: Latents, name: str, plan: Plan) -> Tensor:
        layers = [latents.layers[block][name] for block in self.blocks] or [latents.tokens[name]]
        total = torch.zeros((), device=layers[0].device)
        for layer in layers:
            x = layer.float()
            if self.instance_norm:
                x = over_tokens(x, plan.visible_valid, self.eps)
            if self.layer_norm_each:
                x = F.layer_norm(x, x.shape[-1:], eps=self.eps)
            total = total + x
        mean = total / len(layers)
        if self.layer_norm:
            mean = F.layer_norm(mean, mean.shape[-1:], eps=self.eps)
        return mean if plan.visible_valid is None else _in_order(mean, plan)

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        return computed_of(inputs, index)

    # ---- the loss
    def _loss_options(self) -> dict[str, Any]:
        return {"beta": self.beta, "reduction": self.reduction, "exponent": self.exponent}

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        return feature_loss(pred, target, self.kind, **self._loss_options())

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor:
        return feature_baseline(target, counted, self.kind, **self._loss_options())


def over_tokens(x: Tensor, valid: Tensor | None, eps: float) -> Tensor:
    """x (B, N, D), normalised per channel over the tokens, or the ``valid`` (B, N) ones, with the biased variance."""
    if valid is None:
        mean, variance = x.mean(1, keepdim=True), x.var(1, correction=0, keepdim=True)
    else:
        weights = valid[..., None].to(x.dtype)
        count = weights.sum(1, keepdim=True).clamp(min=1)
        mean = (x * weights).sum(1, keepdim=True) / count
        variance = ((x - mean).square() * weights).sum(1, keepdim=True) / count
    return (x - mean) * (variance + eps).rsqrt()


def _in_order(x: Tensor, plan: Plan) -> Tensor:
    """Features (B, N, D) in the order of ``plan.visible``, valid ones first -> in that of the tokens; padding: 0."""
    batch, count, width = x.shape
    assert plan.visible_valid is not None
    index = torch.where(plan.visible_valid, plan.visible, count)[..., None].expand_as(x)
    return x.new_zeros(batch, count + 1, width).scatter(1, index, x)[:, :count]
