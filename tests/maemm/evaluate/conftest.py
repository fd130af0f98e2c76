"""Small models of the labelled toy modality, and data sets of it."""

import json
from pathlib import Path

import pytest
import torch

PLUGIN = Path(__file__).parent / "marks_plugin"


class World:
    """Recipes, models, data and runs in one folder."""

    def __init__(self, folder):
        self.folder = folder

    def data(self, name="data", **options):
        """A JSON file that the source of marks reads."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(options))
        return str(path)

    def source(self, **options):
        from maemm.tasks._shared.inputs import open_data

        return open_data(self.recipe(), self.data("source", **options))

    def recipe(self, training=False, **overrides):
        """Keys with __ for dots."""
        from maemm import config

        base = {
            "modalities": {"marks": {"masking": {"type": "random", "ratio": 0.5}}},
            "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
            "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
            "data": {"workers": 0, "source": "marks"},
            "train": {"epochs": 4, "batch": 8, "lr": 1e-3, "warmup_epochs": 1, "log_every": 1},
            "out": str(self.folder / "run"),
        }
        return config.load(base, {k.replace("__", "."): v for k, v in overrides.items()}, training=training)

    def model(self, seed=0, **overrides):
        from maemm.model.build import build_model

        torch.manual_seed(seed)
        return build_model(self.recipe(**overrides)).eval()

    def run(self, name="run"):
        """A run folder with one checkpoint, as pre-training leaves it."""
        from maemm.config import dump
        from maemm.train import checkpoint

        folder = self.folder / name
        model = self.model()
        model.recipe["out"] = str(folder)
        checkpoint.write(folder / "checkpoints", 1, model, {}, {})
        (folder / "recipe.yaml").write_text(dump(model.recipe))
        return str(folder)


@pytest.fixture
def world(tmp_path, monkeypatch):
    from maemm import registry

    monkeypatch.setenv(registry.VARIABLE, str(PLUGIN))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "maemm.tasks.pretrain.report.save_pictures", lambda model, batch, path, **rest: path, raising=False
    )
    registry.clear_cache()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield World(tmp_path)
    torch.set_num_threads(before)
    registry.clear_cache()
