import json
import math
import sys
import types

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train.console import Console, duration
from maemm.train.logging import Clock, Means, MetricsFile

FALSE, TRUE = torch.tensor(False), torch.tensor(True)


def test_means_leave_bad_steps_out_and_can_be_stored():
    means = Means(torch.device("cpu"))
    means.add({"loss": torch.tensor(1.0)}, FALSE)
    means.add({"loss": torch.tensor(math.nan)}, TRUE)
    again = Means(torch.device("cpu"))
    again.load_state_dict(json.loads(json.dumps(means.state_dict())))
    for one in (means, again):
        one.add({"loss": torch.tensor(2.0), "late": torch.tensor(4.0)}, FALSE)
        assert one.flush({"beside": torch.tensor(7.0)}) == ({"loss": 1.5, "late": 4.0}, {"beside": 7.0})
        one.add({"loss": torch.tensor(math.inf)}, TRUE)
        assert math.isnan(one.flush({})[0]["loss"])


def test_metrics_are_rewound_to_a_step_and_half_lines_dropped(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.rewind(0)
    for step in range(1, 6):
        file.write({"step": step, "loss": math.nan, "terms": {"a": math.inf, "b": 1.0}})
    with file.path.open("a") as open_file:
        open_file.write('{"step": 6, "lo')
    file.rewind(3)
    file.write({"step": 4})
    rows = [json.loads(line) for line in file.path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0] == {"step": 1, "loss": None, "terms": {"a": None, "b": 1.0}}


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(MaemmError, match="cannot write .*Is a directory"):
        MetricsFile(tmp_path).write({"step": 1})


def test_the_share_of_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("maemm.train.logging.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    clock = Clock(batch=8, seconds=50.0)
    for _ in range(4):
        now[0] += 1.0
        clock.step(waited=0.25)
    assert clock.flush() == {"samples_per_second": 8.0, "data_wait": 0.25, "seconds": 54.0}
    now[0] += 2.0
    clock.step(waited=0.0)
    assert clock.flush() == {"samples_per_second": 4.0, "data_wait": 0.0, "seconds": 56.0}
    assert clock.hint(2) is None  # too early to tell
    now[0] += 54.0
    clock.step(waited=5.0)
    assert clock.hint(2).startswith("waiting for data takes 10 % of the time; raise data.workers (now 2)")
    assert clock.hint(2) is None


ROW = {
    "step": 279, "steps": 74400, "epoch": 2.99, "loss": 0.8712, "baseline": 1.0, "samples_per_second": 1912.4,
    "data_wait": 0.021, "batch": 512, "terms": {"reconstruct.toy": 0.8712},
}  # fmt: skip


def test_plain_lines():
    lines = []
    console = Console(lines.append, is_rank0=True)
    console.metrics(ROW, 800)
    assert lines == [
        "epoch 3/800  step 279  loss 0.8712 (mean-predictor 1.000)  1,912 samples/s  data-wait 2 %  ETA 5 h 30 min"
    ]
    Console(lines.append, is_rank0=False).metrics(ROW, 800)
    assert len(lines) == 1


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    lines = []
    console = Console(lines.append, is_rank0=True)
    console.begin(278, 74400)
    console.step()
    console.metrics(ROW, 800)
    console.log("step 12 skipped")
    console.end()
    shown = capsys.readouterr().err
    assert "278/74400" in shown and lines == ["step 12 skipped"]


def test_durations():
    assert [duration(value) for value in (9.4, 125, 42000)] == ["9 s", "2 min 5 s", "11 h 40 min"]
