"""Training the toy plugin, here and in other processes."""

import json
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

PLUGIN = Path(__file__).parents[2] / "toy_plugin"
FIGURES = (
    "step",
    "epoch",
    "loss",
    "grad_norm",
    "terms",
    "baseline",
    "lr",
    "nonfinite_steps",
)  # what time does not change
SCRIPT = """
import json, os, sys
os.environ.update({environment!r})
if {log!r}:
    sys.stdout = sys.stderr = open({log!r}, "w", buffering=1)
import torch
torch.set_num_threads(1)
from maemm.contract.errors import MaemmError
from maemm.tasks.pretrain.run import train_recipe
from maemm.train.signals import Interrupted
try:
    train_recipe(json.loads({recipe!r}), echo=print)
except MaemmError as error:
    print("maemm: error:", error, file=sys.stderr, flush=True)
    sys.exit(2)
except Interrupted as stopped:
    sys.exit(stopped.status)
"""
# A server that has imported torch once forks faster than interpreters start.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["maemm.tasks.pretrain.run", "maemm.model.encoders.vit", "maemm.model.decoders.full",
     "maemm.ui.pictures", "maemm.tasks._shared.run_page",
     "matplotlib.figure", "matplotlib.backends.backend_agg", "torch._dynamo"]
)  # fmt: skip


class Other:
    """A training in another process."""

    def __init__(self, folder, recipe, **environment):
        number = len(list(folder.glob("*.py")))
        self.log = folder / f"train{number}.log"
        self.log.touch()
        path = folder / f"train{number}.py"
        environment = {"MAEMM_PLUGIN_PATH": str(PLUGIN), "OMP_NUM_THREADS": "1", **environment}
        path.write_text(SCRIPT.format(recipe=json.dumps(recipe), log=str(self.log), environment=environment))
        self.process = SERVER.Process(target=runpy.run_path, args=(str(path),))
        self.process.start()
        self.pid = self.process.pid

    def said(self):
        return self.log.read_text()

    def until(self, text, timeout=60):
        """Wait until it has said ``text``."""
        end = time.monotonic() + timeout
        while text not in self.said():
            assert time.monotonic() < end and self.process.is_alive(), self.said()
            time.sleep(0.01)

    def kill(self):
        self.process.kill()
        self.process.join()

    def wait(self, timeout=60):
        """The exit status."""
        self.process.join(timeout)
        assert self.process.exitcode is not None, f"still running: {self.said()}"
        return self.process.exitcode


class Toys:
    """Recipes of the toy plugin, and runs of them."""

    def __init__(self, folder):
        self.out = folder / "run"
        self.lines = []
        self._folder = folder
        self._started = []

    def recipe(self, out=None, **overrides):
        """A resolved recipe of 8 epochs of 4 steps, a second in all; keys with __ for dots."""
        from maemm import config

        base = {
            "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}}},
            "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
            "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
            "data": {"workers": 0, "source": {"type": "toy"}},
            "train": {
                "epochs": 8,
                "batch": 16,
                "lr": 1e-3,
                "warmup_epochs": 1,
                "log_every": 1,
                "save_every": 1000,
                "picture_every": 1000,
            },
            "out": str(out or self.out),
        }
        return config.load(base, {k.replace("__", "."): v for k, v in overrides.items()}, training=True)

    def train(self, recipe=None, **overrides):
        """Train in this process; what it says is in ``lines``."""
        from maemm.tasks.pretrain.run import train_recipe

        self.lines = []
        return train_recipe(recipe or self.recipe(**overrides), echo=self.lines.append)

    def start(self, recipe, processes=1, environment=None):
        """Train in other processes -> a list of them, or the only one.

        ``environment(rank)``: what their launcher tells each, instead of torchrun's variables.
        """
        if processes == 1:
            started = [Other(self._folder, recipe)]
        else:
            shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            tell = environment or (lambda rank: {"RANK": str(rank), "LOCAL_RANK": str(rank), **shared})
            started = [Other(self._folder, recipe, **tell(rank)) for rank in range(processes)]
        self._started += started
        return started if processes > 1 else started[0]

    def torchrun(self, recipe, processes):
        """Train under torchrun -> (exit status, all that was said)."""
        path = self._folder / "torchrun.py"
        environment = {"MAEMM_PLUGIN_PATH": str(PLUGIN), "OMP_NUM_THREADS": "1"}
        path.write_text(SCRIPT.format(recipe=json.dumps(recipe), log="", environment=environment))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *launcher, str(path)]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout + done.stderr

    def metrics(self, out=None):
        rows = [json.loads(line) for line in (Path(out or self.out) / "metrics.jsonl").read_text().splitlines()]
        return [{key: row.get(key) for key in FIGURES} for row in rows]

    def weights(self, out=None, name="model.safetensors"):
        """Of the last checkpoint."""
        from safetensors.torch import load_file

        last = sorted((Path(out or self.out) / "checkpoints").glob("step-*"))[-1]
        return {key: value.clone() for key, value in load_file(last / name).items()}  # not a view of the file

    def end(self):
        for one in self._started:
            one.kill()
            one.process.close()


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def toys(tmp_path, monkeypatch):
    from maemm import registry

    monkeypatch.setenv(registry.VARIABLE, str(PLUGIN))
    registry.clear_cache()
    monkeypatch.setattr(
        "maemm.tasks.pretrain.report.save_pictures", lambda model, batch, path, **rest: path, raising=False
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # sums in the order of one thread: the same bits in every process
    toys = Toys(tmp_path)
    yield toys
    toys.end()
    torch.set_num_threads(before)
