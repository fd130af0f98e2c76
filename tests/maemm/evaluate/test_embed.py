import json
import sys

import numpy as np
import pytest

from maemm import __main__ as cli
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.feature_files import concatenated
from maemm.tasks.embed import run as module
from maemm.tasks.embed.run import embed


def test_the_three_formats_hold_the_same(world):
    run, data = world.run(), world.data(samples=20, bad=[3], unlabelled=[5])
    made = [embed(run, data, world.folder / f"f.{end}") for end in ("npz", "safetensors", "parquet")]
    assert str(made[0]).startswith("19 embeddings (marks 16), 1 skipped (list: ")
    listed = (world.folder / "f.npz.skipped.jsonl").read_text()
    assert json.loads(listed) == {"index": 3, "id": "003", "reason": "ValueError: broken on purpose"}
    plain = np.load(world.folder / "f.npz")
    expected = features(world.model(), world.source(samples=20, bad=[3], unlabelled=[5]))["marks"]
    assert np.array_equal(plain["marks"], expected.x) and plain["ids"].tolist() == expected.ids
    assert np.array_equal(plain["labels"], expected.labels) and plain["classes"].tolist() == ["a", "b", "c", "d"]

    from safetensors import safe_open

    with safe_open(world.folder / "f.safetensors", "np") as file:
        assert np.array_equal(file.get_tensor("marks"), expected.x)
        assert json.loads(file.metadata()["ids"]) == expected.ids

    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(world.folder / "f.parquet").to_pydict()
    assert table["id"] == expected.ids and np.array_equal(np.array(table["marks"], np.float32), expected.x)
    assert table["label"][4] is None and table["class"][0] == "a"
    assert not list(world.folder.glob(".f.*"))


def test_tokens(world):
    embed(world.run(), world.data(samples=5), world.folder / "t.npz", tokens=True, batch=2)
    assert np.load(world.folder / "t.npz")["marks"].shape == (5, 4, 16)


@pytest.mark.parametrize("rows", [8, 3])
def test_an_interrupted_pass_goes_on(world, monkeypatch, rows):
    run, data = world.run(), world.data(samples=30, bad=[2, 20])
    whole = embed(run, data, world.folder / "whole.npz", batch=4)
    monkeypatch.setattr(module, "CHUNK_ROWS", rows)

    def stop(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(run, data, world.folder / "f.npz", batch=4, on_progress=stop)
    assert not (world.folder / "f.npz").exists()
    seen = []
    made = embed(run, data, world.folder / "f.npz", batch=4, on_progress=lambda *at: seen.append(at))
    assert made.resumed >= 12 and seen[0][0] > made.resumed and seen[-1] == (30, 30)
    one, other = np.load(world.folder / "whole.npz"), np.load(world.folder / "f.npz")
    assert sorted(one.files) == sorted(other.files)
    for name in one.files:
        if name == "marks":
            np.testing.assert_allclose(one[name], other[name], atol=1e-6)
        else:
            assert np.array_equal(one[name], other[name]), name
    assert made.skipped == whole.skipped and "of them from before" in str(made)


def test_an_unfinished_file_of_other_weights_is_not_gone_on_with(world):
    run, data = world.run(), world.data(samples=30)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(run, data, world.folder / "f.npz", batch=4, on_progress=stop)
    with pytest.raises(MaemmError, match="holds an unfinished embedding of other weights, data or options"):
        embed(world.model(seed=1), data, world.folder / "f.npz")
    with pytest.raises(MaemmError, match="unfinished embedding of other"):
        embed(run, data, world.folder / "f.npz", pool="cls")


def test_chunks_of_another_width_are_no_table():
    chunks = [{"ids": np.array(["a"]), "m": np.zeros((1, width), np.float32)} for width in (3, 4)]
    with pytest.raises(MaemmError, match=r"features of 'm' differ in width \(3 to 4\)"):
        concatenated(lambda: chunks)


def test_mistakes_take_one_line(world, monkeypatch, capsys):
    run, data = world.run(), world.data()
    (world.folder / "there.npz").touch()
    for words, message in (
        ([run, data, "-o", "there.npz"], "exists; choose another name or remove it"),
        ([run, data, "-o", "f.mat"], "has no known ending; write to a .npz, .safetensors or .parquet file"),
        ([run, data], "no file to write is given; add -o features.npz"),
        ([run, "nowhere.json", "-o", "f.npz"], "nowhere.json"),
        (["nowhere", data, "-o", "f.npz"], "no such weights: nowhere"),
        ([run, data, "-o", "f.npz", "--layers", "9"], "the encoder has no layers [9]"),
        ([run, data, "-o", "f.npz", "--pool", "best"], "unknown pool 'best'"),
        ([run, world.data("bad", samples=2, bad=[0, 1]), "-o", "g.npz"], "none of 2 samples gave features"),
    ):
        monkeypatch.chdir(world.folder)
        assert cli.main(["embed", *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MaemmError, match=r"pip install 'maemm\[parquet\]'"):
        embed(run, data, world.folder / "f.parquet")


def test_the_command_line(world, capsys, monkeypatch):
    monkeypatch.chdir(world.folder)
    assert cli.main(["embed", world.run(), world.data(samples=6), "-o", "f.npz", "--tokens", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "file": "f.npz", "embeddings": 6, "features": {"marks": [4, 16]}, "skipped": 0
    }  # fmt: skip
