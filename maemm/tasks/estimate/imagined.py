"""A step of a recipe on shapes alone: its own model, optimiser and code, with fake tensors in place of numbers."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from maemm.contract import ModalityInput
from maemm.contract.rng import Rng, seeded
from maemm.data.memory import machine_memory
from maemm.model import planning
from maemm.model.masking.counts import as_sets
from maemm.model.model import Model
from maemm.model.repeated import activations_kept
from maemm.model.size import refuse_too_many_rows, shapes_alone
from maemm.tasks.estimate.calls import by_part
from maemm.tasks.estimate.ledger import CAST, UPDATE, Ledger, Sums
from maemm.tasks.estimate.shapes import grown
from maemm.tasks.estimate.small import small_batch, small_labels
from maemm.train.distributed import DistContext
from maemm.train.gpus import Gpu
from maemm.train.optim import set_lr, step_unless
from maemm.train.setup import make_train_state
from maemm.train.state import MicroBatches, TrainState
from maemm.train.step import counts_of_sets, take_step

SIZES = (2, 4)  # samples of the small batches that are really made
DRAWS = 9  # of masks, of which that with the median of tokens counts
PROGRESS = 0.5  # fraction of the training that is done, for maskings that change with it


@dataclass
class Counted:
    """One step of one micro-batch. Bytes are of one process that shares nothing with others."""

    rows: int  # samples of the micro-batch
    parts: dict[str, Sums]  # operations and modelled seconds by part, forward and backward pass of the micro-batch
    update: Sums  # clipping, the optimiser, averages: once a step
    weights: int  # bytes of parameters and buffers
    gradients: int
    moments: int  # of the optimiser
    averages: int  # train.ema, teachers
    cast: int  # weights in bf16
    inputs: int  # the micro-batch as the model gets it, with its plans and what teachers computed
    kept: dict[str, int] = field(default_factory=dict)  # what the forward pass keeps for the backward pass, by part
    peak: int = 0  # all together, at most
    held: int = 0  # of that what is there before the forward pass begins

    @property
    def activations(self) -> int:
        """Bytes that the forward pass keeps."""
        return sum(self.kept.values())

    @property
    def temporary(self) -> int:
        """Bytes at the peak beyond all that is held."""
        return max(0, self.peak - self.held - self.cast - self.activations)

    def at(self, rows: int, other: Counted) -> Counted:
        """The bytes with ``rows`` samples, on the line through this and another number of samples."""

        def line(a: int, b: int) -> int:
            return max(0, round(a + (b - a) * (rows - self.rows) / (other.rows - self.rows)))

        if rows == self.rows:
            return self
        kept = {part: line(size, other.kept.get(part, 0)) for part, size in self.kept.items()}
        inputs, held = line(self.inputs, other.inputs), line(self.held, other.held)
        peak = held + self.cast + sum(kept.values()) + line(self.temporary, other.temporary)
        return replace(self, rows=rows, inputs=inputs, kept=kept, held=held, peak=peak)


def _copy(tensor: FakeTensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy. Torch's own would copy the mode of fake tensors with each of them, and end in a broken heap."""
    if id(tensor) not in memo:
        copy: Any = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        copy._is_param = getattr(tensor, "_is_param", False)
        memo[id(tensor)] = copy
    copied: Tensor = memo[id(tensor)]
    return copied


