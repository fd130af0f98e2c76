"""Rules of a training: it goes on exactly, waits for nothing, and does not depend on the names in a recipe."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from maemm.contract import ModalityInput
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.testing.case import Case, check
from maemm.testing.checks_training import TRAINED
from maemm.train.distributed import DistContext
from maemm.train.optim import make_optimizer, set_lr
from maemm.train.step import MicroBatches, TrainState, take_step

STEPS, BATCH = 4, 2
_OTHER = "another_name"
_WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero"}


@check(*TRAINED, "maskings")
def training_goes_on_exactly(case: Case) -> None:
    """Two steps, saving, loading and two more steps give bit for bit what four steps give."""
    straight, first = _learner(case), _learner(case)
    for step in range(STEPS):
        _step(case, straight, step)
    for step in range(STEPS // 2):
        _step(case, first, step)
    second = _learner(case)
    second.model.load_state_dict({key: value.clone() for key, value in first.model.state_dict().items()})
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    for step in range(STEPS // 2, STEPS):
        _step(case, second, step)
    change = "keep what moves in parameters and buffers, and take random numbers and progress from the draw"
    wanted, found = straight.model.state_dict(), second.model.state_dict()
    for name in wanted:
        case.equal(found[name], wanted[name], f"{name} of a training that went on", change)


def _learner(case: Case) -> TrainState:
    model = case.model().train()
    optimizer = make_optimizer(model, {})
    set_lr(optimizer, 1e-3)
    return TrainState(model, model, optimizer, DistContext(), seed=0, batch=BATCH, steps=STEPS)


def _step(case: Case, train_state: TrainState, step: int) -> None:
    rng = case.rng(BATCH, step)
    inputs = train_state.model.plan({case.signal: case.example(BATCH, step)}, rng)
    counts = {name: count.float() for name, count in train_state.model.counts(inputs).items()}
    take_step(train_state, MicroBatches(step, [inputs], counts, [[]]))


class _Watch(TorchDispatchMode):
    """Notes operations whose result the host must wait for on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name in _WAITING:
            self.met.append(name)
        return func(*args, **(kwargs or {}))


@check("modalities", "encoders", "decoders", "objectives", "targets")
def forward_waits_for_nothing(case: Case) -> None:
    """The forward pass asks for no value of a tensor, for which the host would have to wait for the device."""
    model = case.model().train()
    inputs = case.planned(model)
    with _Watch() as watch, torch.no_grad():
        model(inputs)
    change = "keep item(), float(), bool(), if on tensors, nonzero() and boolean indices out of what forward calls"
    met = ", ".join(sorted({one.removeprefix("aten::") for one in watch.met}))
    case.require(not watch.met, "the forward pass waits for nothing", met, "no such operation", change)


@check("modalities", "encoders", "decoders", "objectives", "targets")
def names_are_free(case: Case) -> None:
    """A modality may have any name in a recipe: the name changes neither the weights nor the losses."""
    one, recipe = case.model(), case.recipe()
    recipe["modalities"] = {_OTHER: recipe["modalities"][case.signal]}
    with seeded("conformance", 0):
        other = build_model(recipe).eval()
    preprocessed = case.example()
    planned = one.plan({case.signal: preprocessed}, case.rng())[case.signal]
    totals = [_total(model, name, planned) for model, name in ((one, case.signal), (other, _OTHER))]
    change = "take the names from the constructor or from the inputs, and write none into the code"
    case.equal(totals[1], totals[0], f"the loss where the modality is called {_OTHER!r}", change, 1e-6)


def _total(model: Model, name: str, planned: ModalityInput) -> torch.Tensor:
    return model({name: planned.preprocessed}, plans={name: planned.plan}).total
