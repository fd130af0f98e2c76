"""From a recipe to everything that a step works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from maemm import plugins
from maemm.build import build_modalities, build_model, part_of
from maemm.contract import Source
from maemm.data.loader import Loader
from maemm.data.order import Request, Slots
from maemm.draws import seeded
from maemm.errors import MaemmError
from maemm.options import options_of
from maemm.train.distributed import Team
from maemm.train.ema import Ema
from maemm.train.optim import make_optimizer
from maemm.train.step import Learner


def open_source(recipe: Mapping[str, Any]) -> Source:
    """The source of ``data.source``, or the one that has the name of the only modality's type.

    Raises :class:`MaemmError` where several modalities leave it open which source gives them all.
    """
    data = recipe["data"]
    name, spec = next(iter(recipe["modalities"].items()))
    if data.get("source") is None and len(recipe["modalities"]) > 1:
        raise MaemmError(
            f"no source is given for {', '.join(recipe['modalities'])} together; set data.source to one that reads them"
        )
    kind, options = part_of(data.get("source"), default=spec.get("type") or name)
    opener = plugins.find("sources", kind)
    if len(recipe["modalities"]) == 1 and "name" in options_of(opener):
        options.setdefault("name", name)  # a source told so gives its samples under the recipe's own name
    return opener(data.get("root"), data.get("list"), **options)


def make_order(recipe: Mapping[str, Any], samples: int, team: Team) -> Slots:
    """Which samples this process takes in each step."""
    train = recipe["train"]
    return Slots(
        samples,
        train["batch"],
        train["seed"],
        rank=team.rank,
        world=team.world,
        micro_batch=train.get("micro_batch"),
        repeats=recipe["data"].get("repeats") or 1,
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
    )


def make_learner(recipe: dict[str, Any], steps: int, accumulation: int, team: Team) -> Learner:
    """A fresh model, its optimiser and average, on the team's device, not yet wrapped for several processes.

    Weights follow from ``train.seed`` alone. Raises :class:`MaemmError` for objectives that micro-batches break.
    """
    train = recipe["train"]
    with seeded(train["seed"], "weights"):
        model = build_model(recipe)
    if model.decoder is None:
        raise MaemmError(
            "the recipe has no decoder, so there is nothing to pre-train (decoder); add decoder: {type: full}"
        )
    _refuse_micro_batches(model, train, accumulation)
    model.to(team.device).train()
    optimizer = make_optimizer(model, train)
    ema = None if train.get("ema") is None else Ema(model, train["ema"])
    if train.get("compile"):
        model.compile(dynamic=False)
    return Learner(
        model,
        model,
        optimizer,
        team,
        train["seed"],
        train["batch"],
        steps,
        bf16=use_bf16(train.get("precision", "auto"), team.device),
        compiled=bool(train.get("compile")),
        clip=train.get("clip_grad"),
        ema=ema,
    )


def _refuse_micro_batches(model: Any, train: Mapping[str, Any], accumulation: int) -> None:
    for name, objective in model.objectives.items():
        if accumulation > 1 and objective.coupled and not getattr(objective, "per_micro_batch", False):
            raise MaemmError(
                f"objective {name!r} compares samples with each other: {accumulation} micro-batches are not one batch "
                f"(train.micro_batch); raise it, or set objectives.{name}.per_micro_batch=true"
            )


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast: by default on GPUs that have it, and never on a CPU."""
    if precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


class Spread:
    """An order of one batch: ``count`` samples spread evenly over the source, for pictures."""

    def __init__(self, samples: int, count: int):
        self.samples, self.count = samples, min(count, samples)

    def micro_batches(self, step: int) -> list[list[Request]]:
        return [[Request(0, row * self.samples // self.count, 0, row) for row in range(self.count)]]
