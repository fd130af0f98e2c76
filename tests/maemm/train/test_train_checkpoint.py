import errno
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm.contract.errors import MaemmError
from maemm.train import checkpoint
from maemm.weights.checkpoints import damage, stamp


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def no_meta(path):
    (path.parent / "meta.json").unlink()


def cut_meta(path):
    half(path.parent / "meta.json")


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(half, "bytes, not"), (flip, "SHA-256"), (no_meta, "meta.json"), (cut_meta, "meta.json")]
    + [(lambda path: path.unlink(), "is missing")],
)
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt"])
def test_a_damaged_checkpoint_is_passed_over(toys, harm, reason, name):
    toys.train(train__epochs=2, train__save_every=4)
    whole = toys.weights()
    last = toys.out / "checkpoints/step-000008"
    harm(last / name)
    toys.train(train__epochs=2, train__save_every=4)
    assert f"{last} is damaged" in toys.lines[0] and reason in toys.lines[0]
    assert "resuming from step 4" in toys.lines
    assert damage(last) is None
    assert all(torch.equal(value, whole[key]) for key, value in toys.weights().items())


def test_a_half_written_one_is_swept_away(toys):
    toys.train(train__epochs=1, train__warmup_epochs=0)
    last = toys.out / "checkpoints/step-000004"
    shutil.copytree(last, last.with_name(".step-000006.tmp"))
    (last.with_name(".step-000006.tmp") / "meta.json").unlink()
    toys.train(train__epochs=2, train__warmup_epochs=0)
    assert sorted(path.name for path in last.parent.iterdir()) == ["step-000004", "step-000008"]


def test_all_damaged_is_an_error_not_a_new_start(toys):
    toys.train(train__epochs=2)
    half(toys.out / "checkpoints/step-000008/model.safetensors")
    with pytest.raises(MaemmError, match="all 1 checkpoints of the run are damaged"):
        toys.train(train__epochs=2)


def test_only_the_newest_are_kept(toys):
    toys.train(train__save_every=3, train__keep=3)
    names = sorted(path.name for path in (toys.out / "checkpoints").iterdir())
    assert names == ["step-000027", "step-000030", "step-000032"]


@pytest.mark.parametrize("where", ["torch.save", "maemm.train.checkpoint.save", "os.fsync", "os.replace"])
def test_a_full_disk_leaves_the_old_checkpoint(toys, monkeypatch, where):
    toys.train(train__epochs=1, train__warmup_epochs=0)
    old = toys.weights()

    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where != "os.replace":
        monkeypatch.setattr(where, full)
    else:
        replace = checkpoint.os.replace
        monkeypatch.setattr(where, lambda a, b: full() if str(a).endswith(".tmp") and a.is_dir() else replace(a, b))
    with pytest.raises(MaemmError, match=r"step 8 cannot be written .*No space left on device\); free space"):
        toys.train(train__epochs=2, train__warmup_epochs=0)
    monkeypatch.undo()
    assert [path.name for path in (toys.out / "checkpoints").iterdir()] == ["step-000004"]
    assert all(torch.equal(value, old[key]) for key, value in toys.weights().items())


def test_a_file_system_that_is_really_full(toys, tmp_path):
    """A size limit of this process: the kernel refuses each write behind it, wherever it comes from."""
    resource = pytest.importorskip("resource")
    import signal

    toys.train(train__epochs=1, train__warmup_epochs=0)
    size = (toys.out / "checkpoints/step-000004/optimizer.pt").stat().st_size
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, before[1]))
        with pytest.raises(MaemmError, match=r"step 8 cannot be written .*optimizer|step-000008: "):
            toys.train(train__epochs=2, train__warmup_epochs=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in (toys.out / "checkpoints").iterdir()] == ["step-000004"]


def test_a_checkpoint_loads_as_a_model(toys):
    toys.train(train__epochs=1, train__warmup_epochs=0)
    model = maemm.load(toys.out)
    state = load_file(toys.out / "checkpoints/step-000004/model.safetensors")
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.recipe["train"]["lr"] == 1e-3


def test_the_optimiser_file_is_not_unpickled_freely(toys):
    toys.train(train__epochs=2)
    last = toys.out / "checkpoints/step-000008"

    class Evil:
        def __reduce__(self):
            return (open, (str(toys.out / "evil"), "w"))

    torch.save({"optimizer": Evil()}, last / "optimizer.pt")
    meta = json.loads((last / "meta.json").read_text())
    meta["files"]["optimizer.pt"] = stamp(last / "optimizer.pt")
    (last / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(MaemmError, match="optimizer.pt"):
        toys.train(train__epochs=3)
    assert not (toys.out / "evil").exists()


def test_more_than_a_million_steps_are_in_order(tmp_path):
    for step in (999_999, 1_000_000, 5):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert [path.name for path in checkpoint.steps_in(tmp_path)] == ["step-1000000", "step-999999", "step-000005"]
