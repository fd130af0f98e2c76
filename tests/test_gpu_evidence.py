"""The command that gathers evidence on a GPU: with tiny sizes here, ended, failing and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import _evidence_device
import _evidence_pictures
import _evidence_questions
import gpu_evidence
import numpy as np
import pytest
import torch
from _evidence_process import Place, do, in_children, in_process
from _evidence_rows import Book, Row
from _evidence_steps import Steps
from _evidence_tests import outcomes_of

from maemm.train import compiling

from .pretended_gpu.device import gpu

ROWS = """
import os, signal, time

def note(place, text):
    with open(place.work / "calls.txt", "a") as file:
        file.write(text + " ")

def good(settings, place):
    note(place, settings["name"])
    return {"value": settings["value"], "not a number": float("nan")}

def bad(settings, place):
    note(place, "bad")
    place.keep({"half": 1})
    raise ValueError("no such thing")

def hanging(settings, place):
    note(place, "hanging")
    place.keep({"half": 2})
    time.sleep(60)

def dying(settings, place):
    note(place, "dying")
    os.kill(os.getpid(), signal.SIGKILL)

def broken(settings, place):
    note(place, "broken")
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def process(settings, place):
    return {"pid": os.getpid()}
"""


@pytest.fixture
def place(tmp_path, monkeypatch) -> Place:
    """A folder for rows of the module ``own_rows``, which child processes find too."""
    (tmp_path / "own_rows.py").write_text(ROWS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rows", raising=False)
    return Place("cpu", tmp_path)


def good(name: str, **more) -> Row:
    return Row(more.pop("part", "equal"), name, "own_rows:good", {"name": name, "value": 3, **more})


def row(name: str, limit_s: float = 30) -> Row:
    return Row("equal", name, f"own_rows:{name}", {}, limit_s)


def calls(place: Place) -> list[str]:
    return (place.work / "calls.txt").read_text().split()


def gather(rows: list[Row], place: Place, seconds: float = 60, run=in_children, code: str = "v1") -> dict[str, dict]:
    book = Book(place.work / "book.json", code)
    gpu_evidence.gather(rows, book, place, time.monotonic() + seconds, run)
    stored = json.loads((place.work / "book.json").read_text())
    assert len(stored["answers"]) == len(_evidence_questions.QUESTIONS)
    return {row["name"]: row for row in stored["rows"] if row["code"] == code}


# --------------------------------------------------------------------------------------------------- rows and limits
def test_rows_that_fail_hang_or_die_leave_the_others_alone(place):
    rows = [good("first"), row("bad"), row("hanging", 1.0), row("dying"), row("broken"), good("last")]
    made = gather(rows, place)
    assert {name: x["outcome"] for name, x in made.items()} == {
        "first": "ok", "bad": "error", "hanging": "cut", "dying": "error", "broken": "error", "last": "ok",
    }  # fmt: skip
    assert made["first"]["answer"] == {"value": 3, "not a number": "nan"}
    assert made["bad"]["error"] == "ValueError: no such thing" and made["bad"]["answer"] == {"half": 1}
    assert made["hanging"]["answer"] == {"half": 2} and made["hanging"]["why"] == "its own limit"
    assert "status -9" in made["dying"]["error"]
    assert calls(place) == ["first", "bad", "hanging", "dying", "broken", "last"]

    # Started again: what is done is not done again, all else is.
    made = gather(rows, place)
    assert calls(place)[6:] == ["bad", "hanging", "dying", "broken"] and made["last"]["outcome"] == "ok"


def test_a_device_that_failed_is_left_with_its_process(place):
    process = Row("equal", "process", "own_rows:process")
    rows = [Row("equal", f"process {n}", "own_rows:process", {"n": n}) for n in range(2)]
    made = gather([*rows, row("broken"), process], place)
    first, second, third = (made[name]["answer"]["pid"] for name in ("process 0", "process 1", "process"))
    assert first == second != third


def test_other_settings_or_another_version_are_other_rows(place):
    def ask(number: int, code: str = "v1"):
        return gather([good(f"row{number}", number=number)], place, run=in_process, code=code)

    ask(1), ask(1), ask(2)
    assert calls(place) == ["row1", "row2"]
    assert len(ask(1, "v2")) == 1 and calls(place) == ["row1", "row2", "row1"]


@pytest.mark.parametrize("run", [in_process, in_children])
def test_a_part_ends_at_its_share_of_the_time(place, run):
    hanging = [row("hanging", 50), good("left")] if run is in_children else []
    made = gather([*hanging, good("part of the next", part="steps")], place, seconds=12 if hanging else 0, run=run)
    if hanging:  # 2.0 of 5.2 parts of twelve seconds
        assert made["hanging"]["outcome"] == "cut" and made["hanging"]["why"] == "the time of its part"
        assert made["left"]["outcome"] == "left out" and made["part of the next"]["outcome"] == "ok"
    else:
        assert made["part of the next"]["outcome"] == "left out"


def test_a_command_that_was_killed_goes_on(place):
    """SIGKILL: the file is whole and has what was done, the child ends too, and the next start does the rest."""
    script = (
        "import sys, time; sys.path[:0] = sys.argv[2:]\n"
        "import gpu_evidence, pathlib\n"
        "from _evidence_process import Place\nfrom _evidence_rows import Book, Row\n"
        "work = pathlib.Path(sys.argv[1])\n"
        "rows = [Row('equal', 'first', 'own_rows:good', {'name': 'first', 'value': 3}),\n"
        "        Row('equal', 'hanging', 'own_rows:hanging', {}, 1.0), \n"
        "        Row('equal', 'endless', 'own_rows:hanging', {}, 50.0)]\n"
        "gpu_evidence.gather(rows, Book(work / 'book.json', 'v1'), Place('cpu', work), time.monotonic() + 99)\n"
    )
    here = str(Path(gpu_evidence.__file__).parent)
    importable = str(Path(here).parent / "importable")
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(place.work), here, importable], stdout=subprocess.DEVNULL
    )
    calls_file = place.work / "calls.txt"
    while not (calls_file.exists() and calls(place).count("hanging") == 2):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = json.loads((place.work / "book.json").read_text())["rows"]
    assert {row["name"]: row["outcome"] for row in stored} == {"first": "ok", "hanging": "cut"}
    made = gather([good("first"), good("last")], place, run=in_process)
    assert made["first"]["outcome"] == made["last"]["outcome"] == "ok"
    assert calls(place) == ["first", "hanging", "hanging", "last"]


# ------------------------------------------------------------------------------------------------- the whole, tiny
PARTS = ["--parts", "equal", "steps", "loop", "recipes", "cifar"]


@pytest.fixture
def single_thread(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(gpu_evidence, "_device", lambda: "cpu")
    yield
    torch.set_num_threads(before)


def test_all_rows_run_tiny_and_only_once(tmp_path, single_thread, capsys):
    words = ["--tiny", "--in-process", "--out", str(tmp_path / "out.json"), "--work", str(tmp_path), *PARTS]
    report = json.loads(gpu_evidence.main(words).read_text())
    problems = {row["name"]: row.get("error") for row in report["rows"] if row["outcome"] != "ok"}
    assert not problems
    rows = {(row["part"], row["name"].split(",")[-1].strip()): row["answer"] for row in report["rows"]}
    assert rows["steps", "eager"]["mode"] == "eager" and rows["steps", "compiled"]["mode"] == "compiled"
    assert rows["steps", "eager"]["losses"] == pytest.approx(rows["steps", "compiled"]["losses"], rel=1e-4)
    assert rows["steps", "eager"]["gflop_per_sample"] == rows["steps", "compiled"]["gflop_per_sample"] > 0
    resumed = rows["equal", "resume in fp32"]
    assert resumed["stopped"] and resumed["resumed"]["bit_equal"] and resumed["steps"] == 4
    assert (
        rows["equal", "random numbers"]["different"] == 0 and rows["recipes", "image/mae_tiny_cpu"]["difference"] == 0
    )
    assert rows["cifar", "features: raw"]["linear"] == 1.0 and rows["cifar", "pretrain"]["steps"] >= 2
    assert rows["loop", "image/mae_base"]["samples_per_second"] > 0
    answered = {row["question"]: row["answer"] for row in report["answers"]}
    assert len(answered) == len(_evidence_questions.QUESTIONS)
    assert all(text.startswith(_evidence_questions.NO_DEVICE) for text in answered.values())
    assert not any("cannot be read" in text for text in answered.values())
    assert all(question in capsys.readouterr().out for question in [next(iter(answered))])

    again = json.loads(gpu_evidence.main(words).read_text())
    assert [row for row in again["rows"] if row["part"] != "machine"] == [
        row for row in report["rows"] if row["part"] != "machine"
    ]


def test_a_row_that_does_not_run_compiled_says_so(tmp_path, single_thread):
    (compiled,) = [row for row in gpu_evidence.plan(True, 1.0, None) if row.name.endswith("compiled")]
    with torch.compiler.set_stance("force_eager"):
        outcome, more = do(compiled, Place("cpu", tmp_path))
    assert outcome == "ok" and more["answer"]["mode"] == "not compiled"


def test_rows_run_compiled_however_many_came_before(tmp_path, single_thread, monkeypatch):
    """torch compiles a function a limited number of times, after which it runs eagerly, without a word."""
    (compiled,) = [row for row in gpu_evidence.plan(True, 1.0, None) if row.name.endswith("compiled")]
    settings = {**compiled.settings, "compile": True, "backend": "eager"}
    monkeypatch.setattr("maemm.train.compiling.MOST_GRAPHS", 1)
    torch._dynamo.reset()
    with compiling.compiler_settings():
        earlier = [Steps(settings, Place("cpu", tmp_path)) for _ in range(2)]
        outcome, more = do(replace(compiled, settings=settings), Place("cpu", tmp_path))
    assert outcome == "ok" and more["answer"]["mode"] == "compiled" and len(earlier) == 2


@pytest.mark.slow
def test_the_whole_command_on_a_cpu(tmp_path):
    """Child processes, tests and all."""
    command = [
        sys.executable,
        gpu_evidence.__file__,
        "--tiny",
        "--minutes",
        "10.5",
        "--out",
        str(tmp_path / "out.json"),
    ]
    done = subprocess.run([*command, "--work", str(tmp_path / "work")], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out.json").read_text())
    assert {row["outcome"] for row in report["rows"]} == {"ok"}, done.stdout
    assert {row["part"] for row in report["rows"]} == {"machine", *gpu_evidence.SHARES}


# --------------------------------------------------------------------------------- on a GPU, as far as it is pretended
NEEDS_A_DRIVER = {"copies"}  # times of streams


def test_rows_run_on_a_pretended_gpu(tmp_path, single_thread, monkeypatch):
    nothing = {"kernels": 7, "copies": 1, "kernel_seconds": 0.5, "compiled_regions": 0}
    monkeypatch.setattr("_evidence_steps.profile", lambda work, device: work() and nothing)
    chosen = ("random", "optimizer", "plans", "image/mae_tiny_cpu", "image/mae_base, eager")
    rows = [row for row in gpu_evidence.plan(True, 1.0, None) if row.name.startswith(chosen) and row.part != "loop"]
    answers = {}
    for row in rows:
        with gpu() as seen:
            outcome, more = do(row, Place("cuda", tmp_path))
        assert outcome == "ok", (row.name, more)
        answers[row.part, row.name] = more["answer"]
    assert (
        answers["equal", "random numbers"]["different"] == 0
        and answers["equal", "plans: image/mae_tiny_cpu"]["different"] == []
    )
    assert answers["recipes", "image/mae_tiny_cpu"]["waits"] == {}
    assert answers["steps", "image/mae_base, eager"]["busy"] > 0 and seen is not None


def test_waits_are_counted_by_where_they_are():
    """torch warns of them, where its debug mode is on; a warning of something else is none."""
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn_explicit("called a synchronizing CUDA operation", UserWarning, "/a/b/maemm/train/step.py", 7)
        warnings.warn("something else", stacklevel=1)
        seen = _evidence_device.Waits(caught)
        assert seen.counts() == {"maemm/train/step.py:7": 2}
        seen.clear()
        assert seen.counts() == {}


# ------------------------------------------------------------------------------------------------ answers and files
def test_answers_of_a_device_say_yes_and_no():
    def stored(part, name, answer, **settings):
        return {"part": part, "name": name, "settings": settings, "outcome": "ok", "answer": answer}

    rows = [
        stored("equal", "random numbers", {"numbers": 10, "different": 2}),
        stored("recipes", "a", {"waits": {}, "difference": 0.0}, recipe="a"),
        stored("recipes", "b", {"waits": {"maemm/x.py:3": 1}, "difference": 0.5}, recipe="b"),
        stored("recipes", "c", {}) | {"outcome": "cut"},
        stored("steps", "x, compiled", {"mode": "not compiled", "graphs": 0, "graph_breaks": 0}, compile=True),
    ]
    texts = {row["question"]: row["answer"] for row in _evidence_questions.answers(rows, "cuda")}
    assert texts["Are the hash random numbers the same bits on the device?"] == "NO: 2 of 10 numbers differ"
    waits = texts["Is a step of every packaged recipe free of host waits on a real device?"]
    assert waits == "1 of 2 recipes never wait; cut 1; waits of b: maemm/x.py:3 1"
    assert "x, compiled: not compiled" in texts["Do rows called compiled run compiled?"]
    assert texts["Does the loader keep up?"] == "unknown: no answer from part loop"


def test_the_smaller_file_of_pictures_fits_and_keeps_the_parts(tmp_path):
    count = 400
    generator = np.random.default_rng(0)
    size = generator.integers(700, 1100, count)
    np.savez(
        tmp_path / "all.npz",
        jpeg=generator.integers(0, 256, size.sum()).astype(np.uint8),
        offset=np.concatenate([[0], size.cumsum()]),
        label=np.arange(count) % 2,
        train=np.arange(count) < 300,
        number=np.concatenate([np.arange(300) // 2, np.arange(100) // 2]).astype(np.uint16),
        classes=np.array(["a", "b"]),
    )
    made = _evidence_pictures.small_file(tmp_path / "all.npz", tmp_path / "some.npz", 0.2)
    assert (tmp_path / "some.npz").stat().st_size <= 0.2 * 2**20
    assert made["train"] == 5 * made["test"] > 0
    with np.load(tmp_path / "some.npz") as stored, np.load(tmp_path / "all.npz") as whole:
        assert stored["train"].sum() == made["train"] and len(stored["label"]) == sum(made.values())
        assert np.array_equal(stored["jpeg"][: stored["offset"][1]], whole["jpeg"][: whole["offset"][1]])


def test_outcomes_of_tests_are_read_from_a_log_that_was_cut(tmp_path):
    (tmp_path / "log").write_text(
        "collected 9 items\n\ntests/a.py::test_one[a b] PASSED      [ 10%]\ntests/a.py::test_two FAILED  [ 20%]\n"
        "tests/b.py::test_three SKIPPED (needs a CUDA device) [ 30%]\ntests/b.py::test_fo"
    )
    assert outcomes_of(tmp_path / "log") == {
        "tests/a.py::test_one[a b]": "passed", "tests/a.py::test_two": "failed", "tests/b.py::test_three": "skipped",
    }  # fmt: skip


def test_vit_mae_gets_our_batches_and_sizes(tmp_path, single_thread, monkeypatch):
    """transformers itself may be missing: a model of its names takes its place."""
    made = {}

    class Beside(torch.nn.Module):
        def __init__(self, config):
            super().__init__()
            self.vit = torch.nn.Linear(3, 5)
            made.update(config)

        def forward(self, pixel_values):
            made["pixels"] = tuple(pixel_values.shape)
            return types.SimpleNamespace(loss=self.vit(pixel_values.mean((2, 3))).square().mean())

    monkeypatch.setitem(
        sys.modules, "transformers", types.SimpleNamespace(ViTMAEConfig=dict, ViTMAEForPreTraining=Beside)
    )
    (beside,) = [row for row in gpu_evidence.plan(True, 1.0, None) if row.name == "ViTMAE"]
    always_the_same = replace(beside, settings={**beside.settings, "batches": 1})
    outcome, more = do(always_the_same, Place("cpu", tmp_path))
    assert outcome == "ok", more
    assert made["pixels"] == (8, 3, 32, 32) and made["hidden_size"] == 32 and made["image_size"] == 32
    answer = more["answer"]
    assert answer["theirs"]["last_loss"] < answer["theirs"]["first_loss"] and answer["ours"]["samples_per_s"] > 0
    assert answer["encoder_parameters"][1] == 20
