"""Rules of targets and objectives: state that follows the model, teachers, phases, whole batches, side inputs."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maemm.contract import Encoder, Objective, Target, Term
from maemm.contract.errors import MaemmError
from maemm.model.model import Model
from maemm.testing.case import ROWS, Case, check, take_plan, take_rows
from maemm.testing.outcome import DoesNotApply, NotUsed
from maemm.testing.samples import loaded_samples
from maemm.testing.samples import same as equal_samples
from maemm.testing.toy import SIGNAL
from maemm.testing.training import step_of, train_state_of
from maemm.train.state import MicroBatches, StepResult
from maemm.train.step import counts_of_sets, knows_batch, take_step


def _learner(case: Case, model: Model) -> Target | Objective:
    return model.targets[case.signal] if case.role == "targets" else model.objectives[case.part]


@check("targets", "objectives", needs=["forward_fits", "phases_are_apart"])
def a_bad_step_moves_nothing(case: Case) -> None:
    """Where a step is bad (its loss is not finite), after_step() and phases move no parameter and no average."""
    train_state = train_state_of(case.model().train())
    model = train_state.model
    part = _learner(case, model)
    base: type = Target if case.role == "targets" else Objective
    if type(part).after_step is base.after_step and not train_state.phases:  # type: ignore[attr-defined]
        raise NotUsed("it has no after_step() and no phases")
    step_of(train_state, case.planned_sets(model), 0)  # a good one, after which averages differ from what they follow
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bad = [
        {name: replace(x, tokens=replace(x.tokens, values=x.tokens.values * torch.nan)) for name, x in inputs.items()}
        for inputs in case.planned_sets(model)
    ]
    step_of(train_state, bad, 1)
    change = "multiply what moves by (~bad), or use torch.where(bad, old, new); never read bad on the host"
    for name, value in model.state_dict().items():
        case.equal(value, before[name], f"{name} after a bad step", change)


@check("targets", needs=["forward_fits"])
def teacher_runs_once(case: Case) -> None:
    """A target runs an encoder once for a batch, in precompute(), and never in forward(), which is called for each
    set of predicted tokens."""
    model = case.model()
    target, calls = model.targets[case.signal], []
    encoders = {id(module): module for module in (*target.modules(), model.encoder) if isinstance(module, Encoder)}
    hooks = [module.register_forward_pre_hook(lambda *_: calls.append(1)) for module in encoders.values()]
    try:
        inputs = case.planned(model)[case.signal]
        before, change = len(calls), "compute a teacher's latents in precompute(), and gather from inputs.computed"
        for _ in range(2):
            target(inputs, inputs.plan.predict)
    finally:
        for hook in hooks:
            hook.remove()
    if not calls:
        raise NotUsed("it runs no encoder")
    case.require(len(calls) == before, "passes of a teacher in forward()", len(calls) - before, 0, change)
    case.require(before == 1, "passes of a teacher in precompute()", before, 1, change)


@check("objectives", needs=["forward_fits"])
def phases_are_apart(case: Case) -> None:
    """Phases have names and parameters of their own, which the model saves; phase_loss() is a finite term that gives
    each of them a gradient."""
    model = case.model().train()
    objective = model.objectives[case.part]
    phases = list(objective.phases(model))
    if not phases:
        raise NotUsed("it has no phases")
    change = "give each Phase a name and parameters of its own, made in the objective's constructor"
    names = [phase.name for phase in phases]
    case.require(len(set(names)) == len(names), "names of phases", names, "different ones", change)
    ids = [id(parameter) for phase in phases for parameter in phase.parameters]
    case.require(len(set(ids)) == len(ids), "parameters of phases", "some twice", "each in one phase", change)
    ids += {id(parameter) for phase in phases for parameter in phase.shared}
    case.require(len(set(ids)) == len(ids), "parameters of phases", "own ones that are shared", "either", change)
    unsaved = len(set(ids) - {id(parameter) for parameter in model.parameters()})
    case.require(not unsaved, "parameters of phases", f"{unsaved} that the model lacks", "the model's", change)
    inputs = case.planned(model)
    out = model(inputs)
    detached = replace(out, pred={name: x.detach() for name, x in out.pred.items()}, parts={})
    for phase in phases:
        term = objective.phase_loss(phase.name, detached, model)
        rule, change = f"the loss of phase {phase.name!r}", "return Term(sum, count) from phase_loss()"
        good = isinstance(term, Term) and term.sum.ndim == term.count.ndim == 0 and bool(term.sum.isfinite())
        case.require(good, rule, term, "a Term of finite scalars", change)
        gradients = torch.autograd.grad(term.sum, list(phase.parameters), allow_unused=True)
        unused = sum(gradient is None for gradient in gradients)
        change = "use all its parameters in phase_loss(), or leave them out of the phase"
        case.require(not unused, f"{rule} moves its parameters", f"{unused} without gradient", "one each", change)


@check("objectives", needs=["counts_are_known_before", "phases_are_apart"])
def micro_batches_are_one_batch(case: Case) -> None:
    """An objective that has over_batch() gives a step in two micro-batches the terms and the gradient of one batch."""
    if not knows_batch(case.model().objectives[case.part]):
        raise NotUsed("it has no over_batch()")
    rows = list(range(2 * ROWS))
    whole, halves = (_step_in(case, parts) for parts in ([rows], [rows[:ROWS], rows[ROWS:]]))
    change = "compute in over_batch() what the loss needs of other samples, and take it from of_batch in forward()"
    for name, value in whole.terms.items():
        case.equal(halves.terms[name], value, f"the term {name!r} of two micro-batches", change, 1e-4)
    case.equal(halves.grad_norm, whole.grad_norm, "the gradient of two micro-batches", change, 1e-4)


def _step_in(case: Case, parts: list[list[int]]) -> StepResult:
    """A step of a fresh model on the samples of an example, in these micro-batches, with the plans of one batch."""
    train_state = train_state_of(case.model().train())
    model, samples = train_state.model, sum(map(len, parts))
    example, plan = case.example(samples), case.planned(model, samples)[case.signal].plan
    passes = []
    for part in parts:
        batch, plans = {case.signal: take_rows(example, part)}, {case.signal: take_plan(plan, part)}
        with torch.no_grad():
            passes.append(model(batch, plans=plans).inputs)
    counts: dict[str, Tensor] = {}
    for inputs in passes:
        counts = {name: counts.get(name, 0) + count for name, count in counts_of_sets(model, [inputs]).items()}
    return take_step(train_state, MicroBatches(0, passes, counts, [[]] * len(passes)))


@check("objectives", "targets", needs=["part_can_be_imported"])
def side_inputs_are_made(case: Case) -> None:
    """What it asks a modality for is a tensor of one sample, the same for equal ``rng``, of one shape in all samples,
    and made without a change of the loaded sample."""
    modality = case.modality()
    if not modality.side_inputs:
        raise NotUsed("it asks for no side input")
    if case.signal == SIGNAL:
        raise DoesNotApply("the suite's own modality makes no side inputs; check it beside a modality that does")
    samples = loaded_samples(case, modality, ROWS) or [{"x": x} for x in modality.example(ROWS, case.rng()).x]
    change = "return a tensor made from the loaded sample and rng alone from side_input(name, loaded, rng)"
    for name in modality.side_inputs:
        shapes = set()
        for row, sample in enumerate(samples):
            before = {key: value.clone() if isinstance(value, Tensor) else value for key, value in sample.items()}
            rng = case.rng(1, row)
            try:
                first, second = (modality.side_input(name, sample, rng) for _ in range(2))
            except MaemmError as error:
                case.require(False, f"side input {name!r}", error, "a tensor", change)
            case.require(isinstance(first, Tensor), f"side input {name!r}", type(first).__name__, "a tensor", change)
            case.equal(second, first, f"side input {name!r} is repeatable", change)
            rule = f"side input {name!r} leaves the sample as it is"
            case.require(equal_samples(before, dict(sample)), rule, "another sample", "the same", change)
            shapes.add(tuple(first.shape))
        case.require(len(shapes) == 1, f"shapes of side input {name!r}", sorted(shapes), "one for all samples", change)
