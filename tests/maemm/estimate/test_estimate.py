"""``maemm estimate``: against real steps, for every packaged recipe, and what it refuses."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

import maemm
from maemm import config
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.tasks.estimate.imagined import Counted, Imagined
from maemm.tasks.estimate.ledger import Sums
from maemm.tasks.estimate.run import compute
from maemm.tasks.estimate.shapes import grown
from maemm.tasks.estimate.sharing import Blocks, Sharing, exposed
from maemm.train.distributed import DistContext
from maemm.train.gpus import GPUS, named
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from tests.pretended_gpu.recipes import BATCH, RECIPES, Samples, shrunk

TINY = "signal/tiny_cpu"
H100 = next(gpu for gpu in GPUS if gpu.key == "h100")
PRECISE = {"train.precision": "fp32"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples"))


def real_step(recipe: dict[str, Any], samples: Samples) -> tuple[int, int]:
    """(most bytes at once, operations) of a later step of a training on a CPU: what torch's allocator gave, in all.

    Samples are preprocessed before it.
    """
    rows = recipe["train"].get("micro_batch") or recipe["train"]["batch"]
    accumulation = recipe["train"]["batch"] // rows
    batches = [samples.batch(recipe, 0, times=rows // BATCH)] * accumulation
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        state = make_train_state(recipe, 10, accumulation, DistContext(), fresh=False, steps_per_epoch=5)
        set_lr(state.optimizer, 1e-3)
        take_step(state, plan_micro_batches(state, 0, batches))
        rng = Rng((0, "step"), batches[0].rows, len(batches[0].rows))
        preprocessed = [state.model.preprocess(x.raw, rng, x.present, x.side_inputs) for x in batches]
        with mock.patch.object(state.model, "preprocess", side_effect=preprocessed), record_function("a later step"):
            take_step(state, plan_micro_batches(state, 1, batches))
    counter = FlopCounterMode(display=False)
    again = mock.patch.object(state.model, "preprocess", side_effect=preprocessed)
    with again, sdpa_kernel(SDPBackend.MATH), counter:
        take_step(state, plan_micro_batches(state, 2, batches))
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    (measured,) = (event for event in events if event.name() == "a later step")
    held = most = 0
    for event in (event for event in events if event.name() == "[memory]"):
        held += event.nbytes()
        if 0 <= event.start_ns() - measured.start_ns() <= measured.duration_ns():
            most = max(most, held)
    return most, counter.get_total_flops()


slow = pytest.mark.slow
CASES = [  # of several modalities, with all that holds memory
    ("image/mae_tiny_cpu", {"train.micro_batch": 8}),
    ("signal/tiny_cpu", {"train.activation_checkpointing": True}),
    pytest.param("image/data2vec2_tiny_cpu", {"train.ema": 0.99, "train.optimizer": "sgd"}, marks=slow),
    pytest.param(
        "image/stages_tiny_cpu",
        {"stage": "classify", "stages.classify.objectives.classify.erase": 0.0},
        marks=slow,
    ),
    pytest.param("pointcloud/point_mae_tiny_cpu", {}, marks=slow),
    pytest.param("cav/cav_mae_tiny_cpu", {}, marks=slow),
]


@pytest.mark.parametrize(("name", "changes"), CASES)
def test_memory_and_operations_are_those_of_a_real_step(name, changes, samples):
    recipe = config.load(name, {**PRECISE, "train.compile": False, "train.batch": 16, **changes})
    train = recipe["train"]
    rows = train.get("micro_batch") or 16
    imagined = Imagined(recipe, bf16=False, accumulates=rows < 16)
    counted = imagined.step(rows, recompute=bool(train["activation_checkpointing"]), accumulates=rows < 16)
    most, flops = real_step(recipe, samples)
    assert counted.peak + counted.inputs * (16 // rows - 1) == pytest.approx(most, rel=0.1)
    if not train["activation_checkpointing"]:
        done = sum(part.forward + part.backward for part in counted.parts.values()) * (16 // rows)
        assert done == pytest.approx(flops, rel=0.02)


def steps_of(recipe: dict[str, Any]) -> Iterator[Counted]:
    """Of each stage and kind of step, on shapes alone."""
    for values in (config.stages_of(recipe) or {"": recipe}).values():
        imagined = Imagined(values, bf16=True, gpu=H100)
        mix = (values["data"].get("mix") or {"": {}}).values()
        for part in mix:
            names = part.get("modalities")
            yield imagined.step(BATCH, recompute=False, names=None if names is None else tuple(names))


QUICK = {  # one of each family, a mixture, stages, what has phases, teachers, guides; all others are slow
    "audio/audiomae_tiny_cpu", "cav/sound_and_shape_tiny_cpu", "image/stages_tiny_cpu", "image/ganmae_tiny_cpu",
    "image/ijepa_tiny_cpu", "multimae/tiny_cpu", "pointcloud/finetune/point_mae_tiny_modelnet10", "signal/tiny_cpu",
    "video/omnimae_base", "image/mae_attention_tiny_cpu",
}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else slow) for name in RECIPES])
def test_every_packaged_recipe_is_counted(name):
    for counted in steps_of(shrunk(name)):
        done = sum(part.forward for part in counted.parts.values())
        back = sum(part.backward for part in counted.parts.values())
        assert done > 0 and back > 0
        assert counted.activations > 0 and counted.gradients > 0
        assert counted.peak >= counted.weights + counted.moments + counted.activations
        assert sum(part.seconds for part in counted.parts.values()) > 0


@slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_packaged_recipe_is_estimated_at_its_size(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for estimate in maemm.estimate(name, data=1_000_000, **{"train.epochs": 10}):
            assert estimate.seconds > 0 and 0 < estimate.efficiency < 0.75, name
            assert max(map(len, str(estimate).splitlines())) < 200
            json.dumps(estimate.record())


def test_any_number_of_samples_is_on_the_line_through_two():
    imagined = Imagined(config.load("image/mae_tiny_cpu", PRECISE), bf16=True)
    few, more, many = (imagined.step(rows, recompute=False) for rows in (8, 16, 512))
    assert more.at(512, few).peak == pytest.approx(many.peak, rel=0.03)
    assert more.at(512, few).activations == pytest.approx(many.activations, rel=0.01)
    assert more.at(16, few) is more


def test_parts_add_up_and_recomputation_costs_a_forward_pass_of_the_blocks():
    recipe = config.load("image/data2vec2_tiny_cpu", PRECISE)
    imagined = Imagined(recipe, bf16=True, gpu=H100)
    kept, again = (imagined.step(16, recompute=recompute) for recompute in (False, True))
    assert set(kept.parts) >= {"encoder", "decoder", "embedding", "teacher passes"}
    assert kept.parts["teacher passes"].forward > 0 == kept.parts["teacher passes"].backward
    assert kept.parts["encoder"].backward == pytest.approx(2 * kept.parts["encoder"].forward, rel=0.01)
    total, more = (sum(x.forward + x.backward for x in c.parts.values()) for c in (kept, again))
    blocks = kept.parts["encoder"].forward + kept.parts["decoder"].forward
    assert 0.5 * blocks < more - total <= 1.01 * blocks  # what no gradient needs is not computed again
    assert again.activations < kept.activations / 2 and again.peak < kept.peak
    assert kept.averages == sum(x.nbytes for target in imagined.state.model.all_targets() for x in target.parameters())


@slow
def test_the_time_of_a_step_is_that_of_the_model_of_the_pretended_gpu():
    """Of a case of benchmarks/launches.py, which counts the same step by other means."""
    from pathlib import Path

    file = Path(__file__).parents[3] / "benchmarks" / "results" / "launches.json"
    row = json.loads(file.read_text())["rows"]["cav_mae_base"]
    (estimate,) = compute("cav/cav_mae_base", {"train.batch": row["batch"], "train.compile": False}, data=100)
    counted = row["after"]
    assert 1e3 * estimate.computing == pytest.approx(counted["ms"], rel=0.1)
    assert estimate.efficiency == pytest.approx(counted["share_of_peak"], rel=0.1)
    assert estimate.memory[False]["activations"] / 1e9 == pytest.approx(counted["kept_activations_GB"], rel=0.1)


# ------------------------------------------------------------------------------------------------------------ shapes
def test_shapes_grow_with_the_samples_and_with_nothing_else():
    def tree(size: int) -> dict[str, Any]:
        x = torch.zeros(size, 3, 4 + (size > 2))
        return {"x": x, "same": x, "n": [size * 5, "a", None], "wide": torch.zeros(1, 7).expand(size, 7)}

    big = grown(tree(2), tree(4), (2, 4), 100)
    assert big["x"].shape == (100, 3, 5) and big["x"] is big["same"] and big["n"] == [500, "a", None]
    assert big["wide"].shape == (100, 7) and big["wide"].untyped_storage().nbytes() == 7 * 4


# ----------------------------------------------------------------------------------------------------------- sharing
COUNTED = Counted(4, {}, Sums(), 800, 800, 1600, 400, 200, 40, {"encoder": 1000}, peak=4240, held=2840)


def test_what_ranks_share_is_divided():
    blocks = Blocks(largest=80, outside=40)
    parts, most = Sharing("ddp", 64, True).memory(COUNTED, blocks, 40, False)
    assert parts["weights"] == 800 and parts["weights in bf16"] == 200
    assert most == COUNTED.peak and sum(parts.values()) >= most
    parts, least = Sharing("fsdp", 64, True).memory(COUNTED, blocks, 40, False)
    assert parts["weights"] == 800 // 64 and parts["moments"] == 25 and parts["gathered weights"] == 80 + 40 + 80
    _, node = Sharing("hsdp", 64, True).memory(COUNTED, blocks, 40, False)
    assert least < node < most
    assert Sharing("fsdp", 8, True).memory(COUNTED, blocks, 40, True)[0]["gradients"] == 800


def test_what_travels():
    assert Sharing("ddp", 1, True).sent(COUNTED, 1) == (0, 0)
    assert Sharing("ddp", 8, True).sent(COUNTED, 4) == (2 * 7 / 8 * 800, 0)
    assert Sharing("fsdp", 8, True).sent(COUNTED, 2) == (7 / 8 * (2 * 2 * 400 + 800), 0)
    sent, outside = Sharing("hsdp", 16, False).sent(COUNTED, 1)
    assert outside == 2 * 1 / 2 * 800 / 8 and sent - outside == 7 / 8 * (2 * 800 + 800)
    inside = Sharing("ddp", 8, True).seconds(COUNTED, 1, H100)
    assert Sharing("ddp", 512, True).seconds(COUNTED, 1, H100, network=1) > 8 * inside
    assert exposed(3.0, 1.0) == 0 and exposed(3.0, 5.0) == pytest.approx(3.0)


@slow
def test_a_model_that_does_not_fit_is_shared():
    huge = {"encoder.dim": 4096, "encoder.depth": 2, "encoder.heads": 32, "decoder.depth": 1}
    small = {"gpu": "rtx3090", "data": 10_000}
    (one,) = compute("image/mae_base", {**huge, "train.batch": 64, "train.micro_batch": 8}, **small)
    (many,) = compute("image/mae_base", {**huge, "train.batch": 64}, gpus=64, **small)
    (few,) = compute("image/mae_tiny_cpu", {}, gpus=2, **small)
    assert one.suggestion[0] == "ddp" and few.suggestion[0] == "ddp"
    assert (many.suggestion[0] == "ddp") == (many.shared["ddp"].state < 0.46 * 24e9)
    assert many.shared["fsdp"].state < many.shared["hsdp"].state < many.shared["ddp"].state


# ------------------------------------------------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def estimate():
    return compute(TINY, {"train.epochs": 10, "train.batch": 64}, gpus=4, data=1000)[0]


def test_length_and_totals(estimate):
    assert estimate.length.steps == 10 * (1000 // 64) and estimate.length.rows == 16
    assert estimate.parameters["encoder"].trained == sum(
        x.numel() for x in maemm.build(TINY).encoder.parameters() if x.requires_grad
    )
    record = estimate.record()
    assert record["samples_seen"] == 150 * 64 and record["gpu_hours"] == pytest.approx(record["seconds"] * 4 / 3600)
    tokens = record["tokens_of_a_sample"]
    assert 0 < tokens["visible"] < tokens["all"] and tokens["visible"] + tokens["predicted"] == tokens["all"]
    storage = record["storage"]
    assert storage["bytes_per_second"] == pytest.approx(storage["bytes_of_a_sample"] * 64 / record["step_seconds"])
    step = record["flops_of_a_step"]
    assert step["activation_checkpointing"] > step["kept"] > 0


@slow
@pytest.mark.parametrize("again", [False, True])
def test_the_micro_batch_that_fits_is_one_that_training_takes(again):
    (estimate,) = compute("image/mae_base", {"train.batch": 3 * 4096}, gpus=4, gpu="rtx3090", data=10**6)
    rows = estimate.fits[again]
    assert rows is not None and 3072 % rows == 0 and rows < 3072
    key = "train.activation_checkpointing"
    (smaller,) = compute(
        "image/mae_base",
        {"train.batch": 3 * 4096, "train.micro_batch": rows, key: again},
        gpus=4,
        gpu="rtx3090",
        data=10**6,
    )
    usable = 0.92 * 24e9
    assert smaller.peak[again] <= 1.02 * usable and smaller.length.accumulation == 3072 // rows
    larger = min(n for n in range(rows + 1, 3073) if 3072 % n == 0)
    assert smaller.peak[again] * larger / rows > usable


def test_an_efficiency_that_is_told_makes_the_time(estimate):
    options = {"gpus": 4, "data": 1000}
    (told,) = compute(TINY, {"train.epochs": 10, "train.batch": 64}, efficiency=0.25, **options)
    needed = sum(told.sample_flops) * 16
    assert told.computing == pytest.approx(needed / (0.25 * 989e12)) and told.efficiency == pytest.approx(0.25)
    assert estimate.how.startswith("modelled") and "modelled" in str(estimate)


def test_data_that_are_here_are_counted_and_weighed(tmp_path):
    np.savez(tmp_path / "few.npz", x=np.zeros((40, 64, 64, 3), np.uint8))
    changes = {"data.root": str(tmp_path / "few.npz"), "train.batch": 8}
    (estimate,) = compute("image/mae_tiny_cpu", {**changes, "data.source": None})
    assert estimate.length.samples == 40 and estimate.size_note == "as its files"
    assert estimate.sample_bytes == pytest.approx((tmp_path / "few.npz").stat().st_size / 40, rel=0.05)
    (told,) = compute("image/mae_tiny_cpu", changes, data=80, sample_bytes=5e5)
    assert told.length.samples == 80 and told.sample_bytes == 5e5


def test_stages_mixtures_and_what_was_assumed():
    first, second = compute("image/stages_tiny_cpu", {}, data=1000)
    assert first.name.endswith("stage mae") and second.name.endswith("stage classify")
    assert "head" in second.parameters and "decoder" not in second.parameters
    small = {f"{part}.{key}": value for part in ("encoder", "decoder") for key, value in (("dim", 48), ("depth", 1))}
    small |= {"encoder.heads": 2, "decoder.heads": 2, "modalities.video.size": [4, 64, 64], "train.batch": 32}
    (mixed,) = compute("video/omnimae_base", small, data=3200)
    shares = [kind.share for kind in mixed.length.kinds]
    assert sum(shares) == 1 and shares == [0.5, 0.5]  # four crops of a video, passed over a quarter as often
    assert any("50 % of the steps" in line for line in mixed.assumed)
    (ragged,) = compute("audio/audiomae_tiny_cpu", {}, data=1000)
    assert any("as long as the recipe lets it be" in line for line in ragged.assumed)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["image/mae_base"], "the number of samples is not known.*; add --data N, or data.root=FOLDER"),
        (["image/mae_base", "data.root=nowhere"], r"is not known.*nowhere.*; add --data N"),
        (["image/mae_base", "--data", "0"], "--data is 0; give a number from 1 to"),
        (["image/mae_base", "--gpus", "0", "--data", "9"], "--gpus is 0; give a number from 1 to"),
        (["image/mae_base", "--gpus", "3", "--data", "99999"], "4096 cannot be divided evenly among 3 ranks"),
        (["image/mae_base", "--data", "99"], "train.batch 4096 is larger than the 99 samples"),
        (["image/mae_base", "--gpu", "h10", "--data", "9"], "no GPU 'h10' is in the table.*did you mean 'h100'"),
        (["image/mae_base", "--data", "1e6"], "invalid int"),
        (["image/mae_base", "--efficiency", "40", "--data", "9"], "--efficiency is 40; give a share"),
        (["image/mae_base", "--efficiency", "nan", "--data", "9"], "--efficiency is nan; give a share"),
        (["image/mae_base", "--sample-bytes", "-1", "--data", "9"], "--sample-bytes is -1; give the bytes"),
        (["image/mae_base", "gpus=8"], "gpus is a flag.*write --gpus 8"),
        (["image/mae_base", "encoder.dim=30", "--data", "9999"], "heads"),
        (
            [TINY, "encoder.dim=9999999999999", "encoder.heads=1", "--data", "9999"],
            "makes more numbers than any machine",
        ),
        ([], "missing argument; usage: maemm estimate RECIPE"),
    ],
)
def test_mistakes_are_a_line(words, message, capsys):
    assert main(["estimate", *words]) == 2
    out, error = capsys.readouterr()
    assert not out and error.count("\n") == 1 and error.startswith("maemm: error: ") and re.search(message, error)


def test_steps_need_no_data_and_the_machine_no_memory(capsys):
    wide = ["encoder.dim=65536", "encoder.heads=64", "encoder.depth=2", "decoder.depth=1", "train.batch=8"]
    words = [
        "estimate",
        "image/mae_tiny_cpu",
        "data.source=null",
        *wide,
        "train.steps=5",
        "train.epochs=null",
        "--json",
    ]
    assert main(words) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["samples"] is None and record["steps"] == 5
    assert record["parameters"]["encoder"]["trained"] > 1e11 and record["suggestion"]["parallel"] == "ddp"


def test_text_fits_a_page(estimate):
    lines = str(estimate).splitlines()
    assert len(lines) < 50 and max(map(len, lines)) <= 140


def test_training_is_as_before_after_an_estimate(samples):
    recipe = config.load(TINY, {"train.batch": 4, **PRECISE})

    def loss() -> torch.Tensor:
        state = make_train_state(recipe, 10, 1, DistContext(), fresh=False, steps_per_epoch=5)
        set_lr(state.optimizer, 1e-3)
        return take_step(state, plan_micro_batches(state, 0, [samples.batch(recipe, 0)])).total

    before, random = loss(), torch.get_rng_state()
    compute(TINY, {}, data=1000)
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(loss(), before)
    with pytest.raises(MaemmError, match="memory"):
        maemm.build(TINY, **{"encoder.dim": 2**20, "encoder.heads": 2})  # of this machine, again


# ---------------------------------------------------------------------------------------------------------- the table
def test_the_table_of_gpus():
    assert len({gpu.key for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert gpu.bf16 >= gpu.tf32 >= gpu.fp32 > 0 and gpu.memory >= 20 and gpu.bandwidth > 250 and gpu.link >= 32
    names = {"NVIDIA A100-SXM4-40GB": "a100-40", "NVIDIA A100 80GB PCIe": "a100-80", "NVIDIA H200": "h200"}
    names |= {"NVIDIA GH200 480GB": "h200", "AMD Instinct MI300X": "mi300x", "NVIDIA GeForce RTX 4090": "rtx4090"}
    assert {name: getattr(named(name), "key", None) for name in names} == names
    assert named("NVIDIA GeForce RTX 4090 Laptop GPU") is None and named("NVIDIA A100 MIG 1g.5gb") is None


def test_norms_are_widened_as_a_gpu_does():
    recipe = config.load("image/mae_tiny_cpu", {})
    imagined = Imagined(recipe, bf16=True)
    norms = [module for module in imagined.state.model.modules() if isinstance(module, nn.LayerNorm)]
    seen = []
    hooks = [norm.register_forward_hook(lambda module, args, out: seen.append(out.dtype)) for norm in norms]
    imagined.step(4, recompute=True)
    for hook in hooks:
        hook.remove()
    assert seen and set(seen) == {torch.float32}
