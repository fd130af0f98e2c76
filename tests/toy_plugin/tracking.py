"""A tracker for tests: it notes down what it is told, and may fail or hang."""

import json
import time
from pathlib import Path

from maemm.contract import Tracker


class Notes(Tracker):
    """A file of JSON lines, into which every call goes.

    Options:
        file: that file
        fail: a method that fails as long as the file FAIL stands beside it
        hang: a method that never returns as long as the file HANG stands beside it
    """

    packages = {"json": "json"}

    def __init__(self, *, file: str, fail: str | None = None, hang: str | None = None):
        self.file, self.fail, self.hang = Path(file), fail, hang

    def note(self, method, *values):
        if method == self.fail and self.file.with_name("FAIL").exists():
            raise ConnectionError("no route to host")
        while method == self.hang and self.file.with_name("HANG").exists():
            time.sleep(0.05)
        with self.file.open("a") as file:
            file.write(json.dumps([method, *values]) + "\n")

    def begin(self, run):
        self.note("begin", run.id, run.step, run.name, run.recipe["train"]["batch"])
        return run.id or "first"

    def log(self, step, values):
        self.note("log", step, values)

    def alarm(self, step, cause, text):
        self.note("alarm", step, cause, text)

    def picture(self, step, file):
        self.note("picture", step, file.name)

    def end(self, state):
        self.note("end", state)


class NotHere(Notes):
    """A tracker whose package is not installed."""

    packages = {"no_such_package_at_all": "no-such-package"}
