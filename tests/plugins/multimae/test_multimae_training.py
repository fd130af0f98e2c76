"""Training on several modalities: ranks, micro-batches and resumed runs equal one; missing modalities; compiled steps;
a fourth modality by YAML alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounterWithBackend

import maemm
from maemm import config
from maemm.train import compiling, loop
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from maemm_plugins.multimae.samples import write
from tests.pretended_gpu.recipes import Samples, shrunk

RECIPE = "multimae/tiny_cpu"
# No Adam: it would amplify the rounding of gradients that are zero, such as those of the biases of keys.
SMALL = {
    "encoder.dim": 48, "encoder.depth": 1, "decoder.dim": 24, "data.workers": 0, "train.batch": 8, "train.lr": 0.02,
    "train.optimizer": {"type": "sgd", "momentum": 0.9}, "train.epochs": None, "train.warmup_epochs": 0,
    "train.log_every": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """24 samples, half of which have no depth, and half no labels; four have rgb alone."""
    root = tmp_path_factory.mktemp("maps")
    write(root / "all", count=24)
    write(root / "some", count=24)
    for number, path in enumerate(sorted((root / "some" / "depth").rglob("*.png"))):
        if number % 2:
            path.unlink()
    for number, path in enumerate(sorted((root / "some" / "semseg").rglob("*.png"))):
        if number % 4 > 1:
            path.unlink()
    return root


def trained(samples, out, steps=4, data="all", **overrides):
    changes = {**SMALL, "data.root": str(samples / data), "out": str(out), "train.steps": steps, **overrides}
    loop.train(config.load(RECIPE, changes, training=True), echo=lambda line: None)
    rows = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    return rows, maemm.load(Path(out)).state_dict()


@pytest.fixture(scope="module")
def whole(samples, tmp_path_factory):
    """A run of four steps."""
    return trained(samples, tmp_path_factory.mktemp("runs") / "whole")


def same(one, other, atol=1e-5):
    (rows, weights), (other_rows, other_weights) = one, other
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in other_rows], abs=atol)
    assert rows[0]["terms"].keys() == {f"reconstruct.{name}" for name in ("rgb", "depth", "semseg")} | {"norm_rgb.rgb"}
    for name, x in weights.items():
        torch.testing.assert_close(x, other_weights[name], rtol=0, atol=atol)


def test_micro_batches_equal_one_batch(samples, whole, tmp_path):
    same(whole, trained(samples, tmp_path / "run", **{"train.micro_batch": 4}))


def test_a_resumed_run_is_the_whole_one(samples, whole, tmp_path, monkeypatch):
    take, calls = loop.take_step, []

    def broken(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("power cut")
        return take(*args, **options)

    monkeypatch.setattr(loop, "take_step", broken)
    with pytest.raises(RuntimeError, match="power cut"):
        trained(samples, tmp_path / "run", **{"train.save_every": 2})
    same(whole, trained(samples, tmp_path / "run", **{"train.save_every": 2}), atol=0)
    assert len(calls) == 6  # steps 3 and 4, the first of which once more


@pytest.mark.slow
def test_two_processes_equal_one(samples, whole, tmp_path):
    changes = {**SMALL, "data.root": str(samples / "all"), "out": str(tmp_path / "two"), "train.steps": 4}
    recipe = config.load(RECIPE, changes, training=True)
    script = tmp_path / "train.py"
    script.write_text(
        f"import json\nfrom maemm.train.loop import train\ntrain(json.loads({json.dumps(recipe)!r}), echo=print)\n"
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([sys.executable, *launcher, str(script)], env=os.environ | {"OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()]
    same(whole, (rows, maemm.load(tmp_path / "two").state_dict()))


# ------------------------------------------------------------------------------------------------- missing modalities
def test_a_modality_missing_in_half_of_the_samples(samples, tmp_path):
    with pytest.raises(maemm.MaemmError, match="semseg lacks 12 of 24 samples|depth lacks 12 of 24 samples"):
        trained(samples, tmp_path / "refused", data="some")
    rows, weights = trained(
        samples, tmp_path / "run", data="some", **{"data.source.missing": "allow", "data.missing": "allow"}
    )
    assert all(np.isfinite(row["loss"]) and row["nonfinite_steps"] == 0 for row in rows)
    assert all(x.isfinite().all() for x in weights.values())
    # Samples of one batch: what is missing is neither seen nor predicted, and the budget is spent on the rest.
    model = maemm.load(tmp_path / "run")
    batch = {name: m.example(4, maemm.Rng((name,), range(4), 4)) for name, m in model.modalities.items()}
    present = torch.tensor([True, False, True, False])
    batch["depth"] = maemm.contract.Preprocessed(batch["depth"].x, present=present)
    inputs = model.plan(batch, maemm.Rng((0, 0), range(4), 4))
    assert sum(x.plan.visible_valid.sum(1) for x in inputs.values()).tolist() == [32] * 4
    out = model(inputs)
    assert out.parts["reconstruct.depth"].count == 2 and out.parts["reconstruct.rgb"].count == 4
    other = dict(
        batch,
        depth=maemm.contract.Preprocessed(batch["depth"].x + 9.0 * ~present[:, None, None, None], present=present),
    )
    assert (
        model(model.plan(other, maemm.Rng((0, 0), range(4), 4))).total == out.total
    )  # what fills the place changes nothing


# ----------------------------------------------------------------------------------------------------- compiled steps
@pytest.mark.slow
def test_a_compiled_step_is_one_graph(tmp_path, monkeypatch):
    """All plans have one shape, whatever the shares of the budget: one graph, no break, the same losses."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend=counter))
    source = Samples(tmp_path)

    def losses(setting):
        recipe = shrunk(RECIPE, {"train.precision": "fp32", "train.compile": setting})
        state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
        values = []
        for step in range(3):
            micro_batches = plan_micro_batches(state, step, [source.batch(recipe, step)])
            if not step and state.compiled:
                compiling.start(state, micro_batches, setting, print)
            values.append(float(take_step(state, micro_batches).total))
        return values

    expected = losses(False)
    with compiling.compiler_settings():
        assert losses(True) == expected and counter.frame_count == 1
    torch._dynamo.reset()


