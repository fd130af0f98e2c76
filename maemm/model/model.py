"""The masked autoencoder: modalities, masking, encoder, decoder, objectives, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
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
from maemm.contract.rng import Rng
from maemm.model import checks as contract_checks
from maemm.model.pooling import mean_of_tokens, pool_and_norm


class Model(nn.Module):
    """Built by :func:`maemm.build` and :func:`maemm.load`; the parts are public attributes.

    ``batch`` is always {modality: Preprocessed or bare tensor}. ``forward`` is the only entry that DDP, FSDP2 and
    compile see.
    """

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
        self.modalities = nn.ModuleDict(modalities)
        self.masking = masking
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.objectives = nn.ModuleDict(objectives or {})
        self.targets = nn.ModuleDict(targets or {})
        self.recipe = recipe or {}
        self.extras: dict[str, Tensor] = {}  # tensors of a published file that have no use here
        self.kind: str | None = None  # the checkpoint format it came from

    @property
    def masked(self) -> bool:
        """Whether any objective needs the masked forward pass; a model without objectives has it too."""
        return not self.objectives or any(one.masked for one in self.objectives.values())

    # ------------------------------------------------------------------------------- before the graph
    @torch.no_grad()
    def preprocess(
        self, raw: dict[str, Any], rng: Rng | None = None, present: dict[str, Tensor] | None = None
    ) -> dict[str, Preprocessed]:
        """Raw batches as collated -> prepared ones on the raw batch's device. ``rng=None``: no augmentation.

        ``present``: {modality: (B,) bool} of the modalities that samples may lack. One that no sample of the batch has
        is not in ``raw``: its example fills the place, so that every batch has the same parts.
        """
        found = {
            name: contract_checks.preprocessed(self._modality(name), one, None if rng is None else rng.fold_in(name))
            for name, one in raw.items()
        }
        for name, here in (present or {}).items():
            one = found[name] if name in found else self._modality(name).example(len(here), Rng(("absent", name)))
            found[name] = replace(as_preprocessed(one), x=as_preprocessed(one).x.to(here.device), present=here)
        return {name: found[name] for name in self.modalities if name in found}

    @torch.no_grad()
    def plan(self, batch: dict[str, Any], rng: Rng) -> dict[str, ModalityInput]:
        """Tokenise and draw plans: no gradient, outside the compiled graph."""
        preprocessed = {name: as_preprocessed(one) for name, one in batch.items()}
        tokens = self._tokenize(preprocessed)
        hides = self.training and any(one.hide for one in self.objectives.values())
        if not self.masked and not hides:
            return {n: ModalityInput(tokens[n], Plan.all_visible(tokens[n]), preprocessed[n]) for n in preprocessed}
        guides = self._guides(preprocessed, tokens) if self.masking.guide else None
        plans = self.masking(tokens, rng, guides)
        return {name: ModalityInput(tokens[name], plans[name], preprocessed[name]) for name in preprocessed}

    def _tokenize(self, preprocessed: dict[str, Preprocessed]) -> dict[str, Tokens]:
        found = {name: contract_checks.tokenized(self._modality(name), one) for name, one in preprocessed.items()}
        return {name: _of_present(tokens, preprocessed[name].present) for name, tokens in found.items()}

    def _guides(self, preprocessed: dict[str, Preprocessed], tokens: dict[str, Tokens]) -> dict[str, Any]:
        guide = getattr(self.encoder, "guide", None)
        if guide is None:
            raise MaemmError(f"the masking wants {self.masking.guide!r} from the encoder, which has no guide()")
        return guide(self._everything(preprocessed, tokens), self.masking.guide)

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise MaemmError(f"this model has no modality {name!r}; it has {', '.join(self.modalities)}")
        return self.modalities[name]

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """Counts of all terms from the plans alone: the loop needs them before the first backward."""
        plans = {name: one.plan for name, one in inputs.items()}
        found = dict(self.encoder.counts(inputs)) if self.masked else {}
        for objective in self.objectives.values():
            found |= objective.counts(plans)
        return found

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
        batch with a ``rng``. ``labels``: of the samples, for objectives that want them.
        """
        inputs = self._inputs(batch, plans, rng)
        if self.masked:
            out = self.predict(inputs)
        else:
            out = Output({name: one.plan for name, one in inputs.items()}, {}, {}, {}, {}, {}, {})
        out.inputs, out.labels = inputs, labels
        for objective in self.objectives.values():
            out.parts |= objective(out, self)
        return out

    def predict(self, batch: dict[str, Any], plans: dict[str, Plan] | None = None, rng: Rng | None = None) -> Output:
        """The forward pass without the objectives, which may need the other processes: for pictures and scores."""
        inputs = self._inputs(batch, plans, rng)
        if self.decoder is None:
            raise MaemmError("this model has no decoder (encoder-only weights); use embed, or load a file with one")
        latents = self.encoder(inputs, self.modalities)
        pred = self.decoder(latents, inputs, self.modalities)
        out = self._compare(inputs, latents, pred)
        out.parts |= latents.terms
        return out

    def _compare(self, inputs: dict[str, ModalityInput], latents: Latents, pred: dict[str, Tensor]) -> Output:
        target, loss = {}, {}
        for name, one in inputs.items():
            with torch.autocast(pred[name].device.type, enabled=False):
                if name in self.targets:
                    target[name] = self.targets[name](one).detach()
                else:
                    target[name] = self.modalities[name].target(one.tokens, one.plan.predict)
                loss[name] = self.modalities[name].loss(pred[name], target[name])
        plans = {name: one.plan for name, one in inputs.items()}
        return Output(plans, loss, pred, target, latents.tokens, latents.prefix, latents.streams)

    def _inputs(
        self, batch: dict[str, Any], plans: dict[str, Plan] | None, rng: Rng | None
    ) -> dict[str, ModalityInput]:
        if all(isinstance(one, ModalityInput) for one in batch.values()):
            return batch
        if plans is None:
            if rng is None:
                raise MaemmError("model(batch) needs plans= or rng=, or what model.plan(batch, rng) returned")
            return self.plan(batch, rng)
        preprocessed = {name: as_preprocessed(one) for name, one in batch.items()}
        tokens = self._tokenize(preprocessed)
        if set(plans) != set(preprocessed):
            raise MaemmError(f"plans are for {sorted(plans)}, the batch holds {sorted(preprocessed)}")
        return {
            name: ModalityInput(tokens[name], plans[name].check(name, tokens[name]), preprocessed[name])
            for name in preprocessed
        }

    # -------------------------------------------------------------------------------------- features
    def _everything(self, preprocessed: dict[str, Preprocessed], tokens: dict[str, Tokens]) -> dict[str, ModalityInput]:
        return {n: ModalityInput(tokens[n], Plan.all_visible(tokens[n]), preprocessed[n]) for n in preprocessed}

    def everything(self, batch: dict[str, Any]) -> dict[str, ModalityInput]:
        """The batch with nothing hidden: what the encoder gets for feature extraction.

        Where no objective predicts what is hidden, a plan that comes with the batch holds.
        """
        if not self.masked and all(isinstance(one, ModalityInput) for one in batch.values()):
            return batch
        preprocessed = {name: as_preprocessed(one) for name, one in batch.items()}
        tokens = {name: one.tokens for name, one in batch.items() if isinstance(one, ModalityInput)}
        tokens |= self._tokenize({name: one for name, one in preprocessed.items() if name not in tokens})
        return self._everything(preprocessed, tokens)

    def encode(
        self, batch: dict[str, Any], *, layers: Iterable[int] = (), norm: bool = True
    ) -> tuple[dict[str, ModalityInput], Latents]:
        """The encoder on all tokens, nothing hidden."""
        inputs = self.everything(batch)
        return inputs, self.encoder(inputs, self.modalities, layers=layers, norm=norm)

    def embed(
        self,
        batch: dict[str, Any],
        pool: str | None = None,
        norm: str | None = None,
        layers: Iterable[int] | None = None,
        tokens: bool = False,
        stream: str | None = None,
    ) -> dict[str, Tensor]:
        """Features, nothing hidden: {modality: (B, D)}, or (B, N, D) with ``tokens=True``.

        ``pool`` mean, cls, max, cls+max; ``norm`` before (default), after or none: where the encoder's final norm
        stands relative to the pool. ``layers``: features of these blocks, concatenated along D, without a norm.
        Without arguments a fine-tuned model answers with the input of its head. Token order is the modality's;
        in ragged batches the tokens that are padding come last and hold no meaning. ``stream``: mean of that pass
        of the encoder alone, {stream: (B, D)}, where it has none by that name the pass of these modalities (joined by
        +) without the others; without it each modality's own stream counts, where it has one.
        """
        if stream is not None:
            return {stream: self._stream(batch, stream)}
        if self.head is not None and pool is None and norm is None and layers is None and not tokens:
            features = self.head.features(self, batch)
            return features if isinstance(features, dict) else {next(iter(batch)): features}
        pool, norm = pool or "mean", norm or "before"
        if norm not in ("before", "after", "none"):
            raise MaemmError(f"unknown norm {norm!r}; choose before, after or none")
        wanted = list(layers or ())
        inputs, latents = self.encode(batch, layers=wanted, norm=norm == "before" or tokens)
        if wanted:
            latents.tokens = {name: self._tapped(latents, name, wanted) for name in inputs}
            norm = "none"
        if tokens:
            return latents.tokens
        return {
            name: pool_and_norm(latents, name, one.plan, pool, norm, self.encoder.norm_of(name))
            for name, one in inputs.items()
        }

    def _stream(self, batch: dict[str, Any], stream: str) -> Tensor:
        members = stream.split("+")
        if any(name not in batch for name in members):
            raise MaemmError(f"stream {stream!r} is not made of what this batch holds ({', '.join(batch)})")
        inputs, latents = self.encode({name: batch[name] for name in members})
        if stream not in latents.streams:
            latents.streams[stream] = torch.cat([latents.tokens[name] for name in members], 1)
        return mean_of_tokens(latents.streams[stream], [inputs[name].plan for name in members])

    def _tapped(self, latents: Latents, name: str, wanted: list[int]) -> Tensor:
        missing = [layer for layer in wanted if layer not in latents.layers]
        if missing:
            raise MaemmError(f"the encoder has no layers {missing}; they count from 0")
        return torch.cat([latents.layers[layer][name] for layer in wanted], -1)

    def logits(self, batch: dict[str, Any]) -> Tensor | dict[str, Tensor]:
        """(B, classes) of a fine-tuned model; a dict where several streams answer."""
        if self.head is None:
            raise MaemmError("this model has no classifier; fine-tune it, or load fine-tuned weights")
        return self.head(self, batch)


def _of_present(tokens: Tokens, present: Tensor | None) -> Tokens:
    """Without a valid token in the rows of samples that lack the modality."""
    if present is None:
        return tokens
    valid = present[:, None].expand(tokens.batch, tokens.count)
    return replace(tokens, valid=valid.clone() if tokens.valid is None else valid & tokens.valid)


def as_preprocessed(one: Any) -> Preprocessed:
    """A bare tensor stands for ``Preprocessed(x)``."""
    if isinstance(one, Preprocessed):
        return one
    if isinstance(one, ModalityInput):
        return one.preprocessed
    if isinstance(one, Tensor):
        return Preprocessed(one)
    raise MaemmError(f"a batch holds tensors or Preprocessed, got {type(one).__name__}")
