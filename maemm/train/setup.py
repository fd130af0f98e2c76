"""From a recipe to everything that a step works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive, seeded
from maemm.data.loader import Loader
from maemm.data.mixture import Mixture, MixtureBatches
from maemm.data.order import Request, ShuffledBatches
from maemm.data.shots import balancing, labels_of
from maemm.model.build import build_modalities, build_model
from maemm.train.distributed import DistContext
from maemm.train.ema import Average, Ema, EpochMean
from maemm.train.initialize import begin_with
from maemm.train.optim import freeze, make_optimizer
from maemm.train.step import TrainState


def make_order(
    recipe: Mapping[str, Any], source: Source | int, dist_context: DistContext
) -> ShuffledBatches | MixtureBatches:
    """Which samples of the source, or of how many, this process takes in each step."""
    train, data = recipe["train"], recipe["data"]

    def slots(samples: int, seed: int, aug_repeats: int, **rest: Any) -> ShuffledBatches:
        ours = {"rank": dist_context.rank, "world": dist_context.world, "micro_batch": train.get("micro_batch")}
        return ShuffledBatches(samples, train["batch"], seed, aug_repeats=aug_repeats, **ours, **rest)

    if isinstance(source, Mixture):
        parts = source.parts.items()
        turns = [slots(len(one.source), derive(train["seed"], "set", name), one.aug_repeats) for name, one in parts]
        return MixtureBatches(source, turns, train["seed"])
    return slots(
        source if isinstance(source, int) else len(source),
        train["seed"],
        data.get("aug_repeats") or 1,
        epoch=data.get("epoch"),
        weights=balancing(labels_of(source)) if data.get("balance") else None,
    )


def make_loader(recipe: Mapping[str, Any], source: Source, order: Any) -> Loader:
    """The training loader of this process."""
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
    """A fresh model, its optimiser and average, on the team's device, not yet wrapped for several processes.

    Weights follow from ``train.seed`` and, in a ``fresh`` run, from the weights of ``init``. Raises
    :class:`MaemmError` for objectives that micro-batches break.
    """
    train = recipe["train"]
    with seeded(train["seed"], "weights"):
        model = build_model(recipe)
    if model.masked and model.decoder is None:
        raise MaemmError(
            "the recipe has no decoder, so there is nothing to pre-train (decoder); add decoder: {type: full}"
        )
    _refuse_micro_batches(model, accumulation)
    if fresh and recipe.get("init"):
        begin_with(model, recipe["init"])
    freeze(model, train.get("trainable") or "all")
    model.to(dist_context.device).train()
    optimizer = make_optimizer(model, train)
    average = _average(model, train, steps_per_epoch or steps)
    if train.get("compile"):
        model.compile(dynamic=False)
    return TrainState(
        model,
        model,
        optimizer,
        dist_context,
        train["seed"],
        train["batch"],
        steps,
        bf16=use_bf16(train.get("precision", "auto"), dist_context.device),
        compiled=bool(train.get("compile")),
        clip=train.get("clip_grad"),
        ema=average,
        mixed=bool(recipe["data"].get("mix")),
    )


def _average(model: nn.Module, train: Mapping[str, Any], steps_per_epoch: int) -> Average | None:
    if train.get("ema") is not None and train.get("average") is not None:
        raise MaemmError("train.ema and train.average are both averages of the weights; leave one out")
    if train.get("average") is not None:
        return EpochMean(model, train["average"], steps_per_epoch)
    return None if train.get("ema") is None else Ema(model, train["ema"])


def _refuse_micro_batches(model: nn.Module, accumulation: int) -> None:
    """Whatever ``coupled`` says that samples see each other: objectives, batch normalisation anywhere in a part.

    A part around it that says ``per_micro_batch`` lets each micro-batch be its own.
    """
    if accumulation == 1:
        return
    for name, module in model.named_modules():
        # "is": a container of modules has those that it holds as attributes, by any name.
        if not (getattr(module, "coupled", False) is True or isinstance(module, _BatchNorm)):
            continue
        pieces = name.split(".")
        around = [model.get_submodule(".".join(pieces[:count])) for count in range(1, len(pieces) + 1)]
        if any(getattr(one, "per_micro_batch", False) is True for one in around):
            continue
        owner = ".".join(pieces[:2] if pieces[0] in ("modalities", "objectives", "targets") else pieces[:1])
        raise MaemmError(
            f"{owner} compares samples with each other ({type(module).__name__}): {accumulation} micro-batches are not "
            f"one batch (train.micro_batch); raise it, or set {owner}.per_micro_batch=true"
        )


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast: by default on GPUs that have it, and never on a CPU."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


class EvenlySpaced:
    """An order of one batch a step: ``count`` samples spread evenly over the source, for pictures.

    Of a mixture each step takes another set.
    """

    def __init__(self, source: Source, count: int):
        self.samples = len(source)
        self.spans = [*source.spans().values()] if isinstance(source, Mixture) else [range(len(source))]
        self.count = count

    def micro_batches(self, step: int) -> list[list[Request]]:
        span = self.spans[step]
        count = min(self.count, len(span))
        return [[Request(0, span[row * len(span) // count], 0, row) for row in range(count)]]
