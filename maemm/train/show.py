"""What people see of a run besides its figures: the first line, pictures, the page; and which versions made it."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

import maemm
from maemm import plugins
from maemm.data.bad_samples import reason_of
from maemm.data.loader import Loader
from maemm.data.mixture import Turns
from maemm.data.order import Slots
from maemm.train.run import RunFolder
from maemm.train.start import Spread
from maemm.train.step import Learner

PICTURE_ROWS = 6


class Pictures:
    """Pictures of the same few samples again and again. Whatever goes wrong costs a line, never the run."""

    def __init__(self, learner: Learner, loader: Loader, folder: Path, say: Callable[[str], Any]):
        self.learner, self.folder, self.say = learner, folder, say
        reader, order = loader.reader, Spread(loader.reader.source, PICTURE_ROWS)
        self._loader = Loader(
            reader.source, reader.modalities, order, seed=reader.seed, workers=0, augment=False, pin=False,
            missing=reader.missing,
        )  # fmt: skip
        self._batches: list[dict[str, Any]] = []  # one, or one of each set of a mixture

    def make(self, step: int) -> None:
        """Write ``step-NNNNNN.png``."""
        if not self.learner.model.masked:  # nothing is hidden, so there is no reconstruction to show
            return
        from maemm.report import save_pictures

        try:
            if not self._batches:
                read = [
                    one.to(self.learner.team.device) for one in self._loader.batches(0, len(self._loader.order.spans))
                ]
                self._batches = [self.learner.model.prepare(one.raw, None, one.present) for one in read]
            with _eager(self.learner.compiled):
                path = self.folder / f"step-{step:06d}.png"
                seed = self.learner.seed
                save_pictures(self.learner.model, self._batches, path, seed=seed, count=PICTURE_ROWS, views=True)
        except Exception as error:
            self.say(f"no pictures of step {step} ({reason_of(error)})")


def _eager(compiled: bool) -> AbstractContextManager[Any]:
    """Another shape would be compiled anew. Asking torch for this is slow, so only where it matters."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def page(folder: RunFolder, say: Callable[[str], Any]) -> Path | None:
    """Write the report; None, and a line, where that fails."""
    from maemm.report import write_page

    try:
        return write_page(folder.path)
    except Exception as error:
        say(f"no report ({reason_of(error)})")
        return None


def first_line(path: Path, learner: Learner, samples: int, order: Slots | Turns, steps: int) -> str:
    """What is going to run, where, and how large it is."""
    model, team = learner.model, learner.team
    inside, parameters = (sum(one.numel() for one in part.parameters()) for part in (model.encoder, model))
    one = "GPU" if team.device.type == "cuda" else "CPU process"
    devices = f"{team.world} {one}{'s' if team.world > 1 and one == 'GPU' else 'es' if team.world > 1 else ''}"
    precision = "bf16" if learner.bf16 else "fp32"
    micro = f" in {order.accumulation} micro-batches" if order.accumulation > 1 else ""
    return (
        f"{path}   {count(parameters)} parameters (encoder {count(inside)})   {devices}, {precision}   "
        f"{samples:,} samples, batch {order.batch}{micro}   {order.steps_per_epoch} steps/epoch, {steps:,} steps"
    )


def count(number: int) -> str:
    """111907840 -> "111.9 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def versions() -> dict[str, Any]:
    """Versions of what made a checkpoint, and the commit of the code where it is known."""
    found = {one.name: one.plugin.version for one in plugins.all() if one.plugin is not None}
    return {
        "versions": {"maemm": maemm.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "plugins": {name: version for name, version in found.items() if name != "core"},
        "commit": _commit(),
    }


def _commit() -> str | None:
    """The commit of a checkout; None where maemm is installed as a package, or without git."""
    home = Path(maemm.__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(home), "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
