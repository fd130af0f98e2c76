"""A throw-away plugin with one tiny recipe, whose parts need no torch."""

from __future__ import annotations

from pathlib import Path

import pytest

TOY = {
    "__init__.py": """
        from maemm.registry import Plugin
        plugin = Plugin(name="toy", version="1", contract=2, modalities={"toy": "parts:Toy", "other": "parts:Toy"},
                        sources={"toy": "parts:open_toy"}, targets={"hog": "parts:Toy"})
    """,
    "parts.py": """
        class Toy:
            def __init__(self, *, size: int = 8, patch: int | tuple[int, int] = 4): pass
        def open_toy(root, list, *, strict: bool = False): pass
    """,
    "configs/tiny.yaml": """
        # The smallest recipe.
        # A second line.
        modalities:
          toy: {size: 16, masking: {type: random, ratio: 0.5}}
        encoder: {type: vit, dim: 32, depth: 2, heads: 2}
        decoder: {type: full, dim: 16, depth: 1, heads: 2}
        train: {epochs: 3, warmup_epochs: 1, base_lr: 1e-3}
    """,
}


@pytest.fixture
def toy(make_plugin, tmp_path, monkeypatch) -> Path:
    """The plugin "toy" with the recipe "toy/tiny"; the current folder is empty but for the plugin."""
    monkeypatch.chdir(tmp_path)
    return make_plugin("toy", **TOY)
