"""Rules of training steps: exact resume, no device synchronisation, any name for a modality."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.testing.case import Case, check
from maemm.testing.checks_training import TRAINED
from maemm.train.distributed import DistContext
from maemm.train.optim import make_optimizer, set_lr
from maemm.train.step import MicroBatches, TrainState, take_step

STEPS, BATCH = 4, 2
_OTHER = "another_name"
_SYNCING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
}


@check(*TRAINED, "maskings")
def training_goes_on_exactly(case: Case) -> None:
    """Two steps, saving, loading and two more steps give bit for bit the same weights as four steps."""
    straight, first, second = (_train_state(case) for _ in range(3))
    for step in range(STEPS):
        _step(case, straight, step)
    for step in range(STEPS // 2):
        _step(case, first, step)
    second.model.load_state_dict({key: value.clone() for key, value in first.model.state_dict().items()})
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for step in range(STEPS // 2, STEPS):
        _step(case, second, step)
    change = "keep all state in parameters and buffers, and take random numbers and progress from rng"
    expected, resumed = straight.model.state_dict(), second.model.state_dict()
    for name in expected:
        case.equal(resumed[name], expected[name], f"{name} of a resumed training", change)


def _train_state(case: Case) -> TrainState:
    model = case.model().train()
    optimizer = make_optimizer(model, {})
    set_lr(optimizer, 1e-3)
    return TrainState(model, model, optimizer, DistContext(), seed=0, batch=BATCH, steps=STEPS)


def _step(case: Case, train_state: TrainState, step: int) -> None:
    rng = case.rng(BATCH, step)
    inputs = train_state.model.plan({case.signal: case.example(BATCH, step)}, rng)
    counts = {name: count.float() for name, count in train_state.model.counts(inputs).items()}
    take_step(train_state, MicroBatches(step, [inputs], counts, [[]]))


class _SyncRecorder(TorchDispatchMode):
    """Records operations for whose result the host would have to wait on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in _SYNCING:
            self.operations.add(name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


@check("modalities", "encoders", "decoders", "objectives", "targets")
def forward_waits_for_nothing(case: Case) -> None:
    """The forward pass reads no value of a tensor, so that the host never waits for the device."""
    model = case.model().train()
    inputs = case.planned(model)
    with _SyncRecorder() as recorder, torch.no_grad():
        model(inputs)
    change = "avoid item(), float(), bool(), if on tensors, nonzero() and boolean indices in the forward pass"
    operations = ", ".join(sorted(recorder.operations))
    case.require(not operations, "the forward pass waits for nothing", operations, "no such operation", change)


@check("modalities", "encoders", "decoders", "objectives", "targets")
def names_are_free(case: Case) -> None:
    """A modality may have any name in a recipe: it changes neither the weights nor the losses."""
    model, recipe = case.model(), case.recipe()
    recipe["modalities"] = {_OTHER: recipe["modalities"][case.signal]}
    with seeded("conformance", 0):
        renamed = build_model(recipe).eval()
    inputs = case.planned(model)[case.signal]
    expected, received = (
        built({name: inputs.preprocessed}, plans={name: inputs.plan}).total
        for built, name in ((model, case.signal), (renamed, _OTHER))
    )
    change = "take names from the constructor or from the inputs, never from the code"
    case.equal(received, expected, f"the loss of a modality called {_OTHER!r}", change, 1e-6)
