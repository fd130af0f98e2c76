"""The training loop: from a resolved recipe to the last checkpoint. The step itself is in :mod:`maemm.train.step`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSampleLog
from maemm.data.loader import Batch, Loader
from maemm.data.mixture import MixtureBatches
from maemm.data.open import open_parts
from maemm.data.order import ShuffledBatches
from maemm.model.checks import first_batch
from maemm.model.nothing_to_learn import check_plans
from maemm.train import checkpoint, distributed
from maemm.train.console import Console, first_line, left_out_line
from maemm.train.distributed import DistContext, one_line
from maemm.train.logging import Clock, Means, MetricsFile, memory_bytes, tensorboard, to_tensorboard
from maemm.train.nonfinite import NonFiniteWatch
from maemm.train.optim import set_lr
from maemm.train.restore import Unusable, restore
from maemm.train.run_folder import RunFolder
from maemm.train.schedules import learning_rate, shortened_warmup
from maemm.train.setup import make_loader, make_order, make_train_state, refuse_too_large_steps
from maemm.train.signals import Interrupted, Interrupts, catch_signals
from maemm.train.step import MicroBatches, StepResult, TrainState, leave_out_unused, plan_micro_batches, take_step
from maemm.train.validation import Validator
from maemm.weights import BEST
from maemm.weights.checkpoints import Checkpoint, latest
from maemm.weights.describe import some_of

T = TypeVar("T")
SAVES, PICTURES = 200, 10  # about how many of each a run makes by default

echo_line = partial(print, flush=True)  # lines must not wait in a buffer when the output goes to a file


class Callback:
    """Hooks of a run; by default they do nothing.

    ``draw_pictures`` and ``finish`` are called on rank 0 alone, while the others wait: no collectives there.
    """

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, log: Callable[[str], Any]) -> None:
        """Before the first step, on every rank; ``log`` prints a line."""

    def draw_pictures(self, step: int) -> None:
        """After ``step`` steps: every ``train.picture_every`` steps and at the end."""

    def finish(self) -> Path | None:
        """After the last checkpoint. Returns a file for the last line of the run, or None."""
        return None


def train(recipe: dict[str, Any], *, echo: Callable[[str], Any] = echo_line, callback: Callback | None = None) -> Path:
    """Train a resolved recipe in its run folder ``recipe["out"]`` and return that folder; called again, resume.

    ``echo`` is called with the lines to print. Under ``torchrun`` all ranks call this. Raises :class:`MaemmError` for
    what a user can fix, and :class:`~maemm.train.signals.Interrupted` after SIGINT, SIGTERM, SIGUSR1 or SIGHUP, once a
    checkpoint has been saved.
    """
    if not recipe.get("out"):
        raise MaemmError("the recipe has no out; add out=runs/NAME, the folder of the run")
    folder = RunFolder(recipe["out"])
    with ExitStack() as stack:
        dist_context = stack.enter_context(
            distributed.start(recipe["train"].get("rank_timeout") or distributed.RANK_TIMEOUT_S)
        )
        console = Console(echo, dist_context.is_rank0)
        interrupts = stack.enter_context(catch_signals())
        dist_context.on_rank0(lambda: stack.enter_context(folder.opened(recipe, console.log)))
        source, held_out = dist_context.on_all_ranks(lambda: open_parts(recipe))
        order = dist_context.on_all_ranks(lambda: make_order(recipe, source, dist_context))
        steps = recipe["train"].get("steps") or recipe["train"]["epochs"] * order.steps_per_epoch
        resume_from = dist_context.on_rank0(lambda: _latest_checkpoint(folder, source, held_out, console.log))
        if resume_from is not None and resume_from.step >= steps:
            console.log(
                f"{folder.path} is finished ({resume_from.step} steps); raise train.epochs to continue, or set another "
                "out= for a new run"
            )
            return folder.path
        stack.callback(console.end)
        stack.enter_context(_matmul_precision(dist_context.device))
        run = dist_context.on_all_ranks(
            lambda: Run(
                recipe,
                folder,
                dist_context,
                console,
                source,
                held_out,
                order,
                steps,
                resume_from is None,
                callback or Callback(),
            )
        )
        run.resume(resume_from)
        run.train(interrupts)
        run.train_state.net = run.train_state.model  # drops DDP, which holds the process group that ends here
    return folder.path


def _latest_checkpoint(
    folder: RunFolder, source: Source, held_out: Source | None, log: Callable[[str], Any]
) -> Checkpoint | None:
    """The checkpoint to resume from, if any. Raises :class:`MaemmError` where the data have changed since."""
    newest = latest(folder.checkpoints, log)
    if newest is None:
        folder.bad.unlink(missing_ok=True)
        return None
    validation = None if held_out is None else held_out.fingerprint()
    folder.check_random_numbers(newest.meta)
    folder.check_data(newest.meta, newest.step, source.fingerprint(), validation)
    if folder.moved:
        log(f"{folder.path} reads the same data from another place ({', '.join(folder.moved.values())})")
    return newest


@contextmanager
def _matmul_precision(device: torch.device) -> Iterator[None]:
    """TF32 for matrix products that stay in fp32 on a GPU."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Run:
    """One start of a run, from the beginning or from a checkpoint."""

    def __init__(
        self,
        recipe: dict[str, Any],
        folder: RunFolder,
        dist_context: DistContext,
        console: Console,
        source: Source,
        held_out: Source | None,
        order: ShuffledBatches | MixtureBatches,
        steps: int,
        fresh: bool,
        callback: Callback,
    ):
        """``fresh``: there is no checkpoint to :meth:`resume` from."""
        self.recipe, self.folder, self.dist_context, self.console = recipe, folder, dist_context, console
        self.source, self.order, self.steps, self.callback = source, order, steps, callback
        self.settings: Mapping[str, Any] = recipe["train"]
        self.epochs = -(-steps // order.steps_per_epoch)
        epochs_per_save = max(1, math.ceil(self.epochs / SAVES))
        self.save_every = self.settings.get("save_every") or order.steps_per_epoch * epochs_per_save
        saves_per_picture = max(1, math.ceil(steps / self.save_every / PICTURES))
        self.picture_every = self.settings.get("picture_every") or self.save_every * saves_per_picture
        self.step, self.saved_step = 0, -1
        self.stepped = False  # whether this start has done a step
        self.untrained: list[str] = []  # parameters to train that got no gradient in the first one

        # What a step uses.
        self.lr = learning_rate(self.settings, order.steps_per_epoch, steps)
        self.loader = make_loader(recipe, source, order)
        self.bad_samples = BadSampleLog(folder.bad, recipe["data"]["max_bad_fraction"], len(source))
        self.bad_samples.check()  # too many end a run at every start, until the data or data.max_bad_fraction change
        self.train_state = make_train_state(
            recipe,
            steps,
            order.accumulation,
            dist_context,
            fresh=fresh,
            steps_per_epoch=order.steps_per_epoch,
        )
        model = self.train_state.model
        rows = self.settings["batch"] // dist_context.world_size // order.accumulation
        refuse_too_large_steps(model, rows, dist_context.device)
        self.checked: set[tuple[str, ...]] = set()  # modalities of the batches that have been checked
        self.watch = NonFiniteWatch(dist_context, self.settings["max_nonfinite"], console.log)
        self.validator = Validator(recipe, held_out, order.steps_per_epoch, folder.path / BEST, console.log)

        # What it leaves behind.
        self.parameters = sum(p.numel() for p in model.parameters())
        self.means = Means(dist_context.device)
        self.metrics = MetricsFile(folder.metrics)
        self.tensorboard: Any = None
        self.callback = self._side_product("pictures and report", self._begin_callback, Callback())

    def resume(self, newest: Checkpoint | None) -> None:
        """Continue from a checkpoint, or from one before it where that holds what this run cannot have written.

        Raises :class:`MaemmError` where none can be used.
        """
        state: Mapping[str, Any] = {}
        candidate = newest
        while candidate is not None:
            problem, state = self._try(candidate)
            if problem is None:
                self.step = self.saved_step = candidate.step
                break
            candidate = self._fall_back(candidate, problem)
        if state:
            self.means.load_state_dict(state["means"])
            self.watch.steps = state["nonfinite_steps"]
            self.validator.load_state_dict(state["validation"])
        self.dist_context.on_rank0(self._rewind)
        self.clock = Clock(self.settings["batch"], state.get("seconds", 0.0))

    def _fall_back(self, failed: Checkpoint, problem: str) -> Checkpoint:
        """The checkpoint before one that cannot be used."""
        folder, log = self.folder.checkpoints, self.console.log
        older = self.dist_context.on_rank0(lambda: latest(folder, log, before=failed.step))
        if older is None:
            raise MaemmError(
                f"no checkpoint of the run can be used ({failed.path}: {problem}); choose another out=, or remove "
                f"{folder} to start from the beginning"
            )
        log(f"{failed.path} cannot be used ({problem}); falling back to the one before it")
        return older

    def _try(self, candidate: Checkpoint) -> tuple[str | None, dict[str, Any]]:
        """(why a checkpoint cannot be used, {}), or (None, its state); the same on every rank."""

        def read() -> tuple[str | None, dict[str, Any]]:
            try:
                return None, restore(candidate, self.train_state)
            except Unusable as error:
                return str(error), {}

        problem, state = self.dist_context.on_all_ranks(read)
        return next(filter(None, self.dist_context.all_gather_object(problem)), None), state

    def _rewind(self) -> None:
        """Drop what an earlier start has written beyond the step from which this one continues."""
        self.metrics.rewind(self.step)
        checkpoint.prune(self.folder.checkpoints, self.settings["keep"], self.step)
        if self.settings.get("tensorboard"):
            self.tensorboard = tensorboard(self.folder.path / "tensorboard", self.step)

    # ------------------------------------------------------------------------------------------ the loop
    def train(self, interrupts: Interrupts) -> None:
        """Step until the end. At an interrupt, or an error between two steps, first save what has been learned."""
        length = self.order.steps_per_epoch, self.steps
        self.console.log(first_line(self.folder.path, self.train_state, len(self.source), self.order, self.steps))
        for line in (left_out_line(self.order), shortened_warmup(self.settings, *length)):
            if line is not None:
                self.console.log(line)
        if self.step:
            self.console.log(f"resuming from step {self.step}")
        self.console.begin(self.step, self.steps)
        batches = self.loader.steps(self.step, self.steps)
        try:
            while self.step < self.steps and not self.validator.should_stop:
                micro_batches = self._next_micro_batches(batches, interrupts)
                if not self.stepped:  # a batch has been read and checked: the start has succeeded
                    self.dist_context.on_rank0(lambda: self.folder.store(self.recipe))
                self._train_step(micro_batches)
        except Interrupted as interrupt:
            raise Interrupted(interrupt.signum, self._stop()) from None
        finally:
            batches.close()
        self._finish()

    def _next_micro_batches(self, batches: Iterator[tuple[int, list[Batch]]], interrupts: Interrupts) -> MicroBatches:
        """The micro-batches of the next step, planned. All that can fail on one rank alone happens here."""

        def load_and_plan() -> MicroBatches:
            start = time.monotonic()
            step, loaded = next(batches)
            self.clock.step(waited=time.monotonic() - start)
            for batch in loaded:
                if not self.bad_samples and batch.bad:
                    first = batch.bad[0]
                    self.console.log(f"unreadable: {first.id}: {first.reason}; more are listed in {self.folder.bad}")
                self.bad_samples.add(batch.bad)
            micro_batches = plan_micro_batches(self.train_state, step, loaded)
            names = tuple(micro_batches.inputs[0])
            if names not in self.checked:  # once for each set of modalities, as data sets that are mixed differ
                self.checked.add(names)
                model = self.train_state.model
                for line in check_plans(model, micro_batches.inputs, micro_batches.counts):
                    self.console.log(line)
                first_batch(model, micro_batches.inputs[0])
            return micro_batches

        try:
            return self.dist_context.on_all_ranks(load_and_plan, stop=interrupts)
        except Interrupted:
            raise
        except Exception:
            self._save_after_error()
            raise

    def _train_step(self, micro_batches: MicroBatches) -> None:
        """One step, and what is due after it: validation, a log line, a checkpoint, pictures."""
        done = micro_batches.step + 1
        is_last = done == self.steps
        validates = self.validator.is_due(done, self.steps)
        logs = done % self.settings["log_every"] == 0 or is_last or validates
        lr = self.lr(micro_batches.step)
        set_lr(self.train_state.optimizer, lr)
        with self.dist_context.explain_errors():
            unused = [] if self.stepped else leave_out_unused(self.train_state, micro_batches)
            result = take_step(self.train_state, micro_batches, baseline=logs, first=not self.stepped)
        if not self.stepped:
            self.stepped, self.untrained = True, unused or result.without_gradient
            self._warn_of_untrained()
        self.step = done
        terms = {f"terms.{name}": value for name, value in result.terms.items()}
        self.means.add({"loss": result.total, "grad_norm": result.grad_norm} | terms, result.bad)
        self.watch.add(micro_batches.step, result, micro_batches.ids)
        self.console.step()
        validation = None
        if validates:
            validation = self.validator.validate(self.train_state, done)
        if logs:
            self._log(result, lr, validation)
        if done % self.save_every == 0 and not is_last:
            self._save()
        if done % self.picture_every == 0 and not is_last:
            self._draw_pictures()

    def _warn_of_untrained(self) -> None:
        if names := self.untrained:
            gets, stay, them = ("s get", "stay", "them") if len(names) > 1 else (" gets", "stays", "it")
            self.console.log(
                f"warning: {len(names)} parameter{gets} no gradient and {stay} untrained ({some_of(names)}): no loss "
                f"depends on {them}; leave the part out, or use it in an objective"
            )

    # ---------------------------------------------------------------------------------------------- side products
    def _side_product(self, title: str, make: Callable[[], T], otherwise: T) -> T:
        """``make()``, or where that fails a line and ``otherwise``: what a run shows never costs what it learns."""
        try:
            return make()
        except (Exception, SystemExit) as error:
            self.console.log(f"no {title} ({one_line(error)})")
            return otherwise

    def _begin_callback(self) -> Callback:
        self.callback.begin(self.train_state, self.loader, self.folder, self.console.log)
        return self.callback

    def _draw_pictures(self) -> None:
        draw = partial(self.callback.draw_pictures, self.step)
        self.dist_context.on_rank0(lambda: self._side_product(f"pictures of step {self.step}", draw, None))

    def _finish(self) -> None:
        self._save()
        self._draw_pictures()
        self.console.end()
        page = self.dist_context.on_rank0(lambda: self._side_product("report", self.callback.finish, None))
        if self.tensorboard is not None:
            self._side_product("last TensorBoard lines", self.tensorboard.close, None)
        advice = f"; open {page}" if page else ""
        self.console.log(f"Finished {self.step} steps in {self.folder.path}{self.validator.best_text}{advice}")
        if unreadable := self.bad_samples.summary():
            self.console.log(unreadable)

    def _stop(self) -> str:
        """After a signal: save, and return the message for it."""
        # Before the first step there is nothing to keep, and the next start may bring another recipe.
        saved = f"saved to {self._save()}. The same command continues." if self.step else "there is nothing to save."
        message = f"Stopped at step {self.step}; {saved}"
        self.console.end()
        self.console.log(message)
        return message

    # -------------------------------------------------------------------------------- log lines and checkpoints
    def _log(self, result: StepResult, lr: float, validation: dict[str, float] | None) -> None:
        """A line of metrics.jsonl, and the same for TensorBoard and the console."""
        means = self.means.flush()
        row = {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.step / self.order.steps_per_epoch,
            "loss": means.pop("loss"),
            "grad_norm": means.pop("grad_norm"),
            "terms": {name.removeprefix("terms."): value for name, value in means.items()},
            **_baselines(result),
            "lr": lr,
            "batch": self.settings["batch"],
            "nonfinite_steps": self.watch.steps,
            "parameters": self.parameters,
            "memory": memory_bytes(self.dist_context.device),
            **self.clock.flush(),
        }
        if validation is not None:
            row["validation"] = validation

        def write() -> None:
            self.metrics.write(row)
            if self.tensorboard is not None:
                self.tensorboard = self._side_product("more TensorBoard files", lambda: self._to_tensorboard(row), None)
            self.console.metrics(row, self.epochs)
            if hint := self.clock.hint(self.recipe["data"]["workers"]):
                self.console.log(hint)

        self.dist_context.on_rank0(write)

    def _to_tensorboard(self, row: Mapping[str, Any]) -> Any:
        to_tensorboard(self.tensorboard, row)
        return self.tensorboard

    def _save(self) -> Path:
        """Write a checkpoint on rank 0, while the others wait."""
        self.watch.check()
        return self.dist_context.on_rank0(self._write_checkpoint)

    def _save_after_error(self) -> None:
        """Save after an error between two steps. That error will be raised; one that saving raises is suppressed."""
        if self.dist_context.is_rank0 and self.step > max(self.saved_step, 0):
            with suppress(MaemmError):
                self._write_checkpoint()

    def _write_checkpoint(self) -> Path:
        if self.saved_step == self.step:
            return self.folder.checkpoints / f"step-{self.step:06d}"
        state = {
            "optimizer": self.train_state.optimizer.state_dict(),
            "phases": {phase.name: phase.optimizer.state_dict() for phase in self.train_state.phases},
            "means": self.means.state_dict(),
            "nonfinite_steps": self.watch.steps,
            "seconds": self.clock.seconds,
            "validation": self.validator.state_dict(),
            "untrained": self.untrained,
        }
        held_out = self.validator.source
        validation = {} if held_out is None else {"validation": held_out.fingerprint()}
        meta = {"recipe": self.recipe, "data": self.source.fingerprint(), **validation, **checkpoint.versions()}
        model, ema_model = self.train_state.model, self.train_state.ema_model
        path = checkpoint.write(self.folder.checkpoints, self.step, model, state, meta, ema_model)
        self.saved_step = self.step
        checkpoint.prune(self.folder.checkpoints, self.settings["keep"], self.step, later=True)
        return path


def _baselines(result: StepResult) -> dict[str, Any]:
    """The loss of predicting the mean target: by modality, and in total where every term belongs to a modality."""
    baselines = {name: value.item() for name, value in result.baselines.items()}
    modalities = {term: term.rpartition(".")[2] for term in result.terms}
    if not baselines or any(name not in baselines for name in modalities.values()):
        return {"baselines": baselines, "without_baseline": result.without_baseline}
    total = sum(result.weights[term] * baselines[name] for term, name in modalities.items())
    return {"baseline": total, "baselines": baselines}
