"""What people see of a run besides its lines and figures: pictures of reconstructions, and the page."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from maemm.data.bad_samples import reason_of
from maemm.data.loader import Loader
from maemm.tasks._shared.run_page import write_page
from maemm.train.loop import Callback
from maemm.train.run_folder import RunFolder
from maemm.train.setup import EvenlySpaced
from maemm.train.step import TrainState
from maemm.ui.pictures import save_pictures

PICTURE_ROWS = 6


class Report(Callback):
    """Pictures of the same few samples again and again, and the page; an error costs a line, never the run."""

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, say: Callable[[str], Any]) -> None:
        """Choose the samples; nothing is read yet."""
        self.train_state, self.folder, self.say = train_state, folder, say
        reader, order = loader.reader, EvenlySpaced(loader.reader.source, PICTURE_ROWS)
        self._loader = Loader(
            reader.source, reader.modalities, order, seed=reader.seed, workers=0, augment=False, pin=False,
            missing=reader.missing,
        )  # fmt: skip
        self._batches: list[dict[str, Any]] = []  # one, or one of each set of a mixture

    def draw_pictures(self, step: int) -> None:
        """Write ``step-NNNNNN.png``."""
        if not self.train_state.model.masked:  # nothing is hidden, so there is no reconstruction to show
            return
        try:
            if not self._batches:
                read = [
                    one.to(self.train_state.dist_context.device)
                    for one in self._loader.batches(0, len(self._loader.order.spans))
                ]
                self._batches = [self.train_state.model.preprocess(one.raw, None, one.present) for one in read]
            with _eager(self.train_state.compiled):
                path = self.folder.pictures / f"step-{step:06d}.png"
                seed = self.train_state.seed
                save_pictures(
                    self.train_state.model, self._batches, path, seed=seed, count=PICTURE_ROWS, interactive=True
                )
        except Exception as error:
            self.say(f"no pictures of step {step} ({reason_of(error)})")

    def finish(self) -> Path | None:
        """Write the page; None, and a line, where that fails."""
        try:
            return write_page(self.folder.path)
        except Exception as error:
            self.say(f"no report ({reason_of(error)})")
            return None


def _eager(compiled: bool) -> AbstractContextManager[Any]:
    """Another shape would be compiled anew. Asking torch for this is slow, so only where it matters."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
