"""Pre-training: the loop, from the recipe to the last checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSampleLog
from maemm.data.loader import Loader
from maemm.data.mixture import MixtureBatches
from maemm.data.open import open_parts
from maemm.data.order import ShuffledBatches
from maemm.model.checks import first_batch
from maemm.train import checkpoint, distributed
from maemm.train.checkpoint import Checkpoint
from maemm.train.console import first_line
from maemm.train.distributed import DistContext
from maemm.train.logging import Clock, Console, Means, MetricsFile, memory_bytes, tensorboard, to_tensorboard
from maemm.train.nonfinite import Watch
from maemm.train.optim import set_lr
from maemm.train.run_folder import RunFolder, locked
from maemm.train.schedules import learning_rate
from maemm.train.setup import make_loader, make_order, make_train_state
from maemm.train.signals import Interrupted, Interrupts, listening
from maemm.train.step import MicroBatches, StepResult, TrainState, plan_micro_batches, take_step
from maemm.train.validation import Validation
from maemm.train.versions import versions
from maemm.weights import BEST

SAVES, PICTURES = 200, 10  # about how many of each a run makes where the recipe does not say


echo_line = partial(print, flush=True)  # lines must not wait in a buffer when the output goes to a file


class Callback:
    """What a run does for people besides its lines and figures; by default nothing.

    ``draw_pictures`` and ``finish`` are called in the first process alone while the others wait: they must not need
    them.
    """

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, say: Callable[[str], Any]) -> None:
        """Before the first step, in every process; ``say`` takes a line for people."""

    def draw_pictures(self, step: int) -> None:
        """After ``step`` steps, every ``train.picture_every`` steps and at the end."""

    def finish(self) -> Path | None:
        """After the last checkpoint; returns the file that people should open."""
        return None


def train(recipe: dict[str, Any], *, echo: Callable[[str], Any] = echo_line, callback: Callback | None = None) -> Path:
    """Train a resolved recipe in its run folder ``recipe["out"]`` and return that folder; called again, go on.

    ``echo`` takes the lines for people. Started by ``torchrun`` it trains in all its processes. Raises
    :class:`MaemmError` for what a user can fix, and :class:`~maemm.train.signals.Interrupted` after SIGINT,
    SIGTERM or SIGUSR1, once a checkpoint has been saved.
    """
    if not recipe.get("out"):
        raise MaemmError("the recipe has no out; add out=runs/NAME, the folder of the run")
    dist_context = distributed.start()
    console = Console(echo, dist_context.is_rank0)
    folder = RunFolder(recipe["out"])
    with ExitStack() as stack:
        stack.push(dist_context.leave)
        interrupts = stack.enter_context(listening())
        dist_context.on_rank0(lambda: _open(stack, folder, recipe, console.say))
        source, held_out = dist_context.on_all_ranks(lambda: open_parts(recipe))
        order = dist_context.on_all_ranks(lambda: make_order(recipe, source, dist_context))
        steps = recipe["train"].get("steps") or recipe["train"]["epochs"] * order.steps_per_epoch
        found = dist_context.on_rank0(lambda: _found(folder, source, console.say))
        if found is not None and found.step >= steps:
            console.say(
                f"{folder.path} is finished ({found.step} steps); more train.epochs go on, another out= starts anew"
            )
            return folder.path
        stack.callback(console.end)
        stack.enter_context(_matmul_precision(dist_context.device))
        run = dist_context.on_all_ranks(
            lambda: Run(
                recipe, folder, dist_context, console, source, order, steps, found, held_out, callback or Callback()
            )
        )
        run.go(interrupts)
        run.train_state.net = run.train_state.model  # DDP around it holds the group of processes, which ends here
    return folder.path


def _open(stack: ExitStack, folder: RunFolder, recipe: dict[str, Any], say: Callable[[str], Any]) -> None:
    folder.create()
    stack.enter_context(locked(folder.path, say))
    folder.store_recipe(recipe, say)


def _found(folder: RunFolder, source: Source, say: Callable[[str], Any]) -> Checkpoint | None:
    """The checkpoint to go on from. Raises :class:`MaemmError` where the data are other ones by now."""
    found = checkpoint.latest(folder.checkpoints, say)
    if found is None:
        folder.bad.unlink(missing_ok=True)
        return None
    old, new = found.meta.get("data"), source.fingerprint()
    if old != new:
        raise MaemmError(
            f"the data of {folder.path} have changed since step {found.step} ({old} -> {new}); "
            "bring the old data back, or choose another out="
        )
    return found


@contextmanager
def _matmul_precision(device: torch.device) -> Iterator[None]:
    """TF32 for what stays in fp32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Run:
    """One start of a run: built fresh or from a checkpoint, then stepped to the end."""

    def __init__(
        self,
        recipe: dict[str, Any],
        folder: RunFolder,
        dist_context: DistContext,
        console: Console,
        source: Source,
        order: ShuffledBatches | MixtureBatches,
        steps: int,
        found: Checkpoint | None,
        held_out: Source | None,
        callback: Callback,
    ):
        self.callback = callback
        self.recipe, self.folder, self.dist_context, self.console = recipe, folder, dist_context, console
        self.source, self.order, self.steps = source, order, steps
        self.train: Mapping[str, Any] = recipe["train"]
        self.lr = learning_rate(self.train, order.steps_per_epoch, steps)
        self.loader = make_loader(recipe, source, order)
        self.bad_samples = BadSampleLog(folder.bad, recipe["data"]["max_bad_fraction"], len(source))
        self.bad_samples.check()  # a run that stopped over them stops again, until the data or the share change
        self.metrics = MetricsFile(folder.metrics)
        self.means = Means(dist_context.device)
        self.watch = Watch(dist_context, self.train["max_nonfinite"], console.say)
        self.step, self.saved = 0, -1
        self.checked: set[tuple[str, ...]] = set()  # modalities of the batches that have been looked at
        self.save_every = self.train.get("save_every") or order.steps_per_epoch * _round_up(self.epochs, SAVES)
        self.picture_every = self.train.get("picture_every") or self.save_every * _round_up(
            steps / self.save_every, PICTURES
        )
        self.tensorboard: Any = None
        self.train_state = make_train_state(
            recipe, steps, order.accumulation, dist_context, fresh=found is None, steps_per_epoch=order.steps_per_epoch
        )
        self.validation = Validation.of(
            recipe, held_out, order.steps_per_epoch, folder.path / BEST, self.train_state.model, dist_context.world
        )
        self.parameters = sum(one.numel() for one in self.train_state.model.parameters())
        callback.begin(self.train_state, self.loader, folder, console.say)
        self._restore(found)

    @property
    def epochs(self) -> int:
        return -(-self.steps // self.order.steps_per_epoch)

    def _restore(self, found: Checkpoint | None) -> None:
        state: Mapping[str, Any] = {}
        if found is not None:
            train_state = self.train_state
            state = checkpoint.read(found, train_state.model, train_state.ema and train_state.ema.model)
            train_state.optimizer.load_state_dict(state["optimizer"])
            self.means.load_state_dict(state["means"])
            self.watch.skipped = state["skipped"]
            self.validation.load_state_dict(state.get("validation", {}))
            self.step = self.saved = found.step
        if self.dist_context.is_rank0:
            self.metrics.rewind(self.step)
            checkpoint.prune(self.folder.checkpoints, self.train["keep"])
            if self.train.get("tensorboard"):
                self.tensorboard = tensorboard(self.folder.path / "tensorboard", self.step)
        self.clock = Clock(self.train["batch"], state.get("seconds", 0.0))

    # ------------------------------------------------------------------------------------------ the loop
    def go(self, interrupts: Interrupts) -> None:
        """Step until the end, or until an interrupt or an error, before which what has been learned is saved."""
        self.train_state.net = self.dist_context.wrap(self.train_state.model)
        self.console.say(first_line(self.folder.path, self.train_state, len(self.source), self.order, self.steps))
        if self.step:
            self.console.say(f"going on from step {self.step}")
        self.console.begin(self.step, self.steps)
        batches = self.loader.steps(self.step, self.steps)
        try:
            while self.step < self.steps and not self.validation.stopped:
                self._one(self._next(batches, interrupts))
        except Interrupted as stopped:
            raise Interrupted(stopped.signum, self._stop()) from None
        finally:
            batches.close()
        self._finish()

    def _next(self, batches: Iterator[tuple[int, list[Any]]], interrupts: Interrupts) -> MicroBatches:
        try:
            return self.dist_context.on_all_ranks(lambda: self._fetch(batches), stop=interrupts)
        except Interrupted:
            raise
        except Exception:
            self._keep()
            raise

    def _fetch(self, batches: Iterator[tuple[int, list[Any]]]) -> MicroBatches:
        """The next step's micro-batches, with plans: all that can fail in one process only."""
        began = time.monotonic()
        step, found = next(batches)
        self.clock.step(time.monotonic() - began)
        for batch in found:
            self.bad_samples.add(batch.bad)
        micro_batches = plan_micro_batches(self.train_state, step, found)
        if (kinds := tuple(micro_batches.inputs[0])) not in self.checked:  # of each data set that is mixed
            self.checked.add(kinds)
            first_batch(self.train_state.model, micro_batches.inputs[0])
        return micro_batches

    def _one(self, micro_batches: MicroBatches) -> None:
        done = micro_batches.step + 1
        validates = self.validation.due(done, self.steps)
        logs = done % self.train["log_every"] == 0 or done == self.steps or validates
        set_lr(self.train_state.optimizer, self.lr(micro_batches.step))
        with self.dist_context.together():
            result = take_step(self.train_state, micro_batches, baseline=logs)
        self.step = done
        figures = {"loss": result.total, "grad_norm": result.grad_norm}
        self.means.add(figures | {f"terms.{name}": value for name, value in result.terms.items()}, result.bad)
        self.watch.add(micro_batches.step, result, micro_batches.ids)
        self.console.step()
        measured = (
            self.dist_context.on_rank0(lambda: self.validation.measure(self.train_state, done)) if validates else None
        )
        self.validation.record(measured)
        if logs:
            self._log(result, self.lr(micro_batches.step), measured)
        if done % self.save_every == 0 and done < self.steps:
            self._save()
        if done % self.picture_every == 0 and done < self.steps:
            self.dist_context.on_rank0(lambda: self.callback.draw_pictures(done))

    # -------------------------------------------------------------------------------------- what it leaves
    def _log(self, result: StepResult, lr: float, validation: dict[str, float] | None = None) -> None:
        means = self.means.flush()
        row = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.step / self.order.steps_per_epoch,
            "loss": means.pop("loss"),
            "grad_norm": means.pop("grad_norm"),
            "terms": {name.removeprefix("terms."): value for name, value in means.items()},
            **_baseline(result),
            "lr": lr,
            "batch": self.train["batch"],
            "skipped": self.watch.skipped,
            "parameters": self.parameters,
            "memory": memory_bytes(self.dist_context.device),
            **self.clock.flush(),
        }
        if validation is not None:
            row["validation"] = validation

        def write() -> None:
            self.metrics.write(row)
            if self.tensorboard is not None:
                to_tensorboard(self.tensorboard, row)
            self.console.row(row, self.epochs)
            if hint := self.clock.hint(self.recipe["data"]["workers"]):
                self.console.say(hint)

        self.dist_context.on_rank0(write)

    def _save(self) -> Path:
        """Write a checkpoint in the first process, while the others wait."""
        self.watch.look()
        return self.dist_context.on_rank0(self._write)

    def _write(self) -> Path:
        train_state, path = self.train_state, self.folder.checkpoints / f"step-{self.step:06d}"
        if self.saved == self.step:
            return path
        state = {
            "optimizer": train_state.optimizer.state_dict(),
            "means": self.means.state_dict(),
            "skipped": self.watch.skipped,
            "seconds": self.clock.seconds,
            "validation": self.validation.state_dict(),
        }
        meta = {"recipe": self.recipe, "data": self.source.fingerprint(), **versions()}
        average = None if train_state.ema is None else train_state.ema.model
        checkpoint.write(self.folder.checkpoints, self.step, train_state.model, state, meta, average)
        self.saved = self.step
        checkpoint.prune(self.folder.checkpoints, self.train["keep"])
        return path

    def _keep(self) -> None:
        """Save what there is after an error that struck between two steps; the error itself matters more."""
        if self.dist_context.is_rank0 and self.step > max(self.saved, 0):
            with suppress(MaemmError):
                self._write()

    def _stop(self) -> str:
        # Before the first step there is nothing to keep, and the next start may bring another recipe.
        where = f"saved to {self._save()}. The same command continues." if self.step else "there is nothing to save."
        text = f"Stopped at step {self.step}; {where}"
        self.console.end()
        self.console.say(text)
        return text

    def _finish(self) -> None:
        self._save()
        self.dist_context.on_rank0(lambda: self.callback.draw_pictures(self.step))
        self.console.end()
        shown = self.dist_context.on_rank0(self.callback.finish)
        if self.tensorboard is not None:
            self.tensorboard.close()
        where = f"; open {shown}" if shown else ""
        self.console.say(f"Finished {self.step} steps in {self.folder.path}{self.validation.told}{where}")


def _round_up(value: float, by: int) -> int:
    return max(1, math.ceil(value / by))


def _baseline(result: StepResult) -> dict[str, Any]:
    """Loss of predicting the mean: by modality, and in all where every term is one of a modality."""
    found = {name: value.item() for name, value in result.baselines.items()}
    names = {term: term.rpartition(".")[2] for term in result.terms}
    if not found or any(name not in found for name in names.values()):
        return {"baselines": found}
    total = sum(result.weights[term] * found[name] for term, name in names.items())
    return {"baseline": total, "baselines": found}
