"""One global batch, shared out: a run is the same for any number of processes and any size of micro-batches.

The samples of a step, their augmentations and plans are equal bit for bit. Losses differ by the order in which float32
numbers are summed: over a few steps, each of which builds on the ones before, by up to 2.4e-7 of them where this was
measured; ``TOLERANCE`` is allowed. Dropout and drop path, which torch draws for each rank, are off.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

BATCH, STEPS, TOLERANCE = 8, 4, 2e-6
SMALL = {"dim": 48, "depth": 1, "heads": 2}
#: recipe -> augmentations beyond its own
AUGMENTED = {
    "image/mae_tiny_cpu": {},
    "video/videomae_tiny_cpu": {"modalities.video.aug_repeats": "clip"},
    "audio/audiomae_tiny_cpu": {
        "modalities.audio": {"gain": True, "roll": True, "noise": 0.1, "spec_augment": {"frequency": 8, "time": 12}},
    },
    "pointcloud/point_mae_tiny_cpu": {
        "modalities.pointcloud.augment": {"rotate": "so3", "jitter": 0.01, "dropout": 0.3},
    },
    "signal/tiny_cpu": {"modalities.signal": {"gain": [0.8, 1.2], "shift": 8, "drop_channel": 0.3}},
    "cav/cav_mae_tiny_cpu": {
        "modalities.audio": {"noise": 0.1, "roll": True},
        "modalities.image": {"crop": {"scale": [0.6, 1.0], "ratio": [0.9, 1.1]}, "flip": True},
    },
}  # fmt: skip
#: recipe -> why it has one micro-batch for each process: its samples see each other
COUPLED = {
    "pointcloud/point_mae_tiny_cpu": "statistics of the batch",
    "cav/cav_mae_tiny_cpu": "a contrast of all pairs",
}


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The folder of small sample sets, by modality."""
    from maemm import registry

    folder = tmp_path_factory.mktemp("samples")
    for kind in ("image", "video", "audio", "pointcloud", "signal"):
        registry.find("samples", kind)(folder / kind, count=STEPS * BATCH + 3)
    return folder


def recipe_of(name, samples, out=None, micro_batch=None):
    from maemm import config

    kind = name.partition("/")[0]
    packaged = config.load(name, {})
    small = {
        f"{part}.{key}": value
        for part in ("encoder", "decoder")
        for key, value in SMALL.items()
        if key in packaged[part]
    }
    added = {}
    for path, options in AUGMENTED[name].items():
        nested = path.count(".") == 1 and isinstance(options, dict)
        added |= {f"{path}.{key}": value for key, value in options.items()} if nested else {path: options}
    train = {
        "train.epochs": None, "train.steps": STEPS, "train.warmup_epochs": 0, "train.batch": BATCH,
        "train.micro_batch": micro_batch, "train.log_every": 1, "train.picture_every": 1000,
        "data.root": str(samples if kind == "cav" else samples / kind), "data.workers": 0,
        # Adam divides a gradient that is 0 but for rounding by itself: such weights would take steps of their own.
        "train.optimizer": {"type": "sgd", "momentum": 0.9}, "train.base_lr": None, "train.lr": 0.02,
    }  # fmt: skip
    return config.load(name, {**small, **added, **train, "out": None if out is None else str(out)}, training=True)


