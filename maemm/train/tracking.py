"""The trackers of a run: a process for each, which reads what the run writes down (:mod:`maemm.train.delivery`).

The run starts them, looks now and then whether they keep up, and says so once where one does not. It never waits for
one but at its end, and nothing that a tracker does ends it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from maemm import config, registry
from maemm.contract.errors import MaemmError, NotInstalled
from maemm.data.line_files import lines_of, record_of
from maemm.train.callback import Callback
from maemm.train.delivery import Delivered, file_of
from maemm.train.run_folder import RunFolder, is_free, stored_recipe

GRACE_S = 60.0  # that a finished run waits for a tracker that takes nothing
STOP_S = 10.0  # that a run which has been stopped, or has failed, waits in all: the tracker then goes on alone
SLOW_S = 120.0  # without taking anything while there is something: it is said that training goes on without
SAID_AFTER_S = 5.0  # of waiting at the end
_START = "import sys; from maemm.train.delivery import main; main(sys.argv[1:])"


class Trackers(Callback):
    """All trackers of one start of a run. Without any it does nothing."""

    def __init__(self, recipe: Mapping[str, Any], folder: RunFolder, log: Callable[[str], Any], *, works: bool = True):
        """``works``: whether this rank reports. Raises :class:`MaemmError` where one is unknown or not installed."""
        self.recipe, self.folder, self.log = recipe, folder, log
        self.trackers: dict[str, _Process] = {}
        specs = dict(recipe["train"].get("trackers") or {})
        if recipe["train"].get("tensorboard"):
            specs.setdefault("tensorboard", "tensorboard")
        for name, spec in specs.items() if works else ():
            _check_installed(name, registry.find("trackers", registry.part_of(spec, name)[0]).packages)
            self.trackers[name] = _Process(name, spec, folder, log)

    def resume(self, step: int) -> None:
        """A run that begins anew with another recipe is another run for its trackers too."""
        if not step and self.trackers and self._recipe_has_changed():
            for name in self.trackers:
                file_of(self.folder.path, name).unlink(missing_ok=True)
        for process in self.trackers.values():
            process.step = step

    def logged(self, row: Mapping[str, Any]) -> None:
        for process in self.trackers.values():
            process.after(row["step"])

    def end(self, state: str) -> None:
        """Wait until trackers have everything: of a finished run as long as they take something, else shortly."""
        last = _last_step(self.folder) if self.trackers else 0
        processes = [process for process in self.trackers.values() if process.close(state, last)]
        for process in processes:
            process.wait(last, GRACE_S if state == "finished" else STOP_S, finished=state == "finished")

    def _recipe_has_changed(self) -> bool:
        try:
            stored = stored_recipe(self.folder.path)
        except MaemmError:
            return True
        return stored is not None and any(
            not is_free(line.partition(": ")[0]) for line in config.diff(stored, dict(self.recipe))
        )


def send_rest(recipe: Mapping[str, Any], folder: RunFolder, log: Callable[[str], Any]) -> None:
    """Of a finished run: send what a tracker lacks; where one is not installed here, a line says so."""
    try:
        trackers = Trackers(recipe, folder, log)
    except MaemmError as error:
        log(f"nothing is sent to trackers ({error})")
        return
    for process in trackers.trackers.values():
        process.step = _last_step(folder)
    trackers.end("finished")


def _check_installed(name: str, packages: Mapping[str, str]) -> None:
    for module, install in packages.items():
        if find_spec(module) is None:
            raise NotInstalled(
                f"tracker {name!r} needs the package {module!r} (train.trackers); run: pip install '{install}', or "
                "leave the tracker out"
            )


def _last_step(folder: RunFolder) -> int:
    """Of metrics.jsonl; 0 where it has no line."""
    step = 0
    with suppress(OSError):
        size = folder.metrics.stat().st_size
        for line in lines_of(folder.metrics, max(0, size - 65536)):
            number = (record_of(line) or {}).get("step")
            step = number if isinstance(number, int) else step
    return step


class _Process:
    """The process of one tracker."""

    def __init__(self, name: str, spec: Any, folder: RunFolder, log: Callable[[str], Any]):
        self.name, self.spec, self.folder, self.log = name, spec, folder.path, log
        self.step = 0  # from which this start goes on
        self.process: subprocess.Popen[bytes] | None = None
        self.told = False  # that something is wrong
        self.last, self.current_at = 0, 0.0  # step of the last line; when the tracker had taken the one before

    @property
    def delivered(self) -> Delivered:
        return Delivered.read(file_of(self.folder, self.name))

    def after(self, step: int) -> None:
        """After a line of metrics.jsonl: start the process, or look whether it keeps up."""
        if self.process is None:
            self.current_at = time.monotonic()
            self._start()
        elif not self.told:
            delivered = self.delivered
            if delivered.step >= self.last:
                self.current_at = time.monotonic()
            if delivered.error is not None:
                self._tell(delivered.error)
            elif self.process.poll() is not None:
                self._tell(f"its process has ended; see {self._log_file}")
            elif time.monotonic() - self.current_at > SLOW_S:
                self._tell(f"it has taken nothing for {SLOW_S:g} s, after step {delivered.step}")
        self.last = step

    def close(self, state: str, last: int) -> bool:
        """Say that the run has ended; False where there is nothing to send."""
        if self.process is None:
            delivered = self.delivered
            if not last or (delivered.step >= last and delivered.end == state):
                return False
            self._start()
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                self.process.stdin.close()
        return self.process is not None

    def wait(self, last: int, seconds: float, *, finished: bool) -> None:
        """Until the process has ended; for ``seconds``, of a ``finished`` run for so long without taking anything.

        Then it goes on alone, and ends itself where the tracker takes nothing.
        """
        assert self.process is not None
        began = progress_at = time.monotonic()
        before, said = self.delivered, False
        while self.process.poll() is None:
            now, delivered = time.monotonic(), self.delivered
            if finished and delivered != before:
                before, progress_at = delivered, now
            if now - progress_at > seconds + (SAID_AFTER_S if finished else 0.0):  # its own end comes first
                break
            if now - began > SAID_AFTER_S and not said:
                said = True
                self.log(f"waiting for tracker {self.name}, which has taken {delivered.step} of {last} steps")
            time.sleep(0.05)
        if self.process.poll() is None:
            if finished:
                self._kill()
            else:  # it has a session of its own
                self.process.returncode = 0
        delivered = self.delivered
        if delivered.error is not None or delivered.step < last or delivered.end is None:
            reason = delivered.error or "it has not ended yet"
            self.log(
                f"tracker {self.name} may lack what came after step {delivered.step} ({reason}); nothing is lost, "
                "the same command sends it"
            )

    def _start(self) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        what = [str(self.folder), self.name, json.dumps(self.spec), str(self.step), str(GRACE_S)]
        try:
            self._log_file.parent.mkdir(exist_ok=True)
            with self._log_file.open("ab") as output:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", _START, *what],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    start_new_session=True,  # Ctrl-C and the end of a terminal are for the run alone
                )
        except OSError as error:
            self._tell(f"its process cannot be started: {error.strerror}")

    @property
    def _log_file(self) -> Any:
        return file_of(self.folder, self.name).with_suffix(".log")

    def _tell(self, reason: str) -> None:
        if not self.told:
            self.told = True
            self.log(f"tracker {self.name} takes nothing ({reason}); training goes on, what it lacks is sent later")

    def _kill(self) -> None:
        assert self.process is not None
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()
        self.process.wait()
