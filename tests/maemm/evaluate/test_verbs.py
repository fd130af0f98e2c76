import json

import numpy as np
import pytest

import maemm
from maemm import __main__ as cli
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.evaluations import evaluations
from maemm.tasks.knn.run import knn
from maemm.tasks.probe import compare as module
from maemm.tasks.probe.compare import PROTOCOLS
from maemm.tasks.probe.run import probe


def test_a_representation_beside_its_baselines(world):
    found = probe(
        world.run(), world.data(samples=60), test=world.data("test", samples=40, seed=1), baselines=True, seeds=2,
        protocols=["linear", "knn"],
    )  # fmt: skip
    table = str(found).splitlines()
    assert table[0].split() == ["features", "linear", "knn"] and table[1].split() == [
        "largest",
        "class",
        "0.250",
        "0.250",
    ]
    assert [line.split("  ")[0] for line in table[1:5]] == ["largest class", "raw values", "untrained", "trained"]
    assert table[-1] == "60 labelled samples, 40 of the test part; 2 seeds; ± standard deviation over seeds"
    cells = {(one.features, one.protocol): one for one in found.cells}
    assert cells["raw values", "linear"].mean > 0.8  # the task can be solved
    assert cells["untrained", "knn"].std > 0 and cells["trained", "knn"].std is None  # fresh weights for each seed
    assert cells["trained", "linear"].confusion.sum() == 40


def test_folds_seeds_and_spread(world):
    found = probe(world.model(), world.data(samples=60), folds=3, seeds=2)
    (cell,) = found.cells
    assert np.shape(cell.values) == (2, 3) and found.folds == 3 and cell.confusion.sum() == 60
    assert cell.std == pytest.approx(np.std(np.mean(cell.values, 1), ddof=1))
    assert cell.mean == pytest.approx(np.mean(cell.values))
    one = knn(world.model(), world.data(samples=60), folds=3, seeds=1).cells[0]
    assert one.std == pytest.approx(np.std(one.values[0], ddof=1))


def test_groups_make_the_folds(world):
    found = probe(world.model(), world.data(samples=60), groups=r"^\d(\d)", seeds=1)
    assert found.folds == 6
    with pytest.raises(MaemmError, match="folds and a test part are both given"):
        probe(world.model(), world.data(), test=world.data("test", seed=1), folds=3)


def test_few_labels(world):
    found = probe(world.model(), world.data(samples=80), test=world.data("test", seed=1), shots=[1, "50%"], seeds=2)
    assert [one.shots for one in found.cells] == ["1", "50%"]
    assert str(found).splitlines()[0].split("  ")[-1] == "linear, 50% of labels"


def test_few_labels_are_drawn_as_curves(world):
    run = world.run()
    probe(run, world.data(samples=80), shots=[1, 5, "50%"], seeds=2, folds=2, baselines=True)
    (evaluation,) = evaluations(world.folder / "run")
    assert evaluation.curve.count("<svg class=") == 2 and 'class="line main"' in evaluation.curve  # broad and narrow
    for text in ("untrained</span>", "largest class</span>", "50%</text>", "labels (of each class)</text>"):
        assert text in evaluation.curve, text


def test_every_protocol_answers(world):
    found = probe(world.model(), world.data(samples=40), folds=2, seeds=1, protocols=list(PROTOCOLS), epochs=2)
    assert [one.protocol for one in found.cells] == list(PROTOCOLS)
    assert all(0 <= one.mean <= 1 for one in found.cells)
    with pytest.raises(MaemmError, match="unknown protocol 'lin'; choose knn, linear, published, attentive"):
        probe(world.model(), world.data(), protocols=["lin"])


def test_features_are_computed_once(world, monkeypatch):
    run, data, embedded = world.run(), world.data(samples=24), []
    original = module.features
    monkeypatch.setattr(module, "features", lambda *args, **rest: embedded.append(1) or original(*args, **rest))
    first = knn(run, data, folds=2)
    assert len(embedded) == 1
    again = knn(run, data, folds=2)
    assert len(embedded) == 1 and again.record() == first.record()
    knn(run, data, folds=2, pool="cls")
    knn(world.model(seed=1), data, folds=2)
    assert len(embedded) == 3
    world.data(samples=24, seed=5)  # the same file with other content
    knn(run, data, folds=2)
    assert len(embedded) == 4
    for path in (world.folder / "run/features").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert knn(run, data, folds=2).record() and len(embedded) == 5  # a damaged cache is none


