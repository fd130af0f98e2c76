"""What a check works with: one part of a plugin in a tiny recipe, and example batches."""

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
    """Register a function as a check of parts in these roles, under its own name; its docstring is the rule."""

    def register(rule: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[rule.__name__] = (roles, rule)
        return rule

    return register


class Case:
    """One part of a plugin under one check."""

    def __init__(self, plugin: Plugin, package: str, role: str, part: str, options: Mapping[str, Mapping[str, Any]]):
        self.plugin, self.package, self.role, self.part, self.options = plugin, package, role, part, options
        # Other parts are checked on the plugin's own first modality, or on the suite's toy.
        self.signal = part if role == "modalities" else next(iter(plugin.modalities), SIGNAL)

    # ---- reporting
    def require(self, holds: Any, rule: str, received: Any, expected: Any, change: str) -> None:
        """Raise :class:`CheckFailed` in one line unless the rule holds."""
        if not holds:
            where = "" if self.role == ALL else f", {SINGULAR[self.role]} {self.part!r}"
            raise CheckFailed(
                f"plugin {self.plugin.name!r}{where}: {rule}: received {received}, expected {expected}", change
            )

    def equal(self, received: Tensor, expected: Tensor, rule: str, change: str, atol: float = 0.0) -> None:
        """Require two tensors of equal shape to be equal, or close; NaN equals NaN."""
        self.require(received.shape == expected.shape, rule, tuple(received.shape), tuple(expected.shape), change)
        a, b = received.detach().double(), expected.detach().double()
        close = torch.allclose(a, b, rtol=atol, atol=atol, equal_nan=True)
        gap = "" if close else f"{(a - b).abs().nan_to_num(float('inf')).max():.3g}"
        self.require(close, rule, f"a difference of {gap}", f"at most {atol:g}", change)

    # ---- models and batches
    def recipe(self) -> dict[str, Any]:
        """A tiny recipe around the part."""
        modality = {
            "type": self.signal,
            **self.options.get(self.signal, {}),
            "masking": {"type": "random", "ratio": 0.5},
        }
        recipe: dict[str, Any] = {
            "modalities": {self.signal: modality},
            "encoder": {"type": "vit", "dim": WIDTH, "depth": 1, "heads": 2},
            "decoder": {"type": "full", "dim": DECODER_WIDTH, "depth": 1, "heads": 2},
        }
        if self.role in ("maskings", "targets"):
            modality[SINGULAR[self.role]] = self._spec()
        elif self.role in ("encoders", "decoders", "heads"):
            recipe[SINGULAR[self.role]] = self._spec()
            if self.role == "decoders":
                recipe["encoder"].update(getattr(registry.find(self.role, self.part), "encoder_options", {}))
        elif self.role == "objectives":
            recipe["objectives"] = {"reconstruct": {}, self.part: self._spec()}
        return recipe

    def _spec(self) -> dict[str, Any]:
        """The part with the author's options, and small where it has the usual options of width and depth."""
        part = registry.find(self.role, self.part)
        options, own = options_of(part), self.options.get(f"{self.role}.{self.part}", {})
        unset = [name for name, option in options.items() if option.default is MISSING and name not in {**_TINY, **own}]
        if unset:
            raise DoesNotApply(f"it needs {', '.join(unset)}; give options for {self.role}.{self.part}")
        if not getattr(part, "masked", True):
            raise DoesNotApply("it learns from labels with nothing hidden")
        small = {name: value for name, value in _TINY.items() if name in options}
        if "heads" in options and options["heads"].default is not MISSING and "dim" not in options:
            small.pop("heads")
        return {"type": self.part, **small, **own}

    def model(self, seed: int = 0) -> Model:
        """A fresh model in evaluation mode; equal for equal seeds."""
        with seeded("conformance", seed):
            return build_model(self.recipe()).eval()

    def modality(self) -> Modality:
        """The modality without parameters, as a worker gets it."""
        return build_modality(self.recipe(), self.signal)

    def modality_of(self, model: Model) -> Modality:
        """The modality of a model that was built from :meth:`recipe`."""
        modality = model.modalities[self.signal]
        assert isinstance(modality, Modality)
        return modality

    def rng(self, rows: int = ROWS, key: int = 0) -> Rng:
        return Rng(("conformance", key), range(rows), rows)

    def example(self, rows: int = ROWS, key: int = 0) -> Preprocessed:
        return self.modality().example(rows, self.rng(rows, key))

    def planned(self, model: Model, rows: int = ROWS) -> dict[str, ModalityInput]:
        """{modality: ModalityInput} of an example."""
        return model.plan({self.signal: self.example(rows)}, self.rng(rows))


def take_rows(preprocessed: Preprocessed, rows: Sequence[int]) -> Preprocessed:
    """The samples ``rows`` of a preprocessed batch, in this order; a row may be repeated."""
    index, size = torch.as_tensor(rows), preprocessed.x.shape[0]

    def select(value: Any) -> Any:
        return value[index] if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value

    info = {name: select(value) for name, value in preprocessed.info.items()}
    return replace(preprocessed, x=preprocessed.x[index], valid=select(preprocessed.valid), info=info)


def take_plan(plan: Plan, rows: Sequence[int]) -> Plan:
    """The rows ``rows`` of a plan."""
    index = torch.as_tensor(rows)
    return replace(plan, **{name: value[index] for name, value in vars(plan).items() if value is not None})
