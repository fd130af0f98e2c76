"""Trackers: what reaches them, and that nothing they do reaches the run."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from maemm.contract.errors import MaemmError
from maemm.train import tracking
from maemm.train.delivery import Delivered, values_of
from maemm.train.run_folder import RunFolder

DOCS = Path(__file__).parents[3] / "docs"
EIGHT = {"train__epochs": None, "train__steps": 8, "train__warmup_epochs": 0}


def notes(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def steps(path, method="log"):
    return [note[1] for note in notes(path) if note[0] == method]


def until_noted(run, path):
    """Wait until a run in another process has reported a step."""
    until = time.monotonic() + 60
    while not path.exists() or not steps(path):
        assert time.monotonic() < until and run.process.is_alive(), run.said()
        time.sleep(0.01)


@pytest.fixture
def pictures(toys, monkeypatch):
    """A run draws after every fourth step: a tiny picture."""

    def draw(model, batches, path, **rest):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (3, 2)).save(path)

    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", draw)
    return {"train__picture_every": 4}


@pytest.fixture
def alarming():
    """A monitor, and a model about which it raises an alarm."""
    return {"train__monitor__every": 4, "modalities__toy__position": "none"}


@pytest.fixture
def noted(tmp_path):
    return tmp_path / "notes.jsonl"


@pytest.fixture
def tracked(toys, noted):
    """Recipe overrides: eight steps that are reported to a file."""
    return EIGHT | {"train__trackers": {"notes": {"file": str(noted)}}}


def test_all_that_a_run_writes_down_arrives(toys, tracked, noted, pictures, alarming):
    """Lines with validation and monitor, alarms, pictures, the recipe, and the end; the losses are those without."""
    toys.train(**tracked, **pictures, **alarming, data__validation=0.25, train__validate_every=4)
    begin, *others, end = notes(noted)
    assert begin[:3] == ["begin", None, 0] and begin[4] == 16 and end == ["end", "finished"]
    assert steps(noted) == list(range(1, 9))
    last = next(note[2] for note in others if note[:2] == ["log", 8])
    row = json.loads((toys.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last == values_of(row) and last["loss"] == row["loss"]
    assert {"terms/reconstruct.toy", "validation/loss", "monitor/toy.effective_rank"} < set(last)
    alarms = [alarm for line in (toys.out / "metrics.jsonl").read_text().splitlines()
              for alarm in json.loads(line).get("alarms") or []]  # fmt: skip
    assert [note[2] for note in others if note[0] == "alarm"] == [alarm["cause"] for alarm in alarms] != []
    assert [note[1:] for note in others if note[0] == "picture"] == [[4, "step-000004.png"], [8, "step-000008.png"]]
    assert not any(line.startswith("tracker") for line in toys.lines)
    saved = Delivered.read(toys.out / "trackers/notes.json")
    assert (saved.id, saved.step, saved.end) == ("first", 8, "finished")


def test_a_run_with_a_tracker_learns_the_same(toys, tracked):
    toys.train(**EIGHT, out=toys.out.with_name("alone"))
    toys.train(**tracked)
    assert toys.metrics() == toys.metrics(toys.out.with_name("alone"))


def test_kills_and_rewinds_give_every_step_once(toys, tracked, noted):
    """Killed between two checkpoints and started again: one run of the tracker, in which each step stands once."""
    recipe = toys.recipe(**(tracked | {"train__steps": 200, "train__save_every": 40}))
    run = toys.start(recipe)
    until_noted(run, noted)
    run.kill()
    done = len(toys.metrics())
    assert done < 200
    toys.train(recipe)
    ids = [note[1] for note in notes(noted) if note[0] == "begin"]
    assert ids[0] is None and set(ids[1:]) == {"first"}
    assert steps(noted) == list(range(1, 201))
    assert notes(noted)[-1] == ["end", "finished"]


def test_a_tracker_that_fails_is_told_of_once_and_gets_the_rest_later(toys, tracked, noted, monkeypatch):
    noted.with_name("FAIL").touch()
    tracked["train__trackers"]["notes"]["fail"] = "log"
    toys.train(**tracked)
    lines = [line for line in toys.lines if line.startswith("tracker notes")]
    assert 1 <= len(lines) <= 2 and all("no route to host" in line for line in lines)
    assert "lack what came after step 0" in lines[-1] and any("Finished 8 steps" in line for line in toys.lines)
    noted.with_name("FAIL").unlink()
    toys.train(**tracked)
    assert "is finished" in toys.lines[0] and len(toys.lines) == 1
    assert steps(noted) == list(range(1, 9)) and notes(noted)[-1] == ["end", "finished"]
    toys.train(**tracked)
    assert steps(noted) == list(range(1, 9))  # nothing is sent twice


def test_a_tracker_that_hangs_is_left_behind(toys, tracked, noted, monkeypatch):
    noted.with_name("HANG").touch()
    tracked["train__trackers"]["notes"]["hang"] = "begin"
    with monkeypatch.context() as impatient:
        impatient.setattr(tracking, "GRACE_S", 0.5)
        impatient.setattr(tracking, "SAID_AFTER_S", 1.0)
        toys.train(**tracked)
    assert sum("tracker notes may lack what came after step 0" in line for line in toys.lines) == 1
    assert any("Finished 8 steps" in line for line in toys.lines)
    noted.with_name("HANG").unlink()
    toys.train(**tracked)
    assert steps(noted) == list(range(1, 9))


def test_a_stopped_run_says_so_and_goes_on(toys, tracked, noted):
    tracked |= {"train__steps": 400}
    run = toys.start(toys.recipe(**tracked))
    until_noted(run, noted)
    os.kill(run.pid, signal.SIGTERM)
    assert run.wait() == 143
    until = time.monotonic() + 60
    while notes(noted)[-1] != ["end", "stopped"]:  # on a busy machine after the run itself
        assert time.monotonic() < until, notes(noted)[-1]
        time.sleep(0.05)
    assert json.loads((toys.out / "end.json").read_text())["state"] == "stopped"
    toys.train(**(tracked | {"train__steps": steps(noted)[-1] + 4}))
    assert steps(noted) == list(range(1, steps(noted)[-1] + 1)) and notes(noted)[-1] == ["end", "finished"]


def test_a_run_that_begins_anew_with_another_recipe_is_another_run(toys, tracked, noted):
    failing = tracked | {"train__lr": 1e30, "train__max_nonfinite": 1, "train__clip_grad": None}
    with pytest.raises(MaemmError):
        toys.train(**failing)
    assert notes(noted)[-1] == ["end", "failed"] if noted.exists() else True
    end = json.loads((toys.out / "end.json").read_text())
    assert end["state"] == "failed" and "finite" in end["reason"]


def test_what_is_wrong_is_said_before_training(toys, noted):
    wrong = {
        "wandbb": "did you mean 'wandb'",
        "not_here": "pip install 'no-such-package'",
        "notes": "file",
        3: "train.trackers",
    }
    for tracker, text in wrong.items():
        options = {"file": str(noted)} if tracker == "not_here" else {}
        value = {"type": tracker, **options} if isinstance(tracker, str) else tracker
        with pytest.raises(MaemmError, match=re.escape(text)) as caught:
            toys.train(**EIGHT, train__trackers=value)
        assert "\n" not in str(caught.value)
    assert not (toys.out / "metrics.jsonl").exists()


def test_the_forms_of_the_key(toys, noted):
    spec = {"type": "notes", "file": str(noted)}
    for value in (spec, [spec], {"notes": {"file": str(noted)}}, {"notes": spec, "wandb": None}):
        recipe = toys.recipe(train__trackers=value)
        assert recipe["train"]["trackers"] == {"notes": spec}
    two = toys.recipe(train__trackers=["wandb", {"type": "notes", "file": "x"}])["train"]["trackers"]
    assert two == {"wandb": {"type": "wandb"}, "notes": {"type": "notes", "file": "x"}}
    assert toys.recipe()["train"]["trackers"] is None
    with pytest.raises(MaemmError, match="given twice"):
        toys.recipe(train__trackers=["wandb", "wandb"])


def test_without_a_tracker_nothing_is_started(toys, monkeypatch):
    monkeypatch.setattr(tracking._Process, "_start", None)
    toys.train(**EIGHT)
    assert not (toys.out / "trackers").exists()


def test_trackers_may_change_in_a_run(toys, tracked, noted):
    """One that is added later gets the lines from the first on."""
    toys.train(**(EIGHT | {"train__steps": 4}))
    toys.train(**tracked)
    assert steps(noted) == list(range(1, 9))


def test_tensorboard_has_every_step_once(toys, pictures, alarming):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    short = {"train__tensorboard": True, "train__save_every": 4, **pictures, **alarming}
    toys.train(**(EIGHT | short | {"train__steps": 6}))
    for folder in (toys.out / "checkpoints").glob("step-000006"):  # goes on from step 4
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    toys.train(**(EIGHT | short))
    events = EventAccumulator(str(toys.out / "tensorboard")).Reload()
    drawn = [(image.step, image.width, image.height) for image in events.Images("pictures")]
    assert drawn == [(4, 3, 2), (6, 3, 2), (8, 3, 2)]
    assert "alarms/no_positions" in events.Tags()["tensors"]
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == list(range(1, 9))
    assert [event.value for event in losses] == pytest.approx([row["loss"] for row in toys.metrics()])
    assert "terms/reconstruct.toy" in events.Tags()["scalars"] and "step" not in events.Tags()["scalars"]


def test_the_documented_tracker(toys, make_plugin, tmp_path, monkeypatch):
    """The plugin of the page is what its reader would write; its package is a stand-in here."""
    text = (DOCS / "runs.md").read_text(encoding="utf-8")
    manifest, module = re.findall(r"```python\n(.*?)```", text, re.S)[:2]
    fake = tmp_path / "fake" / "mlflow.py"
    fake.parent.mkdir()
    fake.write_text(
        "import json, types\n"
        f"def note(*values): open({str(tmp_path / 'calls')!r}, 'a').write(json.dumps(values) + '\\n')\n"
        "def set_tracking_uri(uri): note('uri', uri)\n"
        "def set_experiment(name): note('experiment', name)\n"
        "def start_run(run_id=None, run_name=None):\n"
        "    note('run', run_id, run_name)\n"
        "    return types.SimpleNamespace(info=types.SimpleNamespace(run_id='abc'))\n"
        "def log_dict(value, name): note('dict', name)\n"
        "def log_metrics(values, step): note('metrics', step, len(values))\n"
        "def set_tag(key, text): note('tag', key)\n"
        "def log_artifact(path, folder): note('artifact', folder)\n"
        "def end_run(status): note('end', status)\n"
    )
    monkeypatch.syspath_prepend(str(fake.parent))
    make_plugin("mlflow_tracker", **{"__init__.py": manifest, "tracker.py": module})
    for steps_done in (4, 8):
        toys.train(**(EIGHT | {"train__steps": steps_done, "train__trackers": {"mlflow": {"experiment": "e"}}}))
    calls = notes(tmp_path / "calls")
    assert [call[1] for call in calls if call[0] == "metrics"] == list(range(1, 9))
    assert [call[1] for call in calls if call[0] == "run"] == [None, "abc"]
    assert [call[1] for call in calls if call[0] == "end"] == ["FINISHED", "FINISHED"]


def test_what_does_not_keep_up_is_told_of_once(toys, tmp_path):
    """A process that has died, and one that takes nothing."""

    class Died:
        stdin = None

        def poll(self):
            return self.status

    for status, text in ((3, "its process has ended"), (None, "it has taken nothing for 120 s, after step 0")):
        lines = []
        process = tracking._Process("notes", "notes", RunFolder(tmp_path), lines.append)
        process.process, process.last, process.current_at = Died(), 1, time.monotonic() - 121
        process.process.status = status
        for step in (2, 3):
            process.after(step)
        assert len(lines) == 1 and text in lines[0]


def test_other_ranks_report_nothing(toys, tracked, tmp_path):
    recipe = toys.recipe(**tracked)
    assert not tracking.Trackers(recipe, RunFolder(tmp_path), print, works=False).trackers
    assert list(tracking.Trackers(recipe, RunFolder(tmp_path), print).trackers) == ["notes"]


@pytest.mark.slow
def test_two_ranks_report_once(toys, tracked, noted):
    for run in toys.start(toys.recipe(**tracked), processes=2):
        assert run.wait(240) == 0, run.said()
    assert [note[0] for note in notes(noted)].count("begin") == 1 and steps(noted) == list(range(1, 9))


def test_a_finished_run_needs_no_tracker(toys):
    toys.train(**EIGHT)
    toys.train(**EIGHT, train__trackers={"type": "not_here", "file": "x"})
    assert "is finished" in toys.lines[0] and "nothing is sent to trackers" in toys.lines[1]


@pytest.mark.slow
def test_wandb_of_which_everything_is_killed(toys):
    """The process of the tracker too: what wandb had not written yet is sent again, and nothing else."""
    pytest.importorskip("wandb")
    from maemm.train.trackers.wandb import _steps_in

    options = {"train__trackers": {"wandb": {"project": "p", "mode": "offline"}}, "train__save_every": 50}
    recipe = toys.recipe(**(EIGHT | options | {"train__steps": 1500}))
    run, state = toys.start(recipe), toys.out / "trackers/wandb.json"
    until = time.monotonic() + 100
    while Delivered.read(state).step < 5:
        assert time.monotonic() < until and run.process.is_alive(), run.said()
        time.sleep(0.01)
    os.killpg(int((toys.out / "trackers/.wandb.lock").read_text().split()[1]), signal.SIGKILL)
    run.kill()
    sent = Delivered.read(state)
    toys.train(recipe)
    assert Delivered.read(state).id == sent.id and not any(line.startswith("tracker") for line in toys.lines)
    files = sorted((toys.out / "trackers").glob(f"wandb/offline-run-*-{sent.id}/*.wandb"))
    assert len(files) == 2 and [step for file in files for step in _steps_in(file)] == list(range(1, 1501))


def test_wandb_offline(toys, pictures, alarming):
    """Two starts are one run, in whose files each step stands once, with pictures."""
    pytest.importorskip("wandb")
    from maemm.train.trackers.wandb import _steps_in

    options = {"train__trackers": {"wandb": {"project": "p", "mode": "offline"}}, "train__save_every": 4}
    options |= pictures | alarming
    for steps_done in (6, 8):
        toys.train(**(EIGHT | options | {"train__steps": steps_done}))
        assert not any(line.startswith("tracker") for line in toys.lines), toys.lines
    name = Delivered.read(toys.out / "trackers/wandb.json").id
    files = sorted((toys.out / "trackers").glob(f"wandb/offline-run-*-{name}/*.wandb"))
    assert len(files) == 2 and [step for file in files for step in _steps_in(file)] == list(range(1, 9))
    drawn = sorted(path.name for file in files for path in file.parent.glob("files/media/images/*.png"))
    assert [re.match(r"pictures_(\d+)_", name)[1] for name in drawn] == ["4", "6", "8"]


def test_wandb_that_reaches_nobody(toys, monkeypatch):
    """A server that accepts connections and never answers."""
    pytest.importorskip("wandb")
    import socket

    with socket.socket() as server, monkeypatch.context() as silent:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        silent.setattr(tracking, "GRACE_S", 5.0)
        silent.setenv("WANDB_API_KEY", "a" * 40)
        silent.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        toys.train(**EIGHT, train__trackers={"wandb": {"mode": "online"}})
    assert sum("tracker wandb may lack" in line for line in toys.lines) == 1
    monkeypatch.setenv("WANDB_MODE", "offline")
    toys.train(**EIGHT, train__trackers={"wandb": {}})
    assert Delivered.read(toys.out / "trackers/wandb.json").step == 8


def test_values_of_a_line():
    row = {"step": 3, "loss": None, "lr": 0.1, "terms": {"a": 1.0, "b": None}, "alarms": [{"cause": "x"}]}
    assert values_of(row) == {"lr": 0.1, "terms/a": 1.0}


def test_what_was_sent_is_read_whatever_the_file_holds(tmp_path):
    for text in ("", "[]", '{"step": "x", "id": 3}', "{", '{"step": true, "picture": 4}'):
        (tmp_path / "x.json").write_text(text)
        assert Delivered.read(tmp_path / "x.json").id is None
    assert Delivered.read(tmp_path / "missing.json") == Delivered()
