"""One training step: plans and counts of all micro-batches, forward and backward of each, one update or none.

The loss is ``sum over terms of weight * sum / count``, where the count is that of the whole global batch. It is known
before the first backward pass, so micro-batches and ranks of unequal counts add up to exactly one big batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from maemm.contract import ModalityInput, Objective, Output, Target
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng, derive, seeded
from maemm.data.loader import Batch
from maemm.model.model import Model
from maemm.model.precision import tf32
from maemm.train.distributed import DistContext
from maemm.train.optim import grad_norm, step_unless
from maemm.train.sharding import gather_rest
from maemm.train.state import MicroBatches, StepResult, TrainState

_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # buffers of BatchNorm


def plan_micro_batches(
    train_state: TrainState, step: int, batches: list[Batch], on_device: list[Batch] | None = None
) -> MicroBatches:
    """Raw micro-batches -> preprocessed, tokenised, planned and counted. No gradient, outside any compiled graph.

    ``on_device``: the same ``batches`` on the device, where they have been copied ahead.
    """
    device = train_state.dist_context.device
    inputs: list[dict[str, ModalityInput]] = []
    labels: list[Tensor | None] = []
    counts: dict[str, Tensor] = {}
    ids: list[list[str]] = []
    sets = 1
    for batch, moved in zip(batches, on_device or [batch.to(device) for batch in batches], strict=True):
        rng = Rng((train_state.seed, step), batch.rows, train_state.batch, step / train_state.steps)
        preprocessed = train_state.model.preprocess(moved.raw, rng, moved.present, moved.side_inputs)
        targets = batch.labels
        for name, objective in train_state.model.objectives.items():
            preprocessed, targets = objective.batch(preprocessed, targets, rng.fold_in(name), train_state.model)
        if targets is batch.labels:  # no objective has changed them
            targets = moved.labels
        elif targets is not None:
            targets = targets.to(device, non_blocking=True)
        planned = train_state.model.plan_sets(preprocessed, rng, bf16=train_state.bf16)
        sets = len(planned)
        for key, count in counts_of_sets(train_state.model, planned).items():
            counts[key] = counts.get(key, 0) + count
        inputs += planned
        labels += [targets] * sets
        ids += [batch.ids] * sets
    return MicroBatches(step, inputs, counts, ids, labels, sets)


def counts_of_sets(model: Model, sets: list[dict[str, ModalityInput]]) -> dict[str, Tensor]:
    """The counts of one micro-batch, by term, or by "SET/TERM" where it has several sets of plans."""
    return {
        _key(name, number, len(sets)): count.float()
        for number, inputs in enumerate(sets)
        for name, count in model.counts(inputs).items()
    }


def _key(term: str, number: int, sets: int) -> str:
    """The key of a term's count and sum: every set of plans has its own."""
    return term if sets == 1 else f"{number}/{term}"


