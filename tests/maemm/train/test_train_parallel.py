"""Weights in shards on several ranks: the numbers of one process, its checkpoints, and those of any other kind."""

import json
import shutil
import socket
import time

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

SHORT = {"train__epochs": 2, "train__save_every": 4, "train__keep": 9, "train__ema": 0.9, "train__clip_grad": 1.0}


def run(toys, out, kind, world, **overrides):
    """Train with ``kind`` on ``world`` processes; (losses, weights, averaged weights)."""
    shard = {"train__shard": 2} if kind == "hsdp" else {}
    recipe = toys.recipe(out, **{**SHORT, "train__parallel": kind, **shard, **overrides})
    started = toys.start(recipe, processes=world)
    for process in started if world > 1 else [started]:
        assert process.wait(600) == 0, process.said()
    return toys.metrics(out), toys.weights(out), toys.weights(out, "ema.safetensors")


def largest(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name].float() - b[name].float()).abs().max()) for name in a)


def close(result, reference):
    assert [row["loss"] for row in result[0]] == pytest.approx([row["loss"] for row in reference[0]], rel=1e-5)
    assert [row["grad_norm"] for row in result[0]] == pytest.approx([r["grad_norm"] for r in reference[0]], rel=1e-4)
    assert largest(result[1], reference[1]) < 2e-4 and largest(result[2], reference[2]) < 2e-4  # of steps of 1e-3
    return True


def without_newest(toys, source, out):
    """A copy of a run whose last checkpoint is missing."""
    shutil.copytree(source, out)
    shutil.rmtree(sorted((out / "checkpoints").glob("step-*"))[-1])
    return out


def test_shards_train_what_one_process_does_and_any_ranks_go_on_from_them(toys, tmp_path):
    """Of two ranks: equal to one process within rounding, resumed bit for bit, and by one process and one of ddp."""
    reference = run(toys, tmp_path / "one", "ddp", 1)
    whole = run(toys, tmp_path / "two", "fsdp", 2, train__async_save=True, train__save_every=3)
    assert close(whole, reference)
    half = run(toys, tmp_path / "half", "fsdp", 2)
    assert largest(half[1], whole[1]) == 0.0 and half[0] == whole[0]
    checkpoint = tmp_path / "half" / "checkpoints" / "step-000004"
    files = json.loads((checkpoint / "meta.json").read_text())["files"]
    assert sorted(name for name in files if "/" in name) == [
        f"shards/shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)
    ]
    assert not list(checkpoint.rglob("*.pt.tmp")) and torch.load(checkpoint / "optimizer.pt", weights_only=True)

    again = without_newest(toys, tmp_path / "half", tmp_path / "again")
    assert run(toys, again, "fsdp", 2)[1:] and largest(toys.weights(again), whole[1]) == 0.0
    assert toys.metrics(again) == whole[0]
    one = without_newest(toys, tmp_path / "half", tmp_path / "half1")
    assert close(run(toys, one, "ddp", 1), whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind, world", [("fsdp", 3), ("fsdp", 4), ("hsdp", 4), ("ddp", 3)])
def test_other_numbers_of_ranks(toys, tmp_path, kind, world):
    options = {"train__batch": 12, "train__validate_every": 3, "data__validation": 0.2, "train__monitor": {"every": 3}}
    reference = run(toys, tmp_path / "one", "ddp", 1, **options)
    assert close(run(toys, tmp_path / "whole", kind, world, **options), reference)
    one = without_newest(toys, tmp_path / "one", tmp_path / "more")
    assert close(run(toys, one, kind, world, **options), reference)  # from a checkpoint of one process
    back = without_newest(toys, tmp_path / "whole", tmp_path / "back")
    assert close(run(toys, back, "ddp", 2, **options), reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"train__micro_batch": 2},
        {"train__activation_checkpointing": True, "train__micro_batch": 4},
        {"train__compile": "blocks"},
        {"train__optimizer": {"type": "sgd", "weight_decay": 0.01}, "train__lr": 0.1},
        {"train__optimizer": {"type": "lars", "weight_decay": 0.01}, "train__lr": 1.0},
        {"train__optimizer": "muon"},
        {"train__spikes": {"window": 8}, "data__source__loud": [3], "modalities__toy__normalize": "none"}
        | {"train__log_every": 2},
        {"train__spikes": {"window": 8, "action": "rewind"}, "data__source__loud": [3]}
        | {"modalities__toy__normalize": "none", "train__async_save": True},
        {"modalities__toy__target": {"type": "ema", "momentum": 0.9, "loss": "smooth_l1", "layers": 1}},
        {"train__average": 1, "train__ema": None},
        {"objectives": {"adversary": {}}},
    ],
    ids=str,
)
def test_with_everything_else(toys, tmp_path, options):
    options = {"train__layer_decay": 0.8, "train__final_weight_decay": 0.2, **options}
    reference = run(toys, tmp_path / "one", "ddp", 1, **options)
    assert close(run(toys, tmp_path / "two", "fsdp", 2, **options), reference)


