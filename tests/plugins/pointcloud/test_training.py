"""Pre-training from files: several processes are one, micro-batches are refused, a run resumes, PCP-MAE trains."""

import json
import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.tasks.pretrain.run import train_recipe

BLOCKS = {"dim": 24, "depth": 1, "heads": 2, "qkv_bias": False, "eps": 1e-5}


@pytest.fixture
def clouds(tmp_path):
    """24 clouds, some of them smaller than the others."""
    folder = tmp_path / "clouds"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(24):
        np.save(folder / f"{number:02d}.npy", rng.normal(size=(9 if number % 3 == 0 else 40, 3)).astype(np.float32))
    return folder


def recipe(clouds, out, encoder="vit", **train):
    from maemm import config

    own = {"prefix": 0, "position_every_block": True} if encoder == "vit" else {}
    modality = {
        "groups": 12, "group_size": 6, "points": 32, "width": 32, "position": "mlp" if encoder == "vit" else "sincos",
        "masking": {"type": "random", "ratio": 0.6},
    }  # fmt: skip
    return config.load(
        {
            "modalities": {"pointcloud": modality},
            "encoder": {"type": encoder, **BLOCKS, **own},
            "decoder": {"type": "full", **BLOCKS, "prefix": "none", "project": "none", "position_every_block": True},
            "data": {"root": str(clouds), "workers": 0},
            "train": {"epochs": 2, "batch": 8, "lr": 1e-2, "warmup_epochs": 0, "log_every": 1, **train},
            "out": str(out),
        }
    )


def result(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "model.safetensors")
    return [row["loss"] for row in rows], weights


def train_one_of_two(rank, port, recipe):
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    train_recipe(recipe, echo=lambda line: None)
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one(clouds, tmp_path):
    """Batch statistics, counts and gradients, with clouds of different sizes in each process."""
    # No Adam here: the statistics remove the biases before them, whose gradients of rounding it would amplify.
    plain = {"optimizer": {"type": "sgd", "momentum": 0.9}, "lr": 0.02}
    train_recipe(recipe(clouds, tmp_path / "one", **plain), echo=lambda line: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    arguments = [(rank, port, recipe(clouds, tmp_path / "two", **plain)) for rank in range(2)]
    processes = [context.Process(target=train_one_of_two, args=one) for one in arguments]
    for one in processes:
        one.start()
    for one in processes:
        one.join(240)
        assert one.exitcode == 0
    (losses, weights), (others, found) = result(tmp_path / "one"), result(tmp_path / "two")
    assert len(losses) == 6 and losses == pytest.approx(others, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_micro_batches_are_refused_unless_asked_for(clouds, tmp_path):
    with pytest.raises(MaemmError, match=r"2 micro-batches.*modalities\.pointcloud\.per_micro_batch=true"):
        train_recipe(recipe(clouds, tmp_path / "run", micro_batch=4), echo=lambda line: None)
    asked = recipe(clouds, tmp_path / "asked", micro_batch=4, epochs=1)
    asked["modalities"]["pointcloud"]["per_micro_batch"] = True
    train_recipe(asked, echo=lambda line: None)
    assert len(result(tmp_path / "asked")[0]) == 3


def test_a_resumed_run_is_the_run(clouds, tmp_path):
    """Running statistics and the term of the encoder too."""

    def train(name, epochs):
        train_recipe(recipe(clouds, tmp_path / name, "pcp", epochs=epochs, schedule="constant"), echo=lambda line: None)

    train("whole", 2), train("parts", 1), train("parts", 2)
    (losses, weights), (others, found) = result(tmp_path / "whole"), result(tmp_path / "parts")
    assert losses == others and all(torch.equal(weights[name], found[name]) for name in weights)
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["terms"]["centers"] < rows[0]["terms"]["centers"]


@pytest.mark.parametrize("name", ["point_mae_tiny_cpu", "point_mae_tiny_modelnet10"])
def test_small_recipes_begin_near_an_empty_guess(name):
    """A first loss hundreds of times the later ones leaves the encoder unmoved: Adam remembers those gradients."""
    with seeded(0):
        model = maemm.build(f"pointcloud/{name}")
    on_sphere = torch.nn.functional.normalize(
        torch.randn(8, 1024, 3, generator=torch.Generator().manual_seed(0)), dim=2
    )
    out = model({"pointcloud": on_sphere}, rng=maemm.Rng((0, 0), range(8), 8))
    pred, target = out.pred["pointcloud"], out.target["pointcloud"]
    empty = model.modalities["pointcloud"].loss(torch.zeros_like(pred), target).mean()
    assert out.total < 2 * empty
    spread = out.encoded["pointcloud"].std(1).mean()
    assert spread > 0.2  # tokens of a cloud differ: they are not one vector that the blocks have added to all
