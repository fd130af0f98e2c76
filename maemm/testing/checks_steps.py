"""Rules of training steps: exact resume, no device synchronisation, any name for a modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maemm.config.options import options_of
from maemm.contract import Objective, Target
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.testing.case import OTHER, Case, check
from maemm.testing.checks_training import TRAINED
from maemm.testing.places import plugin_line
from maemm.testing.training import BATCH, STEPS, step_of, train_state_of
from maemm.train.state import TrainState

_WAITING = {  # operations for whose result the host waits on a GPU, and what leads to them
    "aten::_local_scalar_dense": "item(), float(), bool() or if",
    "aten::is_nonzero": "bool() or if",
    "aten::equal": "equal()",
    "aten::nonzero": "nonzero()",
    "aten::masked_select": "masked_select()",
    "aten::_unique2": "unique()",
    "aten::repeat_interleave": "repeat_interleave()",
}
_INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


@check(*TRAINED, needs=["forward_fits", "counts_are_known_before", "phases_are_apart"])
def training_goes_on_exactly(case: Case) -> None:
    """Two steps, saving, loading and two more steps give bit for bit the same weights as four steps."""
    straight, first, second = (train_state_of(case.model().train()) for _ in range(3))
    for step in range(STEPS):
        _step(case, straight, step)
    for step in range(STEPS // 2):
        _step(case, first, step)
    second.model.load_state_dict({key: value.clone() for key, value in first.model.state_dict().items()})
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for ours, theirs in zip(second.phases, first.phases, strict=True):
        ours.optimizer.load_state_dict(theirs.optimizer.state_dict())
    for step in range(STEPS // 2, STEPS):
        _step(case, second, step)
    change = "keep all state in parameters and buffers, and take random numbers and progress from rng"
    expected, resumed = straight.model.state_dict(), second.model.state_dict()
    for name in expected:
        case.equal(resumed[name], expected[name], f"{name} of a resumed training", change)


def _step(case: Case, train_state: TrainState, step: int) -> None:
    step_of(train_state, case.planned_sets(train_state.model, BATCH, step), step)


class _SyncRecorder(TorchDispatchMode):
    """Records operations for whose result the host would have to wait on a GPU, and which line asked for them."""

    def __init__(self, package: str) -> None:
        super().__init__()
        self.package = package
        self.places: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        operation = _WAITING.get(name)
        if operation and name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is not None:
            operation = None
        if name in _INDEXING and any(isinstance(x, Tensor) and x.dtype == torch.bool for x in args[1] if x is not None):
            operation = "a boolean index"
        if operation:
            line = plugin_line(self.package)
            self.places[f"{operation} at {line}" if line else f"{operation} in code that it calls"] = None
        return func(*args, **(kwargs or {}))


@check("modalities", "encoders", "decoders", "objectives", "targets", needs=["forward_fits"])
def forward_waits_for_nothing(case: Case) -> None:
    """The forward pass and after_step() read no value of a tensor, so that the host never waits for the device."""
    model = case.model().train()
    inputs = case.planned(model)
    learners: list[Objective | Target] = [*model.objectives.values(), *model.targets.values()]
    with _SyncRecorder(case.package) as recorder, torch.no_grad():
        model(inputs)
        for learner in learners:
            learner.after_step(model, 0, torch.tensor(False))
    change = "compute with tensors there: torch.where instead of if, sizes from shapes, no nonzero() or boolean index"
    case.require(
        not recorder.places, "the forward pass waits for nothing", ", ".join(recorder.places), "no wait", change
    )


@check("modalities", "encoders", "decoders", "objectives", "targets", needs=["features_are_repeatable"])
def names_are_free(case: Case) -> None:
    """A modality may have any name in a recipe: it changes neither the weights nor the losses."""
    model, recipe = case.model(), case.recipe()
    recipe["modalities"] = {OTHER: recipe["modalities"][case.signal]}
    if case.role == "objectives":
        recipe["objectives"][case.part] |= _renamed(case, recipe["objectives"][case.part])
    with seeded("conformance", 0):
        renamed = build_model(recipe).eval()
    inputs = case.planned(model)[case.signal]
    expected, received = (
        built({name: inputs.preprocessed}, plans={name: inputs.plan}).total
        for built, name in ((model, case.signal), (renamed, OTHER))
    )
    change = "take names from the constructor or from the inputs, never from the code"
    case.equal(received, expected, f"the loss of a modality called {OTHER!r}", change, 1e-6)


def _renamed(case: Case, spec: Mapping[str, Any]) -> dict[str, str]:
    """Options of an objective that name the modality, with its other name."""
    options = options_of(case.part_class())
    values = {name: spec.get(name, option.default) for name, option in options.items()}
    return {name: OTHER for name, value in values.items() if value == case.signal}
