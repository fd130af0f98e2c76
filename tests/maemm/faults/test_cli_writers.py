"""One writer at a time, whole files or none, in every verb that writes; several processes of one command."""

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import maemm
from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.data import locks
from maemm.data.locks import folder_locked, locked, one_writer
from maemm.tasks import VERBS
from maemm.tasks.embed import run as embed_run
from maemm.ui.processes import only_rank0

HOLD = """
import sys, time
from pathlib import Path
from maemm.data.locks import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
WRITERS = {  # verb: (words, name of what it writes)
    "embed": (["{run}", "{data}", "-o"], "x.npz"),
    "score": (["{run}", "{data}", "-o"], "x.csv"),
    "convert": (["{run}"], "x.safetensors"),
    "export": (["{run}", "--to", "safetensors", "-o"], "x.safetensors"),
    "reconstruct": (["{run}", "{data}", "-o"], "x.png"),
    "show": (["{data}", "-o"], "x.html"),
    "diagnose": (["{run}", "{data}", "--samples", "16", "-o"], "x.html"),
    "knn": (["{run}", "{data}", "-o"], "x.json"),
    "probe": (["{run}", "{data}", "-o"], "x.json"),
    "evaluate": (["{run}", "{data}", "-o"], "x.json"),
    "data": (["check", "{data}", "-o"], "x.csv"),
}


def command(verb, own_run):
    words, out = WRITERS[verb]
    return [verb, *(word.format(run=own_run / "run", data=own_run / "few.npz") for word in words), out]


@pytest.fixture
def other(tmp_path):
    """``other(path)``: a process that writes ``path``."""
    processes = []

    def start(path):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


# ------------------------------------------------------------------------------------------------- two writers
@pytest.mark.parametrize("verb", WRITERS)
def test_a_second_writer_is_refused_and_leaves_the_first_alone(verb, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with one_writer(Path(WRITERS[verb][1])):
        before = sorted(tmp_path.iterdir())
        assert main(command(verb, own_run)) == 2
        assert f"{WRITERS[verb][1]} is in use by this process" in capsys.readouterr().err
        assert sorted(tmp_path.iterdir()) == before
    assert not list(tmp_path.iterdir())  # no lock is left either


def test_a_writer_in_another_process_is_named_and_its_death_frees_the_file(
    other, own_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    process = other("x.npz")
    (tmp_path / ".x.npz.99.tmp").write_text("half")
    assert main(command("embed", own_run)) == 2
    assert f"x.npz is in use by another process (pid {process.pid} on" in capsys.readouterr().err
    assert (tmp_path / ".x.npz.99.tmp").exists()
    process.kill()
    process.wait()
    assert (tmp_path / ".x.npz.lock").exists()  # stale, and in nobody's way
    assert main(command("embed", own_run)) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]


def test_the_demo_and_a_run_hold_their_folder(tmp_path, capsys):
    with folder_locked(tmp_path, user="run", log=print):
        assert main(["demo", f"out={tmp_path}"]) == 2
    assert "is in use by this process" in capsys.readouterr().err


def test_a_holder_that_has_not_written_its_name_is_no_empty_bracket(other, tmp_path, monkeypatch):
    other(tmp_path / "x")
    (tmp_path / ".x.lock").write_text("")
    monkeypatch.setattr(locks, "_WAIT_S", 0.05)
    lock = locked(tmp_path / ".x.lock", "x", user="run", advice="", log=print)
    with pytest.raises(MaemmError, match=r"x is in use by another run; wait for it"), lock:
        pass


def test_folders_made_for_a_refused_output_are_removed_again(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["embed", "nothing", "-o", "a/b/x.npz"]) == 2
    assert not list(tmp_path.iterdir())
    assert main(["embed", "nothing", "-o", ".."]) == 2
    assert "give a name in it" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- rows and samples
def test_rows_that_are_lost_are_noticed(own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    original = embed_run.embed_batches

    def lossy(*args, **options):
        batches = original(*args, **options)
        next(batches)
        yield from batches

    monkeypatch.setattr(embed_run, "embed_batches", lossy)
    assert main([*command("embed", own_run), "--batch", "5"]) == 2
    assert "15 rows and 0 skipped samples are not the 20 of the data; remove .x.npz.parts" in capsys.readouterr().err
    assert not (tmp_path / "x.npz").exists()


def test_samples_that_are_lost_cost_scores_and_probes_too(own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    from maemm.tasks._shared import embedding, scoring

    def lossy(source, modalities, **options):
        return (batch for number, batch in enumerate(original(source, modalities, **options)) if number)

    original = embedding.each
    for module in (embedding, scoring):
        monkeypatch.setattr(module, "each", lambda *args, **options: _Closing(lossy(*args, **options)))
    assert main([*command("score", own_run), "--batch", "5"]) == 2
    assert "are not the 20 of the data" in capsys.readouterr().err
    with pytest.raises(MaemmError, match="are not the 20 of the data"):
        embedding.features(maemm.load(own_run / "run"), _source(own_run), batch=5)


class _Closing:
    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return self.batches

    def close(self):
        self.batches.close()


def _source(own_run):
    from maemm.tasks._shared.inputs import open_data

    return open_data(maemm.load(own_run / "run").recipe, str(own_run / "few.npz"))


# --------------------------------------------------------------------------------------------- interrupted writers
@pytest.mark.parametrize(
    "verb",
    [
        *("embed", "score", "convert", "export", "knn", "data"),
        *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("reconstruct", "show", "diagnose")),  # pictures
    ],
)
def test_an_interrupt_while_the_file_is_written_leaves_nothing_under_its_name(
    verb, own_run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, replace = WRITERS[verb][1], os.replace

    def interrupted(source, target, **options):
        if Path(target).name == out:
            raise KeyboardInterrupt
        return replace(source, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        assert main(command(verb, own_run)) == 130
    assert "stopped" in capsys.readouterr().err
    assert not (tmp_path / out).exists() and not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*.tmp"))
    assert not list(tmp_path.glob(".*.lock"))
    assert main(command(verb, own_run)) == 0  # nothing has to be deleted by hand
    assert (tmp_path / out).stat().st_size and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_a_verb_like_ctrl_c_and_embed_resumes(name, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    number, original = getattr(signal, name), embed_run.embed_batches
    before = signal.signal(number, signal.SIG_DFL)

    def stopped(*args, **options):
        with closing(original(*args, **options)) as batches:
            yield next(batches)
            os.kill(os.getpid(), number)
            time.sleep(5)

    with monkeypatch.context() as patch:
        patch.setattr(embed_run, "embed_batches", stopped)
        assert main([*command("embed", own_run), "--batch", "5"]) == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL
    assert main([*command("embed", own_run), "--batch", "5"]) == 0
    assert "20 embeddings (image 16), 5 of them from before" in capsys.readouterr().out
    signal.signal(number, signal.SIG_IGN)  # as under nohup
    with monkeypatch.context() as patch:
        patch.setattr("maemm.__main__._run", lambda argv: os.kill(os.getpid(), number) or 0)
        assert main(["config"]) == 0
    signal.signal(number, before)


# --------------------------------------------------------------------------------------------- side products
@pytest.mark.parametrize("verb", ["knn", "probe", "diagnose"])
def test_a_record_that_cannot_be_kept_does_not_cost_the_result(verb, own_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", _refuse(own_run / "run", Path.mkdir))
    monkeypatch.setattr(os, "replace", _refuse(own_run / "run", os.replace, argument=1))
    before = sorted((own_run / "run").rglob("*"))
    words = ["--samples", "16", "--alone"] if verb == "diagnose" else ["--folds", "2", "--seeds", "1"]
    assert main([verb, str(own_run / "run"), str(own_run / "few.npz"), *words]) == 0
    out, errors = capsys.readouterr()
    assert len(out.splitlines()) > 2
    kept = [line for line in errors.splitlines() if "was not kept" in line]
    assert len(kept) == 1 and "Permission denied" in kept[0]
    assert sorted((own_run / "run").rglob("*")) == before


def _refuse(folder, function, argument=0):
    def refusing(*args, **options):
        if folder in Path(args[argument]).parents:
            raise PermissionError(13, "Permission denied", str(args[argument]))
        return function(*args, **options)

    return refusing


def test_a_file_in_the_place_of_the_folder_of_records_ends_nothing(own_run, tmp_path, capsys):
    from maemm.tasks._shared.records import save_record

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "evaluate").write_text("")
    assert save_record({}, "knn", tmp_path, None) is None
    assert "the record was not kept" in capsys.readouterr().err
    with pytest.raises(MaemmError, match="cannot write the metrics"):
        save_record({}, "knn", tmp_path, tmp_path / "evaluate" / "x.json")


# --------------------------------------------------------------------------------------------- several processes
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("pretrain", "finetune")])
def test_ranks_other_than_0_leave_with_success(verb, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    words = [*command(verb, tmp_path)] if verb in WRITERS else [verb, "ls"]
    assert main(words) == 0  # although the words are wrong: rank 0 says so
    out, errors = capsys.readouterr()
    assert not out and not errors and not list(tmp_path.iterdir())
    monkeypatch.setenv("RANK", "0")
    if verb in WRITERS:
        assert main(words) == 2


def test_rank_0_works_alone_and_hears_nothing_of_the_others(monkeypatch, own_run, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "nowhere"}.items():
        monkeypatch.setenv(name, value)
    with only_rank0() as works:
        assert works and "WORLD_SIZE" not in os.environ and "MASTER_ADDR" not in os.environ
    assert os.environ["WORLD_SIZE"] == "2" and os.environ["MASTER_ADDR"] == "nowhere"
    assert main(command("embed", own_run)) == 0
    with np.load("x.npz") as features:
        assert len(features["ids"]) == 20
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(MaemmError, match="WORLD_SIZE is 'two'"), only_rank0():
        pass


def test_training_verbs_alone_share_their_work():
    import importlib

    shared = [verb for verb in VERBS if importlib.import_module(f"maemm.tasks.{verb}.cli").VERB.shared]
    assert shared == ["pretrain", "finetune"]


@pytest.mark.slow
def test_torchrun_of_a_verb_writes_all_rows_once_and_fails_as_one(own_run, tmp_path):
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "maemm"]
    done = subprocess.run([*run, *command("embed", own_run)], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout.count("20 embeddings") == 1, done.stderr
    with np.load(tmp_path / "x.npz") as features:
        assert len(set(features["ids"].tolist())) == 20
    failed = subprocess.run(
        [*run, "embed", "no", "-o", "y.npz"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert failed.returncode and failed.stderr.count("maemm: error:") == 1


def test_functions_keep_their_signature_under_the_lock():
    for name in ("embed", "convert", "export", "reconstruct", "evaluate", "probe", "show", "diagnose"):
        assert "out" in inspect.signature(getattr(maemm, name)).parameters
    assert json.dumps(maemm.embed.__doc__)
