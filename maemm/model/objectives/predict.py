"""Another target beside the modality's own, with a prediction layer and a term of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from maemm.config.options import check
from maemm.contract import Decoder, Latents, ModalityInput, Objective, Output, Plan, Target, Term
from maemm.contract.errors import MaemmError, advice
from maemm.contract.options import NonNegative, PartOf
from maemm.model.blocks import init_linear
from maemm.model.model import Model
from maemm.model.objectives.means import Mean, mean_count, mean_term
from maemm.registry import find
from maemm.registry.make import make, part_of


class Predict(Objective):
    """Predict a target of the hidden tokens beside what ``reconstruct`` predicts: HOG, the features of a teacher.

    Several of them make several targets with weights: ``objectives: {reconstruct: {}, hog: {type: predict, target: hog,
    weight: 0.5}}``. Each has a linear layer of its own on the decoder's tokens, and a term NAME.MODALITY in the log.
    With weight 0 it is computed and logged, and nothing else depends on it: no initial weight, no gradient, no norm.

    Options
        target: what is predicted, a name or {type: name, options}
        weight: of its terms in the loss
        modalities: of whose tokens; null: of all modalities
        output: of decoders with further outputs (cross: extra), the name of the one that it reads; it is for one
            modality. null: that of each modality
        mean: tokens, or samples, as in reconstruct
        layer: own: a prediction layer of its own; shared: the modality's own prediction is compared once more, by the
            loss of this target (frequency)
        decoder: a decoder of its own on the encoder's latents, in place of a layer on the decoder's tokens (MAETok): a
            name or {type: name, options}, with the options of the model's decoder where it is of the same type and
            says nothing else; null: none
        tokens: predicted: all that the plan predicts and counts; hidden: those that the encoder does not see alone
    """

    def __init__(
        self,
        name: str,
        *,
        target: Annotated[str | dict[str, Any], PartOf("targets")],
        weight: NonNegative = 1.0,
        modalities: Sequence[str] | None = None,
        layer: Literal["own", "shared"] = "own",
        decoder: Annotated[str | dict[str, Any] | None, PartOf("decoders")] = None,
        tokens: Literal["predicted", "hidden"] = "predicted",
        output: str | None = None,
        mean: Mean = "tokens",
    ):
        super().__init__()
        if decoder is not None and layer == "shared":
            raise MaemmError(
                f"a decoder of its own has a prediction of its own, which is not shared (objectives.{name}.layer); "
                "leave out layer, or decoder"
            )
        self.decoder_spec, self.tokens = decoder, tokens
        self.decoder: Decoder | None = None
        self.name, self.spec, self.weight, self.names, self.layer = name, target, weight, modalities, layer
        self.output, self.mean = output, mean
        part = find("targets", part_of(target)[0])
        self.side_inputs = {key: tuple(part.side_inputs) for key in (modalities or ("*",))}
        self.whole_samples = part.whole_samples
        self.target: Target | None = None

    def connect(self, model: Model) -> None:
        """Make the target, and a layer for each modality. Weights without a decoder predict nothing."""
        predicted = [name for name in model.modalities if model.only.get(name) != "encode"]
        names, where = [*(self.names or predicted)], f"objectives.{self.name}"
        for name in names:
            if name not in model.modalities:
                raise MaemmError(
                    f"{name!r} is no modality of this recipe ({where}.modalities); {advice(name, model.modalities)}"
                )
            if name not in predicted:
                raise MaemmError(f"{name!r} is only encoded (modalities.{name}.only, {where}.modalities); leave it out")
        self.names = names
        if self.output is not None:
            self._check_output(model, names, where)
        if model.decoder is None:
            return
        kind, options = part_of(self.spec)
        check(find("targets", kind), options, f"{where}.target")
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            target: Target = make("targets", self.spec, names, model.encoder.dim, where=f"{where}.target")
            target.prepare({name: model.modalities[name] for name in names})
            target.connect(model)
            self.target, self.autocast = target, target.autocast
            if self.decoder_spec is not None:
                self.decoder = self._decoder(model, target, names)
            elif self.layer == "own":
                self.layers = self._layers(model, target, names)

    def _check_output(self, model: Model, names: list[str], where: str) -> None:
        """Raises :class:`MaemmError` unless the decoder has the output, for the one modality of this objective."""
        places = getattr(model.decoder, "places", {})
        extra = {name: modality for name, modality in places.items() if name != modality}
        if model.decoder is not None and self.output not in extra:
            raise MaemmError(
                f"the decoder has no further output {self.output!r} ({where}.output); "
                f"{advice(str(self.output), extra) if extra else 'add it to decoder.extra of a decoder cross'}"
            )
        if self.layer == "shared" or (extra and names != [extra[str(self.output)]]):
            needed = extra.get(str(self.output), "NAME")
            raise MaemmError(
                f"the output {self.output!r} needs a layer of its own, for {needed} alone ({where}); set "
                f"modalities: [{needed}] and layer: own"
            )

    def _layers(self, model: Model, target: Target, names: list[str]) -> nn.ModuleDict:
        width = None if model.decoder is None else model.decoder.decoded_dim
        if width is None:
            raise MaemmError(
                f"{type(model.decoder).__name__} does not give the tokens that its last layers read "
                f"(objectives.{self.name}); choose another decoder, such as full, or set layer: shared"
            )
        layers = nn.ModuleDict({name: nn.Linear(width, target.output_dim()) for name in names})
        layers.apply(init_linear)
        return layers.requires_grad_(self.weight > 0)

    def _decoder(self, model: Model, target: Target, names: list[str]) -> Decoder:
        where = f"objectives.{self.name}.decoder"
        kind, options = part_of(self.decoder_spec)
        main, shared = part_of(model.recipe.get("decoder") or kind)
        spec = {"type": kind, **(shared if kind == main else {}), **options}
        check(find("decoders", kind), {name: value for name, value in spec.items() if name != "type"}, where)
        prefix = getattr(model.encoder, "prefix", None)
        outputs = dict.fromkeys(names, target.output_dim())
        count = 0 if prefix is None else prefix.shape[1]
        decoder: Decoder = make("decoders", spec, outputs, model.encoder.dim, count, where=where)
        if model.decoder is not None and decoder.dim != model.decoder.dim:
            raise MaemmError(
                f"positions are as wide as the main decoder, {model.decoder.dim}, and this one is {decoder.dim} wide "
                f"({where}.dim); set it to {model.decoder.dim}"
            )
        decoder.connect(model.encoder)
        return decoder.requires_grad_(self.weight > 0)

    # ------------------------------------------------------------------------------------------------ in a step
    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        served = {name: x for name, x in inputs.items() if name in (self.names or ())}
        return self.target.precompute(model, served) if self.target is not None and served else {}

    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        terms = {}
        decoded = self._decoded(out, model)
        for name, inputs in self._own(out):
            pred = decoded[name] if decoded is not None else self._prediction(out, name)
            with torch.autocast(pred.device.type, enabled=False):
                target = self._part()(inputs, inputs.plan.predict).detach()
                loss = self._part().loss(pred, target)
            terms[f"{self.name}.{name}"] = mean_term(loss, self._counted(inputs.plan), self.mean, self.weight)
        return terms

    def _counted(self, plan: Plan) -> Tensor:
        """(R, M) weights of the predicted tokens."""
        return plan.counted if self.tokens == "predicted" else plan.of_hidden().counted

    def _decoded(self, out: Output, model: Model) -> dict[str, Tensor] | None:
        """{modality: predictions (R, M, O)} of its own decoder; None: it has none."""
        if self.decoder is None:
            return None
        assert out.latents is not None  # the masked forward pass sets it
        latents = replace(out.latents, decoded={})
        if not self.weight:  # no way back to the model
            latents = Latents(
                _detached(latents.tokens),
                _detached(latents.prefix),
                positions=_detached(latents.positions),
                hidden=_detached(latents.hidden),
                latent_tokens=_detached(latents.latent_tokens),
            )
        inputs = {name: x for name, x in out.inputs.items() if name in (self.names or ())}
        return self.decoder(latents, inputs, model.modalities)

    def _own(self, out: Output) -> Iterator[tuple[str, ModalityInput]]:
        """Its modalities, with what its target has computed."""
        for name, x in out.inputs.items():
            if name in (self.names or ()):
                yield name, replace(x, computed=x.computed_by.get(self.name))

    def _prediction(self, out: Output, name: str) -> Tensor:
        """(R, M, O), without a way back to the model where the weight is 0."""
        if self.layer == "own":
            decoded = out.decoded[self.output or name]
            return self.layers[name](decoded if self.weight else decoded.detach())
        pred, width = out.pred[name], self._part().output_dim()
        if pred.shape[-1] != width:
            raise MaemmError(
                f"the predictions of {name!r} have {pred.shape[-1]} values, this target {width} "
                f"(objectives.{self.name}.layer: shared); set layer: own"
            )
        return pred if self.weight else pred.detach()

    def _part(self) -> Target:
        if self.target is None:
            raise MaemmError("this model has no decoder (encoder-only weights); use embed, or load a file with one")
        return self.target

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        terms: dict[str, Term | None] = {}
        for name, inputs in self._own(out):
            counted = self._counted(inputs.plan)
            loss = self._part().baseline(self._part()(inputs, inputs.plan.predict), counted)
            terms[f"{self.name}.{name}"] = None if loss is None else Term((loss * counted).sum(), counted.sum())
        return terms

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        own = {name: plan for name, plan in plans.items() if name in (self.names or ())}
        return {f"{self.name}.{name}": mean_count(self._counted(plan), self.mean) for name, plan in own.items()}


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach() for name, x in tensors.items()}
