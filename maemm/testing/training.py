"""Training steps of a tiny model, as the loop takes them."""

from __future__ import annotations

from collections.abc import Sequence

from maemm.contract import ModalityInput
from maemm.model.model import Model
from maemm.train.distributed import DistContext
from maemm.train.optim import make_optimizer, make_phase_optimizer, set_lr
from maemm.train.state import MicroBatches, PhaseState, StepResult, TrainState
from maemm.train.step import counts_of_sets, take_step

BATCH, STEPS, LR = 2, 4, 1e-3


def train_state_of(model: Model) -> TrainState:
    """A model with its optimiser and those of its phases."""
    phases = [(name, phase) for name, objective in model.objectives.items() for phase in objective.phases(model)]
    optimizer = make_optimizer(model, {}, [parameter for _, phase in phases for parameter in phase.parameters])
    set_lr(optimizer, LR)
    states = [
        PhaseState(name, phase, make_phase_optimizer(phase, f"objectives.{name}", model)) for name, phase in phases
    ]
    return TrainState(model, model, optimizer, DistContext(), seed=0, batch=BATCH, steps=STEPS, phases=states)


def step_of(train_state: TrainState, sets: Sequence[dict[str, ModalityInput]], step: int) -> StepResult:
    """One step on one batch, of which ``sets`` are the sets of plans."""
    inputs = list(sets)
    counts = counts_of_sets(train_state.model, inputs)
    return take_step(train_state, MicroBatches(step, inputs, counts, [[]] * len(inputs), sets=len(inputs)))
