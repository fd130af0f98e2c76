"""From a recipe to what training needs: order of samples, loader, model, optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maemm.contract import Phase, Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive, seeded
from maemm.data.loader import Loader
from maemm.data.memory import machine_memory
from maemm.data.mixture import Mixture, MixtureBatches, parts_of
from maemm.data.order import BatchOrder, Request, ShuffledBatches
from maemm.data.shots import balancing, labels_of
from maemm.model.build import build_modalities, build_model
from maemm.model.model import Model
from maemm.model.products import use_onednn
from maemm.model.repeated import keep_residual, recompute_activations, repeated_blocks
from maemm.model.sharded import local
from maemm.model.size import refuse_too_many_rows, weight_bytes
from maemm.train import compiling
from maemm.train.distributed import DistContext
from maemm.train.ema import Average, Ema, EpochMean
from maemm.train.freed_memory import keep_freed_memory
from maemm.train.initialize import initialize_from
from maemm.train.optim import WeightDecay, freeze, freeze_parts, freeze_unused, make_optimizer, make_phase_optimizer
from maemm.train.sharding import Sharding
from maemm.train.spikes import Guard
from maemm.train.state import PhaseState, TrainState
from maemm.train.step import knows_batch


def make_order(
    recipe: Mapping[str, Any], source: Source, dist_context: DistContext
) -> ShuffledBatches | MixtureBatches:
    """The samples of ``source`` that this rank reads in each step."""
    train, data = recipe["train"], recipe["data"]

    def shuffled(samples: int, seed: int, aug_repeats: int, **options: Any) -> ShuffledBatches:
        return ShuffledBatches(
            samples,
            train["batch"],
            seed,
            rank=dist_context.rank,
            world=dist_context.world_size,
            micro_batch=train.get("micro_batch"),
            aug_repeats=aug_repeats,
            **options,
        )

    mixed = data.get("shuffle") or "exact"
    if mixed != "exact":
        _check_shuffle(data, source)
    if isinstance(source, Mixture):
        orders = [
            shuffled(
                len(part.source), derive(train["seed"], "set", name), part.aug_repeats, **_shards(part.source, mixed)
            )
            for name, part in source.parts.items()
        ]
        return MixtureBatches(source, orders, train["seed"])
    return shuffled(
        len(source),
        train["seed"],
        data.get("aug_repeats") or 1,
        epoch=data.get("epoch"),
        weights=balancing(labels_of(source)) if data.get("balance") else None,
        **_shards(source, mixed),
    )


def _shards(source: Source, mixed: int | str) -> dict[str, Any]:
    """Options of :class:`ShuffledBatches` for ``data.shuffle``."""
    return {} if isinstance(mixed, str) else {"shards": source.shard_sizes, "mixed": mixed}


def _check_shuffle(data: Mapping[str, Any], source: Source) -> None:
    """Raises :class:`MaemmError` where ``data.shuffle`` is a number and the samples lie in no shards, or are drawn."""
    number = data["shuffle"]
    if data.get("epoch") or data.get("balance"):
        raise MaemmError(
            f"data.shuffle={number} orders whole shards, data.epoch and data.balance draw samples; use shuffle=exact"
        )
    if all(part.shard_sizes is None for part, _ in parts_of(source)):
        raise MaemmError(f"data.shuffle={number} needs data in shards, and these are not; use data.shuffle=exact")


def make_loader(recipe: Mapping[str, Any], source: Source, order: BatchOrder) -> Loader:
    """The loader of this rank's training samples, in ``order``."""
    data = recipe["data"]
    return Loader(
        source,
        build_modalities(dict(recipe)),
        order,
        seed=recipe["train"]["seed"],
        workers=data["workers"],
        timeout=data["timeout"],
        prefetch=data["prefetch"],
        missing=data.get("missing") or "skip",
        pin=False,  # StepsOnDevice does, ahead of time
    )


def make_train_state(
    recipe: dict[str, Any],
    steps: int,
    accumulation: int,
    dist_context: DistContext,
    *,
    fresh: bool = True,
    steps_per_epoch: int | None = None,
) -> TrainState:
    """A new model with its optimiser and average, on the device of ``dist_context``, not yet wrapped in DDP.

    Weights are initialised from ``train.seed`` and, in a ``fresh`` run, from the weights of ``init``. ``accumulation``:
    micro-batches of a step. Raises :class:`MaemmError` for parts that compare samples across micro-batches.
    """
    train = recipe["train"]
    if dist_context.device.type == "cpu":
        keep_freed_memory()
    with seeded(train["seed"], "weights"):
        model = build_model(recipe)
    if model.masked and model.decoder is None:
        raise MaemmError(
            "the recipe has no decoder, so there is nothing to pre-train (decoder); add decoder: {type: full}"
        )
    refuse_micro_batches(model, accumulation)
    init = initialize_from(model, recipe["init"]) if fresh and recipe.get("init") else None
    freeze(model, train.get("trainable") or "all")
    freeze_parts(model, train.get("freeze") or ())
    freeze_unused(model)
    for target in model.all_targets():
        target.before_training(steps)
    set_residual(model, train.get("residual", "auto"))
    if train.get("cpu_products") == "onednn":
        use_onednn(model)
    if any(x.device != dist_context.device for x in (*model.parameters(), *model.buffers())):
        model.to(dist_context.device)  # not of shapes alone, which torch cannot move
    model.train()
    phases = [(name, phase) for name, objective in model.objectives.items() for phase in objective.phases(model)]
    of_phases = [parameter for _, phase in phases for parameter in phase.parameters]
    bf16 = use_bf16(train.get("precision", "auto"), dist_context.device)
    ema = _average(model, train, steps_per_epoch or steps)
    sharding = None
    if dist_context.mesh is not None:
        _refuse_sharding(model, train, phases)
        averages = [] if ema is None else [ema.model]
        sharding = Sharding(model, dist_context.mesh, bf16=bf16, without=of_phases, averages=averages)
    optimizer = make_optimizer(model, train, of_phases)
    if train.get("activation_checkpointing"):
        recompute_activations(repeated_blocks(model))
    return TrainState(
        model=model,
        net=model,
        optimizer=optimizer,
        dist_context=dist_context,
        seed=train["seed"],
        batch=train["batch"],
        steps=steps,
        bf16=bf16,
        compiled=compiling.wanted(train.get("compile", "auto"), model, dist_context.device),
        clip=train.get("clip_grad"),
        weight_decay=WeightDecay(optimizer, train, steps),
        ema=ema,
        guard=_guard(recipe, dist_context),
        mixed=bool(recipe["data"].get("mix")),
        phases=[
            PhaseState(name, phase, make_phase_optimizer(phase, f"objectives.{name}, phase {phase.name}", model))
            for name, phase in phases
        ],
        init=init,
        sharding=sharding,
    )


