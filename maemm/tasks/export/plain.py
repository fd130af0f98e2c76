"""Our own format for others: one safetensors file, and a card in JSON that says all there is to know about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from maemm.tasks.export.subject import Answers, Subject, answers_of
from maemm.tasks.export.written import Written
from maemm.weights import load, save


def write(subject: Subject, folder: Path, name: str) -> Written:
    """The file; its card is written once the check has passed."""
    save(subject.model, folder / name)
    back = load(folder / name)

    def read(batch: Mapping[str, Tensor]) -> Answers:
        return answers_of(back, batch, subject.output, subject.pool)

    return Written(name, read, subject.output, "maemm.load({path!r})", "maemm.load")