def take_step(
    train_state: TrainState, micro_batches: MicroBatches, *, baseline: bool = False, first: bool = False
) -> StepResult:
    """Forward, backward, update. ``baseline=True`` also computes the loss of the best constant prediction, and
    ``first=True`` finds parameters without a gradient.

    Where the loss or the gradient is not finite, or the guard finds a spike, parameters, moments, averages and
    BatchNorm statistics stay as they are; the host does not wait to find out. ``after_step`` of objectives and targets
    is called all the same.
    """
    model, optimizer, dist_context = train_state.model, train_state.optimizer, train_state.dist_context
    running_statistics = _running_statistics(model)

    # Forward and backward: gradients of the global loss, and sums of all terms.
    counts = _sum_over_ranks(dist_context, micro_batches.counts)
    with seeded(train_state.seed, micro_batches.step, "forward", dist_context.rank):
        local = _accumulate_gradients(train_state, micro_batches, counts, baseline)
    if train_state.sharding is not None:
        train_state.sharding.complete(model, dist_context, zeros=train_state.mixed)
    without_gradient = []
    if first:
        with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        without_gradient = _without_gradient(train_state, with_gradient)[0]
    norm = grad_norm(optimizer, train_state.clip)
    sums, baselines = _sum_over_ranks(dist_context, local.terms), _sum_over_ranks(dist_context, local.baselines)
    means = {key: value / counts[key].clamp(min=1e-12) for key, value in sums.items()}
    sets = micro_batches.sets
    terms = {
        name: means[name]
        if sets == 1
        else torch.stack([means[_key(name, number, sets)] for number in range(sets)]).mean()
        for name in local.weights
    }
    total = sum((local.weights[name] * value for name, value in terms.items()), torch.zeros_like(norm))

    # Update, unless the step is bad; a decision that is made on the device.
    bad = ~(torch.isfinite(norm) & torch.isfinite(total))
    verdict = None
    if train_state.guard is not None:
        verdict = train_state.guard.judge(total, bad, micro_batches.data_set)
        bad = bad | verdict.spike
    for buffer, before in running_statistics:
        buffer.copy_(torch.where(bad, before, buffer))
    if train_state.weight_decay is not None:
        train_state.weight_decay.set(optimizer, micro_batches.step)
    step_unless(optimizer, bad)
    optimizer.zero_grad(set_to_none=True)
    if train_state.ema is not None:
        train_state.ema.update(bad, micro_batches.step)
    for phase in train_state.phases:
        phase.step(train_state, local.outputs, bad, micro_batches.step)
    learners: list[Objective | Target] = [*model.objectives.values(), *model.all_targets()]
    for part in learners:
        part.after_step(model, micro_batches.step, bad)

    return StepResult(
        terms,
        total,
        norm,
        bad,
        bad_micro=~torch.stack(local.finite),
        baselines={name: value[0] / value[1].clamp(min=1e-12) for name, value in baselines.items()},
        without_baseline=sorted(local.without_baseline),
        weights=local.weights,
        without_gradient=without_gradient,
        verdict=verdict,
    )


def leave_out_unused(train_state: TrainState, micro_batches: MicroBatches) -> list[str]:
    """Wrap the model for several ranks, without the parameters that its loss does not reach; returns their names.

    DDP would wait for a gradient of theirs for ever. They are found by a rehearsal, and are frozen. Raises
    :class:`MaemmError` where ranks do not agree on them.
    """
    model, dist_context = train_state.model, train_state.dist_context
    if dist_context.world_size == 1 or train_state.sharding is not None:
        train_state.net = model
        return []
    unused, of_phases = _without_gradient(train_state, rehearse(train_state, micro_batches))
    if not dist_context.same_on_all_ranks(derive(*unused)):
        raise MaemmError(
            f"parameters get a gradient on some ranks only ({', '.join(unused[:3])}); let every forward pass use them"
        )
    for name in unused:
        model.get_parameter(name).requires_grad_(False)
    train_state.net = dist_context.wrap(model, [*unused, *of_phases])
    return unused


def rehearse(train_state: TrainState, micro_batches: MicroBatches) -> dict[str, Tensor]:
    """A forward and a backward pass of the first micro-batch, without DDP, which leave no trace.

    Returns the gradients by the names of parameters, of those that have one.
    """
    model, sets = train_state.model, micro_batches.sets
    first = replace(micro_batches, inputs=micro_batches.inputs[:sets], labels=micro_batches.labels[:sets])
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    train_state.net = model
    with seeded(train_state.seed, micro_batches.step, "forward", train_state.dist_context.rank):
        _accumulate_gradients(train_state, first, micro_batches.counts, baseline=False)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    for buffer, before in buffers:
        buffer.copy_(before)
    return gradients


def _without_gradient(train_state: TrainState, with_gradient: Collection[str]) -> tuple[list[str], list[str]]:
    """Names of the other parameters to train: of those of the main optimisation, and of those of phases."""
    of_phases = {id(parameter) for state in train_state.phases for parameter in state.phase.parameters}
    names: tuple[list[str], list[str]] = ([], [])
    for name, parameter in train_state.model.named_parameters():
        if parameter.requires_grad and name not in with_gradient:
            names[id(parameter) in of_phases].append(name)
    return names