# ------------------------------------------------------------------------------- samples, augmentations and plans
def tensors_of(value, path=""):
    """(path, tensor) of all tensors in a ModalityInput, a mapping or a sequence."""
    if isinstance(value, Tensor):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_of(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors_of(inner, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from tensors_of(inner, f"{path}.{number}")


def planned_rows(state, source, recipe, step, world):
    """({path of a tensor: its rows in the global batch}, names of the samples) of a step of ``world`` ranks."""
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_loader, make_order
    from maemm.train.step import plan_micro_batches

    rows: dict[str, list[Tensor]] = {}
    names, counts = [], {}
    for rank in range(world):
        loader = make_loader(recipe, source, make_order(recipe, source, DistContext(rank=rank, world_size=world)))
        ((_, batches),) = loader.steps(step, step + 1)
        planned = plan_micro_batches(state, step, batches)
        for inputs, ids in zip(planned.inputs, planned.ids, strict=True):
            names += ids
            for path, tensor in tensors_of(inputs):
                if len(tensor) == len(ids):  # not what is the same for all, such as coordinates of a grid
                    rows.setdefault(path, []).append(tensor)
        for term, count in planned.counts.items():
            counts[term] = counts.get(term, 0) + count
    return {path: torch.cat(parts) for path, parts in rows.items()}, names, counts


@pytest.mark.parametrize("name", AUGMENTED)
def test_samples_augmentations_and_plans_are_equal_bit_for_bit(name, samples):
    from maemm.data.open import open_parts
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    recipe = recipe_of(name, samples)
    source = open_parts(recipe)[0]
    state = make_train_state(recipe, STEPS, 1, DistContext())
    whole, names, counts = planned_rows(state, source, recipe, 1, 1)
    assert any(path.endswith("plan.visible") for path in whole) and any("preprocessed.x" in path for path in whole)
    another, _, _ = planned_rows(state, source, recipe, 2, 1)
    assert not any(torch.equal(whole[path], another[path]) for path in whole if path.endswith("plan.visible"))
    for world, micro_batch in [(1, 4), (1, 2), (2, None), (2, 2), (4, None)]:
        shared = recipe_of(name, samples, micro_batch=micro_batch)
        rows, same_names, same_counts = planned_rows(state, source, shared, 1, world)
        assert same_names == names and same_counts == counts and rows.keys() == whole.keys()
        differ = [path for path, tensor in whole.items() if not torch.equal(tensor, rows[path])]
        assert not differ, (world, micro_batch, differ)


# ------------------------------------------------------------------------------------------------ losses of a run
def losses_of(out):
    return [json.loads(line)["loss"] for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def _train_all(environment, samples, folder, names, micro_batch):
    """On one rank: train the recipes, one after the other."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.train.distributed import joined
    from maemm.train.loop import train

    with joined():
        for name in names:
            train(recipe_of(name, samples, Path(folder, name), micro_batch), echo=lambda line: None)


def in_processes(count, *arguments):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("forkserver")
    environments = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    ranks = [context.Process(target=_train_all, args=(each, *arguments)) for each in environments]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert codes == [0] * count


@pytest.fixture(scope="module")
def alone(samples, tmp_path_factory):
    """``alone(name)``: the losses of one process with one batch."""
    from maemm.train.loop import train

    made = {}

    def losses(name):
        if name not in made:
            out = tmp_path_factory.mktemp("alone")
            made[name] = losses_of(train(recipe_of(name, samples, out / "run"), echo=lambda line: None))
            still = recipe_of(name, samples, out / "still")
            still["train"]["lr"] = 1e-9
            untrained = losses_of(train(still, echo=lambda line: None))
            assert untrained[0] == made[name][0] and abs(made[name][-1] / untrained[-1] - 1) > 1000 * TOLERANCE
        return made[name]

    return losses


@pytest.mark.parametrize("name", [name for name in AUGMENTED if name not in COUPLED])
def test_micro_batches_train_as_one_batch(name, samples, alone, tmp_path):
    from maemm.train.loop import train

    out = train(recipe_of(name, samples, tmp_path / "run", 2), echo=lambda line: None)
    assert losses_of(out) == pytest.approx(alone(name), rel=TOLERANCE)


def test_two_processes_train_every_modality_as_one(samples, alone, tmp_path):
    in_processes(2, samples, tmp_path, list(AUGMENTED), None)
    for name in AUGMENTED:
        assert losses_of(tmp_path / name) == pytest.approx(alone(name), rel=TOLERANCE), name


@pytest.mark.slow
@pytest.mark.parametrize(("count", "micro_batch"), [(4, None), (2, 2)])
def test_so_do_four_and_two_with_micro_batches(count, micro_batch, samples, alone, tmp_path):
    names = [name for name in AUGMENTED if micro_batch is None or name not in COUPLED]
    in_processes(count, samples, tmp_path, names, micro_batch)
    for name in names:
        assert losses_of(tmp_path / name) == pytest.approx(alone(name), rel=TOLERANCE), name
