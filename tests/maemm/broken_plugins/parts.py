"""Parts of other roles that break one rule each, and the table of all broken plugins.

``BROKEN[check]``: the manifest that this check must catch, and the import name of its package.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Le
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
from maemm.testing.toy import SIGNAL
from maemm.testing.toy_signal import Signal

from . import bad_recipe
from .modalities import MODALITIES
from .sources import SOURCES


class Incomplete(Modality):
    """Lacks the abstract methods."""


class OneWay(Signal):
    """Breaks nothing: a signal that cannot be reconstructed is legal."""

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> None:
        return None


class Undocumented(PerModalityMasking):
    """Does not document its option."""

    def __init__(self, *, ratio: float = 0.5):
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return Plan.all_visible(tokens)


class Impossible(PerModalityMasking):
    """Its bounds allow no number.

    Options
        ratio: fraction of the tokens that is hidden
    """

    def __init__(self, *, ratio: Annotated[float, Ge(0.5), Le(0.25)] = 0.5):
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return Plan.all_visible(tokens)


class Overlaps(PerModalityMasking):
    """Counts visible tokens in the loss."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        index = tokens.all_indices()
        return Plan(index, index, counted=torch.ones(index.shape))


class Streamed(PerModalityMasking):
    """Draws random numbers for its own rows only: another plan on every rank."""

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        generator = torch.Generator().manual_seed(rng.seed("mask"))
        order = torch.rand(tokens.batch, tokens.count, generator=generator).argsort(1)
        half = tokens.count // 2
        return Plan(order[:, :half].sort(1).values, order[:, half:].sort(1).values)


class Miscounts(Objective):
    """Reports other counts before the forward pass than after it."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        (loss,) = out.loss.values()
        return {self.name: Term(loss.sum(), torch.tensor(float(loss.numel())))}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        return {self.name: torch.tensor(1.0)}


class Flat(Linear):
    """Returns features instead of logits."""

    def forward(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return self.features(model, batch)


class Untyped(PerModalityMasking):
    """Its default is not a value of its type.

    Options
        ratio: fraction of the tokens that is hidden
    """

    def __init__(self, *, ratio: float = "half"):  # type: ignore[assignment]
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        return Plan.all_visible(tokens)


class Counting(Reconstruct):
    """Weighs its loss by a step counter that no checkpoint stores."""

    def __init__(self, name: str):
        super().__init__(name)
        self.steps = 0

    def forward(self, out: Output, model: nn.Module) -> dict[str, Term]:
        weight = 1.0 + self.steps
        return {name: replace(term, sum=term.sum * weight) for name, term in super().forward(out, model).items()}

    def after_step(self, model: nn.Module, step: int, bad: Tensor) -> None:
        self.steps += 1


class Partial(ViT):
    """Treats one modality differently, by its name."""

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        latents = super().forward(inputs, modalities, layers=layers, norm=norm)
        latents.tokens = {name: x * (2.0 if name == SIGNAL else 1.0) for name, x in latents.tokens.items()}
        return latents


class Lossy(CheckpointFormat):
    """Reads biases as zeros, and adds 0.5 to every tensor that it writes."""

    name = "lossy"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return "recipe" in keys

    def read(
        self, state: dict[str, Tensor], **settings: Any
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        recipe = json.loads(bytes(state.pop("recipe").tolist()))
        return recipe, {key: torch.zeros_like(x) if key.endswith("bias") else x for key, x in state.items()}, {}

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        text = torch.tensor(list(json.dumps(model.recipe).encode()), dtype=torch.uint8)
        return {"recipe": text, **{key: x + 0.5 for key, x in model.state_dict().items()}}


def _plugin(check: str, role: str, target: str, **more: Any) -> Plugin:
    name = f"breaks_{check}"
    parts: dict[str, Any] = {role: {name: target}, **more}
    return Plugin(name=name, version="1", contract=2, summary=f"breaks {check}", **parts)


PACKAGE = "broken_plugins"
_PARTS = {
    "part_can_be_imported": ("modalities", "Incomplete"),
    "options_are_documented": ("maskings", "Undocumented"),
    "bounds_hold": ("maskings", "Impossible"),
    "plan_is_legal": ("maskings", "Overlaps"),
    "plan_is_repeatable": ("maskings", "Streamed"),
    "counts_are_known_before": ("objectives", "Miscounts"),
    "head_answers": ("heads", "Flat"),
    "defaults_fit_their_types": ("maskings", "Untyped"),
    "training_goes_on_exactly": ("objectives", "Counting"),
    "names_are_free": ("encoders", "Partial"),
    "weights_go_round": ("weights", "Lossy"),
}
BROKEN: dict[str, tuple[Plugin, str]] = {
    "manifest_is_complete": (Plugin(name="breaks_manifest", version="1", contract=2), PACKAGE),
    "manifest_is_light": (_plugin("manifest_is_light", "modalities", "none:None_"), f"{PACKAGE}.heavy_manifest"),
    "recipes_are_sound": (bad_recipe.plugin, f"{PACKAGE}.bad_recipe"),
}
for check, (role, part) in _PARTS.items():
    BROKEN[check] = (_plugin(check, role, f"parts:{part}"), PACKAGE)
for check, opener in SOURCES.items():
    samples = {f"breaks_{check}": "sources:write"}
    BROKEN[check] = (_plugin(check, "sources", f"sources:{opener}", samples=samples), PACKAGE)
for check, modality in MODALITIES.items():
    BROKEN[check] = (_plugin(check, "modalities", f"modalities:{modality.__name__}"), PACKAGE)
