"""What seeded command lines and damaged runs have shown, each as the kind that it is of."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from maemm import config
from maemm.__main__ import main
from maemm.data.bad_samples import BadSampleLog
from maemm.tasks._shared.inputs import evenly_spaced
from maemm.tasks._shared.run_files import read_run
from maemm.train import run_folder
from maemm.train.logging import MetricsFile
from maemm.train.loop import train
from maemm.ui.streams import readable, warn
from maemm.weights.checkpoints import step_of, steps_in
from tests.maemm.faults.conftest import RECIPE
from tests.maemm.faults.fuzz_damage import restamp


def refused(capsys, *argv):
    """The line of a command that is refused."""
    assert main(list(argv)) == 2
    out, errors = capsys.readouterr()
    (line,) = errors.splitlines()
    assert not out and "internal" not in line
    return line.removeprefix("maemm: error: ")


LONG = "x" * 5000


@pytest.mark.parametrize(
    "argv",
    [
        [LONG],
        [f"--{LONG}"],
        ["config", "show", LONG],
        ["config", LONG],
        ["convert", "missing", LONG],
        ["knn", "missing", f"{LONG}=3"],
        ["knn", "missing", "data", "--groups", LONG, "-k", LONG],
        ["embed", "missing", f"heads={LONG}", "-o", "x.npz"],
        ["demo", f"{LONG}=1"],
        ["plugins", "show", LONG],
        ["data", "check", "missing", "--recipe", LONG],
        ["show", LONG],
    ],
)
def test_messages_do_not_repeat_thousands_of_letters(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(refused(capsys, *argv)) < 700


@pytest.mark.parametrize("word", ["decoder=\x00", "a\x1b[31m=1", "\u202eabc=1", "heads=\x07", "a\x00b"])
def test_control_characters_are_escaped_in_messages(word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, "convert", "missing", "x.safetensors", word).isprintable()


def test_words_that_people_read_stay_as_they_are(capsys):
    line = f"cannot write runs/{'a' * 200}/Größe.npz ({'b' * 250}); choose another path"
    assert readable(line) == line
    warn(f"one\ntwo \x00{LONG}")
    first, second = capsys.readouterr().err.splitlines()
    assert first == "maemm: warning: one" and second.startswith(r"two \x00xxx") and len(second) < 200


@pytest.mark.parametrize("verb", ["embed", "knn", "probe", "evaluate", "retrieve", "score", "diagnose"])
def test_a_setting_of_weights_is_no_parameter_of_our_own(verb, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = {"embed": ["-o", "x.npz"], "score": ["-o", "x.csv"]}.get(verb, [])
    line = refused(capsys, verb, str(own_run / "run"), str(own_run / "few.npz"), "decoder=x", *words)
    assert line.startswith("decoder is already in the recipe of")


VERBS_THAT_WRITE = {
    "embed": ["{run}", "{data}", "-o"],
    "score": ["{run}", "{data}", "-o"],
    "knn": ["{run}", "{data}", "-o"],
    "probe": ["{run}", "{data}", "-o"],
    "evaluate": ["{run}", "{data}", "-o"],
    "reconstruct": ["{run}", "{data}", "-o"],
    "show": ["{data}", "-o"],
    "diagnose": ["{run}", "{data}", "-o"],
    "convert": ["{run}"],
    "export": ["{run}", "--to", "safetensors", "--force", "-o"],
    "data": ["check", "{data}", "-o"],
}


@pytest.mark.parametrize("verb", VERBS_THAT_WRITE)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_device_is_not_replaced_by_a_file(verb, kind, own_run, tmp_path, monkeypatch, capsys):
    """As root ``-o /dev/null`` would take it away from everybody."""
    monkeypatch.chdir(tmp_path)
    out = Path("out")
    os.mkfifo(out) if kind == "pipe" else out.symlink_to("/dev/null")
    words = [word.format(run=own_run / "run", data=own_run / "few.npz") for word in VERBS_THAT_WRITE[verb]]
    assert "is a pipe or a device" in refused(capsys, verb, *words, "out")
    assert out.is_fifo() or out.is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("folds", ["17", "9223372036854775808", "1", "0"])
def test_more_folds_than_samples_are_refused_before_there_is_a_run_for_each(folds, own_run, tmp_path, capsys):
    out = tmp_path / "runs"
    words = [str(own_run / "run"), str(own_run / "few.npz"), f"out={out}", "data.classes=2", "train.epochs=1"]
    line = refused(capsys, "finetune", *words, "train.warmup_epochs=0", "--folds", folds)
    assert "folds" in line and not out.exists()


def test_a_run_with_quite_another_recipe_names_some_of_the_keys(own_run, tmp_path):
    old = config.load(own_run / "run", training=True)
    new = config.load(sorted(config.packaged())[0], training=True)
    changed = len(config.diff(old, new))
    assert changed > 20
    with pytest.raises(config.MaemmError, match=r"and \d+ more keys\); choose another out=") as error:
        run_folder.compare(tmp_path, old, new, print)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize(("name", "value"), [("model.safetensors", float("nan")), ("ema.safetensors", float("inf"))])
def test_a_checkpoint_that_is_not_finite_gives_way_to_the_one_before(name, value, own_run, tmp_path):
    run = tmp_path / "run"
    changes = {"out": str(run), "train.save_every": 1, "train.ema": 0.5}
    steps = [{**changes, "train.steps": count} for count in (2, 3)]
    train(config.load(own_run / "run", steps[0], training=True), echo=lambda line: None)
    newest, older = steps_in(run / "checkpoints")[:2]
    with safe_open(newest / name, "pt") as file:
        metadata = file.metadata()
    state = load_file(newest / name)
    state["encoder.norm.bias"][0] = value
    save_file(state, newest / name, metadata=metadata)
    restamp(newest)
    lines = []
    train(config.load(own_run / "run", steps[1], training=True), echo=lines.append)
    said = "\n".join(map(str, lines))
    assert f"{newest} cannot be used (the weights in {name} hold values that are no finite numbers" in said
    assert f"resuming from step {step_of(older)}" in said
    assert load_file(steps_in(run / "checkpoints")[0] / name)["encoder.norm.bias"].isfinite().all()


# ---------------------------------------------------------------------------------------- pipes and devices as files
class _Waited(BaseException):
    """Not an Exception, so that nothing takes it for its own."""


@pytest.fixture
def pipes(own_run, tmp_path, monkeypatch):
    """A folder with a run, data, pipes of several endings and links to a device; opening a pipe would wait for ever."""

    def stop(number, frame):
        raise _Waited

    monkeypatch.chdir(tmp_path)
    shutil.copytree(own_run / "run", "run")
    shutil.copy(own_run / "few.npz", "few.npz")
    for ending in ("npz", "npy", "csv", "txt", "json", "yaml", "h5"):
        os.mkfifo(f"pipe.{ending}")
        Path(f"zero.{ending}").symlink_to("/dev/zero")
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield tmp_path
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", ["pipe", "zero"])
@pytest.mark.parametrize(
    "argv",
    [
        ["embed", "run", "{}.npz", "-o", "x.npz"],
        ["embed", "run", "{}.npy", "-o", "x.npz"],
        ["embed", "run", "{}.csv", "-o", "x.npz"],
        ["knn", "run", "few.npz", "--test", "{}.npz"],
        ["score", "run", ".", "data.list={}.txt", "-o", "x.csv"],
        ["data", "check", ".", "--recipe", "audio/audiomae_base", "data.list={}.json"],
        ["data", "check", "{}.h5", "--recipe", "pointcloud/point_mae"],
        ["pretrain", "run", "out=new", "data.validation={}.npz"],
        ["pretrain", "{}.yaml"],
        ["config", "cat", "{}.yaml"],
        ["show", "few.npz", "--recipe", "{}.yaml"],
    ],
)
def test_a_pipe_or_device_is_not_read_as_a_file(name, argv, pipes, capsys):
    line = refused(capsys, *(word.format(name) for word in argv))
    assert "is a pipe or a device" in line, line
    assert "Errno" not in line


@pytest.mark.parametrize("name", ["metrics.jsonl", "bad_samples.jsonl", "recipe.yaml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_a_run_whose_own_files_are_none_is_refused_in_a_line(name, kind, pipes, capsys):
    (pipes / "run" / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(pipes / "run" / name)
    elif kind == "device":
        (pipes / "run" / name).symlink_to("/dev/zero")
    else:
        (pipes / "run" / name).mkdir()
    changes = {"out": str(pipes / "run"), "data.root": str(pipes / "few.npz"), "train.steps": 2}
    recipe = config.load(RECIPE, changes, training=True)
    with pytest.raises(config.MaemmError) as error:
        train(recipe, echo=lambda line: None)
    assert name in str(error.value) and ";" in str(error.value) and "\n" not in str(error.value)
    read_run(pipes / "run")  # for a page, which is made all the same


LINES = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a": ' * 900 + b"1" + b"}" * 900,
    "a step of 400 digits": b'{"step": 1' + b"0" * 400 + b"}",
    "a loss of 400 digits": b'{"step": 1, "loss": 1' + b"0" * 400 + b"}",
    "zeros, as after a power failure": b"\0" * (3 << 20),
    "no UTF-8": b'{"step": 1, "x": "\xff"}',
    "no object": b"[1]",
}


@pytest.mark.parametrize("line", LINES)
def test_a_line_that_no_run_wrote_ends_neither_a_run_nor_its_page(line, tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b'{"step": 1, "loss": 0.5}\n' + LINES[line] + b'\n{"step": 3, "loss": 0.4}\n{"step": 4')
    rows = read_run(tmp_path)
    assert {row["step"] for row in rows.rows} >= {1, 3}
    assert rows.column("loss")[0]
    MetricsFile(file).rewind(3)
    assert [json.loads(line)["step"] for line in file.read_bytes().splitlines()][-1] == 3
    (tmp_path / "bad_samples.jsonl").write_bytes(b'{"id": "a"}\n' + LINES[line] + b'\n{"id": "b"}\n{"id"')
    assert len(BadSampleLog(tmp_path / "bad_samples.jsonl", 1, 9)) == 2


@pytest.mark.parametrize(("total", "count"), [(20, 10**30), (20, 20), (7, 3), (0, 5), (5, 1)])
def test_more_samples_than_there_are_is_all_of_them(total, count):
    rows = evenly_spaced(total, count)
    assert rows == sorted(set(rows)) and len(rows) == min(total, count) and all(0 <= row < total for row in rows)


# ------------------------------------------------------------------------------- a recipe that came with the weights
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data", 1.5),
        ("data", [1]),
        ("train", "x"),
        ("data.mix", [1]),
        ("data.mix", {"a": 3}),
        ("data.source", {"type": 3}),
        ("data.source", [1]),
        ("data.workers", -1),
    ],
)
@pytest.mark.parametrize("words", [["embed", "{}", "-o", "x.npz"], ["score", "{}", "few.npz", "-o", "x.csv"]])
def test_what_a_stored_recipe_says_of_data_is_checked(key, value, words, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(own_run / "few.npz", "few.npz")
    weights = steps_in(own_run / "run/checkpoints")[0] / "model.safetensors"
    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
    header = json.loads(metadata["maemm"])
    section, _, name = key.partition(".")
    if name:
        header["recipe"][section][name] = value
    else:
        header["recipe"][section] = value
    save_file(load_file(weights), "w.safetensors", metadata={"maemm": json.dumps(header)})
    line = refused(capsys, *(word.format("w.safetensors") for word in words))
    assert section in line or "part" in line