def _widened(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of a norm in float32, as autocast of a GPU makes them, and that of a CPU does not."""
    widen = torch.is_autocast_enabled("cpu")
    return tuple(x.float() if widen and isinstance(x, Tensor) else x for x in arguments)


class Imagined:
    """The training state of a recipe, as shapes. Raises :class:`~maemm.contract.errors.MaemmError` as training does.

    ``bf16``: under autocast, as a GPU has it. ``gpu``: of which the time is modelled, None: no time. ``accumulates``: a
    step has several micro-batches.
    """

    def __init__(self, recipe: dict[str, Any], *, bf16: bool, gpu: Gpu | None = None, accumulates: bool = False):
        self.recipe, self.gpu, self.bf16 = recipe, gpu, bf16
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        train = {**recipe["train"], "activation_checkpointing": True, "compile": False}
        with (
            self.fake,
            Ledger(),
            shapes_alone(recipe),
            mock.patch.object(FakeTensor, "__deepcopy__", _copy, create=True),
        ):  # a ledger gives numbers for what is read of shapes
            self.state = make_train_state(
                {**recipe, "train": train}, 1000, 1 + accumulates, DistContext(), fresh=False, steps_per_epoch=100
            )
            self.state.bf16 = bf16
        for module in self.state.model.modules() if bf16 else ():
            if isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                module.register_forward_pre_hook(_widened)
        with self.fake:
            self.moments = _moments(self.state)
        self._small: dict[Any, Any] = {}

    def step(
        self, rows: int, *, recompute: bool, accumulates: bool = False, names: Collection[str] | None = None
    ) -> Counted:
        """Count a step of one micro-batch of ``rows`` samples, of the modalities ``names`` (None: all).

        ``recompute``: with activation checkpointing. ``accumulates``: it is a later micro-batch of its step, so that
        gradients are there.
        """
        state, ledger = self.state, Ledger(self.gpu)
        self._plan(names)
        kept = contextlib.nullcontext() if recompute else activations_kept()
        trained = [parameter for parameter in state.model.parameters() if parameter.requires_grad]
        with kept, self.fake, seeded("estimate"), by_part(state.model, ledger) as forward:
            few, more = self._small[names]
            sets, labels = grown(few, more, SIZES, rows)
            given = _bytes([sets, labels])
            for parameter in trained:
                parameter.grad = torch.zeros_like(parameter) if accumulates else None
            ledger.know_weights(state.model)
            with ledger, ledger.saved_by_part():
                sets = _computed(state, ledger, sets)
                inputs = given + ledger.held
                counts = counts_of_sets(state.model, sets)
                micro_batches = MicroBatches(0, sets, counts, [[]] * len(sets), [labels] * len(sets), len(sets))
                forward.before = dict(ledger.held_by_part)
                set_lr(state.optimizer, 1e-4)
                take_step(state, micro_batches)
        gradients = _bytes(trained)
        weights, teachers = _weights(state.model)
        averages = teachers + (0 if state.ema is None else _bytes([*state.ema.model.parameters()]))
        held = weights + averages + self.moments + (gradients if accumulates else 0)
        cast, parts = forward.kept.pop(CAST, 0), dict(ledger.parts)
        update = parts.pop(UPDATE, Sums())
        return Counted(
            rows, parts, update, weights, gradients, self.moments, averages, cast, inputs, forward.kept,
            held + given + ledger.peak, held + inputs,
        )  # fmt: skip

    def tokens(self, names: Collection[str] | None = None) -> tuple[float, float, float]:
        """(all, visible, predicted) tokens of a sample; visible ones as often as the encoder passes over them."""
        self._plan(names)
        sets, _ = self._small[names][0]
        visible = predicted = 0
        for inputs in sets:
            seen = [x.plan.of_passes() for x in inputs.values()]
            if seen[0].budget is not None:
                visible += len(seen[0].visible) * seen[0].budget
            else:
                visible += sum(_count(plan.visible, plan.visible_valid) for plan in seen)
            predicted += sum(_count(x.plan.predict, x.plan.predict_valid) for x in inputs.values())
        return sum(x.tokens.count for x in sets[0].values()), visible / SIZES[0], predicted / SIZES[0]

    def numbers(self, names: Collection[str] | None = None) -> int:
        """Numbers of a sample, as the model gets it."""
        self._plan(names)
        sets, _ = self._small[names][0]
        return sum(x.preprocessed.x.numel() for x in sets[0].values()) // SIZES[0]

    def _plan(self, names: Collection[str] | None) -> None:
        if names not in self._small:
            self._small[names] = [self._planned(size, names) for size in SIZES]

    def _typical(self, names: Collection[str] | None) -> int:
        """The number of a draw of masks whose count of tokens is the median, where draws differ in it."""
        masking, modalities = self.state.model.masking, self.state.model.modalities
        names = list(modalities if names is None else names)
        if not self.state.model.masked or any(masking.guide_of(name, PROGRESS) for name in names):
            return 0
        tokens = {name: modalities[name].tokenize(modalities[name].example(2, Rng((name,)))) for name in names}
        counts = []
        for draw in range(DRAWS):
            plans = as_sets(masking(tokens, Rng((draw, "estimate"), range(2), 2, PROGRESS)))
            sizes = [(plan.of_passes().visible.numel(), plan.predict.numel()) for by in plans for plan in by.values()]
            counts.append((sum(map(sum, sizes)), draw))
        return sorted(counts)[DRAWS // 2][1]

    def _planned(self, size: int, names: Collection[str] | None) -> tuple[list[dict[str, ModalityInput]], Any]:
        """(plans of a small batch, labels): really made, but for what networks compute for them."""
        model, available = self.state.model, machine_memory()
        if available is not None:
            refuse_too_many_rows(model, size, available)
        rng = Rng((self._typical(names), "estimate"), range(size), size, PROGRESS)
        batch = {
            name: small_batch(modality, size, rng.fold_in(name))
            for name, modality in model.modalities.items()
            if names is None or name in names
        }
        labels = small_labels(self.recipe, size)
        for name, objective in model.objectives.items():
            batch, labels = objective.batch(batch, labels, rng.fold_in(name), model)
        sets = model.plan_sets(batch, rng, bf16=False)
        bare = [{name: replace(x, computed=None, computed_by={}) for name, x in inputs.items()} for inputs in sets]
        return bare, labels


def _count(index: Tensor, valid: Tensor | None) -> int:
    return index.numel() if valid is None or isinstance(valid, FakeTensor) else int(valid.sum())


def _computed(
    state: TrainState, ledger: Ledger, sets: list[dict[str, ModalityInput]]
) -> list[dict[str, ModalityInput]]:
    """The same inputs, with what targets, objectives and guides compute for them."""
    model = state.model
    if not model.masked:
        return sets
    tokens = {name: replace(x.tokens, rows=None) for name, x in sets[0].items()}
    batch = {name: x.preprocessed for name, x in sets[0].items()}
    with torch.no_grad():
        planning.guides(model, batch, tokens, PROGRESS, state.bf16)
        computed = planning.precompute(model, batch, tokens, bf16=state.bf16)
        made = [computed({name: x.plan for name, x in inputs.items()}) for inputs in sets]
    return [
        {name: replace(x, computed=made[number][name].computed, computed_by=made[number][name].computed_by)
         for name, x in inputs.items()}
        for number, inputs in enumerate(sets)
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------ bytes
def _bytes(tree: Any) -> int:
    """Bytes of all tensors in dataclasses, dictionaries and lists, what is shared once."""
    return sum({id(x): x.untyped_storage().nbytes() for x in _tensors(tree)}.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif dataclasses.is_dataclass(tree):
        for entry in dataclasses.fields(tree):
            yield from _tensors(getattr(tree, entry.name))
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from _tensors(value)


def _weights(model: Model) -> tuple[int, int]:
    """Bytes of (the model, teachers and averages inside of it that are not trained)."""
    teachers = {id(x) for target in model.all_targets() for x in target.parameters() if not x.requires_grad}
    return (
        _bytes([x for x in (*model.parameters(), *model.buffers()) if id(x) not in teachers]),
        _bytes([x for x in model.parameters() if id(x) in teachers]),
    )


def _moments(state: TrainState) -> int:
    """Bytes of what the optimisers hold, once each has done a step."""
    bad = torch.zeros((), dtype=torch.bool)
    with Ledger():  # knows operations that have no shapes
        for optimizer in (state.optimizer, *(phase.optimizer for phase in state.phases)):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            set_lr(optimizer, 1e-4)
            step_unless(optimizer, bad)
            for parameter in parameters:
                parameter.grad = None
    optimizers = [state.optimizer, *(phase.optimizer for phase in state.phases)]
    return sum(_bytes([dict(values) for values in optimizer.state.values()]) for optimizer in optimizers)