@dataclass
class _LocalSums:
    """Sums over the micro-batches of this rank."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    baselines: dict[str, Tensor] = field(default_factory=dict)  # (sum, count) by modality, or by term
    weights: dict[str, float] = field(default_factory=dict)  # of each term
    finite: list[Tensor] = field(default_factory=list)  # of each forward pass: whether its loss is
    outputs: list[Output] = field(default_factory=list)  # of each forward pass, where phases need them
    without_baseline: set[str] = field(default_factory=set)  # modalities, and terms


def _accumulate_gradients(
    train_state: TrainState, micro_batches: MicroBatches, counts: Mapping[str, Tensor], baseline: bool
) -> _LocalSums:
    """Forward and backward of all micro-batches of this rank; ``counts`` are those of the global batch."""
    model, net, dist_context = train_state.model, train_state.net, train_state.dist_context
    sums, sets = _LocalSums(), micro_batches.sets
    labels = micro_batches.labels or [None] * len(micro_batches.inputs)
    device = dist_context.device.type
    # One block around all micro-batches, as autocast keeps what it cast until the outermost one ends: weights are cast
    # once a step. Losses and backward passes are outside of autocast.
    with tf32(device), torch.autocast(device, torch.bfloat16, enabled=train_state.bf16):
        for number, inputs in enumerate(_with_batch(train_state, micro_batches)):
            with dist_context.no_sync(net, last=number == len(micro_batches.inputs) - 1):
                out = net(inputs, labels=labels[number])
                with torch.autocast(device, enabled=False):
                    loss = _minimised(train_state, out, counts, number % sets, sets)
                    (loss * dist_context.world_size).backward()  # DDP averages over ranks, the loss is a sum
            with torch.autocast(device, enabled=False):
                _add(sums, out, loss.detach(), number % sets, sets)
                if train_state.phases:
                    pred = {name: x.detach() for name, x in out.pred.items()}
                    sums.outputs.append(replace(out, pred=pred, parts={}))
                if baseline:
                    of_pass, without = baselines_of(out, model)
                    sums.baselines |= {name: sums.baselines.get(name, 0) + value for name, value in of_pass.items()}
                    sums.without_baseline.update(without)
    return sums


def _with_batch(train_state: TrainState, micro_batches: MicroBatches) -> list[dict[str, ModalityInput]]:
    """The inputs of all forward passes, with what objectives need to know of the whole batch."""
    passes, sets = list(micro_batches.inputs), micro_batches.sets
    model, device = train_state.model, train_state.dist_context.device.type
    for name, objective in model.objectives.items():
        if not knows_batch(objective):
            continue
        before = _running_statistics(model)
        for number in range(sets):
            # Without the cache of autocast, where weights would stay that were cast without gradient.
            bf16 = torch.autocast(device, torch.bfloat16, enabled=train_state.bf16, cache_enabled=False)
            gather_rest(model)
            with torch.no_grad(), bf16:
                values = objective.over_batch(model, passes[number::sets])
            for place in range(number, len(passes) if values else 0, sets):
                passes[place] = {
                    modality: replace(x, of_batch={**x.of_batch, name: values[modality]}) if modality in values else x
                    for modality, x in passes[place].items()
                }
        for buffer, value in before:
            buffer.copy_(value)
    return passes


def knows_batch(part: nn.Module) -> bool:
    """Whether it is an objective that is told of all micro-batches of a step before the first forward pass."""
    return isinstance(part, Objective) and type(part).over_batch is not Objective.over_batch


def _running_statistics(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Buffers of batch normalisation, each with a copy."""
    return [
        (buffer, buffer.clone())
        for name, buffer in model.named_buffers()
        if name.rpartition(".")[2] in _RUNNING_STATISTICS
    ]


