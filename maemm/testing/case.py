"""What a check works with: one part of a plugin inside a tiny recipe, and examples to feed it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from maemm import registry
from maemm.config.messages import MISSING
from maemm.config.options import options_of
from maemm.contract import Modality, ModalityInput, Plan, Preprocessed
from maemm.contract.rng import Rng, seeded
from maemm.model.build import build_modality, build_model
from maemm.model.model import Model
from maemm.registry import SINGULAR, Plugin
from maemm.testing.outcome import ALL, CheckFailed, DoesNotApply
from maemm.testing.toy import SIGNAL

ROWS = 3
WIDTH, DECODER_WIDTH = 48, 24  # different, and multiples of what sin-cos positions of one to three axes need
_TINY = {"dim": WIDTH, "depth": 1, "heads": 2, "classes": 3}

CHECKS: dict[str, tuple[tuple[str, ...], Callable[[Case], None]]] = {}


def check(*roles: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Enter a function among the checks of parts in these roles, under its own name; its docstring is the rule."""

    def enter(rule: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[rule.__name__] = (roles, rule)
        return rule

    return enter


class Case:
    """One part of a plugin under one check."""

    def __init__(self, plugin: Plugin, package: str, role: str, part: str, options: Mapping[str, Mapping[str, Any]]):
        self.plugin, self.package, self.role, self.part, self.given = plugin, package, role, part, options
        # Other parts are checked on the plugin's own first modality, or on the suite's toy.
        self.signal = part if role == "modalities" else next(iter(plugin.modalities), SIGNAL)

    # ---- saying what is wrong
    def require(self, holds: Any, rule: str, received: Any, expected: Any, change: str) -> None:
        """Raise :class:`CheckFailed` in one line unless the rule holds."""
        if not bool(holds):
            where = "" if self.role == ALL else f", {SINGULAR[self.role]} {self.part!r}"
            raise CheckFailed(
                f"plugin {self.plugin.name!r}{where}: {rule}: received {received}, expected {expected}", change
            )

    def equal(self, received: Tensor, expected: Tensor, rule: str, change: str, atol: float = 0.0) -> None:
        """Require two tensors of equal shape to be equal, or close; NaN equals NaN."""
        self.require(received.shape == expected.shape, rule, tuple(received.shape), tuple(expected.shape), change)
        one, other = received.detach().double(), expected.detach().double()
        same = torch.allclose(one, other, rtol=atol, atol=atol, equal_nan=True)
        gap = "" if same else f"{(one - other).abs().nan_to_num(float('inf')).max():.3g}"
        self.require(same, rule, f"a difference of {gap}", f"at most {atol:g}", change)

    # ---- making things
    def recipe(self) -> dict[str, Any]:
        """A tiny recipe around the part."""
        modality = {"type": self.signal, **self.given.get(self.signal, {}), "masking": {"type": "random", "ratio": 0.5}}
        recipe: dict[str, Any] = {
            "modalities": {self.signal: modality},
            "encoder": {"type": "vit", "dim": WIDTH, "depth": 1, "heads": 2},
            "decoder": {"type": "full", "dim": DECODER_WIDTH, "depth": 1, "heads": 2},
        }
        if self.role in ("maskings", "targets"):
            modality[SINGULAR[self.role]] = self._spec()
        elif self.role in ("encoders", "decoders", "heads"):
            recipe[SINGULAR[self.role]] = self._spec()
        elif self.role == "objectives":
            recipe["objectives"] = {"reconstruct": {}, self.part: self._spec()}
        return recipe

    def _spec(self) -> dict[str, Any]:
        """The part with the given options, and small where it has the usual options of width and depth."""
        part = registry.find(self.role, self.part)
        known, given = options_of(part), self.given.get(f"{self.role}.{self.part}", {})
        asked = [name for name, one in known.items() if one.default is MISSING and name not in {**_TINY, **given}]
        if asked:
            raise DoesNotApply(f"it must be told {', '.join(asked)}; give options for {self.role}.{self.part}")
        if not getattr(part, "masked", True):
            raise DoesNotApply("it learns from labels with nothing hidden")
        small = {name: value for name, value in _TINY.items() if name in known}
        if "heads" in known and known["heads"].default is not MISSING and "dim" not in known:
            small.pop("heads")
        return {"type": self.part, **small, **given}

    def model(self, seed: int = 0) -> Model:
        """A fresh model in evaluation mode; equal for equal seeds."""
        with seeded("conformance", seed):
            return build_model(self.recipe()).eval()

    def modality(self) -> Modality:
        """The modality without parameters, as a worker gets it."""
        return build_modality(self.recipe(), self.signal)

    def rng(self, rows: int = ROWS, key: int = 0) -> Rng:
        return Rng(("conformance", key), range(rows), rows)

    def example(self, rows: int = ROWS, key: int = 0) -> Preprocessed:
        return self.modality().example(rows, self.rng(rows, key))

    def planned(self, model: Model, rows: int = ROWS) -> dict[str, ModalityInput]:
        """{modality: ModalityInput} of an example."""
        return model.plan({self.signal: self.example(rows)}, self.rng(rows))


def take_rows(preprocessed: Preprocessed, rows: Sequence[int]) -> Preprocessed:
    """Some samples of a prepared batch, in this order and as often as named."""
    index, size = torch.as_tensor(rows), preprocessed.x.shape[0]

    def cut(one: Any) -> Any:
        return one[index] if isinstance(one, Tensor) and one.ndim and one.shape[0] == size else one

    info = {name: cut(one) for name, one in preprocessed.info.items()}
    return replace(preprocessed, x=preprocessed.x[index], valid=cut(preprocessed.valid), info=info)


def take_plan(plan: Plan, rows: Sequence[int]) -> Plan:
    """Some rows of a plan."""
    index = torch.as_tensor(rows)
    return Plan(**{name: None if one is None else one[index] for name, one in vars(plan).items()})
