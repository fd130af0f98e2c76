"""One training step: plans and counts of all micro-batches, forward and backward of each, one update or none.

The loss is ``sum over terms of weight * sum / count``, where the count is that of the whole global batch. It is known
before the first backward pass, so micro-batches and ranks of unequal counts add up to exactly one big batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

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

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of BatchNorm


@dataclass
class TrainState:
    """What training changes, and the settings of a step."""

    model: Model
    net: nn.Module  # the same model, wrapped in DDP where there are several ranks
    optimizer: Optimizer
    dist_context: DistContext
    seed: int
    batch: int  # samples of a step on all ranks
    steps: int  # of the whole training
    bf16: bool = False
    compiled: bool = False
    clip: float | None = None  # norm to which the gradient is clipped
    ema: Average | None = None
    mixed: bool = False  # steps differ in their modalities (data.mix)

    @property
    def ema_model(self) -> Model | None:
        """The averaged model, if there is one."""
        return None if self.ema is None else self.ema.model


@dataclass
class MicroBatches:
    """The micro-batches of one rank and step, ready for the model."""

    step: int
    inputs: list[dict[str, ModalityInput]]
    counts: dict[str, Tensor]  # by term, summed over these micro-batches
    ids: list[list[str]]  # of the samples of each micro-batch
    labels: list[Tensor | None] = field(default_factory=list)  # of each micro-batch


@dataclass
class StepResult:
    """What came out of a step. Tensors are scalars on the device, over all ranks and micro-batches."""

    terms: dict[str, Tensor]  # mean of each term, before its weight
    total: Tensor  # the loss
    grad_norm: Tensor
    bad: Tensor  # bool: loss or gradient was not finite, and nothing has been updated
    bad_micro: Tensor  # (micro-batches,) bool: whose loss was not finite, on this rank
    baselines: dict[str, Tensor] = field(default_factory=dict)  # by modality: loss of predicting the mean target
    weights: dict[str, float] = field(default_factory=dict)  # of each term


def plan_micro_batches(train_state: TrainState, step: int, batches: list[Batch]) -> MicroBatches:
    """Raw micro-batches -> preprocessed, tokenised, planned and counted. No gradient, outside any compiled graph."""
    inputs: list[dict[str, ModalityInput]] = []
    labels: list[Tensor | None] = []
    counts: dict[str, Tensor] = {}
    for batch in batches:
        rng = Rng((train_state.seed, step), batch.rows, train_state.batch, step / train_state.steps)
        moved = batch.to(train_state.dist_context.device)
        preprocessed, targets = train_state.model.preprocess(moved.raw, rng, moved.present), batch.labels
        for name, objective in train_state.model.objectives.items():
            preprocessed, targets = objective.batch(preprocessed, targets, rng.fold_in(name), train_state.model)
        labels.append(None if targets is None else targets.to(train_state.dist_context.device, non_blocking=True))
        inputs.append(train_state.model.plan(preprocessed, rng))
        for name, count in train_state.model.counts(inputs[-1]).items():
            counts[name] = counts.get(name, 0) + count.float()
    return MicroBatches(step, inputs, counts, [batch.ids for batch in batches], labels)


def take_step(train_state: TrainState, micro_batches: MicroBatches, *, baseline: bool = False) -> StepResult:
    """Forward, backward, update. ``baseline=True`` also computes the loss of predicting the mean target.

    Where the loss or the gradient is not finite, parameters, moments, averages and BatchNorm statistics stay as they
    are; the host does not wait to find out. ``Objective.after_step`` is called all the same.
    """
    model, optimizer, dist_context = train_state.model, train_state.optimizer, train_state.dist_context
    running_statistics = [
        (buffer, buffer.clone())
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in _RUNNING_STATISTICS
    ]

    # Forward and backward: gradients of the global loss, and sums of all terms.
    counts = _sum_over_ranks(dist_context, micro_batches.counts)
    with seeded(train_state.seed, micro_batches.step, "forward", dist_context.rank):
        local = _accumulate_gradients(train_state, micro_batches, counts, baseline)
    norm = grad_norm(optimizer, train_state.clip)
    sums, baselines = _sum_over_ranks(dist_context, local.terms), _sum_over_ranks(dist_context, local.baselines)
    terms = {name: value / counts[name].clamp(min=1e-12) for name, value in sums.items()}
    total = sum((local.weights[name] * value for name, value in terms.items()), torch.zeros_like(norm))

    # Update, unless the step is bad; a decision that is made on the device.
    bad = ~(torch.isfinite(norm) & torch.isfinite(total))
    for buffer, before in running_statistics:
        buffer.copy_(torch.where(bad, before, buffer))
    step_unless(optimizer, bad)
    optimizer.zero_grad(set_to_none=True)
    if train_state.ema is not None:
        train_state.ema.update(bad, micro_batches.step)
    for objective in model.objectives.values():
        objective.after_step(model, micro_batches.step)

    return StepResult(
        terms,
        total,
        norm,
        bad,
        bad_micro=~torch.stack(local.finite),
        baselines={name: value[0] / value[1].clamp(min=1e-12) for name, value in baselines.items()},
        weights=local.weights,
    )


@dataclass
class _LocalSums:
    """Sums over the micro-batches of this rank."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    baselines: dict[str, Tensor] = field(default_factory=dict)  # (sum, count) by modality
    weights: dict[str, float] = field(default_factory=dict)  # of each term
    finite: list[Tensor] = field(default_factory=list)  # of each micro-batch: whether its loss is


