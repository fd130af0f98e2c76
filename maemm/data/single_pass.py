"""One pass over all samples of a source, in order and without augmentation, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import replace

from maemm.contract import Modality, Source
from maemm.data.loader import Batch, Loader, Missing
from maemm.data.order import Request, SequentialBatches

Progress = Callable[[int, int], object]  # samples done, all samples


def each(
    source: Source,
    modalities: Mapping[str, Modality],
    *,
    batch: int = 64,
    workers: int = 0,
    seed: int = 0,
    timeout: float = 600,
    missing: Missing = "skip",
    on_progress: Progress | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Generator[Batch]:
    """Batches of ``batch`` neighbouring samples, the last one possibly shorter.

    ``modalities``: {name: modality}, of which only ``load`` and ``collate`` are used; with ``workers`` pass them
    without parameters (:func:`maemm.model.build.build_modalities`). Samples that cannot be read are left out and listed
    in ``Batch.bad``, and so are those without one of ``modalities`` unless ``missing`` is "allow"; where no sample of a
    batch can be read, its ``raw`` is empty. ``Batch.rows`` are indices in the source. Each of several ranks gets every
    ``world_size``-th batch, from number ``rank`` on; ``Batch.step`` is the number among all. Close the generator, or
    delete it, to stop its workers. Raises :class:`MaemmError` for a source without samples.
    """
    order = _EveryNth(SequentialBatches(len(source), batch), rank, world_size)
    loader = Loader(
        source,
        modalities,
        order,
        seed=seed,
        workers=workers,
        timeout=timeout,
        augment=False,
        substitute=False,
        missing=missing,
    )
    return _batches(loader, order, on_progress)


class _EveryNth:
    """Whole batches of an order, dealt out to ranks."""

    def __init__(self, order: SequentialBatches, rank: int, world_size: int):
        self.numbers = range(rank, order.steps, world_size)
        self.samples, self.batch, self._order = order.samples, order.batch, order

    def micro_batches(self, step: int) -> list[list[Request]]:
        return self._order.micro_batches(self.numbers[step])


def _batches(loader: Loader, order: _EveryNth, on_progress: Progress | None) -> Generator[Batch]:
    if not order.numbers:  # a rank may have none
        return
    with closing(loader.batches(0, len(order.numbers))) as batches:
        for batch in batches:
            number = order.numbers[batch.step]
            yield replace(batch, step=number)
            if on_progress is not None:
                on_progress(min((number + 1) * order.batch, order.samples), order.samples)
