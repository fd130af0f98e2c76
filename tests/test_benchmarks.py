"""The benchmark suite runs everywhere, with tiny sizes on a CPU."""

import importlib.util
import json
from pathlib import Path


def test_gpu_suite_runs_on_this_machine(tmp_path, monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "gpu_suite.py"
    spec = importlib.util.spec_from_file_location("gpu_suite", path)
    suite = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "gpu_suite", suite)
    spec.loader.exec_module(suite)
    monkeypatch.setattr(suite, "ROWS", suite.ROWS[:1])
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    report = json.loads(suite.main(["--out", str(tmp_path)]).read_text())
    assert report["rows"][0]["samples_per_s"] > 0 and report["matmul_tflops"] > 0
