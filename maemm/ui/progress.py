"""A bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LINE_EVERY_S = 30.0


@contextmanager
def progress(what: str, unit: str = "samples") -> Iterator[Callable[[int, int], None]]:
    """A function for ``on_progress(done, all)`` arguments; it writes to the error stream."""
    bar, began, told = None, time.monotonic(), time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal bar, told
        if sys.stderr.isatty():
            from tqdm import tqdm

            if bar is None:
                bar = tqdm(total=total, unit=f" {unit}", desc=what, file=sys.stderr, dynamic_ncols=True, leave=False)
            bar.total = total
            bar.update(done - bar.n)
        elif time.monotonic() - told > LINE_EVERY_S:
            told = time.monotonic()
            rate = done / max(told - began, 1e-9)
            print(f"{what}  {done:,}/{total:,} {unit}  {rate:,.0f}/s", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
