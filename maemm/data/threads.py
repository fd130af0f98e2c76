"""Computing on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Set torch to one thread, as in a data worker: results are the same in both, and small models are faster.

    Torch's threads spin until the last one is done: on two cores, one of them busy with another program, a small model
    took ten times as long with two threads as with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
