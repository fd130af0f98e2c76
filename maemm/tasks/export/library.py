"""Weights for another library, in the layout that a checkpoint format knows, asked of that library itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from maemm.contract import CheckpointFormat, ExportedState
from maemm.tasks.export.exported_state import kind_for
from maemm.tasks.export.quiet import quiet
from maemm.tasks.export.subject import Answers, Subject, answers_of
from maemm.tasks.export.written import Read, Write, Written
from maemm.weights import load


def writer(library: str) -> Write:
    """The function that writes for ``library``."""

    def write(subject: Subject, folder: Path, name: str) -> Written:
        kind = kind_for(subject.model, library)
        made = kind.exported_state(subject.model)
        place = folder / name
        file = place
        if made.config is not None:
            place.mkdir()
            text = json.dumps(dict(made.config), indent=2) + "\n"
            (place / "config.json").write_text(text, encoding="utf-8")
            file = place / "model.safetensors"
        state = {key: value.detach().clone().contiguous() for key, value in made.state.items()}
        save_file(state, file, metadata={"format": "pt"})
        read, by = _reader(made, kind, subject, place, library)
        return Written(name, read, made.answers, made.call, by)

    return write


def _reader(
    made: ExportedState, kind: CheckpointFormat, subject: Subject, place: Path, library: str
) -> tuple[Read, str]:
    """The library's own answers, or where it is not installed those of what our kind reads back."""
    only = subject.names[0]
    try:
        with quiet():
            run = made.run(str(place))
    except ImportError:
        back = load(place, kind.name)

        def read(batch: Mapping[str, Tensor]) -> Answers:
            return answers_of(back, batch, made.answers, None)

        return read, f"maemm.load, since {library} is not installed"
    return lambda batch: {only: run(batch[only])}, library
