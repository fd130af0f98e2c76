"""The masked autoencoder: modalities, masking, encoder, decoder, targets, objectives, head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import (
    Decoder,
    Encoder,
    Head,
    Latents,
    Masking,
    Modality,
    ModalityInput,
    Objective,
    Output,
    Plan,
    Preprocessed,
    Target,
    Tokens,
)
from maemm.contract.errors import MaemmError
from maemm.contract.exact import full_float32
from maemm.contract.rng import Rng
from maemm.model import checks as contract_checks
from maemm.model import planning
from maemm.model.decode import decode
from maemm.model.pooling import mean_of_tokens, pool_and_norm
from maemm.model.precision import float32


class Model(nn.Module):
    """Built by :func:`maemm.build` and :func:`maemm.load`; its parts are public attributes.

    ``batch`` is always {modality: Preprocessed, or the bare tensor x (B, ...)}; of a model with one modality it may
    also be that alone. Bare tensors are what :meth:`preprocess` makes: floats, not pixels. ``forward`` is the only
    entry point that DDP, FSDP2 and ``torch.compile`` see.
    """

    modalities: Mapping[str, Modality]  # these three are nn.ModuleDict
    objectives: Mapping[str, Objective]
    targets: Mapping[str, Target]

    def __init__(
        self,
        modalities: dict[str, Modality],
        masking: Masking,
        encoder: Encoder,
        decoder: Decoder | None = None,
        objectives: dict[str, Objective] | None = None,
        targets: dict[str, Target] | None = None,
        head: Head | None = None,
        recipe: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.modalities = nn.ModuleDict(modalities)  # type: ignore[assignment]  # ModuleDict does not say of what
        self.masking = masking
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.objectives = nn.ModuleDict(objectives or {})  # type: ignore[assignment]  # as above
        self.targets = nn.ModuleDict(targets or {})  # type: ignore[assignment]  # as above
        self.recipe = recipe or {}
        specs = self.recipe.get("modalities") or {}
        #: {modality: "encode" or "decode"} of those that are only encoded, or only decoded
        self.only: dict[str, str] = {name: spec["only"] for name, spec in specs.items() if spec.get("only")}
        self.extras: dict[str, Tensor] = {}  # tensors of a published file that this model does not use
        self.kind: str | None = None  # the checkpoint format that it was loaded from
        self.frozen: tuple[str, ...] = ()  # modules that stay in evaluation mode when the others train
        self.bf16 = False  # whether a verb runs it under bf16 autocast: see :meth:`autocast`

    def train(self, mode: bool = True) -> Model:
        """Training or evaluation mode; modules that are :attr:`frozen` stay in the latter."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).train(False)
        return self

    @property
    def masked(self) -> bool:
        """Whether the forward pass is masked: if any objective needs that, or there are no objectives."""
        return not self.objectives or any(objective.masked for objective in self.objectives.values())

    def all_targets(self) -> list[Target]:
        """The targets of modalities and those of objectives, each once."""
        own = (getattr(objective, "target", None) for objective in self.objectives.values())
        return list(dict.fromkeys([*self.targets.values(), *(part for part in own if isinstance(part, Target))]))

    # ------------------------------------------------------------------------------- before the graph
    @torch.no_grad()
    def preprocess(
        self,
        raw: dict[str, Any],
        rng: Rng | None = None,
        present: dict[str, Tensor] | None = None,
        side_inputs: dict[str, dict[str, Tensor]] | None = None,
    ) -> dict[str, Preprocessed]:
        """Collated raw batches -> preprocessed batches, on the same device. ``rng=None``: no augmentation.

        ``present``: {modality: (B,) bool} for the modalities that samples may lack. One that no sample of the batch has
        is not in ``raw``; its example is used instead, so that every batch has the same modalities. ``side_inputs``:
        {modality: {name: (B, ...)}} from the workers, which are added to ``Preprocessed.info``.
        """
        batch: dict[str, Preprocessed] = {}
        for name, values in raw.items():
            modality = self._modality(name)
            modality_rng = None if rng is None else rng.fold_in(modality.aligned_with or name)
            with full_float32(next(self.parameters()).device):
                batch[name] = contract_checks.preprocessed(modality, values, modality_rng)
            if side_inputs and name in side_inputs:
                x = as_preprocessed(batch[name])
                batch[name] = replace(x, info={**x.info, **side_inputs[name]})
        for name, mask in (present or {}).items():
            x = batch[name] if name in batch else self._modality(name).example(len(mask), Rng(("absent", name)))
            x = as_preprocessed(x)
            batch[name] = replace(x, x=x.x.to(mask.device), present=mask)
        return {name: batch[name] for name in self.modalities if name in batch}

    def plan(self, batch: dict[str, Any], rng: Rng) -> dict[str, ModalityInput]:
        """Tokenise and draw masks: without gradient, outside the compiled graph.

        Where the masking makes several plans of each sample, the first of them, see :meth:`plan_sets`.
        """
        return self.plan_sets(batch, rng)[0]

    def _named(self, batch: Any) -> dict[str, Any]:
        """A batch by modality, with bare tensors of a type that the weights can be multiplied with."""
        if isinstance(batch, (Tensor, Preprocessed, ModalityInput)):
            if len(self.modalities) > 1:
                raise MaemmError(
                    f"the batch is one {type(batch).__name__}, the model has several modalities; give a dict with "
                    f"{', '.join(self.modalities)}"
                )
            batch = {next(iter(self.modalities)): batch}
        if not isinstance(batch, Mapping):
            raise MaemmError(f"the batch is a {type(batch).__name__}; give {{modality: tensor (B, ...)}}, or a tensor")
        if not any(isinstance(x, Tensor) for x in batch.values()):
            return dict(batch)  # as the training loop makes it
        weights = next(self.parameters()).dtype
        named = {}
        for name, x in batch.items():
            if isinstance(x, Tensor) and not x.is_floating_point():
                raise MaemmError(
                    f"the batch of {name!r} is {str(x.dtype).removeprefix('torch.')}, the model takes floats; give "
                    "what model.preprocess makes of samples, or maemm.embed the samples themselves"
                )
            named[name] = x.to(weights) if isinstance(x, Tensor) and x.dtype != weights else x
        return named

    @torch.no_grad()
    def plan_sets(self, batch: dict[str, Any], rng: Rng, *, bf16: bool = False) -> list[dict[str, ModalityInput]]:
        """:meth:`plan`, all plans of each sample: each is for a forward pass of its own.

        ``bf16``: teachers run in that precision, as the forward pass will.
        """
        batch = self._named(batch)
        preprocessed = {name: as_preprocessed(x) for name, x in batch.items()}
        device = next(iter(preprocessed.values())).x.device.type
        bf16 = bf16 or torch.is_autocast_enabled(device)
        with full_float32(device):
            tokens = self._tokenize(preprocessed)
            hides = self.training and any(objective.hide for objective in self.objectives.values())
            if not self.masked and not hides:
                return [self.without_decoded(planning.all_visible(preprocessed, tokens))]
            return planning.plan_sets(self, preprocessed, tokens, rng, bf16=bf16)

    def _tokenize(self, preprocessed: dict[str, Preprocessed]) -> dict[str, Tokens]:
        tokens = {name: contract_checks.tokenized(self._modality(name), x) for name, x in preprocessed.items()}
        for name, x in preprocessed.items():
            if x.present is not None:  # no valid token where a sample lacks the modality
                valid = x.present[:, None].expand(tokens[name].batch, tokens[name].count)
                whole = tokens[name].valid
                tokens[name] = replace(tokens[name], valid=valid.clone() if whole is None else valid & whole)
        return tokens

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise MaemmError(f"this model has no modality {name!r}; use {', '.join(self.modalities)}")
        return self.modalities[name]

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """{term: count}, from the plans alone: the training loop needs them before the first backward pass."""
        plans = {name: x.plan for name, x in inputs.items()}
        counts = dict(self.encoder.counts(inputs)) if self.masked else {}
        for objective in self.objectives.values():
            counts |= objective.counts(plans)
        return counts

    # --------------------------------------------------------------------------------------- the graph
    def forward(
        self,
        batch: dict[str, Any],
        plans: dict[str, Plan] | None = None,
        rng: Rng | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """One forward pass, masked where an objective needs it, and the terms of all objectives.

        ``batch`` is what :meth:`plan` returned, or a batch with ``plans`` made by hand (which are checked), or a
        batch with a ``rng``. ``labels``: of the samples, for objectives that use them.
        """
        inputs = self._inputs(batch, plans, rng)
        if self.masked:
            out = self.predict(inputs)
        else:
            out = Output({name: x.plan for name, x in inputs.items()}, {}, {}, {}, {}, {}, {})
        out.inputs, out.labels = inputs, labels
        for objective in self.objectives.values():
            out.parts |= objective(out, self)
        return out

    def predict(self, batch: dict[str, Any], plans: dict[str, Plan] | None = None, rng: Rng | None = None) -> Output:
        """The masked forward pass without the objectives, which may communicate with other ranks: for pictures, scores.

        Raises :class:`MaemmError` where the model has no decoder.
        """
        inputs = self._inputs(batch, plans, rng)
        if self.decoder is None:
            raise MaemmError("this model has no decoder (encoder-only weights); use embed, or load a file with one")
        with self.autocast():
            latents = self.encode_rows(inputs)
            latents.condition = self._condition(inputs)
            pred = self.decoder(latents, inputs, self.modalities)
        if self.bf16:
            latents, pred = float32(latents), float32(pred)
        target, loss = {}, {}
        for name, x in inputs.items():
            if self.only.get(name) == "encode":
                continue
            with torch.autocast(pred[name].device.type, enabled=False):
                if name in self.targets:
                    target[name] = self.targets[name](x, x.plan.predict).detach()
                    loss[name] = self.targets[name].loss(pred[name], target[name])
                else:
                    target[name] = self.modalities[name].target(x.tokens, x.plan.predict)
                    known = x.tokens.gather_known(x.plan.predict)
                    optional = () if known is None else (known,)  # losses that know no gaps need not accept it
                    loss[name] = self.modalities[name].loss(pred[name], target[name], *optional)
        plans = {name: x.plan for name, x in inputs.items()}
        out = Output(plans, loss, pred, target, latents.tokens, latents.prefix, latents.streams, inputs=inputs)
        out.decoded, out.decoded_visible, out.latents = latents.decoded, latents.decoded_visible, latents
        out.parts |= latents.terms
        return out

    @torch.no_grad()
    def baseline(self, out: Output, name: str) -> Tensor | None:
        """What ``out.loss[name]`` (R, M) would be for the best constant prediction; None where its loss has none.

        The constant is the best for the tokens of ``out``: of a small batch it is a little better than of all data.
        """
        target, counted = out.target[name], out.plans[name].counted
        known = out.inputs[name].tokens.gather_known(out.plans[name].predict)
        predicted = target.shape[1]
        if not predicted:  # one token of zeros, to learn whether there is a baseline: other ranks predict some
            target, counted = (x.new_zeros(len(x), 1, *x.shape[2:]) for x in (target, counted))
            known = None if known is None else known.new_zeros(target.shape)
        if name in self.targets:
            loss = self.targets[name].baseline(target, counted)
        else:
            loss = self.modalities[name].baseline(target, counted, known)
        return None if loss is None else loss[:, :predicted]

    def _condition(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """What objectives add to the tokens of the decoder, by modality."""
        sums: dict[str, Tensor] = {}
        for objective in self.objectives.values():
            for name, vector in objective.condition(self, inputs).items():
                sums[name] = sums[name] + vector if name in sums else vector
        return sums

    def encode_rows(self, inputs: dict[str, ModalityInput]) -> Latents:
        """Latents of every row of the plans, of the tokens as the encoder sees them; rows that share a pass of the
        encoder are encoded once."""
        inputs = {name: x if x.seen is None else replace(x, tokens=x.seen) for name, x in inputs.items()}
        passes = [x.plan.passes for x in inputs.values()]
        shared = [index for index in passes if index is not None]
        layers: dict[str, Any] = {}
        if self.decoder is not None and self.decoder.encoder_layers:
            layers = {"layers": self.decoder.encoder_layers}
        if not shared:
            return self.encoder(inputs, self.modalities, **layers)
        if len(shared) < len(passes):
            raise MaemmError(
                "some modalities' plans share passes of the encoder, others do not; set Plan.passes in all"
            )
        if self.encoder.reads_predict:
            raise MaemmError(
                f"{type(self.encoder).__name__} reads what is predicted, so every predicted set needs its own pass "
                "(Plan.passes); choose another encoder or masking"
            )
        by_pass = {name: replace(x, plan=x.plan.of_passes()) for name, x in inputs.items()}
        return self.encoder(by_pass, self.modalities, **layers).of_rows(shared[0])

    def _inputs(
        self, batch: dict[str, Any], plans: dict[str, Plan] | None, rng: Rng | None
    ) -> dict[str, ModalityInput]:
        batch = self._named(batch)
        if all(isinstance(x, ModalityInput) for x in batch.values()):
            return batch
        if plans is None:
            if rng is None:
                raise MaemmError(
                    "model(batch) has no masks; pass plans= or rng=, or what model.plan(batch, rng) returned"
                )
            sets = self.plan_sets(batch, rng)
            if len(sets) > 1:
                raise MaemmError(
                    f"the masking makes {len(sets)} plans of each sample; call the model on each of plan_sets"
                )
            return sets[0]
        preprocessed = {name: as_preprocessed(x) for name, x in batch.items()}
        tokens = self._tokenize(preprocessed)
        if set(plans) != set(preprocessed):
            raise MaemmError(
                f"plans are for {sorted(plans)}, the batch holds {sorted(preprocessed)}; pass one for each"
            )
        checked = {name: plans[name].check(name, tokens[name]) for name in preprocessed}
        planned = planning.precompute(self, preprocessed, tokens)(checked)
        return planning.drawn(self, planned, None if rng is None else rng.fold_in("decoder", 0))

    # -------------------------------------------------------------------------------------- features
    def with_all_visible(self, batch: dict[str, Any]) -> dict[str, ModalityInput]:
        """The batch with all tokens visible: the encoder's input for feature extraction, without modalities that are
        only decoded.

        Where the model is not :attr:`masked`, plans that come with the batch are kept.
        """
        batch = self._named(batch)
        if not self.masked and all(isinstance(x, ModalityInput) for x in batch.values()):
            return batch
        preprocessed = {name: as_preprocessed(x) for name, x in batch.items()}
        tokens = {name: x.tokens for name, x in batch.items() if isinstance(x, ModalityInput)}
        tokens |= self._tokenize({name: x for name, x in preprocessed.items() if name not in tokens})
        return self.without_decoded(planning.all_visible(preprocessed, tokens))

    def without_decoded(self, inputs: dict[str, ModalityInput]) -> dict[str, ModalityInput]:
        """Without the modalities that are only decoded, whose embeddings have learned nothing."""
        encoded = {name: x for name, x in inputs.items() if self.only.get(name) != "decode"}
        if not encoded:
            raise MaemmError(
                f"{', '.join(inputs)} can only be decoded (modalities.NAME.only); give a batch of other modalities"
            )
        return encoded

    def encode(
        self, batch: dict[str, Any], *, layers: Iterable[int] = (), norm: bool = True
    ) -> tuple[dict[str, ModalityInput], Latents]:
        """(:meth:`with_all_visible`, the latents of the encoder for it). ``layers``, ``norm``: see :class:`Encoder`."""
        inputs = self.with_all_visible(batch)
        with self.autocast():
            latents = self.encoder(inputs, self.modalities, layers=layers, norm=norm)
        return inputs, float32(latents) if self.bf16 else latents

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 autocast where :attr:`bf16` is set, for the network alone: what :meth:`encode`, :meth:`embed`,
        :meth:`predict` and :meth:`logits` return is float32 then. Otherwise the block changes nothing."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(next(self.parameters()).device.type, torch.bfloat16)

    def embed(
        self,
        batch: dict[str, Any],
        pool: str | None = None,
        norm: str | None = None,
        layers: Iterable[int] | None = None,
        tokens: bool = False,
        stream: str | None = None,
        latents: bool = False,
    ) -> dict[str, Tensor]:
        """Features of all tokens, pooled: {modality: (B, D)}, or (B, N, D) with ``tokens=True``; with ``latents=True``
        the latent tokens {modality, or "joint" of several: (B, L, C)}, of which :meth:`decode` makes the signal.

        ``pool``: mean, cls, max, cls+max, or latents; by default the mean, that of latents where there are some.
        ``norm``: before (default), after or none: whether the encoder's final norm is applied before or after the pool.
        ``layers``: features of these blocks, concatenated along D, without a norm. Without these arguments a fine-tuned
        model returns the input of its head's last layer. Tokens are in the modality's order; in ragged batches padding
        comes last and is to be ignored.

        ``stream``: {stream: (B, D)}, the mean over the tokens of that stream of the encoder. It may also name
        modalities joined by +, which are then encoded without the others. By default the features of a modality are
        those of its own stream, if the encoder has one.

        Raises :class:`MaemmError` for an unknown pool, norm, layer or stream.
        """
        batch = self._named(batch)
        if stream is not None:
            return {stream: self._stream(batch, stream)}
        if latents:
            return self._latent_tokens(batch, pool, norm, layers, tokens)
        if self.head is not None and pool is None and norm is None and layers is None and not tokens:
            with self.autocast():
                features = self.head.features(self, batch)
            features = float32(features) if self.bf16 else features
            return features if isinstance(features, dict) else {next(iter(batch)): features}
        pool, norm = pool or ("mean" if layers else self.encoder.pool), norm or "before"
        if norm not in ("before", "after", "none"):
            raise MaemmError(f"unknown norm {norm!r}; choose before, after or none")
        numbers = list(layers or ())
        inputs, encoded = self.encode(batch, layers=numbers, norm=norm == "before" or tokens)
        if numbers:
            missing = [number for number in numbers if number not in encoded.layers]
            if missing:
                raise MaemmError(f"the encoder has no layers {missing}; they count from 0")
            encoded.tokens = {
                name: torch.cat([encoded.layers[number][name] for number in numbers], -1) for name in inputs
            }
            norm = "none"
        if tokens:
            return encoded.tokens
        return {
            name: pool_and_norm(encoded, name, x.plan, pool, norm, self.encoder.norm_of(name))
            for name, x in inputs.items()
        }

    def _latent_tokens(self, batch: dict[str, Any], *others: Any) -> dict[str, Tensor]:
        if any(others):
            raise MaemmError("latent tokens have no pool, norm, layers or tokens; leave those out, or latents")
        if self.encoder.latent_shape is None:
            raise MaemmError(
                f"{type(self.encoder).__name__} has no latent tokens (encoder.type); give weights with "
                "encoder.type=latent"
            )
        return self.encode(batch)[1].latent_tokens

    def decode(
        self, latents: Tensor | Mapping[str, Tensor] | Latents, inputs: dict[str, ModalityInput] | None = None
    ) -> dict[str, Tensor]:
        """The signal of latent tokens: {modality: (B, C, *size)} as :meth:`preprocess` makes it.

        ``latents``: what :meth:`encode` or ``embed(latents=True)`` returned, or latent tokens (B, L, C) of a model.
        ``inputs``: what :meth:`encode` returned beside them, where samples have no usual size. Use
        ``modality.denormalize_input`` for the unit of the data. Raises :class:`MaemmError` for models that have no
        latent tokens, or whose predictions are not the signal alone.
        """
        return decode(self, latents, inputs)

    def _stream(self, batch: dict[str, Any], stream: str) -> Tensor:
        members = stream.split("+")
        if any(name not in batch for name in members):
            raise MaemmError(
                f"stream {stream!r} is not made of the modalities of this batch; join {', '.join(batch)} by +"
            )
        inputs, latents = self.encode({name: batch[name] for name in members})
        if stream not in latents.streams:
            latents.streams[stream] = torch.cat([latents.tokens[name] for name in members], 1)
        return mean_of_tokens(latents.streams[stream], [inputs[name].plan for name in members])

    def logits(self, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """(B, classes) of a fine-tuned model; {stream: (B, classes)} where the head classifies several streams."""
        if self.head is None:
            raise MaemmError("this model has no classifier; fine-tune it, or load fine-tuned weights")
        with self.autocast():
            logits: Tensor | dict[str, Tensor] = self.head(self, self._named(batch))
        return float32(logits) if self.bf16 else logits


def as_preprocessed(x: Any) -> Preprocessed:
    """One modality of a batch as :class:`Preprocessed`: a bare tensor becomes ``Preprocessed(x)``."""
    if isinstance(x, Preprocessed):
        return x
    if isinstance(x, ModalityInput):
        return x.preprocessed
    if isinstance(x, Tensor):
        return Preprocessed(x)
    raise MaemmError(f"a batch holds {type(x).__name__}; pass tensors or Preprocessed")
