"""What a run notes down: means of the steps since the last line, for metrics.jsonl and the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maemm.train.console import Console
from maemm.train.flops import Utilisation
from maemm.train.logging import Clock, Means, MetricsFile, peak_memory
from maemm.train.run_folder import RunFolder
from maemm.train.state import MicroBatches, StepResult, TrainState
from maemm.train.step import total_baseline


class RunLog:
    """The log of one start of a run."""

    def __init__(
        self,
        recipe: Mapping[str, Any],
        folder: RunFolder,
        train_state: TrainState,
        console: Console,
        steps_per_epoch: int,
    ):
        self.recipe, self.console = recipe, console
        self.dist_context, self.steps, self.steps_per_epoch = (
            train_state.dist_context,
            train_state.steps,
            steps_per_epoch,
        )
        self.parameters = sum(parameter.numel() for parameter in train_state.model.parameters())
        self.means = Means(self.dist_context.device)
        self.utilisation = Utilisation(train_state, recipe["train"].get("peak_tflops"), console.log)
        self.clock = Clock(recipe["train"]["batch"])
        self.metrics = MetricsFile(folder.metrics)

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from the ``state`` of a checkpoint, or of an empty one; then start the clock."""
        if state:
            self.means.load_state_dict(state["means"])
        self.clock = Clock(self.recipe["train"]["batch"], state.get("seconds", 0.0))

    def rewind(self, step: int) -> None:
        """On rank 0: drop what an earlier start has written beyond ``step``."""
        self.metrics.rewind(step)

    def add(self, micro_batches: MicroBatches, result: StepResult) -> None:
        """Count a step that has been done; nothing is read from the device."""
        self.utilisation.add(micro_batches)
        terms = {f"terms.{name}": value for name, value in result.terms.items()}
        self.means.add({"loss": result.total, "grad_norm": result.grad_norm} | terms, result.bad)

    def row(
        self,
        step: int,
        result: StepResult,
        lr: float,
        nonfinite_steps: int,
        validation: Mapping[str, float] | None,
        monitor: Mapping[str, float] | None,
        spikes: Mapping[str, int] | None = None,
    ) -> dict[str, Any]:
        """What a line says after ``step`` steps, the last of which had this ``result``. All ranks call this."""
        means, baselines = self.means.flush(beside=result.baselines)
        row = {
            "step": step,
            "steps": self.steps,
            "epoch": step / self.steps_per_epoch,
            "loss": means.pop("loss"),
            "grad_norm": means.pop("grad_norm"),
            "terms": {name.removeprefix("terms."): value for name, value in means.items()},
            **_baselines(result, baselines),
            "lr": lr,
            "batch": self.recipe["train"]["batch"],
            "nonfinite_steps": nonfinite_steps,
            "parameters": self.parameters,
            "memory": peak_memory(self.dist_context.device),
            **self.clock.flush(),
            **self.utilisation.flush(),
        }
        if validation is not None:
            row["validation"] = validation
        if monitor is not None:
            row["monitor"] = monitor
        if spikes is not None:
            row["spikes"] = spikes
        return row

    def write(self, row: Mapping[str, Any]) -> None:
        """Write the line of :meth:`row`. All ranks call this."""
        self.dist_context.on_rank0_alone(lambda: self._write(row))

    def _write(self, row: Mapping[str, Any]) -> None:
        self.metrics.write(row)
        self.console.metrics(row, -(-self.steps // self.steps_per_epoch))
        if hint := self.clock.hint(self.recipe["data"]["workers"]):
            self.console.log(hint)


def _baselines(result: StepResult, baselines: Mapping[str, float]) -> dict[str, Any]:
    """The loss of predicting the mean target: by modality or term, and in total where every term has one."""
    weights = {term: result.weights[term] for term in result.terms}
    total = total_baseline(weights, baselines, result.without_baseline)
    if total is None:
        return {"baselines": baselines, "without_baseline": result.without_baseline}
    return {"baseline": total, "baselines": baselines}
