"""A tiny recipe with labelled pictures, for comparisons that take a second."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

RECIPE = """\
modalities:
  image: {size: 8, patch: 4, masking: {type: random, ratio: 0.5}}
encoder: {type: vit, dim: 16, depth: 1, heads: 2}
decoder: {type: full, dim: 16, depth: 1, heads: 2}
data: {workers: 0, root: few.npz}
train: {steps: 4, batch: 8, lr: 0.01, warmup_epochs: 0, save_every: 2}
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Iterator[Path]:
    """The current folder, with ``tiny.yaml``, ``few.npz`` (labelled) and ``plain.npz`` (not)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez("few.npz", x=x, y=np.arange(24) % 2)
    np.savez("plain.npz", x=x)
    Path("tiny.yaml").write_text(RECIPE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path
    torch.set_num_threads(threads)
