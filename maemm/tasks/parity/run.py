"""``maemm parity``: whether a setting that should only change the speed of a training changes what is learned."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from maemm import config
from maemm.contract.errors import MaemmError
from maemm.data.loader import Batch
from maemm.data.open import open_parts
from maemm.data.single_pass import Progress
from maemm.tasks.parity.comparison import Comparison, Gradient
from maemm.train import compiling, distributed
from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.schedules import learning_rate
from maemm.train.setup import make_loader, make_order, make_train_state
from maemm.train.state import TrainState
from maemm.train.step import plan_micro_batches, rehearse, take_step

CHANGE = {"train.compile": "blocks"}
PLAIN = {"train.compile": False, "train.activation_checkpointing": False}  # what is compared with, unless it is set
WARMUP = 0.1  # fraction of the steps
# What both trainings are given alike, so that it cannot be what is changed.
GIVEN = ("data", "modalities", "init", "out")
GIVEN_OF_TRAIN = (
    "batch", "micro_batch", "seed", "epochs", "steps", "lr", "base_lr", "schedule", "lr_per", "warmup_epochs",
    "warmup_lr", "min_lr",
)  # fmt: skip


def parity(
    recipe: str | os.PathLike | Mapping[str, Any],
    change: Mapping[str, Any] = CHANGE,
    *,
    steps: int = 300,
    seeds: int = 3,
    on_progress: Progress | None = None,
    **overrides: Any,
) -> Comparison:
    """Train a recipe twice from one state, without and with ``change`` ({dotted key: value}), and compare.

    Gradients of the first step are compared with those of an uncompiled step in fp32: the changed training may be off
    by twice what the plain one is, and 1e-4 of a parameter's gradient more. Losses of ``steps`` steps are compared with
    the noise of ``seeds`` further trainings, which begin with the same weights and draw other masks and augmentations.
    ``overrides`` are dotted keys of the recipe for both. The learning rate rises for a tenth of the steps, so that they
    learn. Nothing is written.

    Raises :class:`MaemmError` for anything wrong with recipe or data, for fewer than 10 steps or 2 seeds, and under
    ``torchrun``.
    """
    name = os.fspath(recipe) if isinstance(recipe, os.PathLike) else recipe
    return compare(name, overrides, change, steps=steps, seeds=seeds, on_progress=on_progress)


def compare(
    recipe: str | Mapping[str, Any],
    overrides: Mapping[str, Any],
    change: Mapping[str, Any],
    *,
    steps: int,
    seeds: int,
    on_progress: Progress | None = None,
) -> Comparison:
    """:func:`parity`, where no override can meet a parameter of the same name."""
    if steps < 10 or seeds < 2:
        raise MaemmError(f"{steps} steps and {seeds} seeds tell nothing (--steps, --seeds); give 10 and 2 or more")
    if not change:
        raise MaemmError(
            "nothing is changed, so there is nothing to compare; give a change, such as train.compile=true"
        )
    for key in change:
        section, _, name = key.partition(".")
        if section in GIVEN or (section == "train" and name.partition(".")[0] in GIVEN_OF_TRAIN):
            raise MaemmError(
                f"both trainings are given the same batches, weights and learning rates (change {key}); change what "
                "computes with them, such as train.compile"
            )
    plain = _recipe(recipe, {**PLAIN, **overrides}, steps)
    changed = _recipe(recipe, {**PLAIN, **overrides, **change}, steps)
    with distributed.start() as dist_context, compiling.compiler_settings():
        if dist_context.world_size > 1:
            raise MaemmError("parity compares two trainings in one process; start it without torchrun")
        title = recipe if isinstance(recipe, str) else "recipe"
        return _compare(title, plain, changed, change, steps, seeds, dist_context, on_progress)


def _recipe(recipe: Any, overrides: Mapping[str, Any], steps: int) -> dict[str, Any]:
    resolved = config.load(recipe, {**overrides, "train.steps": steps, "train.epochs": None}, training=True)
    resolved.pop("out", None)
    if resolved.get("stages"):
        raise MaemmError(f"the recipe has several stages ({', '.join(resolved['stages'])}); choose one: stage=NAME")
    return resolved


@dataclass
class _Training:
    """One of the trainings that are compared."""

    state: TrainState
    compile: compiling.Setting
    losses: list[Tensor]

    def first_gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Those of the first step, by parameter; compiles before, where that is asked for."""
        micro_batches = plan_micro_batches(self.state, 0, batches)
        if self.state.compiled:
            compiling.start(self.state, micro_batches, self.compile, _refuse)
        return rehearse(self.state, micro_batches)

    def step(self, number: int, batches: list[Batch], lr: float) -> None:
        set_lr(self.state.optimizer, lr)
        self.losses.append(take_step(self.state, plan_micro_batches(self.state, number, batches)).total)


