"""What a run shows besides its log lines: pictures of reconstructions, and the report page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from maemm.contract import Preprocessed
from maemm.data.bad_samples import reason_of
from maemm.data.loader import Loader
from maemm.tasks._shared.run_page import write_page
from maemm.tasks._shared.stages_page import write_stages_page
from maemm.train.callback import Callback
from maemm.train.run_folder import RunFolder
from maemm.train.setup import EvenlySpaced
from maemm.train.state import TrainState
from maemm.ui.pictures import save_pictures

PICTURE_ROWS = 6


class Report(Callback):
    """Pictures, always of the same few samples, and ``report.html``. Errors are logged and never end the run."""

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, log: Callable[[str], Any]) -> None:
        """Choose the samples; nothing is read yet."""
        self.train_state, self.folder, self.log = train_state, folder, log
        reader = loader.reader
        self._order = EvenlySpaced(reader.source, PICTURE_ROWS)
        self._loader = Loader(
            reader.source, reader.modalities, self._order, seed=reader.seed, workers=0, augment=False,
            missing=reader.missing,
        )  # fmt: skip
        self._batches: list[dict[str, Preprocessed]] = []  # of each data set of a mixture, or one

    def draw_pictures(self, step: int) -> None:
        """Write ``step-NNNNNN.png``."""
        model = self.train_state.whole
        if not model.masked:  # nothing is hidden, so there is no reconstruction to show
            return
        try:
            if not self._batches:
                device = self.train_state.dist_context.device
                batches = [batch.to(device) for batch in self._loader.batches(0, len(self._order.spans))]
                self._batches = [
                    model.preprocess(batch.raw, None, batch.present, batch.side_inputs) for batch in batches
                ]
            path = self.folder.pictures / f"step-{step:06d}.png"
            with self.train_state.eager():
                save_pictures(
                    model, self._batches, path, seed=self.train_state.seed, count=PICTURE_ROWS, interactive=True
                )
        except Exception as error:
            self.log(f"no pictures of step {step} ({reason_of(error)})")

    def finish(self) -> Path | None:
        """Write the page and return it; None where that fails."""
        try:
            return write_page(self.folder.path)
        except Exception as error:
            self.log(f"no report ({reason_of(error)})")
            return None

    def finish_stage(self, folder: Path) -> Path:
        """Write the page of all stages and return it."""
        return write_stages_page(folder)
