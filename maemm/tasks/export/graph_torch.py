"""``torch.export``: a .pt2 file that needs torch alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.tasks.export.card import card_of
from maemm.tasks.export.subject import Answers, Subject
from maemm.tasks.export.written import Written

TRACED = 3  # samples of the batch that the graph is traced with; 1 would become a constant


def trace(subject: Subject) -> tuple[torch.export.ExportedProgram, list[str]]:
    """The program, its batch dynamic, and the names of its outputs. Raises :class:`MaemmError`."""
    graph, example = subject.graph(), tuple(subject.example(TRACED).values())
    with torch.no_grad():
        # Once for real first: tables that parts keep are then those of real tensors, and constants of the graph.
        outputs = list(subject.answer(subject.example(TRACED)))
        graph(*example)
        batch = {0: torch.export.Dim("batch")}
        try:
            program = torch.export.export(graph, example, dynamic_shapes=((batch,) * len(example),), strict=False)
        except Exception as error:  # whatever a part of a plugin does that has no graph
            raise MaemmError(
                f"this model has no graph with a free batch ({_first(error)}); export it otherwise"
            ) from error
    return program, outputs


def write(subject: Subject, folder: Path, name: str) -> Written:
    """The program with its card as an extra file."""
    program, outputs = trace(subject)
    card = card_of(subject, "torch")
    torch.export.save(program, folder / name, extra_files={"card.json": json.dumps(card, indent=1)})
    loaded = torch.export.load(folder / name).module()

    def read(batch: Mapping[str, Tensor]) -> Answers:
        with torch.no_grad():
            return dict(zip(outputs, loaded(*batch.values()), strict=True))

    call = "torch.export.load({path!r}).module()" + f"({', '.join(subject.names)})"
    return Written(name, read, subject.output, call, "torch.export.load")


def _first(error: BaseException) -> str:
    lines: list[Any] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}"[:300] if lines else type(error).__name__
