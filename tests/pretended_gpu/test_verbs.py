"""What verbs compute on a GPU is what they compute on a CPU, and no batch makes the host wait."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maemm.data.transfer import host_copy, module_on_host, on_host, overlapped, to_device, together
from maemm.model.model import Model
from maemm.train.checkpoint import write as write_checkpoint

from .allowed import is_allowed
from .device import PretendedGpu, gpu
from .recipes import RAGGED, Samples
from .streams import LAST
from .verbs import VERBS, model_of, numbers, source_of

SAMPLES, FEW, MANY = 16, 8, 2  # samples, and samples of a batch: 2 batches and 8
IMAGE, POINTS, CAV = "image/mae_tiny_cpu", "pointcloud/point_mae_tiny_cpu", "cav/cav_mae_tiny_cpu"
CLASSIFIER = "image/finetune/mae_tiny_cpu"
UNEVEN = ("audio/audiomae_tiny_cpu", POINTS, "signal/tiny_cpu")
OF_PAIRS, OF_CLASSIFIERS = ("retrieve", "demo"), ("evaluate",)
OF_LATENTS = ("embed latents", "round trip")
OF_ALL = [verb for verb in VERBS if verb not in (*OF_PAIRS, *OF_CLASSIFIERS, *OF_LATENTS)]
QUICK = [
    *((IMAGE, verb, False) for verb in OF_ALL),
    *((CLASSIFIER, verb, False) for verb in ("validate", "evaluate")),
    *((CAV, verb, False) for verb in ("retrieve", "demo")),
    *(("image/maetok_tiny_cpu", verb, False) for verb in OF_LATENTS),
    *((POINTS, verb, True) for verb in ("embed tokens", "score", "reconstruct")),
]
REST = [
    # A graph needs samples of a fixed shape, which uneven clouds do not have.
    *(
        (name, verb, True)
        for name in UNEVEN
        for verb in OF_ALL
        if verb != "raw values" and not (verb == "export" and name.startswith("pointcloud/"))
    ),
    *((CAV, verb, True) for verb in OF_ALL if verb != "raw values"),
    *((name, verb, False) for name in ("video/videomae_tiny_cpu",) for verb in OF_ALL),
]


def run(name: str, verb: str, samples: Samples, folder: Path, batch: int, seen: PretendedGpu | None = None) -> Any:
    """The numbers of a verb; ``seen``: on the pretended GPU."""
    model = model_of(name, RAGGED.get(name) if samples.uneven else None)
    source = source_of(model, samples, SAMPLES)
    if seen is not None:
        model.to("cuda")
        seen.clear()
    folder = Path(tempfile.mkdtemp(dir=folder))
    return numbers(VERBS[verb](model, source, folder, batch))


def check(name: str, verb: str, samples: Samples, folder: Path) -> None:
    expected = run(name, verb, samples, folder, FEW)
    waits, copies = {}, {}
    for batch in (FEW, MANY):
        with gpu() as seen:
            results = run(name, verb, samples, folder, batch, seen)
            others = [event for event in (*seen.blocking_copies, *seen.waits) if not is_allowed(event)]
            others += [event for event in seen.waits if event.function == "finish" and event.kind != LAST]
            assert not others, Counter(map(str, others))
            waits[batch] = len(seen.waits)
            copies[batch] = sum(event.kind.startswith("cuda -> cpu") for event in seen.copies)
        if batch == FEW:
            assert len(results) == len(expected)
            for result, number in zip(results, expected, strict=True):
                np.testing.assert_allclose(result, number, rtol=2e-3, atol=2e-3)
    more = passes(verb) * views(name, verb) * (SAMPLES // MANY - SAMPLES // FEW)
    assert copies[MANY] - copies[FEW] <= more, copies  # one for a batch at most
    assert waits[MANY] - waits[FEW] < more / 2, waits  # none for a batch


def views(name: str, verb: str) -> int:
    """By how much a verb divides its batch, because it reads that many views of each sample."""
    return 2 if (name, verb) == ("video/videomae_tiny_cpu", "probe") else 1


def passes(verb: str) -> int:
    """How often a verb reads the samples."""
    return {"diagnose": 2, "retrieve": 2}.get(verb, 1)


@pytest.mark.parametrize(("name", "verb", "uneven"), QUICK)
def test_a_verb(name, verb, uneven, samples, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check(name, verb, Samples(samples.folder, uneven=True) if uneven else samples, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "verb", "uneven"), [case for case in REST if case not in QUICK])
def test_every_verb(name, verb, uneven, samples, tmp_path, monkeypatch):
    # Clips are resized in bytes on a CPU, as Pillow does, and in floats on a GPU: floats on both here.
    monkeypatch.setattr("maemm_plugins.video.resize._on_cpu", lambda x: False)
    test_a_verb(name, verb, uneven, samples, tmp_path, monkeypatch)


def test_weights_of_a_file_are_run_on_the_device(samples, tmp_path):
    model = model_of(IMAGE)
    write_checkpoint(tmp_path / "run" / "checkpoints", 1, model, {}, {})
    source = source_of(model, samples, 2)
    with gpu() as seen:
        for verb in ("embed", "reconstruct", "score"):
            seen.clear()
            VERBS[verb](tmp_path / "run", source, tmp_path, 2)
            assert seen.launches["aten.addmm.default"] >= 8, verb  # four of each block


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda x: x.cpu(), r"cuda -> cpu"),
        (lambda x: x.mean().item(), r"item\(\)"),
        (lambda x: x.to("cpu", non_blocking=True), r"assert \(\d+ - \d+\) <="),  # a second copy of a batch
        (lambda x: on_host(x.mean()), r"assert \(\d+ - \d+\) <="),
    ],
    ids=["cpu", "item", "copy", "on_host"],
)
@pytest.mark.parametrize("verb", ["validate", "embed"])
def test_faults_planted_in_every_batch_are_seen(verb, fault, message, samples, tmp_path, monkeypatch):
    preprocess = Model.preprocess

    def faulty(self, *args, **kwargs):
        batch = preprocess(self, *args, **kwargs)
        fault(batch["image"].x)
        return batch

    monkeypatch.setattr(Model, "preprocess", faulty)
    with pytest.raises(AssertionError, match=message):
        check(IMAGE, verb, samples, tmp_path)


# ------------------------------------------------------------------------------------------- from device to host
def test_a_batch_is_read_while_the_next_one_runs():
    order: list[str] = []

    def work(number: int):
        order.append(f"start {number}")
        tree = {"x": torch.full((3,), float(number), device="cuda"), "y": [torch.tensor([number, -1]).to("cuda")]}
        for stage in range(2):
            tree = yield tree
            assert tree["x"].device.type == "cpu" and tree["x"].tolist() == [number + stage] * 3
            assert tree["y"][0].tolist() == [number, -1]
            order.append(f"{number} at {stage}")
            if not stage:
                tree = {"x": tree["x"].to("cuda", non_blocking=True) + 1, "y": tree["y"]}
        return number

    with gpu() as seen:
        assert list(overlapped(work(number) for number in range(4))) == [0, 1, 2, 3]
        assert sum(event.kind.startswith("cuda -> cpu") for event in seen.copies) == 5  # of four batches: one more
    assert order[:6] == ["start 0", "start 1", "0 at 0", "start 2", "0 at 1", "1 at 0"]
    order.clear()
    assert list(overlapped(work_on_cpu(order, number) for number in range(2))) == [0, 1]
    assert order == ["start 0", "end 0", "start 1", "end 1"]  # each by itself where there is nothing to wait for


def work_on_cpu(order: list[str], number: int):
    order.append(f"start {number}")
    x = torch.ones(2)
    assert (yield {"x": x})["x"] is x
    order.append(f"end {number}")
    return number


def test_tensors_of_all_kinds_arrive_together():
    tree = {
        "float": torch.rand(3, 5).T, "bool": torch.tensor([True, False, True]), "half": torch.rand(3).bfloat16(),
        "long": torch.arange(4), "none": None, "empty": torch.zeros(0, 2), "scalar": torch.tensor(2.5).double(),
        "host": torch.arange(2),
    }  # fmt: skip
    with gpu() as seen:
        moved = {key: x if key == "host" else to_device(x, "cuda") for key, x in tree.items()}
        assert not seen.blocking_copies
        seen.clear()
        back = on_host((moved, [moved["long"]]))
        assert len(seen.copies) == 1 and not seen.blocking_copies
        for key, x in tree.items():
            assert x is None or (torch.equal(back[0][key], x) and back[0][key].dtype == x.dtype), key
        assert back[1][0] is back[0]["long"]


def test_works_on_one_batch_share_its_copies():
    def part(stages: int):
        for _ in range(stages):
            x = yield torch.ones(1, device="cuda")
            assert x.device.type == "cpu"
        return stages

    with gpu() as seen:
        assert list(overlapped([together([part(0), part(1), part(3)])])) == [[0, 1, 3]]
        assert len(seen.copies) == 3


def test_a_copy_is_not_there_before_its_event():
    with gpu() as seen:
        x = torch.arange(3.0).to("cuda")
        memory = torch.empty(3, pin_memory=True)
        memory.copy_(x, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        assert memory.isnan().all() and x.to("cpu", non_blocking=True).isnan().all()
        x + 1
        seen.clear()
        event.synchronize()
        assert memory.tolist() == [0, 1, 2] and not seen.waits
        event.record()
        event.synchronize()
        assert [wait.kind for wait in seen.waits] == [LAST]


def test_a_module_is_copied_to_the_host():
    model = model_of(IMAGE)
    assert module_on_host(model) is model
    with gpu() as seen:
        moved = model_of(IMAGE).to("cuda")
        seen.clear()
        copy = host_copy(moved)
        assert not seen.blocking_copies and {x.device.type for x in moved.state_dict().values()} == {"cuda"}
    for (name, x), y in zip(model.state_dict().items(), copy.state_dict().values(), strict=True):
        assert y.device.type == "cpu" and torch.equal(x, y), name
    assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]