def _minimised(train_state: TrainState, out: Output, counts: Mapping[str, Tensor], number: int, sets: int) -> Tensor:
    """:func:`_loss`, of which all parameters are a part where steps differ in what they use."""
    if not train_state.mixed and out.parts and not any(term.weight for term in out.parts.values()):
        raise MaemmError("every term of the loss has the weight 0 (objectives); give one a weight above 0")
    loss = _loss(out, counts, number, sets)
    if not train_state.mixed or train_state.sharding is not None:
        return loss
    # Parameters that this step does not use get a gradient of 0, as DDP waits for all.
    firsts = (p.flatten()[0].float() for p in train_state.model.parameters() if p.requires_grad)
    return loss + 0.0 * cast(Tensor, sum(firsts))


def _add(sums: _LocalSums, out: Output, loss: Tensor, number: int, sets: int) -> None:
    """Add the terms of a forward pass."""
    sums.finite.append(torch.isfinite(loss))
    for name, term in out.parts.items():
        key = _key(name, number, sets)
        sums.weights[name] = term.weight
        sums.terms[key] = sums.terms.get(key, 0) + term.sum.detach().float()


def _loss(out: Output, counts: Mapping[str, Tensor], number: int, sets: int) -> Tensor:
    """What this forward pass, of set ``number`` of ``sets``, adds to the loss of the global batch with ``counts``."""
    unknown = sorted(name for name in out.parts if _key(name, number, sets) not in counts)
    if unknown:
        raise MaemmError(f"the loss has terms that counts() does not return ({', '.join(unknown)}); fix the objective")
    terms = [
        term.weight * term.sum / counts[_key(name, number, sets)].clamp(min=1e-12) for name, term in out.parts.items()
    ]
    if not terms:
        raise MaemmError("the model has no term to minimise (objectives); add one, such as reconstruct")
    loss = sum(terms[1:], terms[0])
    return loss if sets == 1 else loss / sets


@torch.no_grad()
def baselines_of(out: Output, model: Model) -> tuple[dict[str, Tensor], list[str]]:
    """({name: (sum, count) of the loss of the best constant prediction}, names of losses that have none).

    For the tokens of this forward pass, by modality, and by the terms of objectives that predict something else.
    """
    sums: dict[str, Tensor] = {}
    without = []
    for objective in model.objectives.values():
        for name, term in objective.baselines(out, model).items():
            if term is None:
                without.append(name)
            else:
                sums[name] = sums.get(name, 0) + torch.stack([term.sum, term.count])
    for name in out.target:  # none without a decoder, as in fine-tuning
        counted, loss = out.plans[name].counted, model.baseline(out, name)
        if loss is None:
            without.append(name)
        else:
            sums[name] = sums.get(name, 0) + torch.stack([(loss * counted).sum(), counted.sum()])
    return sums, without


def total_baseline(
    weights: Mapping[str, float], baselines: Mapping[str, float], without: Collection[str]
) -> float | None:
    """The loss of predicting the mean target: the sum over the terms of the loss, of ``weights``; None where one of
    them has no baseline. ``baselines`` and ``without`` as in :func:`baselines_of`, means instead of sums."""
    own = {*baselines, *without}  # terms with a baseline of their own, or without any
    names = {term: term if term in own else term.rpartition(".")[2] for term in weights}
    if not baselines or any(name not in baselines for name in names.values()):
        return None
    return sum(weights[term] * baselines[name] for term, name in names.items())


def _sum_over_ranks(dist_context: DistContext, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same keys, with every tensor summed over ranks in a single all-reduce."""
    if dist_context.world_size == 1 or not values:
        return values
    names = sorted(values)
    flat = dist_context.all_reduce_sum(torch.cat([values[name].reshape(-1) for name in names]))
    pieces = flat.split([values[name].numel() for name in names])
    return {name: piece.reshape(values[name].shape) for name, piece in zip(names, pieces, strict=True)}
