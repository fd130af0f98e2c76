"""One training step: plans and counts of all micro-batches, forward and backward of each, one update or none.

The loss is ``sum over terms of weight * sum / count``, where the count is that of the whole global batch. As it is
known before the first backward, micro-batches and processes of unequal counts add up to one big batch exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from maemm.contract import ModalityInput, Output
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, seeded
from maemm.data.loader import Batch
from maemm.model.model import Model
from maemm.train.distributed import DistContext
from maemm.train.ema import Average
from maemm.train.optim import grad_norm, step_unless

_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class TrainState:
    """What a step works on."""

    model: Model
    net: nn.Module  # the same model as DDP sees it
    optimizer: Optimizer
    dist_context: DistContext
    seed: int
    batch: int  # global
    steps: int  # of the whole training
    bf16: bool = False
    compiled: bool = False
    clip: float | None = None
    ema: Average | None = None
    mixed: bool = False  # steps differ in the modalities that they have


@dataclass
class MicroBatches:
    """The micro-batches of one process and step, ready for the model."""

    step: int
    inputs: list[dict[str, ModalityInput]]
    counts: dict[str, Tensor]  # by term, of these micro-batches
    ids: list[list[str]]
    labels: list[Tensor | None] = field(default_factory=list)  # of each micro-batch


@dataclass
class StepResult:
    """What came out of a step. Tensors are scalars on the device, over all processes and micro-batches."""

    terms: dict[str, Tensor]  # mean of each term, before its weight
    total: Tensor
    grad_norm: Tensor
    bad: Tensor  # bool: loss or gradient was not finite, and nothing has been updated
    bad_micro: Tensor  # (micro-batches,) bool: whose loss was not finite, in this process
    baselines: dict[str, Tensor] = field(default_factory=dict)  # by modality: loss of predicting the mean target
    weights: dict[str, float] = field(default_factory=dict)  # of each term


def plan_micro_batches(train_state: TrainState, step: int, batches: list[Batch]) -> MicroBatches:
    """Raw micro-batches -> prepared, tokenised, planned and counted. No gradient, outside any compiled graph."""
    inputs, counts, labels = [], {}, []
    for batch in batches:
        rng = Rng((train_state.seed, step), batch.rows, train_state.batch, step / train_state.steps)
        moved = batch.to(train_state.dist_context.device)
        preprocessed = train_state.model.preprocess(moved.raw, rng, moved.present)
        known = batch.labels
        for name, objective in train_state.model.objectives.items():
            preprocessed, known = objective.batch(preprocessed, known, rng.fold_in(name), train_state.model)
        labels.append(None if known is None else known.to(train_state.dist_context.device, non_blocking=True))
        planned = train_state.model.plan(preprocessed, rng)
        for name, count in train_state.model.counts(planned).items():
            counts[name] = counts.get(name, 0) + count.float()
        inputs.append(planned)
    return MicroBatches(step, inputs, counts, [batch.ids for batch in batches], labels)


@dataclass
class _Sums:
    """What the micro-batches of one process add up to."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    baselines: dict[str, Tensor] = field(default_factory=dict)  # (sum, count) by modality
    weights: dict[str, float] = field(default_factory=dict)
    finite: list[Tensor] = field(default_factory=list)  # by micro-batch


