"""Progress: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from maemm.ui.streams import is_terminal

LINE_EVERY_S = 30.0


@contextmanager
def progress(description: str, unit: str = "samples") -> Iterator[Callable[[int, int], None]]:
    """A function for ``on_progress(done, total)`` arguments that writes to the error stream."""
    bar: Any = None
    began = last_line = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal bar, last_line
        if is_terminal(sys.stderr):
            from tqdm import tqdm

            if bar is None:
                options: dict[str, Any] = {"file": sys.stderr, "dynamic_ncols": True, "leave": False}
                bar = tqdm(total=total, unit=f" {unit}", desc=description, **options)
            bar.total = total
            bar.update(done - bar.n)
        elif sys.stderr is not None and time.monotonic() - last_line > LINE_EVERY_S:
            last_line = time.monotonic()
            rate = done / max(last_line - began, 1e-9)
            print(f"{description}  {done:,}/{total:,} {unit}  {rate:,.0f}/s", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
