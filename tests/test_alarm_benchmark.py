"""The benchmark of the alarm: seeded faults are named, healthy runs are not, and an interrupted table continues."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def alarm(monkeypatch, tmp_path):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("alarm_benchmark", folder / "alarm.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "alarm_benchmark", module)  # dataclasses look it up
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)  # sample sets are made there
    return module


def test_every_cause_has_a_fault(alarm):
    from maemm.train.alarms import RULES

    assert {cause for case in alarm.faults() for cause in case.causes} == {rule.cause for rule in RULES} - {"collapse"}
    keys = [case.key for case in alarm.cases(False)]
    assert len(keys) == len(set(keys)) and not set(keys) & {case.key for case in alarm.cases(True)}
    assert sum(not case.causes for case in alarm.cases(False)) == 20


def test_results_that_are_committed_are_those_of_the_rules():
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "alarm.json").read_text())
    from maemm.train.alarms import RULES

    causes = {rule.cause for rule in RULES} | {"ended"}
    assert {alarm["cause"] for run in record["runs"] for alarm in run["alarms"]} <= causes
    healthy = [run for run in record["runs"] if not run["causes"]]
    assert record["summary"]["silent"] == sum(not run["alarms"] for run in healthy) and len(healthy) == 20


@pytest.mark.slow
def test_faults_are_named_and_a_table_continues(alarm, tmp_path, monkeypatch, capsys):
    words = ["--out", str(tmp_path / "alarm.json")]
    for only in ("no positions", "learning rate x 30, signal", "an embedding that leaks", "the encoder frozen"):
        alarm.main([*words, "--only", only])
        (run,) = json.loads((tmp_path / "alarm.json").read_text())["runs"]
        assert run["named"] and run["step"] == alarm.EVERY, run
    monkeypatch.setattr(alarm, "run", None)  # what is recorded is not repeated
    alarm.main([*words, "--only", "no positions"])
    assert "| no positions | `image/mae_tiny_cpu` | `no_positions` | 50 |" in capsys.readouterr().out
