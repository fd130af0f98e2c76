"""One pass over all samples of a source, in order and without augmentation, for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import closing

from maemm.contract import Modality, Source
from maemm.data.loader import Batch, Loader, Missing
from maemm.data.order import SequentialBatches

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
) -> Generator[Batch]:
    """Batches of ``batch`` neighbouring samples, the last one possibly shorter.

    ``modalities``: {name: modality}, of which only ``load`` and ``collate`` are used; with ``workers`` pass them
    without parameters (:func:`maemm.model.build.build_modalities`). Samples that cannot be read are left out and listed
    in ``Batch.bad``, and so are those without one of ``modalities`` unless ``missing`` is "allow"; where no sample of a
    batch can be read, its ``raw`` is empty. ``Batch.rows`` are indices in the source. Close the generator, or delete
    it, to stop its workers. Raises :class:`MaemmError` for a source without samples.
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


def _batches(loader: Loader, order: SequentialBatches, on_progress: Progress | None) -> Generator[Batch]:
    with closing(loader.batches(0, order.steps)) as batches:
        for batch in batches:
            yield batch
            if on_progress is not None:
                on_progress(min((batch.step + 1) * order.batch, order.samples), order.samples)
