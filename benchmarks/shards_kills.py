"""Training from shards on a web server and in a bucket that is killed again and again, and a server that dies.

    OMP_NUM_THREADS=1 python benchmarks/shards_kills.py [--kills 6] [--dead 60] [--out FILE]

The same small training once from the folder without an end, and from each storage with a cache that is far too small
for the data, in two workers, with an answer every 10 ms: killed ``--kills`` times at random moments, in turn the whole
process group (SIGKILL), the run alone (SIGKILL), one worker (SIGKILL) and SIGTERM, and continued by the same command.
After every kill each file of the cache is compared with the shards. Then a server that dies for ``--dead`` seconds in
the middle of a run, and one that dies for good. Losses of every step must be those of the folder, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from _machine import about
from PIL import Image

from maemm.data.atomic import write_json
from maemm.data.shards.cache import Cache
from maemm.data.shards.catalog import Catalog
from maemm.data.shards.storage import Range, Storage
from maemm.tasks.data.pack import data_shards

sys.path.append(str(Path(__file__).parents[1]))
from tests.maemm.shards.servers import s3, serving  # noqa: E402  # not installed

STEPS, PICTURES, LIMIT_GB = 60, 320, 0.002
WAYS = ("group", "run", "worker", "term")


def write_pictures(folder: Path) -> None:
    """PNG files of noise, 12 kB each."""
    numbers = np.random.default_rng(0)
    folder.mkdir()
    for number in range(PICTURES):
        Image.fromarray(numbers.integers(0, 255, (64, 64, 3), np.uint8)).save(folder / f"{number:04d}.png")


class Training:
    """One run that is started again until it ends. ``spec``: ``data.source``."""

    def __init__(self, out: Path, root: str, spec: dict[str, Any] | None, steps: int = STEPS):
        self.out, self.steps = out, steps
        self.command = [sys.executable, "-m", "maemm", "pretrain", "image/mae_tiny_cpu", f"data.root={root}",
                        f"data.source={json.dumps(spec)}", "data.workers=2", f"out={out}", f"train.steps={steps}",
                        "train.batch=8", "train.log_every=1", "train.save_every=4", "train.warmup_epochs=0",
                        "encoder.depth=1", "decoder.depth=1"]  # fmt: skip
        self.said = ""

    def start(self) -> None:
        self.log = (self.out.parent / f"{self.out.name}.log").open("w+")
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, start_new_session=True)

    def step(self) -> int:
        """The last step that was logged."""
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def rows(self) -> list[dict[str, Any]]:
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        rows = {}
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:  # of a run that was killed while it wrote
                continue
            rows[row["step"]] = row
        return [rows[step] for step in sorted(rows)]

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.rows()]

    def until(self, step: int, seconds: float = 300.0) -> None:
        """Wait for a step. Raises RuntimeError where the run ends before it."""
        end = time.monotonic() + seconds
        while self.step() < step:
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the run ended before step {step}: {self.text()}")
            time.sleep(0.02)

    def workers(self) -> list[int]:
        """Its data workers: children that run the same program."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(child) for child in children if b"pretrain" in Path(f"/proc/{child}/cmdline").read_bytes()]

    def end(self, seconds: float = 300.0) -> int:
        """-> the exit status; what it said is kept."""
        status = self.process.wait(seconds)
        self.said = self.text()
        self.log.close()
        return status

    def text(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()

    def kill(self, way: str) -> int:
        """End it in one of ``WAYS``; -> the exit status."""
        if way == "group":
            os.killpg(self.process.pid, signal.SIGKILL)
        elif way == "worker":
            os.kill(random.choice(self.workers()), signal.SIGKILL)
        else:
            self.process.send_signal(signal.SIGKILL if way == "run" else signal.SIGTERM)
        return self.end()


def cache_state(folder: Path, shards: Path) -> dict[str, int]:
    """Files of the cache: whole, wrong, and being written."""
    catalog = Catalog(Storage(str(shards)))
    cache = Cache.__new__(Cache)  # its names alone: opening it would clear it
    cache.folder, cache.version = folder, catalog.digest
    whole = wrong = 0
    for place in catalog.places(range(len(catalog))):
        path = cache._path(Range(catalog.names[place.shard], place.start, place.stop))
        if path.exists():
            right = zlib.crc32(path.read_bytes()) == place.check
            whole, wrong = whole + right, wrong + (not right)
    files = [path for path in folder.rglob("*") if path.is_file()]
    new = sum(path.parent.name == ".new" for path in files)
    return {"whole": whole, "wrong": wrong, "unfinished": new, "others": len(files) - whole - wrong - new,
            "bytes": sum(path.stat().st_size for path in files)}  # fmt: skip


def killed(home: Path, name: str, root: str, spec: dict[str, Any], shards: Path, kills: int, expected: list[float]):
    """Kills in turn, then the rest of the run."""
    cache = home / f"cache-{name}"
    training = Training(home / name, root, {"type": "shards", "cache": str(cache), "cache_gb": LIMIT_GB, **spec})
    rows = []
    for number in range(kills):
        way = WAYS[number % len(WAYS)]
        training.start()
        training.until(training.step() + random.randint(2, max(2, STEPS // (kills + 1) - 2)))
        time.sleep(random.uniform(0, 0.2))
        status = training.kill(way)
        time.sleep(3)  # workers of a killed run end by themselves
        rows.append({"way": way, "status": status, "step": training.step(), **cache_state(cache, shards)})
        print(name, rows[-1], flush=True)
    training.start()
    status = training.end()
    last = cache_state(cache, shards)
    equal = training.losses() == expected
    print(name, "end", status, last, "losses equal:", equal, flush=True)
    assert status == 0 and equal, training.said
    assert not last["unfinished"] and not last["others"] and not any(row["wrong"] for row in [*rows, last])
    assert last["bytes"] <= LIMIT_GB * 1.2e9
    return {"storage": name, "kills": rows, "end": last, "losses_equal": equal}


def dead_for(home: Path, shards: Path, seconds: float, expected: list[float]) -> dict[str, Any]:
    """The server ends in the middle of a run and is there again after ``seconds``."""
    with serving(shards, delay=0.01) as server:
        port = server.server_address[1]
        training = Training(home / "dead", server.url, {"type": "shards"})
        training.start()
        training.until(STEPS // 3)
    gone = time.monotonic()
    time.sleep(seconds)
    at = training.step()
    with serving(shards, port):
        status = training.end()
    lines = [line for line in training.said.splitlines() if "storage of the data" in line]
    result = {"seconds": seconds, "step_while_dead": at, "status": status, "lines": lines,
              "seconds_to_the_end": time.monotonic() - gone, "losses_equal": training.losses() == expected}  # fmt: skip
    print(result, flush=True)
    assert status == 0 and result["losses_equal"], training.said
    assert any("waiting for" in line for line in lines) and any("answers again" in line for line in lines)
    return result


def dead_for_good(home: Path, shards: Path, expected: list[float]) -> dict[str, Any]:
    """The server ends and does not come back while it is asked for; the same command continues later."""
    with serving(shards, delay=0.01) as server:
        port = server.server_address[1]
        training = Training(home / "good", server.url, {"type": "shards", "retry_seconds": 3})
        training.start()
        training.until(STEPS // 3)
    status = training.end()
    line, at = training.said.strip().splitlines()[-1], training.step()
    kept = sorted(path.name for path in (training.out / "checkpoints").iterdir())
    with serving(shards, port):
        training.start()
        again = training.end()
    result = {"status": status, "line": line, "step": at, "checkpoints": kept, "status_later": again,
              "losses_equal": training.losses() == expected}  # fmt: skip
    print(result, flush=True)
    assert status == 2 and kept and again == 0 and result["losses_equal"] and "Traceback" not in training.said
    return result


def whole(home: Path, pictures: Path) -> list[float]:
    """Losses of the run from the folder."""
    training = Training(home / "folder", str(pictures), None)
    training.start()
    assert training.end() == 0, training.said
    losses = training.losses()
    assert len(losses) == STEPS and len({*losses}) > STEPS // 2
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--dead", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/shards_kills.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        write_pictures(home / "pictures")
        data_shards(home / "pictures", home / "shards", samples=40, workers=0)
        losses = whole(home, home / "pictures")
        result: dict[str, Any] = {"about": about(), "steps": STEPS, "killed": []}
        with serving(home / "shards", delay=0.01) as server:
            result["killed"].append(killed(home, "http", server.url, {}, home / "shards", args.kills, losses))
        with s3(home / "shards") as options:
            spec = {"storage": options}
            result["killed"].append(killed(home, "s3", "s3://data", spec, home / "shards", args.kills, losses))
        result["dead"] = dead_for(home, home / "shards", args.dead, losses)
        result["dead_for_good"] = dead_for_good(home, home / "shards", losses)
    write_json(args.out, result, "results")


if __name__ == "__main__":
    main()
