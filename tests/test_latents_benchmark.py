"""The benchmark of latent tokens: what it compares with, and a whole pass over few pictures."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def latents(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("latents", FOLDER / "latents.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_latents_are_compared_with(latents):
    torch.manual_seed(0)
    basis = torch.randn(3, 3, 8, 8)
    train, test = (torch.einsum("nk,kchw->nchw", torch.randn(n, 3), basis) for n in (20, 5))
    torch.testing.assert_close(latents.components(train, test, 3), test, atol=1e-4, rtol=0)
    assert (latents.components(train, test, 2) - test).abs().max() > 0.1
    flat = torch.rand(2, 3, 1, 1).expand(-1, -1, 8, 8)
    torch.testing.assert_close(latents.thumbnails(flat, 12), flat)


def test_a_table_of_few_pictures(latents, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(10):
        pixels = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
        np.save(tmp_path / "pictures" / f"{number}.npy", pixels)
    small = [
        "encoder.dim=16",
        "encoder.depth=1",
        "encoder.heads=2",
        "decoder.dim=16",
        "decoder.depth=1",
        "decoder.heads=2",
    ]
    data = ["data.source=image", f"data.root={tmp_path}/pictures", "data.workers=0", "train.batch=4"]
    train = ["train.epochs=1", "train.warmup_epochs=0", "objectives.hog=null"]
    out = tmp_path / "table.json"
    latents.main(["--run", str(tmp_path / "run"), "--out", str(out), *small, *data, *train])
    rows = {row["pictures from"]: row for row in json.loads(out.read_text())["rows"]}
    assert rows["latents, trained"]["numbers"] == 256 and rows["the mean colour"]["numbers"] == 3
    assert all(0 < row["psnr"] < 30 for row in rows.values()) and "7 principal components" in rows
