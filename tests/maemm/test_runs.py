"""``maemm runs``: the table of whatever lies in a folder, the best checkpoint, and runs side by side."""

import json
import os
import subprocess
import sys
import time

import pytest

import maemm
from maemm import config
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.data.locks import folder_locked, is_locked
from maemm.tasks.runs.best import value_at
from maemm.tasks.runs.ends import End, offset_after, row_of
from maemm.tasks.runs.listing import table
from maemm.train.figures import higher_is_better

RECIPE = "modalities:\n  image: {size: 8}\nstages: null\nout: x\nname: image/tiny\n"
HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(60)
"""


def row(step, steps=100, loss=None, **more):
    return {"step": step, "steps": steps, "loss": 1 / step if loss is None else loss, **more}


def lines(rows):
    return "".join(json.dumps(values) + "\n" for values in rows)


def make(path, rows=(), recipe=RECIPE, checkpoints=(), best=None, end=None):
    """A run folder as training leaves it, but for the contents of its weights."""
    path.mkdir(parents=True)
    if recipe is not None:
        (path / "recipe.yaml").write_text(recipe)
    if rows:
        (path / "metrics.jsonl").write_text(lines(rows))
    for step in checkpoints:
        whole(path / "checkpoints" / f"step-{step:06d}", {"step": step})
    if best is not None:
        whole(path / "best", best)
    if end is not None:
        (path / "end.json").write_text(json.dumps(end))
    return path


def whole(folder, about):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"12345678")
    files = {"model.safetensors": {"bytes": 8, "sha256": ""}}
    (folder / "meta.json").write_text(json.dumps({**about, "files": files}))


def states(root):
    return {run.name: run.state for run in maemm.runs(root)}


# ------------------------------------------------------------------------------------------------------------ ls
def test_states(tmp_path):
    make(tmp_path / "done", [row(50), row(100)])
    make(tmp_path / "killed", [row(50)])
    make(tmp_path / "early", [row(50)], end={"state": "finished", "step": 50, "reason": None})
    make(tmp_path / "interrupted", [row(50)], end={"state": "stopped", "step": 55, "reason": None})
    make(tmp_path / "error", [row(50)], end={"state": "failed", "step": 52, "reason": "the disk is full"})
    make(tmp_path / "stale", [row(70)], end={"state": "failed", "step": 52, "reason": "before it went on"})
    make(tmp_path / "nan", [row(40), {**row(50), "loss": None}])
    make(tmp_path / "new")
    assert states(tmp_path) == {
        "done": "finished", "killed": "stopped", "early": "finished", "interrupted": "stopped", "error": "failed",
        "stale": "stopped", "nan": "failed", "new": "not begun",
    }  # fmt: skip
    runs = {run.name: run for run in maemm.runs(tmp_path)}
    assert runs["interrupted"].step == 55 and runs["error"].note == "the disk is full"
    assert runs["nan"].note == "the loss is not finite" and runs["nan"].loss is None
    assert runs["done"].loss == 0.01 and runs["done"].recipe == "image/tiny"


def test_a_run_whose_lock_is_held_is_running(tmp_path):
    folder = make(tmp_path / "a", [row(50)])
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        assert states(tmp_path) == {"a": "running"}
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert states(tmp_path) == {"a": "stopped"}


def test_looking_does_not_free_the_lock_of_this_process(tmp_path):
    folder = make(tmp_path / "a", [row(50)])
    with folder_locked(folder, user="run", log=print):
        assert states(tmp_path) == {"a": "running"}
        tried = subprocess.run([sys.executable, "-c", HOLDER, str(folder / ".lock")], capture_output=True)
        assert tried.returncode == 1 and b"BlockingIOError" in tried.stderr
    assert not is_locked(folder / ".lock") and not is_locked(tmp_path / "missing")


def test_what_is_broken_is_a_line_with_its_reason(tmp_path, monkeypatch):
    make(tmp_path / "half", [row(50)])
    with (tmp_path / "half/metrics.jsonl").open("a") as file:
        file.write('{"step": 60, "lo')
    make(tmp_path / "empty", [])
    (tmp_path / "empty/metrics.jsonl").touch()
    make(tmp_path / "junk")
    (tmp_path / "junk/metrics.jsonl").write_bytes(b"\x00\xff\n[1]\n{}\n")
    make(tmp_path / "no_recipe", [row(50)], recipe=None)
    make(tmp_path / "bad_recipe", recipe="a: [1\nmodalities:\n")
    make(tmp_path / "empty_recipe", recipe="")
    make(tmp_path / "folder")
    (tmp_path / "folder/metrics.jsonl").mkdir()
    make(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe/metrics.jsonl")
    make(tmp_path / "denied", [row(50)])
    real = os.scandir

    def scandir(path):
        if str(path).endswith("denied"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    runs = {run.name: run for run in maemm.runs(tmp_path)}
    assert (runs["half"].state, runs["half"].step) == ("stopped", 50)
    assert runs["empty"].state == "not begun" and runs["folder"].state == "not begun"
    broken = {
        "junk": "no line of a run",
        "bad_recipe": "not valid YAML",
        "empty_recipe": "is empty",
        "pipe": "pipe or a device",
        "denied": "Permission denied",
    }
    for name, reason in broken.items():
        assert runs[name].state == "broken" and reason in runs[name].note, name
    assert runs["no_recipe"].state == "stopped" and runs["no_recipe"].note == "no recipe.yaml"
    assert "Permission denied" in table(list(runs.values()))


def test_foreign_folders_and_links(tmp_path):
    root, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    make(root / "a", [row(100)])
    make(elsewhere / "b", [row(100)])
    (root / "notes/checkpoints").mkdir(parents=True)
    (root / "notes/text.txt").write_text("x")
    (root / ".hidden").mkdir()
    make(root / ".hidden/c", [row(100)])
    (root / "again").symlink_to(root / "a")
    (root / "circle").symlink_to(root)
    (root / "dangling").symlink_to(tmp_path / "nothing")
    (root / "self").symlink_to(root / "self")
    (root / "other").symlink_to(elsewhere)
    assert states(root) == {"a": "finished", "other/b": "finished"}
    assert states(root / "a") == {"a": "finished"}
    (tmp_path / "none").mkdir()
    assert maemm.runs(tmp_path / "none") == []
    for missing in (tmp_path / "nothing", root / "a/recipe.yaml", "a\0b"):
        with pytest.raises(MaemmError, match="give the folder of your runs"):
            maemm.runs(missing)


def test_stages_and_trials_are_listed(tmp_path):
    stages = RECIPE.replace("stages: null", "stages:\n  first: {}\n  second: {}")
    make(tmp_path / "two", recipe=stages)
    make(tmp_path / "two/first", [row(100)])
    assert states(tmp_path) == {"two": "stopped", "two/first": "finished"}
    make(tmp_path / "two/second", [row(100)])
    make(tmp_path / "ablate/ratio-0.5/seed-0", [row(100)])
    assert states(tmp_path) == {
        "two": "finished", "two/first": "finished", "two/second": "finished", "ablate/ratio-0.5/seed-0": "finished",
    }  # fmt: skip
    sizes = {run.name: run.bytes for run in maemm.runs(tmp_path)}
    assert sizes["two"] == len(stages)  # without those inside


def test_figures_of_the_table(tmp_path, capsys):
    measured = row(
        90, validation={"accuracy": 0.5, "loss": 0.7}, monitor={"image.knn": 0.25, "image.effective_rank": 9}
    )
    make(tmp_path / "a", [measured, row(100)], best={"step": 80, "validation": {"accuracy": 0.75, "loss": 0.6}})
    make(tmp_path / "b", [measured, row(100)])
    assert main(["runs", "ls", str(tmp_path)]) == 0
    head, a, b = capsys.readouterr().out.splitlines()
    assert "accuracy 0.75 at 80" in a and "accuracy 0.5 " in b and "kNN 0.25  rank 9" in a and "100/100" in a
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["name"] for record in records] == ["a", "b"] and records[0]["values"]["validation.accuracy"] == 0.5
    assert main(["runs", "ls", str(tmp_path / "a/best")]) == 0 and "no runs below" in capsys.readouterr().out


def test_a_thousand_runs_take_a_second_or_two(tmp_path):
    """Also where a file has gigabytes: only its end is read."""
    text = lines(row(step, terms={"reconstruct.image": 0.5}, lr=1e-4) for step in range(1, 101))
    for number in range(1000):
        folder = make(tmp_path / f"group-{number % 10}" / f"run-{number}", checkpoints=[100])
        (folder / "metrics.jsonl").write_text(text)
    with (folder / "metrics.jsonl").open("r+b") as file:
        file.seek(1 << 34)  # a hole
        file.write(b"\n" + text.encode())
    began = time.process_time()
    runs = maemm.runs(tmp_path)
    seconds = time.process_time() - began
    assert len(runs) == 1000 and {run.state for run in runs} == {"finished"} and seconds < 3


# ---------------------------------------------------------------------------------------------------------- ends
@pytest.mark.parametrize("count", [0, 1, 2, 7, 100])
def test_the_last_row_up_to_a_step_is_found(tmp_path, count):
    path = tmp_path / "metrics.jsonl"
    rows = [row(3 * number + 1, text="x" * (number * 37 % 90)) for number in range(count)]
    path.write_text(lines(rows).replace("\n", "\nnot a row\n", 3) + '{"step": 1')
    for step in range(0, 3 * count + 5):
        expected = max((values["step"] for values in rows if values["step"] <= step), default=None)
        newest = next(End(path, offset_after(path, step)).rows(), None)
        assert (newest or {}).get("step") == expected


def test_rows_are_those_of_runs():
    rows = (b"", b"[]", b"{}", b'{"step": "1"}', b'{"step": true}', b'{"step": -1}', b"{", b'{"step": 1e3}')
    assert [row_of(line) for line in rows] == [None] * 8
    assert row_of(b'{"step": 3}') == {"step": 3}


# ---------------------------------------------------------------------------------------------------------- best
@pytest.fixture
def three(tmp_path):
    """a has the best loss, b the best validation, c both, but its checkpoints are not whole."""
    about = {"accuracy": 0.5}
    make(tmp_path / "a", [row(50, loss=0.3), row(100, loss=0.1, validation=about)], checkpoints=[50, 100])
    best = {"step": 30, "validation": {"accuracy": 0.9}}
    values = [row(30, loss=0.6, validation=best["validation"]), row(100, loss=0.4, validation=about, lr=3)]
    make(tmp_path / "b", values, checkpoints=[100], best=best)
    make(tmp_path / "c", [row(100, loss=0.0, validation={"accuracy": 1.0})], checkpoints=[100])
    (tmp_path / "c/checkpoints/step-000100/model.safetensors").write_bytes(b"1234")
    return tmp_path


def test_the_best_checkpoint(three):
    best = maemm.runs_best(three)
    assert (best.path, best.key, best.value, best.step) == (three / "b/best", "validation.accuracy", 0.9, 30)
    assert maemm.runs_best(three, "accuracy").path == best.path
    loss = maemm.runs_best(three, "loss")
    assert (loss.path, loss.value, loss.runs) == (three / "a/checkpoints/step-000100", 0.1, 2)
    assert maemm.runs_best(three, "loss", highest=True).path == three / "b/best"
    assert maemm.runs_best(three, "lr", highest=False).path == three / "b/checkpoints/step-000100"
    assert value_at(three / "a", "loss", 70) == (0.3, 50)
    with pytest.raises(MaemmError, match=r"add --max or --min"):
        maemm.runs_best(three, "lr")
    with pytest.raises(MaemmError, match=r"did you mean 'validation.accuracy'"):
        maemm.runs_best(three, "validation.acuracy")
    with pytest.raises(MaemmError, match=r"there are loss, validation.accuracy"):
        maemm.runs_best(three, "something")


def test_the_best_on_the_command_line(three, capsys):
    assert main(["runs", "best", str(three)]) == 0
    out, errors = capsys.readouterr()
    assert out == f"{three / 'b/best'}\n" and "the best of 2 runs" in errors
    assert main(["runs", "best", str(three), "--by", "lr", "--min", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 100


def test_words_that_mean_nothing(three, capsys):
    wrong = [
        ["ls", "--by", "loss"], ["compare", "a", "b", "--max"], ["best", ".", "--max", "--min"], ["ls", "a", "b"],
        ["lss"], ["ls", "a=1"], [], ["compare", "a"],
    ]  # fmt: skip
    for words in wrong:
        assert main(["runs", *words]) == 2
        out, errors = capsys.readouterr()
        assert not out and errors.count("\n") == 1 and ";" in errors and "internal" not in errors, words


def test_directions():
    assert higher_is_better("validation.accuracy") and higher_is_better("monitor.image.knn")
    assert higher_is_better("loss") is False is higher_is_better("terms.reconstruct.image")
    assert higher_is_better("lr") is None


# ------------------------------------------------------------------------------------------------------- compare
@pytest.fixture
def pair(tmp_path):
    """Two runs of one recipe with other learning rates, measured at other steps; the first is longer."""
    for name, lr, every, last in (("a", 0.1, 10, 200), ("b", 0.2, 15, 120)):
        recipe = config.dump(config.load("image/mae_tiny_cpu", {"train.lr": lr, "out": name}))
        rows = [row(step, loss=lr * step, validation={"loss": lr}) for step in range(every, last + 1, every)]
        make(tmp_path / "sweep" / name, rows, recipe=recipe)
    (tmp_path / "sweep/a/report.html").write_text("x")
    return tmp_path / "sweep"


def test_runs_side_by_side(pair):
    comparison = maemm.runs_compare(pair / "a", pair / "b", page=pair / "pages/compare.html")
    assert comparison.differences() == [("train.lr", ["0.1", "0.2"])]
    assert [run.name for run in comparison.runs] == ["a", "b"]
    assert comparison.at_equal_steps("loss") == [
        (step, [pytest.approx(0.1 * step), pytest.approx(0.2 * step)]) for step in (30, 60, 90, 120)
    ]
    assert comparison.best("loss") == [(1.0, 10), (3.0, 15)]
    page = (pair / "pages/compare.html").read_text()
    assert page.count("<svg class") >= 4 and "train.lr" in page and 'href="../a/report.html"' in page
    assert "step 120" in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")
    text = str(comparison)
    assert "train.lr" in text and "step 120" in text and not comparison.notes


def test_a_comparison_as_json(pair, capsys):
    assert main(["runs", "compare", str(pair / "a"), str(pair / "b"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["recipe"] == {"train.lr": {"a": "0.1", "b": "0.2"}}
    assert [line["step"] for line in record["metrics"]["validation.loss"]] == [30, 60, 90, 120]


def test_runs_that_have_little_in_common(pair, tmp_path):
    """Another plugin's recipe, no common step, no recipe at all, and lines of a run that had no figures yet."""
    foreign = "modalities:\n  sonar: {size: 3}\nencoder: {type: vit}\n"
    make(tmp_path / "sonar", [row(7, loss=1.0)], recipe=foreign)
    make(tmp_path / "bare", [{**row(7), "loss": None}], recipe=None)
    comparison = maemm.runs_compare(pair / "a", tmp_path / "sonar", tmp_path / "bare")
    notes = "\n".join(comparison.notes)
    assert "sonar: its recipe is compared as it stands" in notes and "no step at which all of them have loss" in notes
    assert ("modalities.sonar.size", ["-", "3", "-"]) in comparison.differences()
    assert str(comparison)


def test_what_cannot_be_compared(pair, tmp_path):
    stages = make(tmp_path / "two", recipe=RECIPE.replace("stages: null", "stages:\n  first: {}"))
    for folders, text in {
        (pair / "a", pair / "a"): "given twice",
        (pair / "a", pair): "holds no run",
        (pair / "a", pair / "c"): "there is no run folder",
        (pair / "a", stages): "several stages",
    }.items():
        with pytest.raises(MaemmError, match=text):
            maemm.runs_compare(*folders)
    with pytest.raises(MaemmError, match="is a folder"):
        maemm.runs_compare(pair / "a", pair / "b", page=pair)


def test_listing_imports_no_torch(pair):
    code = "import sys, maemm; maemm.runs(sys.argv[1]); maemm.runs_best; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(pair)], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
