"""A pass over samples that training does not see, shared by validation and monitors."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from typing import Any, TypeVar

import torch
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Output, Preprocessed, Source
from maemm.contract.rng import Rng
from maemm.data.loader import Batch
from maemm.data.mixture import parts_of
from maemm.data.single_pass import each
from maemm.data.transfer import Work, overlapped
from maemm.data.tta import TtaModality
from maemm.model.build import build_modalities
from maemm.model.collectives import alone
from maemm.model.model import Model
from maemm.train.distributed import DistContext

T = TypeVar("T")
LARGEST_BATCH = 256  # samples


def pass_over(
    model: Model,
    source: Source,
    recipe: Mapping[str, Any],
    work: Callable[[int, Batch], Work[T]],
    *,
    ranks: DistContext,
    tta_views: int = 1,
) -> list[T]:
    """What ``work(number of the data set, batch)`` gives for the batches of ``source``, on rank 0; [] on the others.

    Samples come without augmentation, the model is in evaluation mode and returns to the mode it was in. Batches are
    on the host, and dealt out to the ``ranks``, all of which call this; each is by itself (no collectives), and rank 0
    gets them in any order. Raises on all ranks what is raised on one.
    """

    def own_batches() -> list[T]:
        with alone():  # ranks may have different numbers of batches
            return _own_batches(model, source, recipe, work, ranks, tta_views)

    return [result for part in ranks.gather_object(ranks.on_all_ranks(own_batches)) for result in part]


@torch.no_grad()
def _own_batches(
    model: Model,
    source: Source,
    recipe: Mapping[str, Any],
    work: Callable[[int, Batch], Work[T]],
    ranks: DistContext,
    tta_views: int,
) -> list[T]:
    data, train = recipe["data"], recipe["train"]
    modalities: dict[str, Any] = dict(model.modalities)
    batch_size = min(train.get("micro_batch") or train["batch"], LARGEST_BATCH)
    if data["workers"]:  # without parameters, which need not travel to the workers
        modalities = dict(build_modalities(dict(recipe)))
    if tta_views > 1:
        modalities = {name: TtaModality(modality, tta_views) for name, modality in modalities.items()}
        batch_size = max(1, batch_size // tta_views)
    training = model.training
    model.eval()
    try:
        with closing(_batches(source, modalities, data, batch_size, ranks)) as batches:
            return [*overlapped(work(part, batch) for part, batch in batches)]
    finally:
        model.train(training)


def _batches(
    source: Source, modalities: Mapping[str, Modality], data: Mapping[str, Any], batch_size: int, ranks: DistContext
) -> Generator[tuple[int, Batch], None, None]:
    """(number of the data set, batch): every sample once, on one of the ranks. A mixture is read one set after the
    other, each with its own modalities."""
    for number, (part, names) in enumerate(parts_of(source)):
        of_part = {name: modality for name, modality in modalities.items() if names is None or name in names}
        batches = each(
            part,
            of_part,
            batch=batch_size,
            workers=data["workers"],
            timeout=data["timeout"],
            missing=data.get("missing") or "skip",
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
        with closing(batches):
            for batch in batches:
                yield number, batch


def planned(
    model: Model, batch: Batch, seed: int, tta_views: int = 1
) -> tuple[dict[str, Preprocessed], list[dict[str, ModalityInput]]]:
    """(a batch on the device preprocessed, its sets of plans), with masks that depend on the batch's number alone."""
    rows = len(batch.ids) * tta_views
    rng = Rng((seed, "validation", batch.step), range(rows), rows)
    preprocessed = model.preprocess(batch.raw, None, batch.present, batch.side_inputs)
    return preprocessed, model.plan_sets(preprocessed, rng)


def forward(
    model: Model, batch: Batch, sets: list[dict[str, ModalityInput]], tta_views: int = 1
) -> tuple[list[Output], Tensor]:
    """(the output for each of the ``sets`` of :func:`planned`, the mean of their losses)."""
    labels = batch.labels if batch.labels is None or tta_views == 1 else batch.labels.repeat_interleave(tta_views, 0)
    outputs = [model(inputs, labels=labels) for inputs in sets]
    return outputs, torch.stack([out.total for out in outputs]).mean()
