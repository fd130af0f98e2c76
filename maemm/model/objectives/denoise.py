"""The encoder sees noisy tokens, and the noise is predicted (CAN)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from maemm.contract import ModalityInput, Objective, Output, Plan, Term
from maemm.contract.data import gather_tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.means import mean_over_known
from maemm.contract.options import NonNegative
from maemm.contract.rng import Rng
from maemm.model.blocks import init_linear
from maemm.model.model import Model

_STEPS = 1000.0  # position of the largest deviation in its sine-cosine code, as of the last step of a diffusion


class Denoise(Objective):
    """Normal noise is added to what the encoder sees, and predicted from the decoder's visible tokens (CAN, Mishra et
    al. 2022, section 3.3). A reading, as no code was published.

    In training the standard deviation of each sample and modality is drawn uniformly below ``noise``. The decoder is
    told it: a sine-cosine code, passed through two linear layers with a ReLU between them, is added to all of its
    tokens. What hidden tokens are compared with is without noise. A term for each modality on a grid, the mean squared
    error over visible tokens; validation, which adds no noise, has none. With weight 0 or noise 0 nothing is added
    anywhere; the term is computed and logged.

    Options
        weight: of all terms in the loss
        noise: the largest standard deviation, in units of what the model sees: after mean and std of the modality
        level: tell the decoder the standard deviation
    """

    def __init__(self, name: str, *, weight: NonNegative = 1.0, noise: NonNegative = 0.05, level: bool = True):
        super().__init__()
        self.name, self.weight, self.noise, self.level = name, weight, noise, level
        self.active = weight > 0 and noise > 0

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` for modalities on no grid, and decoders that do not give their visible tokens."""
        for name, modality in model.modalities.items():
            if not isinstance(modality, GridModality):
                raise MaemmError(
                    f"objectives.{self.name} adds noise to patches of a grid, which {name!r} has not; leave it out"
                )
        decoder = model.decoder
        if decoder is None:  # weights of an encoder alone
            return
        if (
            decoder.keep_visible is None
            or decoder.decoded_dim is None
            or not (decoder.takes_condition or not self.level)
        ):
            raise MaemmError(
                f"objectives.{self.name} needs a decoder that gives its visible tokens, which {type(decoder).__name__} "
                "does not; use decoder.type=full"
            )
        decoder.keep_visible, width = True, decoder.decoded_dim
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            grids: dict[str, GridModality] = dict(model.modalities.items())  # type: ignore[arg-type]  # checked above
            self.layers = nn.ModuleDict({name: nn.Linear(width, grid.values_dim()) for name, grid in grids.items()})
            self.layers.apply(init_linear)
            with (
                torch.no_grad()
            ):  # first predictions as small as the noise, or their gradients would fill Adam's moments
                for weight in self.layers.parameters():
                    weight.mul_(min(self.noise or 1.0, 1.0))
            if self.level:
                self.embedding = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
                self.embedding.apply(init_linear)
        count = width // 2
        self.register_buffer("frequencies", 10000.0 ** (-torch.arange(count) / max(count, 1)), persistent=False)
        self.requires_grad_(self.active)

    # ------------------------------------------------------------------------------------------------- the noise
    def disturb(self, model: Model, inputs: dict[str, ModalityInput], rng: Rng) -> dict[str, ModalityInput]:
        return {name: self._noisy(name, x, rng) for name, x in inputs.items()} if self.active else inputs

    def _noisy(self, name: str, x: ModalityInput, rng: Rng) -> ModalityInput:
        seen = x.tokens if x.seen is None else x.seen  # another objective may have changed it
        values = seen.values
        level = rng.uniform(f"noise/{name}", device=values.device) * self.noise  # (B,)
        noise = rng.normal(f"noise/{name}/values", *values.shape[1:], device=values.device) * level[:, None, None]
        if x.tokens.known is not None:
            noise = torch.where(x.tokens.known, noise, 0.0)
        drawn = {**x.drawn_by, self.name: (level, noise)}
        return replace(x, seen=replace(seen, values=values + noise.to(values.dtype)), drawn_by=drawn)

    def condition(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        if not (self.active and self.level):
            return {}
        return {name: self._code(x)[:, None] for name, x in inputs.items()}

    def _code(self, x: ModalityInput) -> Tensor:
        """(R, D): the learned code of the standard deviation of each row, 0 where none was drawn."""
        if self.name in x.drawn_by:
            level = x.drawn_by[self.name][0]
            level = level if x.plan.rows is None else level[x.plan.rows]
        else:
            level = x.plan.counted.new_zeros(len(x.plan.visible))
        angles = level[:, None] * (_STEPS / self.noise) * self.frequencies
        code = torch.cat([angles.sin(), angles.cos()], -1)
        first: nn.Linear = self.embedding[0]  # type: ignore[assignment]
        code = nn.functional.pad(code, (0, first.in_features - code.shape[1]))
        return self.embedding(code.to(first.weight.dtype))

    # -------------------------------------------------------------------------------------------------- the loss
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        counts, terms = self.counts(out.plans), {}
        for name, x in out.inputs.items() if self.training else ():
            decoded, key = out.decoded_visible[name], f"{self.name}.{name}"
            pred = self.layers[name](decoded if self.active else decoded.detach())
            terms[key] = Term(self._errors(pred, x), counts[key], self.weight if self.active else 0.0)
        return terms

    def _errors(self, pred: Tensor, x: ModalityInput) -> Tensor:
        """The sum over visible tokens of the mean squared errors of predictions (R, V, P)."""
        plan = x.plan
        with torch.autocast(pred.device.type, enabled=False):
            target = torch.zeros_like(pred, dtype=torch.float32)
            if self.name in x.drawn_by:
                target = gather_tokens(x.drawn_by[self.name][1], plan.visible, plan.rows).float()
            losses = mean_over_known((pred.float() - target).square(), x.tokens.gather_known(plan.visible))
            return (losses if plan.visible_valid is None else torch.where(plan.visible_valid, losses, 0.0)).sum()

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """Of the prediction 0, the mean of the noise."""
        terms: dict[str, Term | None] = {}
        for name, count in self.counts(out.plans).items():
            x = out.inputs[name.removeprefix(f"{self.name}.")]
            terms[name] = Term(self._errors(torch.zeros_like(x.tokens.gather(x.plan.visible)), x), count)
        return terms

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        if not self.training:
            return {}
        return {
            f"{self.name}.{name}": plan.counted.new_full((), float(plan.visible.numel()))
            if plan.visible_valid is None
            else plan.visible_valid.sum().float()
            for name, plan in plans.items()
        }
