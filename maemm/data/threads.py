"""Work on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """As in a data worker: figures do not depend on where they are computed, and a small model waits for no other core.

    Torch's threads spin until the last one is done: beside a program that has one of two cores, two threads took ten
    times as long for a small model as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
