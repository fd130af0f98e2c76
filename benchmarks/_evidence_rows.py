"""Rows of evidence and the JSON file that keeps them: written whole after every row, so that nothing done is lost.

A row has the key of its settings, of the code and of the machine. What has been done under the same key is not done
again; what was cut, failed or was left out is.
"""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.data.atomic import write_json

REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ("maemm/**/*.py", "plugins/**/*.py", "configs/**/*.yaml", "benchmarks/*evidence*.py", "tests/pretended_gpu/*.py")
DONE = "ok"  # the only outcome that is not tried again; the others: error, cut, left out


@dataclass(frozen=True)
class Row:
    """One thing to find out, by the function ``module:function`` of (settings, :class:`Place`)."""

    part: str
    name: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    limit_s: float = 60.0  # after which it is cut

    def key(self, code: str, machine: str) -> str:
        """Of the settings, the version of the code and the machine."""
        text = json.dumps([self.part, self.name, self.function, self.settings, code, machine], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def code_version() -> str:
    """The git revision, with a hash of the sources where they are not those of the revision, or where there is none."""
    revision = _git("rev-parse", "HEAD")
    if revision and _git("status", "--porcelain", "--", "maemm", "plugins", "configs", "benchmarks", "tests") == "":
        return revision
    sources = hashlib.sha256()
    for path in sorted(path for pattern in CODE for path in REPOSITORY.glob(pattern)):
        sources.update(f"{path.relative_to(REPOSITORY)}\0".encode() + path.read_bytes() + b"\0")
    return f"{revision or 'no git'}, sources {sources.hexdigest()[:12]}"


def _git(*words: str) -> str | None:
    """What git prints; None where there is no git, or no repository."""
    try:
        done = subprocess.run(["git", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


class Book:
    """The file of a session of evidence: ``rows`` of all sessions, by key, and the answers of the newest."""

    def __init__(self, path: Path, code: str):
        self.path, self.code = path, code
        stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        self.rows: dict[str, dict[str, Any]] = {row["key"]: row for row in stored.get("rows", [])}
        self.about: dict[str, Any] = stored.get("about", {})
        self.answers: list[dict[str, str]] = stored.get("answers", [])

    def is_done(self, key: str) -> bool:
        return self.rows.get(key, {}).get("outcome") == DONE

    def put(self, row: Row, key: str, outcome: str, **more: Any) -> dict[str, Any]:
        """Add or replace a row, and write the file."""
        stored = {"key": key, "part": row.part, "name": row.name, "settings": dict(row.settings), "code": self.code}
        self.rows[key] = stored | {"outcome": outcome} | more
        self.write()
        return self.rows[key]

    def write(self) -> None:
        report = {"about": self.about, "answers": self.answers, "rows": [*self.rows.values()]}
        write_json(self.path, plain(report), "the evidence")


def plain(value: Any) -> Any:
    """The same for JSON: numbers that are not finite become text, unknown objects their text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return [plain(item) for item in value] if isinstance(value, Iterable) else str(value)
