"""What a log line says about the device: operations and the MFU, memory of the interval, one read for all figures."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from maemm.tasks._shared.run_page import write_page
from maemm.train import flops
from maemm.train.console import metrics_text
from maemm.train.distributed import DistContext
from maemm.train.flops import count_flops, named_peak
from maemm.train.loop import train
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches
from tests.pretended_gpu.device import gpu
from tests.pretended_gpu.recipes import Samples, shrunk


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def planned(recipe, samples, names=None, micro=1):
    state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
    return state, plan_micro_batches(state, 0, [samples.batch(recipe, 0, names) for _ in range(micro)])


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return Samples(tmp_path_factory.mktemp("samples"))


# --------------------------------------------------------------------------------------------------- operations
def test_operations_of_a_vit_are_those_of_the_formula(samples):
    """Linear layers: 2 * tokens * inputs * outputs; attention: 4 * tokens**2 * width; backward twice the forward."""
    recipe = shrunk("image/finetune/mae_tiny_cpu", {"train.precision": "fp32"})
    state, micro_batches = planned(recipe, samples)
    encoder = recipe["encoder"]
    dim, depth, batch = encoder["dim"], encoder["depth"], 4
    (inputs,) = micro_batches.inputs
    patches, values = inputs["image"].tokens.values.shape[1:]
    tokens = patches + 1
    block = 2 * tokens * dim * (3 * dim + dim + 8 * dim) + 4 * tokens**2 * dim
    head = state.model.head
    classes = [module for module in head.modules() if isinstance(module, nn.Linear)][-1].out_features
    embedding = 2 * patches * values * dim
    # There is no gradient of pixels, so the embedding's backward is once its forward.
    assert count_flops(state, micro_batches) == batch * (3 * depth * block + 3 * 2 * dim * classes + 2 * embedding)


@pytest.mark.parametrize("name", ["video/omnimae_base", "image/mae_tiny_cpu", "pointcloud/point_mae_tiny_cpu"])
def test_counting_leaves_no_trace(name, samples):
    recipe = shrunk(name, {"train.precision": "fp32"})
    names = ["image"] if recipe["data"].get("mix") else None
    state, micro_batches = planned(recipe, samples, names)
    model = state.model
    tensors = {key: (id(x), x.detach().clone()) for key, x in [*model.named_parameters(), *model.named_buffers()]}
    random = torch.get_rng_state()
    once = count_flops(state, micro_batches)
    assert once > 0 and torch.equal(random, torch.get_rng_state())
    for key, x in [*model.named_parameters(), *model.named_buffers()]:
        assert id(x) == tensors[key][0] and torch.equal(x, tensors[key][1]) and x.grad is None
    _, twice = planned(recipe, samples, names, micro=2)
    assert count_flops(state, twice) == 2 * once


@pytest.mark.parametrize("option", ["train.activation_checkpointing", "train.compile"])
def test_what_is_computed_twice_or_compiled_counts_as_it_is(option, samples):
    plain, changed = (shrunk("image/mae_tiny_cpu", {"train.precision": "fp32", option: on}) for on in (False, True))
    assert count_flops(*planned(plain, samples)) == count_flops(*planned(changed, samples))


def test_peaks_by_name():
    assert named_peak("NVIDIA H100 80GB HBM3", True) == 989 and named_peak("NVIDIA H100 PCIe", True) == 756
    assert named_peak("NVIDIA H200", False) == 494.5 and named_peak("NVIDIA H200 NVL", True) == 835
    assert named_peak("NVIDIA A100-SXM4-80GB", True) == 312 == named_peak("NVIDIA A100 80GB PCIe", True)
    assert named_peak("NVIDIA L4", True) == 121 and named_peak("NVIDIA L40S", True) == 362
    assert named_peak("NVIDIA GeForce RTX 4090", True) == 165.2
    for name in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA RTX A1000", "T4"):
        assert named_peak(name, True) is None


# ----------------------------------------------------------------------------------------------------- log lines
MIX = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "data__source": None,
    "data__mix": {
        "small": {"modalities": ["toy"], "source": {"type": "toy", "samples": 32}},
        "large": {"source": {"type": "toy", "samples": 32, "salt": 1}},
    },
}  # fmt: skip


def test_a_cpu_has_an_mfu_where_its_peak_is_told(toys):
    folder = toys.train(train__epochs=2)
    assert all("mfu" not in row and "tflops" not in row for row in rows(folder))
    assert not any("MFU" in line for line in toys.lines)
    before = toys.metrics()
    folder = toys.train(toys.recipe(toys.out / "told", train__epochs=2, train__peak_tflops=0.01))
    assert toys.metrics(folder) == before  # counting changes nothing
    assert all(0 < row["mfu"] == pytest.approx(row["tflops"] / 0.01) for row in rows(folder))
    assert sum("MFU" in line for line in toys.lines) == len(before)
    assert "MFU" in write_page(folder).read_text()
    toys.train(toys.recipe(folder, train__epochs=2, train__peak_tflops=0.02))  # may change in a run


def test_steps_of_several_data_sets_count_as_what_they_are(toys, monkeypatch):
    counted = []
    monkeypatch.setattr(flops, "count_flops", lambda state, micro: counted.append(tuple(micro.inputs[0])) or 10**9)
    toys.train(**MIX, train__epochs=2, train__peak_tflops=1.0)
    assert sorted(counted) == [("other", "toy"), ("toy",)] or sorted(counted) == [("toy",), ("toy", "other")]


def test_what_cannot_be_counted_is_said_once(toys, monkeypatch):
    def fails(state, micro_batches):
        raise RuntimeError("no shapes\nhere")

    monkeypatch.setattr(flops, "count_flops", fails)
    folder = toys.train(train__epochs=2, train__peak_tflops=1.0)
    assert [line for line in toys.lines if "no MFU" in line] == [
        "no MFU: the operations of a step cannot be counted (RuntimeError: no shapes here)"
    ]
    assert not any("mfu" in row for row in rows(folder))


@pytest.mark.parametrize("several", [False, True])
def test_a_log_line_reads_the_device_once(toys, monkeypatch, several):
    """Whatever the number of terms and modalities; and the memory is that of the interval."""
    peaks, resets = iter(range(1000, 10**6, 1000)), []
    monkeypatch.setattr(flops, "count_flops", lambda state, micro_batches: 10**9)
    recipe = toys.recipe(
        **(MIX if several else {}), train__epochs=2, train__precision="fp32", train__compile=False, train__log_every=2
    )
    with gpu() as seen:
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device=None: next(peaks))
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device=None: resets.append(device))
        folder = train(recipe, echo=toys.lines.append)
        reads = [event for event in seen.waits if event.file.endswith("train/logging.py")]
        others = [event for event in seen.waits if event.file.endswith(("train/run_log.py", "train/loop.py"))]
    lines = rows(folder)
    assert len(lines) == len(resets) and [row["memory"] for row in lines] == [1000 * (n + 1) for n in range(len(lines))]
    assert len(reads) == len(lines) and others == []
    assert all(0 < row["mfu"] == pytest.approx(row["tflops"] / 494.5) for row in lines)


def test_the_console_shows_what_there_is():
    row = {"loss": 1.0, "samples_per_second": 5.0, "data_wait": 0.0}
    assert metrics_text({**row, "mfu": 0.4123, "memory": 3 * 2**30}).endswith(
        "data-wait 0 %  MFU 41.2 %  memory 3.0 GiB"
    )
    assert metrics_text(row).endswith("data-wait 0 %")