def take_step(train_state: TrainState, micro_batches: MicroBatches, *, baseline: bool = False) -> StepResult:
    """Forward, backward, update. ``baseline=True`` also tells the loss of predicting the mean target.

    Where the loss or the gradient is not finite, parameters, moments, averages and BatchNorm statistics stay as
    they are, without the host having to know. ``Objective.after_step`` is called all the same.
    """
    dist_context, running = train_state.dist_context, _running(train_state.model)
    counts = _over_processes(dist_context, micro_batches.counts)
    with seeded(train_state.seed, micro_batches.step, "forward", dist_context.rank):
        local = _backward(train_state, micro_batches, counts, baseline)
    norm = grad_norm(train_state.optimizer, train_state.clip)
    sums, base = _over_processes(dist_context, local.terms), _over_processes(dist_context, local.baselines)
    terms = {name: value / counts[name].clamp(min=1e-12) for name, value in sums.items()}
    total = sum((local.weights[name] * value for name, value in terms.items()), torch.zeros_like(norm))
    bad = ~(torch.isfinite(norm) & torch.isfinite(total))
    for now, old in running:
        now.copy_(torch.where(bad, old, now))
    step_unless(train_state.optimizer, bad)
    train_state.optimizer.zero_grad(set_to_none=True)
    if train_state.ema is not None:
        train_state.ema.update(bad, micro_batches.step)
    for objective in train_state.model.objectives.values():
        objective.after_step(train_state.model, micro_batches.step)
    baselines = {name: value[0] / value[1].clamp(min=1e-12) for name, value in base.items()}
    return StepResult(terms, total, norm, bad, ~torch.stack(local.finite), baselines, local.weights)


def _backward(
    train_state: TrainState, micro_batches: MicroBatches, counts: Mapping[str, Tensor], baseline: bool
) -> _Sums:
    """Gradients of all micro-batches of this process."""
    dist_context, sums = train_state.dist_context, _Sums()
    labels = micro_batches.labels or [None] * len(micro_batches.inputs)
    for number, inputs in enumerate(micro_batches.inputs):
        with dist_context.no_sync(train_state.net, number == len(micro_batches.inputs) - 1):
            with torch.autocast(dist_context.device.type, torch.bfloat16, enabled=train_state.bf16):
                out = train_state.net(inputs, labels=labels[number])
            loss = _loss(out, counts)
            if train_state.mixed:
                loss = loss + _nothing(train_state.model)
            (loss * dist_context.world).backward()  # DDP averages over processes
        sums.finite.append(torch.isfinite(loss.detach()))
        for name, term in out.parts.items():
            sums.weights[name] = term.weight
            sums.terms[name] = sums.terms.get(name, 0) + term.sum.detach().float()
        if baseline:
            _add_baselines(sums.baselines, out, train_state.model)
    return sums


def _loss(out: Output, counts: Mapping[str, Tensor]) -> Tensor:
    """The part of this micro-batch and process in the loss of the global batch."""
    unknown = sorted(set(out.parts) - set(counts))
    if unknown:
        raise MaemmError(f"the loss has terms that counts() does not know ({', '.join(unknown)}); fix the objective")
    parts = [term.weight * term.sum / counts[name].clamp(min=1e-12) for name, term in out.parts.items()]
    if not parts:
        raise MaemmError("the model has no term to minimise (objectives); add one, such as reconstruct")
    return sum(parts[1:], parts[0])


def _nothing(model: nn.Module) -> Tensor:
    """0, with a gradient of 0 for every parameter: those that a step has no use for must not be waited for."""
    return 0.0 * sum(one.flatten()[0].float() for one in model.parameters() if one.requires_grad)


def _over_processes(dist_context: DistContext, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with every tensor summed over processes, in one message."""
    if dist_context.world == 1 or not values:
        return values
    names = sorted(values)
    flat = dist_context.add(torch.cat([values[name].reshape(-1) for name in names]))
    pieces = flat.split([values[name].numel() for name in names])
    return {name: piece.reshape(values[name].shape) for name, piece in zip(names, pieces, strict=True)}


@torch.no_grad()
def _add_baselines(into: dict[str, Tensor], out: Output, model: Model) -> None:
    """Add (sum, count) of the loss of predicting, for every token of this micro-batch, the mean of their targets."""
    for name, target in out.target.items():
        counted = out.plans[name].counted
        if not target.numel():
            continue
        mean = (target * counted[..., None]).sum((0, 1)) / counted.sum().clamp(min=1e-12)
        loss = model.modalities[name].loss(mean.expand_as(target), target)
        found = torch.stack([(loss * counted).sum(), counted.sum()])
        into[name] = into.get(name, 0) + found


def _running(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Statistics that a forward pass moves (BatchNorm), each with a copy of what they are now."""
    return [(one, one.clone()) for name, one in model.named_buffers() if name.rpartition(".")[2] in _RUNNING]