def _refuse(line: str) -> None:
    raise MaemmError(f"the change did not take effect: {line}")


def _compare(
    title: str,
    plain: dict[str, Any],
    changed: dict[str, Any],
    change: Mapping[str, Any],
    steps: int,
    seeds: int,
    dist_context: DistContext,
    on_progress: Progress | None,
) -> Comparison:
    source, _ = open_parts(plain)
    order = make_order(plain, source, dist_context)
    loader = make_loader(plain, source, order)

    def state(recipe: dict[str, Any]) -> TrainState:
        return make_train_state(recipe, steps, order.accumulation, dist_context, steps_per_epoch=order.steps_per_epoch)

    def training(recipe: dict[str, Any], seed: int | None = None) -> _Training:
        made = state(recipe)
        made.model.load_state_dict(initial)
        made.seed = made.seed if seed is None else seed
        return _Training(made, recipe["train"]["compile"], [])

    exact = state({**plain, "train": {**plain["train"], "precision": "fp32", "compile": False}})
    initial = exact.model.state_dict()
    first, second = training(plain), training(changed)
    own = plain["train"]["seed"]
    others = [training(plain, own + 1 + number) for number in range(seeds)]
    train = {**plain["train"], "warmup_epochs": WARMUP * steps / order.steps_per_epoch}
    lr: Callable[[int], float] = learning_rate(train, order.steps_per_epoch, steps)
    gradients: list[Gradient] = []
    batches = loader.steps(0, steps)
    try:
        for number, loaded in batches:
            if number == 0:
                reference = rehearse(exact, plan_micro_batches(exact, 0, loaded))
                by_training = [compared.first_gradients(loaded) for compared in (first, second, *others)]
                gradients = _distances(reference, *by_training[:2])
                del exact, reference, by_training
            for compared in (first, second, *others):
                compared.step(number, loaded, lr(number))
            if on_progress is not None:
                on_progress(number + 1, steps)
    finally:
        batches.close()
    return Comparison(
        recipe=title,
        change=dict(change),
        precision="bf16" if first.state.bf16 else "fp32",
        gradients=gradients,
        plain=_floats(first),
        changed=_floats(second),
        seeds=[_floats(other) for other in others],
    )


def _distances(
    reference: Mapping[str, Tensor], plain: Mapping[str, Tensor], changed: Mapping[str, Tensor]
) -> list[Gradient]:
    """How far gradients are from those of the ``reference``, by parameter."""
    total = torch.stack([x.float().norm() for x in reference.values()]).norm()
    rows = []
    for name in sorted({*reference, *plain, *changed}):
        exact = reference.get(name)
        norm = total if exact is None else exact.float().norm()
        scale = torch.maximum(norm, 1e-4 * total)  # parameters whose gradient is zero but for rounding
        errors = [float(_distance(gradients.get(name), exact) / scale) for gradients in (plain, changed)]
        rows.append(Gradient(name, *errors))
    return rows


def _distance(x: Tensor | None, reference: Tensor | None) -> Tensor:
    """The norm of the difference, where a gradient that is not there counts as 0."""
    if x is None and reference is None:
        return torch.zeros(())
    if x is None or reference is None:
        return (x if reference is None else reference).float().norm()  # type: ignore[union-attr]  # one of them is there
    return (x.float() - reference.float()).norm()


def _floats(training: _Training) -> list[float]:
    return torch.stack(training.losses).float().tolist()