def _refuse_sharding(model: Model, train: Mapping[str, Any], phases: Iterable[tuple[str, Phase]]) -> None:
    """Raise :class:`MaemmError` for what cannot be done with weights in shards."""
    advice = f"set train.parallel=ddp instead of {train['parallel']}"
    if train.get("compile") is True:
        raise MaemmError(f"train.compile=true is one graph of the whole model, blocks alone are sharded; {advice}")
    for name, phase in phases:
        if phase.shared:
            raise MaemmError(f"objectives.{name} trains weights in two phases, which shards cannot; {advice}")


def set_residual(model: Model, residual: str) -> None:
    """Keep sums between blocks in ``fp32`` or ``bf16`` under autocast (``train.residual``); ``auto``: as they are."""
    if residual == "auto":
        return
    dtype = torch.float32 if residual == "fp32" else torch.bfloat16
    parts: Iterable[Any] = model.modules()
    for part in parts:
        if hasattr(type(part), "residual"):
            part.residual = dtype
    keep_residual(repeated_blocks(model), dtype)


def refuse_too_large_steps(model: Model, rows: int, device: torch.device) -> None:
    """Raise :class:`MaemmError` where a forward and backward pass of ``rows`` samples cannot fit the device."""
    gradients = sum(local(p).numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    if device.type == "cuda":
        available: float = torch.cuda.get_device_properties(device).total_memory
    else:
        available = machine_memory() or math.inf
    refuse_too_many_rows(model, rows, available, weight_bytes(model) + gradients)


def _average(model: Model, train: Mapping[str, Any], steps_per_epoch: int) -> Average | None:
    if train.get("ema") is not None and train.get("average") is not None:
        raise MaemmError("train.ema and train.average are both averages of the weights; leave one out")
    if train.get("average") is not None:
        return EpochMean(model, train["average"], steps_per_epoch)
    return None if train.get("ema") is None else Ema(model, train["ema"])


def _guard(recipe: Mapping[str, Any], dist_context: DistContext) -> Guard | None:
    options = recipe["train"].get("spikes")
    sets = len(recipe["data"].get("mix") or ()) or 1
    return None if options is None else Guard(options, dist_context.device, sets)


def refuse_micro_batches(model: nn.Module, accumulation: int) -> None:
    """Raise for modules in which samples see each other: those with ``coupled``, and BatchNorm in any part.

    They may where they, or a module around them, have ``per_micro_batch``: each micro-batch is then a batch of its own;
    and where they are told of the whole batch beforehand.
    """
    if accumulation == 1:
        return
    for name, module in model.named_modules():
        # "is True": in a ModuleDict, modules are attributes under any name, such as "coupled".
        if not (getattr(module, "coupled", False) is True or isinstance(module, _BatchNorm)):
            continue
        if knows_batch(module):
            continue
        path = name.split(".")
        enclosing = [model.get_submodule(".".join(path[:depth])) for depth in range(1, len(path) + 1)]
        if any(getattr(outer, "per_micro_batch", False) is True for outer in enclosing):
            continue
        owner = ".".join(path[:2] if path[0] in ("modalities", "objectives", "targets") else path[:1])
        raise MaemmError(
            f"{owner} compares samples with each other ({type(module).__name__}): {accumulation} micro-batches are not "
            f"one batch (train.micro_batch); raise it, or set {owner}.per_micro_batch=true"
        )


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast. ``auto``: on GPUs that support it, not on a CPU."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


class EvenlySpaced:
    """A batch order for pictures: one batch of ``count`` samples, spread evenly over the source.

    Of a mixture, one batch for each data set. There are ``len(spans)`` steps.
    """

    def __init__(self, source: Source, count: int):
        self.samples = len(source)
        self.spans = [*source.spans().values()] if isinstance(source, Mixture) else [range(len(source))]
        self.count = count

    def micro_batches(self, step: int) -> list[list[Request]]:
        """One list of requests, for the data set number ``step``."""
        span = self.spans[step]
        count = min(self.count, len(span))
        return [[Request(0, span[row * len(span) // count], 0, row) for row in range(count)]]
