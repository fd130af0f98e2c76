"""Every sample of a source once, in its order and without augmentation: what evaluation reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing

from maemm.contract import Modality, Source
from maemm.data.loader import Batch, Loader, Missing
from maemm.data.order import SequentialBatches

Progress = Callable[[int, int], object]  # samples done, samples in all


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
) -> Iterator[Batch]:
    """Batches of ``batch`` neighbouring samples, the last one possibly shorter.

    ``modalities``: {name: modality}, of which only ``load`` and ``collate`` are used; with ``workers`` give them
    without parameters (:func:`maemm.model.build.build_modalities`). Samples that cannot be read are left out and listed
    in ``Batch.bad``, those that lack one of ``modalities`` too unless ``missing`` is allow; where none of a batch can
    be read, its ``raw`` is empty. ``Batch.rows`` are indices of the source. Close the iterator, or drop it, to stop its
    workers. Raises :class:`MaemmError` for a source without samples.
    """
    order = SequentialBatches(len(source), batch)
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


def _batches(loader: Loader, order: SequentialBatches, on_progress: Progress | None) -> Iterator[Batch]:
    with closing(loader.batches(0, order.steps)) as batches:
        for one in batches:
            yield one
            if on_progress is not None:
                on_progress(min((one.step + 1) * order.batch, order.samples), order.samples)