# ----------------------------------------------------------------------------------------------- a fourth by YAML alone
def test_a_fourth_modality_by_yaml_alone(samples, tmp_path):
    """Infrared of two channels beside the three: read, cropped and mirrored with rgb, in the budget, predicted."""
    rng = np.random.default_rng(0)
    for path in sorted((samples / "all" / "rgb").rglob("*.png")):
        file = samples / "all" / "infrared" / path.relative_to(samples / "all" / "rgb").with_suffix(".npy")
        file.parent.mkdir(parents=True, exist_ok=True)
        grey = np.asarray(Image.open(path).convert("L"), np.float32)
        np.save(file, np.stack([grey, 255 - grey + rng.normal(size=grey.shape).astype(np.float32)]))
    recipe = tmp_path / "four.yaml"
    text = maemm.config.packaged()[RECIPE].read_text()
    before, after = text.split("masking: {type: dirichlet, budget: 32", 1)
    infrared = """
  infrared:
    {type: map, align: rgb, channels: 2, size: 64, patch: 8, position: sincos_table, mean: [128, 128], std: [60, 60],
      crop: {scale: [0.6, 1.0], ratio: [0.9, 1.1]}, flip: true}
"""
    text = f"{before}{infrared}masking: {{type: dirichlet, budget: 42{after}"
    parts = "{rgb: {type: image}, depth: {}, semseg: {type: label_map}, infrared: {type: map}}"
    recipe.write_text(text.replace("source: map_samples", f"source: {{type: maps, parts: {parts}}}"))
    changes = {**SMALL, "data.root": str(samples / "all"), "out": str(tmp_path / "run"), "train.steps": 2}
    loop.train(config.load(str(recipe), changes, training=True), echo=lambda line: None)
    (row, _) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["terms"]["reconstruct.infrared"] > 0
    model = maemm.load(tmp_path / "run")
    assert model.decoder.heads["infrared"].out_features == 2 * 64
    assert set(model.decoder.adapters["rgb"].vectors) == {"rgb", "depth", "semseg", "infrared"}
