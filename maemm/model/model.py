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
    MaskedInput,
    Masking,
    Modality,
    Objective,
    Output,
    Plan,
    Planned,
    Prepared,
    Target,
    Tokens,
)
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Draw
from maemm.model import checks as contract_checks
from maemm.model.pooling import mean_of_tokens, pool_and_norm


class Model(nn.Module):
    """Built by :func:`maemm.build` and :func:`maemm.load`; the parts are public attributes.

    ``batch`` is always {modality: Prepared or bare tensor}. ``forward`` is the only entry that DDP, FSDP2 and
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
        self.kind: str | None = None  # the weights kind it came from

    @property
    def masked(self) -> bool:
        """Whether any objective needs the masked forward pass; a model without objectives has it too."""
        return not self.objectives or any(one.masked for one in self.objectives.values())

    # ------------------------------------------------------------------------------- before the graph
    @torch.no_grad()
    def prepare(
        self, raw: dict[str, Any], draw: Draw | None = None, present: dict[str, Tensor] | None = None
    ) -> dict[str, Prepared]:
        """Raw batches as collated -> prepared ones on the raw batch's device. ``draw=None``: no augmentation.

        ``present``: {modality: (B,) bool} of the modalities that samples may lack. One that no sample of the batch has
        is not in ``raw``: its example fills the place, so that every batch has the same parts.
        """
        found = {
            name: contract_checks.prepared(self._modality(name), one, None if draw is None else draw.under(name))
            for name, one in raw.items()
        }
        for name, here in (present or {}).items():
            one = found[name] if name in found else self._modality(name).example(len(here), Draw(("absent", name)))
            found[name] = replace(as_prepared(one), x=as_prepared(one).x.to(here.device), present=here)
        return {name: found[name] for name in self.modalities if name in found}

    @torch.no_grad()
    def plan(self, batch: dict[str, Any], draw: Draw) -> dict[str, Planned]:
        """Tokenise and draw plans: no gradient, outside the compiled graph."""
        prepared = {name: as_prepared(one) for name, one in batch.items()}
        tokens = self._tokenize(prepared)
        hides = self.training and any(one.hide for one in self.objectives.values())
        if not self.masked and not hides:
            return {n: Planned(tokens[n], Plan.all_visible(tokens[n]), prepared[n]) for n in prepared}
        guides = self._guides(prepared, tokens) if self.masking.guide else None
        plans = self.masking(tokens, draw, guides)
        return {name: Planned(tokens[name], plans[name], prepared[name]) for name in prepared}

    def _tokenize(self, prepared: dict[str, Prepared]) -> dict[str, Tokens]:
        found = {name: contract_checks.tokenized(self._modality(name), one) for name, one in prepared.items()}
        return {name: _of_present(tokens, prepared[name].present) for name, tokens in found.items()}

    def _guides(self, prepared: dict[str, Prepared], tokens: dict[str, Tokens]) -> dict[str, Any]:
        guide = getattr(self.encoder, "guide", None)
        if guide is None:
            raise MaemmError(f"the masking wants {self.masking.guide!r} from the encoder, which has no guide()")
        return guide(self._everything(prepared, tokens), self.masking.guide)

    def _modality(self, name: str) -> Modality:
        if name not in self.modalities:
            raise MaemmError(f"this model has no modality {name!r}; it has {', '.join(self.modalities)}")
        return self.modalities[name]

    def counts(self, inputs: dict[str, Planned]) -> dict[str, Tensor]:
        """Counts of all terms from the plans alone: the loop needs them before the first backward."""
        plans = {name: one.plan for name, one in inputs.items()}
        found = dict(self.encoder.counts(self._masked(inputs))) if self.masked else {}
        for objective in self.objectives.values():
            found |= objective.counts(plans)
        return found

    # --------------------------------------------------------------------------------------- the graph
    def forward(
        self,
        batch: dict[str, Any],
        plans: dict[str, Plan] | None = None,
        draw: Draw | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """One forward pass, masked where an objective needs it, and the terms of all objectives.

        ``batch`` is what :meth:`plan` returned, or a batch with ``plans`` made by hand (which are checked), or a
        batch with a ``draw``. ``labels``: of the samples, for objectives that want them.
        """
        inputs = self._inputs(batch, plans, draw)
        if self.masked:
            out = self.predict(inputs)
        else:
            out = Output({name: one.plan for name, one in inputs.items()}, {}, {}, {}, {}, {}, {})
        out.inputs, out.labels = inputs, labels
        for objective in self.objectives.values():
            out.parts |= objective(out, self)
        return out

    def predict(self, batch: dict[str, Any], plans: dict[str, Plan] | None = None, draw: Draw | None = None) -> Output:
        """The forward pass without the objectives, which may need the other processes: for pictures and scores."""
        inputs = self._inputs(batch, plans, draw)
        if self.decoder is None:
            raise MaemmError("this model has no decoder (encoder-only weights); use embed, or load a file with one")
        masked = self._masked(inputs)
        latents = self.encoder(masked)
        pred = self.decoder(latents, masked)
        out = self._compare(masked, latents, pred)
        out.parts |= latents.terms
        return out

    def _compare(self, masked: dict[str, MaskedInput], latents: Latents, pred: dict[str, Tensor]) -> Output:
        target, loss = {}, {}
        for name, one in masked.items():
            with torch.autocast(pred[name].device.type, enabled=False):
                if name in self.targets:
                    target[name] = self.targets[name](one).detach()
                else:
                    target[name] = one.modality.target(one.tokens, one.plan.predict)
                loss[name] = one.modality.loss(pred[name], target[name])
        plans = {name: one.plan for name, one in masked.items()}
        return Output(plans, loss, pred, target, latents.tokens, latents.prefix, latents.streams)

    def _inputs(self, batch: dict[str, Any], plans: dict[str, Plan] | None, draw: Draw | None) -> dict[str, Planned]:
        if all(isinstance(one, Planned) for one in batch.values()):
            return batch
        if plans is None:
            if draw is None:
                raise MaemmError("model(batch) needs plans= or draw=, or what model.plan(batch, draw) returned")
            return self.plan(batch, draw)
        prepared = {name: as_prepared(one) for name, one in batch.items()}
        tokens = self._tokenize(prepared)
        if set(plans) != set(prepared):
            raise MaemmError(f"plans are for {sorted(plans)}, the batch holds {sorted(prepared)}")
        return {name: Planned(tokens[name], plans[name].check(name, tokens[name]), prepared[name]) for name in prepared}

    def _masked(self, inputs: dict[str, Planned]) -> dict[str, MaskedInput]:
        return {name: MaskedInput(name, self._modality(name), one) for name, one in inputs.items()}

    # -------------------------------------------------------------------------------------- features
    def _everything(self, prepared: dict[str, Prepared], tokens: dict[str, Tokens]) -> dict[str, MaskedInput]:
        planned = {n: Planned(tokens[n], Plan.all_visible(tokens[n]), prepared[n]) for n in prepared}
        return self._masked(planned)

    def everything(self, batch: dict[str, Any]) -> dict[str, MaskedInput]:
        """The batch with nothing hidden: what the encoder gets for feature extraction.

        Where no objective predicts what is hidden, a plan that comes with the batch holds.
        """
        if not self.masked and all(isinstance(one, Planned) for one in batch.values()):
            return self._masked(batch)
        prepared = {name: as_prepared(one) for name, one in batch.items()}
        tokens = {name: one.tokens for name, one in batch.items() if isinstance(one, Planned)}
        tokens |= self._tokenize({name: one for name, one in prepared.items() if name not in tokens})
        return self._everything(prepared, tokens)

    def encode(
        self, batch: dict[str, Any], *, taps: Iterable[int] = (), norm: bool = True
    ) -> tuple[dict[str, MaskedInput], Latents]:
        """The encoder on all tokens, nothing hidden."""
        inputs = self.everything(batch)
        return inputs, self.encoder(inputs, taps=taps, norm=norm)

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
        inputs, latents = self.encode(batch, taps=wanted, norm=norm == "before" or tokens)
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
        missing = [layer for layer in wanted if layer not in latents.taps]
        if missing:
            raise MaemmError(f"the encoder has no layers {missing}; they count from 0")
        return torch.cat([latents.taps[layer][name] for layer in wanted], -1)

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


def as_prepared(one: Any) -> Prepared:
    """A bare tensor stands for ``Prepared(x)``."""
    if isinstance(one, Prepared):
        return one
    if isinstance(one, Planned):
        return one.prepared
    if isinstance(one, Tensor):
        return Prepared(one)
    raise MaemmError(f"a batch holds tensors or Prepared, got {type(one).__name__}")