# --------------------------------------------------------------------------------------------------- one process
@pytest.fixture
def mesh(monkeypatch):
    """One rank that is a world of its own, so that everything is a shard."""
    from torch.distributed.device_mesh import init_device_mesh

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()


def test_shards_of_whole_tensors_are_those_that_torch_makes(mesh):
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from maemm.train.sharding import shard_like

    values = torch.randn(5, 3)
    for placement in (Shard(0), Shard(1), Replicate()):
        like = distribute_tensor(torch.zeros(5, 3), mesh, [placement])
        part = shard_like(values, like)
        assert isinstance(part, DTensor) and torch.equal(part.full_tensor(), values)
        assert torch.equal(part.to_local(), distribute_tensor(values, mesh, [placement]).to_local())
    assert shard_like(values, torch.zeros(5, 3)) is values


@pytest.mark.parametrize(
    "options, message",
    [
        ({"train__shard": 2}, "train.shard is for train.parallel=hsdp"),
        ({"train__parallel": "sharded"}, "train.parallel"),
    ],
)
def test_settings_that_cannot_be(toys, options, message):
    from maemm.contract.errors import MaemmError

    with pytest.raises(MaemmError, match=message):
        toys.train(**options)


def test_what_shards_cannot_do_is_refused(toys, mesh):
    from maemm.contract.errors import MaemmError
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    context = DistContext(mesh=mesh)
    with pytest.raises(MaemmError, match="one graph of the whole model"):
        make_train_state(toys.recipe(train__parallel="fsdp", train__compile=True), 4, 1, context)
    adversary = {"reconstruct": {}, "adversarial": {"weight": 0.1}}
    with pytest.raises(MaemmError, match="objectives.adversarial trains weights in two phases"):
        make_train_state(toys.recipe(train__parallel="fsdp", objectives=adversary), 4, 1, context)


def test_averages_are_sharded_as_the_model_is(toys, mesh):
    """Also where a phase has parameters that every rank keeps whole."""
    from maemm.train.distributed import DistContext
    from maemm.train.setup import make_train_state

    recipe = toys.recipe(train__parallel="fsdp", train__ema=0.9, objectives={"adversary": {}})
    state = make_train_state(recipe, 4, 1, DistContext(mesh=mesh))
    whole = [
        {name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)}
        for model in (state.model, state.ema_model)
    ]
    assert whole[0] == whole[1] and all(name.startswith("objectives.adversary.critic.") for name in whole[0])
    assert whole[0] and len(whole[0]) < len(list(state.model.parameters()))


def test_a_checkpoint_whose_shards_are_damaged_is_passed_over(toys, tmp_path):
    run(toys, tmp_path / "run", "fsdp", 2, train__epochs=1, train__save_every=2)
    newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
    shard = next((newest / "shards").iterdir())
    shard.write_bytes(shard.read_bytes()[:-7])
    toys.train(toys.recipe(tmp_path / "run", **SHORT))
    assert any("is damaged" in line and shard.name in line for line in toys.lines)


def test_saves_in_a_thread_hold_what_training_was(toys, tmp_path, monkeypatch):
    """Writing is slow, so that training goes on meanwhile; the checkpoint is that of its step all the same."""
    from maemm.train import checkpoint

    write = checkpoint.write

    def slowly(*args, **options):
        time.sleep(0.3)
        return write(*args, **options)

    toys.train(toys.recipe(tmp_path / "at_once", **SHORT))
    monkeypatch.setattr(checkpoint, "write", slowly)
    toys.train(toys.recipe(tmp_path / "meanwhile", **SHORT, train__async_save=True))
    for step in ("step-000004", "step-000008"):
        folders = [tmp_path / run / "checkpoints" / step for run in ("at_once", "meanwhile")]
        for name in ("model.safetensors", "ema.safetensors"):
            a, b = (load_file(folder / name) for folder in folders)
            assert all(torch.equal(a[key], b[key]) for key in a), name
        a, b = (torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"]["state"] for folder in folders)
        assert all(torch.equal(a[index][key], b[index][key]) for index in a for key in a[index])


def test_a_save_that_fails_in_the_thread_ends_the_run_at_the_next(toys, tmp_path, monkeypatch):
    from maemm.contract.errors import MaemmError
    from maemm.train import checkpoint

    def refuse(folder, step, *args, **options):
        raise checkpoint._cannot_write(folder, step, OSError(28, "No space left on device"))

    monkeypatch.setattr(checkpoint, "write", refuse)
    with pytest.raises(MaemmError, match="the checkpoint of step 4 cannot be written .*No space left"):
        toys.train(toys.recipe(tmp_path / "run", **SHORT, train__async_save=True))