def _accumulate_gradients(
    train_state: TrainState, micro_batches: MicroBatches, counts: Mapping[str, Tensor], baseline: bool
) -> _LocalSums:
    """Forward and backward of all micro-batches of this rank; ``counts`` are those of the global batch."""
    model, net, dist_context = train_state.model, train_state.net, train_state.dist_context
    sums = _LocalSums()
    labels = micro_batches.labels or [None] * len(micro_batches.inputs)
    for number, inputs in enumerate(micro_batches.inputs):
        with dist_context.no_sync(net, last=number == len(micro_batches.inputs) - 1):
            with torch.autocast(dist_context.device.type, torch.bfloat16, enabled=train_state.bf16):
                out = net(inputs, labels=labels[number])
            loss = _loss(out, counts)
            if train_state.mixed:  # parameters that this step does not use get a gradient of 0, as DDP waits for all
                firsts = (p.flatten()[0].float() for p in model.parameters() if p.requires_grad)
                loss = loss + 0.0 * cast(Tensor, sum(firsts))
            (loss * dist_context.world_size).backward()  # DDP averages over ranks, the loss is a sum
        sums.finite.append(torch.isfinite(loss.detach()))
        for name, term in out.parts.items():
            sums.weights[name] = term.weight
            sums.terms[name] = sums.terms.get(name, 0) + term.sum.detach().float()
        if baseline:
            _add_baselines(sums.baselines, out, model)
    return sums


def _loss(out: Output, counts: Mapping[str, Tensor]) -> Tensor:
    """What this micro-batch adds to the loss of the global batch, whose ``counts`` are given."""
    unknown = sorted(set(out.parts) - set(counts))
    if unknown:
        raise MaemmError(f"the loss has terms that counts() does not return ({', '.join(unknown)}); fix the objective")
    terms = [term.weight * term.sum / counts[name].clamp(min=1e-12) for name, term in out.parts.items()]
    if not terms:
        raise MaemmError("the model has no term to minimise (objectives); add one, such as reconstruct")
    return sum(terms[1:], terms[0])


@torch.no_grad()
def _add_baselines(baselines: dict[str, Tensor], out: Output, model: Model) -> None:
    """Add (sum, count) of the loss of predicting, for every token of this micro-batch, the mean of their targets."""
    for name, target in out.target.items():
        if not target.numel():
            continue
        counted = out.plans[name].counted
        mean = (target * counted[..., None]).sum((0, 1)) / counted.sum().clamp(min=1e-12)
        loss = model.modalities[name].loss(mean.expand_as(target), target)
        baselines[name] = baselines.get(name, 0) + torch.stack([(loss * counted).sum(), counted.sum()])


def _sum_over_ranks(dist_context: DistContext, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same keys, with every tensor summed over ranks in a single all-reduce."""
    if dist_context.world_size == 1 or not values:
        return values
    names = sorted(values)
    flat = dist_context.all_reduce_sum(torch.cat([values[name].reshape(-1) for name in names]))
    pieces = flat.split([values[name].numel() for name in names])
    return {name: piece.reshape(values[name].shape) for name, piece in zip(names, pieces, strict=True)}
