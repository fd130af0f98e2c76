"""Plugins that break one rule each: the check of that name must catch it, so that no check is idle.

``BROKEN[check]`` is a manifest and the import name of its package. They are small on purpose, and wrong on purpose.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import (
    CheckpointFormat,
    Latents,
    Modality,
    ModalityInput,
    Objective,
    Output,
    PerModalityMasking,
    Plan,
    Term,
    Tokens,
)
from maemm.contract.rng import Rng
from maemm.model.encoders.vit import ViT
from maemm.model.heads import Linear
from maemm.model.objectives.reconstruct import Reconstruct
from maemm.registry import Plugin
from maemm.testing import broken_recipe
from maemm.testing.broken_modalities import MODALITIES
from maemm.testing.broken_sources import SOURCES
from maemm.testing.toy import SIGNAL
from maemm.testing.toy_signal import Signal


class Incomplete(Modality):
    """Lacks the abstract methods."""


class OneWay(Signal):
    """Breaks nothing: a signal that cannot be put together again is legal."""

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> None:
        return None


class Undocumented(PerModalityMasking):
    """Says nothing about its option."""

    def __init__(self, *, ratio: float = 0.5):
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return Plan.all_visible(tokens)


class Overlaps(PerModalityMasking):
    """Counts tokens in the loss that the encoder sees."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        every = tokens.everything()
        return Plan(every, every, counted=torch.ones(every.shape))


class Streamed(PerModalityMasking):
    """Draws for its own rows alone: another plan in every process."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        generator = torch.Generator().manual_seed(rng.seed("mask"))
        order = torch.rand(tokens.batch, tokens.count, generator=generator).argsort(1)
        half = tokens.count // 2
        return Plan(order[:, :half].sort(1).values, order[:, half:].sort(1).values)


class Miscounts(Objective):
    """Tells other counts before than after the forward pass."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        (loss,) = out.loss.values()
        return {self.name: Term(loss.sum(), torch.tensor(float(loss.numel())))}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {self.name: torch.tensor(1.0)}


class Flat(Linear):
    """Answers with the features instead of the logits."""

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return self.features(model, batch)


class Untyped(PerModalityMasking):
    """Its default is none of the values that its type allows.

    Options
        ratio: share that is hidden
    """

    def __init__(self, *, ratio: float = "half"):  # type: ignore[assignment]
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return Plan.all_visible(tokens)


class Counting(Reconstruct):
    """Weighs its loss by the steps that it has seen, which no checkpoint knows."""

    def __init__(self, name: str):
        super().__init__(name)
        self.steps = 0

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        weight = 1.0 + self.steps
        return {name: replace(one, sum=one.sum * weight) for name, one in super().forward(out, model).items()}

    def after_step(self, model: nn.Module, step: int) -> None:
        self.steps += 1


class Partial(ViT):
    """Treats one modality better than others, by its name."""

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        latents = super().forward(inputs, modalities, layers=layers, norm=norm)
        latents.tokens = {name: one * (2.0 if name == SIGNAL else 1.0) for name, one in latents.tokens.items()}
        return latents


class Lossy(CheckpointFormat):
    """Forgets the bias on the way in, and writes zeros for it on the way out."""

    name = "lossy"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return "recipe" in keys

    def read(
        self, state: dict[str, Tensor], **known: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        recipe = json.loads(bytes(state.pop("recipe").tolist()))
        return recipe, {key: torch.zeros_like(one) if key.endswith("bias") else one for key, one in state.items()}, {}

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        text = torch.tensor(list(json.dumps(model.recipe).encode()), dtype=torch.uint8)
        return {"recipe": text, **{key: one + 0.5 for key, one in model.state_dict().items()}}


def _plugin(check: str, role: str, target: str) -> Plugin:
    name = f"breaks_{check}"
    return Plugin(name=name, version="1", contract=1, summary=f"breaks {check}", **{role: {name: target}})


HOME = "maemm.testing"
BROKEN: dict[str, tuple[Plugin, str]] = {
    "manifest_is_complete": (Plugin(name="breaks_manifest", version="1", contract=1), HOME),
    "manifest_is_light": (_plugin("manifest_is_light", "modalities", "none:None_"), f"{HOME}.broken_manifest"),
    "part_can_be_imported": (_plugin("part_can_be_imported", "modalities", "broken:Incomplete"), HOME),
    "options_are_documented": (_plugin("options_are_documented", "maskings", "broken:Undocumented"), HOME),
    "plan_is_legal": (_plugin("plan_is_legal", "maskings", "broken:Overlaps"), HOME),
    "plan_is_repeatable": (_plugin("plan_is_repeatable", "maskings", "broken:Streamed"), HOME),
    "counts_are_known_before": (_plugin("counts_are_known_before", "objectives", "broken:Miscounts"), HOME),
    "head_answers": (_plugin("head_answers", "heads", "broken:Flat"), HOME),
}
BROKEN |= {
    "defaults_fit_their_types": (_plugin("defaults_fit_their_types", "maskings", "broken:Untyped"), HOME),
    "training_goes_on_exactly": (_plugin("training_goes_on_exactly", "objectives", "broken:Counting"), HOME),
    "names_are_free": (_plugin("names_are_free", "encoders", "broken:Partial"), HOME),
    "weights_go_round": (_plugin("weights_go_round", "weights", "broken:Lossy"), HOME),
    "recipes_are_sound": (broken_recipe.plugin, f"{HOME}.broken_recipe"),
}
BROKEN |= {
    check: (
        replace(_plugin(check, "sources", f"broken_sources:{one}"), samples={f"breaks_{check}": "toy_signal:write"}),
        HOME,
    )
    for check, one in SOURCES.items()
}
BROKEN |= {
    check: (_plugin(check, "modalities", f"broken_modalities:{one.__name__}"), HOME)
    for check, one in MODALITIES.items()
}
