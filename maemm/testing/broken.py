"""Plugins that break one rule each: the check of that name must catch it, so that no check is idle.

``BROKEN[check]`` is a manifest and the import name of its package. They are small on purpose, and wrong on purpose.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import Modality, Objective, OneMasking, Output, Plan, Term, Tokens
from maemm.draws import Draw
from maemm.heads import Linear
from maemm.plugins import Plugin
from maemm.testing.broken_modalities import MODALITIES
from maemm.testing.toy_signal import Signal


class Incomplete(Modality):
    """Lacks the abstract methods."""


class OneWay(Signal):
    """Breaks nothing: a signal that cannot be put together again is legal."""

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> None:
        return None


class Undocumented(OneMasking):
    """Says nothing about its option."""

    def __init__(self, *, ratio: float = 0.5):
        self.ratio = ratio

    def plan(self, name: str, tokens: Tokens, draw: Draw) -> Plan:
        return Plan.all_visible(tokens)


class Overlaps(OneMasking):
    """Counts tokens in the loss that the encoder sees."""

    def plan(self, name: str, tokens: Tokens, draw: Draw) -> Plan:
        every = tokens.everything()
        return Plan(every, every, counted=torch.ones(every.shape))


class Streamed(OneMasking):
    """Draws for its own rows alone: another plan in every process."""

    def plan(self, name: str, tokens: Tokens, draw: Draw) -> Plan:
        generator = torch.Generator().manual_seed(draw.seed("mask"))
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


def _plugin(check: str, role: str, target: str) -> Plugin:
    name = f"breaks_{check}"
    return Plugin(name=name, version="1", contract=1, summary=f"breaks {check}", **{role: {name: target}})


HOME = "maemm.testing"
BROKEN: dict[str, tuple[Plugin, str]] = {
    "manifest_is_complete": (Plugin(name="breaks_manifest", version="1", contract=1), HOME),
    "manifest_is_light": (_plugin("manifest_is_light", "modalities", "toy_signal:Signal"), f"{HOME}.broken"),
    "part_can_be_imported": (_plugin("part_can_be_imported", "modalities", "broken:Incomplete"), HOME),
    "options_are_documented": (_plugin("options_are_documented", "maskings", "broken:Undocumented"), HOME),
    "plan_is_legal": (_plugin("plan_is_legal", "maskings", "broken:Overlaps"), HOME),
    "plan_is_repeatable": (_plugin("plan_is_repeatable", "maskings", "broken:Streamed"), HOME),
    "counts_are_known_before": (_plugin("counts_are_known_before", "objectives", "broken:Miscounts"), HOME),
    "head_answers": (_plugin("head_answers", "heads", "broken:Flat"), HOME),
}
BROKEN |= {
    check: (_plugin(check, "modalities", f"broken_modalities:{one.__name__}"), HOME)
    for check, one in MODALITIES.items()
}
