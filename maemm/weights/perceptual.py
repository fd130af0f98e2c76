"""Reconstructions are to look like the sample to a frozen network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maemm.config.options import check
from maemm.contract import ModalityInput, Objective, Output, Plan, Term
from maemm.contract.errors import MaemmError, advice
from maemm.contract.grid import GridModality
from maemm.contract.means import mean_of_counted
from maemm.contract.options import NonNegative, NonNegativeInt, PartOf
from maemm.model.model import Model
from maemm.model.targets.losses import FeatureLoss, feature_loss
from maemm.registry import find
from maemm.registry.make import make, part_of
from maemm.weights.teacher import FrozenTeacher


class Perceptual(Objective):
    """The distance between features of the reconstruction and of the sample, in a frozen network (Johnson et al. 2016).

    The reconstruction is the sample with predictions in place of hidden tokens, their normalisation undone with the
    tokens' own mean and std, as in pictures. The network is that of the targets ``teacher`` and ``picture_teacher``,
    with their rules: it is in no checkpoint, and a run does not continue with another. Its gradient reaches the model
    through predictions alone. A term for each modality on a grid that predicts its own values; the mean over layers and
    their tokens.

    Options
        target: the network: teacher or picture_teacher with their options, {type: name, options}
        weight: of its terms in the loss
        layers: inner layers that are compared: blocks of a transformer, stages of a convolutional network, from 0;
            null: its final features
        loss: mse, smooth_l1 (beta 1), l1 or cosine
        normalize: layer normalise the features of each token, without parameters, before they are compared
        modalities: of which; null: all modalities
    """

    def __init__(
        self,
        name: str,
        *,
        target: Annotated[str | dict[str, Any], PartOf("targets")],
        weight: NonNegative = 1.0,
        layers: Sequence[NonNegativeInt] | None = None,
        loss: FeatureLoss = "mse",
        normalize: bool = True,
        modalities: Sequence[str] | None = None,
    ):
        super().__init__()
        self.name, self.spec, self.weight, self.names = name, target, weight, modalities
        self.layers, self.kind, self.normalize = tuple(layers or ()), loss, normalize
        self.target: FrozenTeacher | None = None

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` for targets that are no frozen network, and modalities that predict features.

        Weights without a decoder predict nothing."""
        names, where = [*(self.names or model.modalities)], f"objectives.{self.name}"
        for name in names:
            if name not in model.modalities:
                raise MaemmError(
                    f"{name!r} is no modality of this recipe ({where}.modalities); {advice(name, model.modalities)}"
                )
            if name in model.targets or not isinstance(model.modalities[name], GridModality):
                raise MaemmError(
                    f"the values of {name!r} are not what is predicted, or on no grid ({where}.modalities); name others"
                )
        self.names = names
        if model.decoder is None:
            return
        kind, options = part_of(self.spec)
        part = find("targets", kind)
        check(part, options, f"{where}.target")
        if not issubclass(part, FrozenTeacher):
            raise MaemmError(f"{kind} is no frozen network ({where}.target); choose teacher or picture_teacher")
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            self.target = make("targets", self.spec, names, model.encoder.dim, where=f"{where}.target")
        self.target.connect(model)

    # ---------------------------------------------------------------------------------------------- the network
    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        """Features of the samples themselves, once for all plans."""
        return {name: self._features(model, name, x) for name, x in inputs.items() if name in (self.names or ())}

    def _features(self, model: Model, name: str, x: ModalityInput) -> list[Tensor]:
        """(B, N', D') float32 of each layer."""
        if self.target is None:
            raise MaemmError("this model has no decoder (encoder-only weights); use embed, or load a file with one")
        device = x.preprocessed.x.device
        network, bf16 = self.target.network_on(device), self.target.bf16
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            maps = network.maps({name: x}, dict(model.modalities.items()), self.target.size, self.layers)[name]
        return [F.layer_norm(x.float(), x.shape[-1:]) if self.normalize else x.float() for x in maps]

    def composed(self, model: Model, name: str, x: ModalityInput, pred: Tensor) -> ModalityInput:
        """The sample of each row with predictions (R, M, O) in place of what is hidden, in the model's units.

        Raises :class:`MaemmError` where predictions are not values of the tokens.
        """
        modality, tokens, plan = model.modalities[name], x.tokens, x.plan
        real = tokens.gather(plan.predict).float()
        made = modality.denormalize_target(pred, tokens, plan.predict)
        values = tokens.values if plan.rows is None else tokens.values[plan.rows]
        if made.shape != real.shape:
            raise MaemmError(
                f"predictions of {name!r} are not values of its tokens (objectives.{self.name}.modalities); name others"
            )
        # Padding stands at the place of a real token, and tokens that are visible stay as they are: 0 is added there.
        change = torch.where(plan.counted[..., None] > 0, made - real, 0.0)
        whole = values.float().scatter_add(1, plan.predict[..., None].expand_as(change), change)
        signal = modality.untokenize(whole, tokens)
        before = x.preprocessed
        if signal is None or signal.shape[1:] != before.x.shape[1:]:
            raise MaemmError(f"{name!r} cannot be put together from its tokens (objectives.{self.name}); leave it out")
        valid = before.valid if before.valid is None or plan.rows is None else before.valid[plan.rows]
        signal = signal if tokens.known is None else signal.nan_to_num()
        alone = Plan(plan.visible, plan.predict)  # a row is a sample of its own here
        return ModalityInput(replace(tokens, rows=None), alone, replace(before, x=signal, valid=valid, info={}))

    # ----------------------------------------------------------------------------------------------------- the loss
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        counts, terms = self.counts(out.plans), {}
        for name, x in out.inputs.items():
            if name in (self.names or ()):
                pred = out.pred[name] if self.weight else out.pred[name].detach()
                key = f"{self.name}.{name}"
                terms[key] = Term(self._distance(model, name, x, pred), counts[key], self.weight)
        return terms

    def _distance(self, model: Model, name: str, x: ModalityInput, pred: Tensor) -> Tensor:
        """The sum over rows of the mean distance over layers and tokens."""
        with torch.autocast(pred.device.type, enabled=False):
            made = self._features(model, name, self.composed(model, name, x, pred))
            real, rows = x.computed_by[self.name], x.plan.rows
            real = real if rows is None else [features[rows] for features in real]
            sums = [feature_loss(a, b, self.kind).mean(1).sum() for a, b in zip(made, real, strict=True)]
            return torch.stack(sums).mean()

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """Of the mean target in place of every prediction."""
        counts, terms = self.counts(out.plans), dict[str, Term | None]()
        for name, x in out.inputs.items():
            if name in (self.names or ()):
                target, known = out.target[name], x.tokens.gather_known(x.plan.predict)
                mean = mean_of_counted(target, x.plan.counted, known).expand_as(target)
                key = f"{self.name}.{name}"
                terms[key] = Term(self._distance(model, name, x, mean), counts[key])
        return terms

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {
            f"{self.name}.{name}": plan.counted.new_full((), float(len(plan.visible)))
            for name, plan in plans.items()
            if self.names is None or name in self.names
        }