def test_samples_on_both_sides_are_told(world, capsys, monkeypatch):
    monkeypatch.chdir(world.folder)
    run, data = world.run(), world.data(samples=40)
    test = world.data("test", samples=20, prefix="x-")
    assert cli.main(["knn", run, data, "--test", test]) == 0
    said = capsys.readouterr().err
    assert "warning: 20 of 20 test samples have the content of a training sample (0 of them its id too)" in said
    found = knn(run, data, test=world.data("other", seed=1))
    assert not found.warnings and found.data["overlap"]["same_name"] == 40  # numbered files often share names


def test_skipped_and_unlabelled_samples_are_counted(world):
    found = knn(world.model(), world.data(samples=40, bad=[1], nan=[2], unlabelled=[5, 6]), folds=2)
    assert found.data["skipped"] == 2 and found.data["labelled"] == 36 and "2 skipped" in str(found)


def test_the_command_line_prints_and_keeps_figures(world, capsys, monkeypatch):
    monkeypatch.chdir(world.folder)
    run, data = world.run(), world.data(samples=40)
    assert cli.main(["probe", run, data, "--folds", "2", "--seeds", "1", "--protocol", "linear,knn", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (path,) = (world.folder / "run/evaluate").glob("probe-*.json")
    kept = json.loads(path.read_text())
    assert kept["results"] == told["results"] and kept["versions"]["maemm"] == maemm.__version__
    assert told["results"][0]["per_class"][0]["class"] == "a" and told["data"]["majority"] == 0.25
    assert cli.main(["probe", run, data, "--folds", "2", "--per-class", "-o", "mine.json"]) == 0
    said = capsys.readouterr().out
    assert "truth \\ answer" in said and (world.folder / "mine.json").is_file()


def test_mistakes_take_one_line(world, capsys, monkeypatch):
    monkeypatch.chdir(world.folder)
    run, data = world.run(), world.data(samples=40)
    numbers = world.data("numbers", samples=12, named=False, unlabelled=list(range(12)))
    for words, message in (
        ([run, data, "--folds", "60"], "40 labelled samples do not make 60 folds"),
        ([run, data, "--test", world.data("t", classes=["a", "x"])], "1 classes that the training part does not know"),
        ([run, world.data("one", classes=["a"])], "all 32 training labels are 'a'"),
        ([run, numbers], "the data have no labels; give all files in a folder per class"),
        ([run, data, "--seeds", "0"], "0 seeds give no metrics"),
        ([run, data, "--shots", "many"], "--shots 'many' is not valid"),
        ([run, data, "--shots", "99"], "--shots needs 99"),
        ([run, data, "--base-lr", "a"], "--base-lr is 'a'"),
        ([run, data, "--batch", "0"], "--batch is 0"),
        ([run, data, "--protocol", "svm"], "unknown protocol 'svm'"),
        ([run, data, "data.lists=x"], "'data.lists' means nothing here"),
        ([run, data, "heads=3"], "heads is already in the recipe"),
        ([run, data, "seeds=2"], "seeds is a flag (override seeds=2); write --seeds 2"),
        ([run, data, "folds=2"], "folds is a flag (override folds=2); write --folds 2"),
        ([run, data, "show=1"], "'show' means nothing here"),
        ([run, data, "verb=knn"], "'verb' means nothing here"),
        ([run, data, "--groups", "["], "is not a regular expression"),
        ([run, "gone.json"], "gone.json"),
    ):
        assert cli.main(["probe", *words]) == 2, words
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said


def test_a_flag_written_as_a_word(world, capsys):
    assert cli.main(["knn", world.run(), world.data(), "k=5"]) == 2
    assert capsys.readouterr().err == "maemm: error: k is a flag (override k=5); write -k 5\n"


def test_nothing_heavy_is_imported_for_help(capsys):
    import subprocess
    import sys

    code = (
        "import sys; from maemm import __main__ as cli; "
        "[cli.main([verb, '--help']) for verb in ('embed', 'knn', 'probe', 'finetune', 'evaluate')]; "
        "assert not {'torch', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--baselines" in done.stdout and "half_block" not in done.stderr
