"""The tests marked ``gpu``, on the device: what each of them did, also where the time ran out."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from _evidence_process import Place
from _evidence_rows import REPOSITORY

LINE = re.compile(r"^(tests/\S+::\S.*?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")


def marked_files() -> list[str]:
    """Test files that speak of the marker: to collect all others takes longer than to run these."""
    paths = sorted((REPOSITORY / "tests").rglob("test_*.py"))
    return [str(path.relative_to(REPOSITORY)) for path in paths if "mark.gpu" in path.read_text(encoding="utf-8")]


def gpu_tests(settings: dict[str, Any], place: Place) -> dict[str, Any]:
    """{"outcomes": {test: passed, failed, ...}}; after ``seconds`` pytest is ended and what it has said is kept."""
    files = settings.get("files") or marked_files()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "importable"), *sys.path])}
    log, answer = place.work / "gpu-tests.txt", {"outcomes": {}}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, env=environment)
    end = time.monotonic() + settings["seconds"]
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            outcomes = outcomes_of(log)
            if len(outcomes) > len(answer["outcomes"]):
                answer["outcomes"] = outcomes
                place.keep(answer)
    finally:
        ended = process.poll()
        process.kill()
        process.wait()
    return {"outcomes": outcomes_of(log), "status": ended, "cut": ended is None, "failures": failures_of(log)}


def outcomes_of(log: Path) -> dict[str, str]:
    """{test: outcome} of pytest's verbose output so far."""
    lines = (LINE.match(line) for line in log.read_text(errors="replace").splitlines())
    return {match[1]: match[2].lower() for match in lines if match}


def failures_of(log: Path) -> list[str]:
    """What pytest says of errors: its lines that begin with E, and its summary."""
    lines = log.read_text(errors="replace").splitlines()
    said = [line for line in lines if line.startswith(("E  ", "FAILED ", "ERROR "))]
    return (said or lines)[-60:] if said else lines[-3:]
