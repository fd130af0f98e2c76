"""What a check works with: one part of a plugin in a tiny recipe, and example batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from maemm import registry
from maemm.config.messages import MISSING
from maemm.config.options import options_of
from maemm.contract import Modality, ModalityInput, Plan, Preprocessed, Target
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded
from maemm.model.build import build_modality, build_model
from maemm.model.model import Model
from maemm.registry import SINGULAR
from maemm.testing.outcome import ALL, CheckFailed, DoesNotApply, NotUsed
from maemm.testing.samples import Part, loaded_samples

ROWS = 3
WIDTH, DECODER_WIDTH = 48, 24  # different, and multiples of what sin-cos positions of one to three axes need
OTHER = "another_name"  # of the second modality, where there are two
_TINY = {"dim": WIDTH, "depth": 1, "heads": 2, "classes": 3}


class Rule(NamedTuple):
    """A rule that parts in some roles are to keep."""

    roles: tuple[str, ...]
    run: Callable[[Case], None]
    needs: tuple[str, ...]  # rules without which this one says nothing: where one is broken, this one is skipped


CHECKS: dict[str, Rule] = {}


def check(*roles: str, needs: Sequence[str] = ()) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Register a function as a check of parts in these roles, under its own name; its docstring is the rule.

    ``needs``: names of checks that must not have failed, of the same part or of the modality that it is checked on.
    """

    def register(run: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS[run.__name__] = Rule(roles, run, tuple(needs))
        return run

    return register


class Case(Part):
    """One part of a plugin under one check."""

    # ---- reporting
    def require(self, holds: Any, rule: str, received: Any, expected: Any, change: str) -> None:
        """Raise :class:`CheckFailed` in one line unless the rule holds."""
        if not holds:
            where = "" if self.role == ALL else f", {SINGULAR[self.role]} {self.part!r}"
            found = f"{rule}: received {received}, expected {expected}"
            raise CheckFailed(f"plugin {self.plugin.name!r}{where}", found, change)

    def equal(self, received: Tensor, expected: Tensor, rule: str, change: str, atol: float = 0.0) -> None:
        """Require two tensors of equal shape to be equal, or close; NaN equals NaN."""
        self.require(received.shape == expected.shape, rule, tuple(received.shape), tuple(expected.shape), change)
        a, b = received.detach().double(), expected.detach().double()
        close = torch.allclose(a, b, rtol=atol, atol=atol, equal_nan=True)
        gap = "" if close else f"{(a - b).abs().nan_to_num(float('inf')).max():.3g}"
        self.require(close, rule, f"a difference of {gap}", f"at most {atol:g}", change)

    # ---- models and batches
    def part_class(self) -> Any:
        """The class or function under check."""
        return registry.find(self.role, self.part)

    def recipe(self, more: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """A tiny recipe around the part; ``more``: options of its modality."""
        modality = {
            "type": self.signal,
            **self.options.get(self.signal, {}),
            **(more or {}),
            "masking": {"type": "random", "ratio": 0.5},
        }
        depth = 2 if self.role == "targets" else 1  # targets may be features of several blocks
        recipe: dict[str, Any] = {
            "modalities": {self.signal: modality},
            "encoder": {"type": "vit", "dim": WIDTH, "depth": depth, "heads": 2},
            "decoder": {"type": "full", "dim": DECODER_WIDTH, "depth": 1, "heads": 2},
        }
        if self.role == "maskings":
            modality.pop("masking")
            recipe["masking"] = self._spec()  # joint maskings are no masking of a single modality
        elif self.role == "targets":
            modality["target"] = self._spec()
        elif self.role in ("encoders", "decoders", "heads"):
            recipe[SINGULAR[self.role]] = self._spec()
            if self.role == "decoders":
                recipe["encoder"].update(getattr(registry.find(self.role, self.part), "encoder_options", {}))
            elif self.role == "encoders":
                recipe["decoder"].update(getattr(registry.find(self.role, self.part), "decoder_options", {}))
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
            raise NotUsed("it learns from labels with nothing hidden")
        small = {name: value for name, value in _TINY.items() if name in options}
        if "heads" in options and options["heads"].default is not MISSING and "dim" not in options:
            small.pop("heads")
        return {"type": self.part, **small, **own}

    def model(self, seed: int = 0, recipe: dict[str, Any] | None = None) -> Model:
        """A fresh model in evaluation mode, by default from :meth:`recipe`; equal for equal seeds."""
        with seeded("conformance", seed):
            return build_model(recipe or self.recipe()).eval()

    def modality(self) -> Modality:
        """The modality without parameters, as a worker gets it."""
        with seeded("conformance", 0):  # objectives, which may have parameters, say what they need of it
            return build_modality(self.recipe(), self.signal)

    def modality_of(self, model: Model) -> Modality:
        """The modality of a model that was built from :meth:`recipe`."""
        modality = model.modalities[self.signal]
        assert isinstance(modality, Modality)
        return modality

    def rng(self, rows: int = ROWS, key: int = 0) -> Rng:
        return Rng(("conformance", key), range(rows), rows)

    def example(self, rows: int = ROWS, key: int = 0, modality: Modality | None = None) -> Preprocessed:
        """A preprocessed batch, with the side inputs that the part asks for. By default of :meth:`modality`."""
        modality = modality or self.modality()
        example = modality.example(rows, self.rng(rows, key))
        if not modality.side_inputs:
            return example
        loaded = loaded_samples(self, modality, rows, key)
        if loaded is None:  # no data: what load() makes of a sample is, for most modalities, no more than its x
            loaded = [{"x": x} for x in example.x]
        else:
            example = modality.preprocess(modality.collate(loaded), None)
        sides = [{name: modality.side_input(name, sample, None) for name in modality.side_inputs} for sample in loaded]
        return replace(example, info={**example.info, **default_collate(sides)})

    def planned(self, model: Model, rows: int = ROWS) -> dict[str, ModalityInput]:
        """{modality: ModalityInput} of an example; of several sets of plans, the first."""
        return self.planned_sets(model, rows)[0]

    def planned_sets(self, model: Model, rows: int = ROWS, key: int = 0) -> list[dict[str, ModalityInput]]:
        """{modality: ModalityInput} of an example, for each set of plans."""
        return model.plan_sets({self.signal: self.example(rows, key)}, self.rng(rows, key))

    # ---- two modalities of the same kind
    def joint_recipe(self) -> dict[str, Any]:
        """:meth:`recipe` with a second modality like the first."""
        recipe = self.recipe()
        first = recipe["modalities"][self.signal]
        recipe["modalities"] = {self.signal: first, OTHER: dict(first)}
        return recipe

    def joint_model(self) -> Model:
        """A model of two modalities. Raises :class:`DoesNotApply` where the part says that it is for one."""
        try:
            return self.model(recipe=self.joint_recipe())
        except MaemmError as error:
            raise DoesNotApply(f"it serves no two modalities ({error})") from None

    def joint_example(self, rows: int = ROWS) -> dict[str, Preprocessed]:
        return {self.signal: self.example(rows), OTHER: self.example(rows, 1)}

    # ---- targets: of a part in that role, or the modality's own
    def target_part(self, model: Model) -> Modality | Target:
        """What makes the targets of the modality."""
        return model.targets[self.signal] if self.signal in model.targets else self.modality_of(model)

    def target_dim(self, model: Model) -> int:
        """T: values of a token's target."""
        part = self.target_part(model)
        return part.target_dim()

    def target(self, model: Model, inputs: ModalityInput, index: Tensor) -> Tensor:
        """Targets (R, M, O) of the tokens ``index`` (R, M)."""
        part = self.target_part(model)
        return part.target(inputs.tokens, index) if isinstance(part, Modality) else part(inputs, index)

    def loss(self, model: Model, pred: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
        """Losses (R, M) of predictions (R, M, O), of known values only where ``known`` (R, M, P) is given."""
        part = self.target_part(model)
        if known is None or not isinstance(part, Modality):
            return part.loss(pred, target)
        return part.loss(pred, target, known)

    def baseline(self, model: Model, target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor | None:
        """Losses (R, M) of the best constant prediction."""
        part = self.target_part(model)
        return part.baseline(target, counted, known) if isinstance(part, Modality) else part.baseline(target, counted)


def take_rows(preprocessed: Preprocessed, rows: Sequence[int]) -> Preprocessed:
    """The samples ``rows`` of a preprocessed batch, in this order; a row may be repeated."""
    index, size = torch.as_tensor(rows), preprocessed.x.shape[0]

    def select(value: Any) -> Any:
        return value[index] if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else value

    info = {name: select(value) for name, value in preprocessed.info.items()}
    valid, present = select(preprocessed.valid), select(preprocessed.present)
    return replace(preprocessed, x=preprocessed.x[index], valid=valid, info=info, present=present)


def without_padding(field: str, value: Tensor, plan: Plan) -> Tensor:
    """What belongs to tokens that a row has, of a ``field`` of an output: "encoded" (R, V, ...), others (R, M, ...)."""
    valid = plan.visible_valid if field == "encoded" else plan.predict_valid
    return value if valid is None else value[valid]


def take_plan(plan: Plan, rows: Sequence[int]) -> Plan:
    """The rows ``rows`` of a plan, each with a pass of the encoder for itself."""
    index = torch.as_tensor(rows)
    single = replace(plan, passes=None, first=None)
    taken: dict[str, Any] = {name: x[index] for name, x in vars(single).items() if isinstance(x, Tensor)}
    return replace(single, **taken)


def on_elements(valid: Tensor, x: Tensor) -> Tensor:
    """``valid`` expanded over the axes of ``x`` that it lacks: channels first or last."""
    if valid.shape == x.shape:
        return valid
    if valid.shape == x[:, 0].shape:
        return valid.unsqueeze(1).expand_as(x)
    return valid.reshape(*valid.shape, *(1,) * (x.ndim - valid.ndim)).expand_as(x)
