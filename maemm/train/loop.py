"""The training loop: from a resolved recipe to the last checkpoint. The step itself is in :mod:`maemm.train.step`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.bad_samples import BadSampleLog
from maemm.data.mixture import MixtureBatches
from maemm.data.on_device import StepsOnDevice
from maemm.data.open import open_parts
from maemm.data.order import ShuffledBatches
from maemm.train import compiling, distributed
from maemm.train.callback import Callback, side_product
from maemm.train.console import Console, first_line, left_out_line
from maemm.train.distributed import DistContext, one_line
from maemm.train.fetch import Fetch
from maemm.train.mirror import Mirror, open_mirror
from maemm.train.monitor import Monitor
from maemm.train.nonfinite import NonFiniteWatch
from maemm.train.optim import set_lr
from maemm.train.run_folder import RunFolder
from maemm.train.run_log import RunLog
from maemm.train.saves import Saves, latest_checkpoint
from maemm.train.schedules import learning_rate, shortened_warmup, warmup_epochs
from maemm.train.setup import make_loader, make_order, make_train_state, refuse_too_large_steps
from maemm.train.sharding import mesh_of
from maemm.train.signals import Interrupted, Interrupts, catch_signals
from maemm.train.spikes import Spikes, describe
from maemm.train.state import MicroBatches
from maemm.train.step import leave_out_unused, take_step
from maemm.train.tracking import Trackers, send_rest
from maemm.train.validation import Validator
from maemm.weights import BEST
from maemm.weights.checkpoints import Checkpoint, latest
from maemm.weights.describe import some_of

SAVES, PICTURES = 200, 10  # about how many of each a run makes by default

echo_line = partial(print, flush=True)  # lines must not wait in a buffer when the output goes to a file


def train(
    recipe: dict[str, Any],
    *,
    echo: Callable[[str], Any] = echo_line,
    callback: Callback | None = None,
    goes_on: bool = False,
) -> Path:
    """Train a resolved recipe in its run folder ``recipe["out"]`` and return that folder; called again, resume.

    ``goes_on``: something else is trained after it, so that no advice is given where it is finished already.
    ``echo`` is called with the lines to print. Under ``torchrun`` all ranks call this. Raises :class:`MaemmError` for
    what a user can fix, and :class:`~maemm.train.signals.Interrupted` after SIGINT, SIGTERM, SIGUSR1 or SIGHUP, once a
    checkpoint has been saved.
    """
    if recipe.get("stages"):
        names = ", ".join(recipe["stages"])
        raise MaemmError(f"the recipe has several stages ({names}), and this trains one; choose it: stage=NAME")
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
        dist_context.mesh = mesh_of(recipe["train"]["parallel"], recipe["train"]["shard"], dist_context)
        mirrors: list[Mirror] = []  # of rank 0, where the recipe has one
        dist_context.on_rank0(lambda: mirrors.extend(open_mirror(recipe, folder, console.log)))
        resume_from = dist_context.on_rank0(lambda: latest_checkpoint(folder, source, held_out, console.log))
        if resume_from is not None and resume_from.step >= steps:
            advice = "" if goes_on else "; raise train.epochs to continue, or set another out= for a new run"
            console.log(f"{folder.path} is finished ({resume_from.step} steps){advice}")
            dist_context.on_rank0(lambda: send_rest(recipe, folder, console.log))
            return folder.path
        stack.callback(console.end)
        stack.enter_context(compiling.compiler_settings())
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
                mirrors,
            )
        )
        stack.push(run.leave)
        stack.callback(run.saves.leave)
        with dist_context.explain_errors():  # weights in shards are gathered in many places
            run.resume(resume_from)
            run.train(interrupts)
        run.train_state.net = run.train_state.model  # drops DDP, which holds the process group that ends here
    return folder.path


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
        mirrors: Sequence[Mirror] = (),
    ):
        """``fresh``: there is no checkpoint to :meth:`resume` from."""
        self.recipe, self.folder, self.dist_context, self.console = recipe, folder, dist_context, console
        self.source, self.order, self.steps, self.callback = source, order, steps, callback
        self.settings: Mapping[str, Any] = recipe["train"]
        epochs_per_save = max(1, math.ceil(-(-steps // order.steps_per_epoch) / SAVES))
        self.save_every = self.settings.get("save_every") or order.steps_per_epoch * epochs_per_save
        saves_per_picture = max(1, math.ceil(steps / self.save_every / PICTURES))
        self.picture_every = self.settings.get("picture_every") or self.save_every * saves_per_picture
        self.step = 0
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
        self.watch = NonFiniteWatch(dist_context, self.settings["max_nonfinite"], console.log)
        self.spikes = Spikes(self.settings.get("spikes"), self.train_state.guard, console.log)
        self.validator = Validator(recipe, held_out, order.steps_per_epoch, folder.path / BEST, console.log)
        warmup = warmup_epochs(self.settings, order.steps_per_epoch, steps) * order.steps_per_epoch
        self.monitor = Monitor(recipe, self.train_state, source, held_out, warmup, console.log)

        # What it leaves behind.
        self.log = RunLog(recipe, folder, self.train_state, console, order.steps_per_epoch)
        self.saves = Saves(recipe, folder, self.train_state, source, held_out, self._progress, console.log, mirrors)
        self.trackers = Trackers(recipe, folder, console.log, works=dist_context.is_rank0)
        self.callback = side_product(console.log, "pictures and report", self._begin_callback, Callback())
        self.ended = False

    def resume(self, newest: Checkpoint | None) -> None:
        """Continue from a checkpoint, or from one before it where that holds what this run cannot have written.

        Raises :class:`MaemmError` where none can be used.
        """
        self.step, state = self.saves.resume(newest)
        if state:
            self.watch.steps = state["nonfinite_steps"]
            self.validator.load_state_dict(state["validation"])
            self.monitor.load_state_dict(state.get("monitor") or {})
            self.spikes.load_state_dict(state.get("spikes") or {})
            self.spikes.can_go_back = True
        self.dist_context.on_rank0(self._rewind)
        self.log.resume(state)
        self.fetch = Fetch(self.train_state, self.bad_samples, self.log.clock, self.console.log)

    def _rewind(self) -> None:
        """Drop what an earlier start has written beyond the step from which this one continues."""
        self.log.rewind(self.step)
        self.saves.prune(self.step)
        self.folder.begin()
        self._tell("work of a callback at the start", lambda callback: callback.resume(self.step))

    # ------------------------------------------------------------------------------------------ the loop
    def train(self, interrupts: Interrupts) -> None:
        """Step until the end. At an interrupt, or an error between two steps, first save what has been learned."""
        length = self.order.steps_per_epoch, self.steps
        self.console.log(first_line(self.folder.path, self.train_state, len(self.source), self.order, self.steps))
        init = self.train_state.init
        begins = [] if init is None else init.lines()
        guarded = describe(self.settings.get("spikes"))
        for line in (left_out_line(self.order), shortened_warmup(self.settings, *length), guarded, *begins):
            if line is not None:
                self.console.log(line)
        if self.dist_context.device.type == "cuda":
            self.console.log(f"steps are {compiling.on_gpu(self.settings['compile'], self.train_state.model.recipe)}")
        if self.step:
            self.console.log(f"resuming from step {self.step}")
        self._steps(interrupts)
        while self.spikes.spike_at is not None:
            self._go_back()
            self._steps(interrupts)
        if self.monitor.should_stop:
            raise self.monitor.stopped(self.step, self._save())
        self._finish()

    def _steps(self, interrupts: Interrupts) -> None:
        """Step until the end, or until the run is to go back."""
        self.console.begin(self.step, self.steps)
        loaded = self.loader.steps(self.step, self.steps, self.spikes.offset)
        batches = StepsOnDevice(loaded, self.dist_context.device, in_thread=self.loader.workers > 0)
        try:
            self.monitor.begin(self.step)
            while self.step < self.steps and not self._should_end():
                micro_batches = self._next_micro_batches(batches, interrupts)
                if not self.stepped:  # a batch has been read and checked: the start has succeeded
                    self.dist_context.on_rank0(lambda: self.folder.store(self.recipe, self.train_state.init))
                self._train_step(micro_batches)
        except Interrupted as interrupt:
            raise Interrupted(interrupt.signum, self._stop()) from None
        finally:
            batches.close()
        self.spikes.check()

    def _should_end(self) -> bool:
        return self.validator.should_stop or self.monitor.should_stop or self.spikes.spike_at is not None

    def _go_back(self) -> None:
        """To the newest checkpoint, past the samples of the steps since: the loss of the last of them jumped."""
        self.console.end()
        self.watch.check()
        self.saves.finish()
        folder, log = self.folder.checkpoints, self.console.log
        newest = self.dist_context.on_rank0(lambda: latest(folder, log))
        self.spikes.check_limit(newest)
        rewinds, offset = self.spikes.rewinds, self.spikes.offset
        self.resume(newest)
        self.spikes.go_back(self.step, rewinds, offset)

    def _next_micro_batches(self, batches: StepsOnDevice, interrupts: Interrupts) -> MicroBatches:
        """The micro-batches of the next step, planned. All that can fail on one rank alone happens here."""
        try:
            if self.train_state.sharding is None:
                return self.dist_context.on_all_ranks(lambda: self.fetch(batches), stop=interrupts)
            loaded = self.dist_context.on_all_ranks(lambda: self.fetch.read(batches), stop=interrupts)
            return self.dist_context.on_all_ranks(lambda: self.fetch.plan(loaded))
        except Interrupted:
            raise
        except Exception as error:
            self.saves.write_after_error(self.step, error)
            raise

    def _train_step(self, micro_batches: MicroBatches) -> None:
        """One step, and what is due after it: validation, measurements, a log line, a checkpoint, pictures."""
        done = micro_batches.step + 1
        is_last = done == self.steps
        validates, measures = self.validator.is_due(done, self.steps), self.monitor.is_due(done, self.steps)
        logs = done % self.settings["log_every"] == 0 or is_last or validates or measures
        lr = self.lr(micro_batches.step)
        set_lr(self.train_state.optimizer, lr)
        if isinstance(self.order, MixtureBatches):
            micro_batches.data_set = self.order.set_of(micro_batches.step + self.spikes.offset)[0]
        with self.dist_context.explain_errors():
            unused = [] if self.stepped else self._begin_steps(micro_batches)
            result = take_step(self.train_state, micro_batches, baseline=logs, first=not self.stepped)
        if not self.stepped:
            self.stepped, self.untrained = True, unused or result.without_gradient
            self._warn_of_untrained()
        self.step = done
        self.log.add(micro_batches, result)
        self.watch.add(micro_batches.step, result, micro_batches.ids)
        self.spikes.add(micro_batches.step, result.total, result.verdict)
        if self.spikes.spike_at is not None:  # what is due after this step is undone with it
            return
        self.monitor.add(micro_batches)
        self.console.step()
        validation = None
        if validates:
            validation = self.validator.validate(self.train_state, done)
        figures = self.monitor.measure(done) if measures else None
        if logs:
            row = self.log.row(done, result, lr, self.watch.steps, validation, figures, self.spikes.counts)
            if measures:
                row["alarms"] = [vars(alarm) for alarm in self.monitor.judge(row)]
            self.log.write(row)
            self._tell("work of a callback on a log line", lambda callback: callback.logged(row))
        if done % self.save_every == 0 and not is_last:
            self._save(wait=False)
        if done % self.picture_every == 0 and not is_last:
            self._draw_pictures()

    def _begin_steps(self, micro_batches: MicroBatches) -> list[str]:
        """Compile and wrap the model before the first step; returns the names of parameters that are left out."""
        if self.train_state.compiled:
            self.console.log("compiling, which takes some minutes (train.compile=false starts at once)")
            compiling.start(self.train_state, micro_batches, self.settings["compile"], self.console.log)
        return leave_out_unused(self.train_state, micro_batches)

    def _warn_of_untrained(self) -> None:
        if names := self.untrained:
            gets, stay, them = ("s get", "stay", "them") if len(names) > 1 else (" gets", "stays", "it")
            self.console.log(
                f"warning: {len(names)} parameter{gets} no gradient and {stay} untrained ({some_of(names)}): no loss "
                f"depends on {them}; leave the part out, or use it in an objective"
            )

    # --------------------------------------------------------------------------------------------- what it leaves
    def _progress(self) -> dict[str, Any]:
        """What a checkpoint holds beside weights and optimisers."""
        return {
            "means": self.log.means.state_dict(),
            "nonfinite_steps": self.watch.steps,
            "seconds": self.log.clock.seconds,
            "validation": self.validator.state_dict(),
            "monitor": self.monitor.state_dict(),
            "untrained": self.untrained,
            **self.spikes.state_dict(),
        }

    def _save(self, *, wait: bool = True) -> Path:
        """Write a checkpoint, none of steps that are to be undone; ``wait``: it is whole afterwards, also with
        ``train.async_save``."""
        self.watch.check()
        self.spikes.check()
        if self.spikes.spike_at is not None:
            return self.folder.checkpoints
        self.spikes.can_go_back = True
        return self.saves.write(self.step, wait=wait)

    def _begin_callback(self) -> Callback:
        self.callback.begin(self.train_state, self.loader, self.folder, self.console.log)
        return self.callback

    def _tell(self, title: str, hook: Callable[[Callback], None]) -> None:
        """Call a hook of the callbacks on rank 0, while the others go on."""
        if self.dist_context.is_rank0:
            for callback in (self.callback, self.trackers):
                side_product(self.console.log, title, partial(hook, callback), None)

    def _draw_pictures(self) -> None:
        draw = partial(self.callback.draw_pictures, self.step)
        title = f"pictures of step {self.step}"
        with self.train_state.gathered():
            self.dist_context.on_rank0(lambda: side_product(self.console.log, title, draw, None))

    def _finish(self) -> None:
        self._save()
        self._draw_pictures()
        self.console.end()
        page = self.dist_context.on_rank0(lambda: side_product(self.console.log, "report", self.callback.finish, None))
        self._end("finished")
        advice = f"; open {page}" if page else ""
        self.console.log(f"Finished {self.step} steps in {self.folder.path}{self.validator.best_text}{advice}")
        if unreadable := self.bad_samples.summary():
            self.console.log(unreadable)

    def leave(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """At the end of the run's context, however it ends."""
        if error is not None and not self.ended:
            failed = not isinstance(error, (Interrupted, KeyboardInterrupt, SystemExit))
            self._end("failed" if failed else "stopped", one_line(error) if failed else None)

    def _end(self, state: str, reason: str | None = None) -> None:
        self.ended = True
        if self.dist_context.is_rank0:
            self.folder.note_end(state, self.step, reason)
        self._tell("work of a callback at the end", lambda callback: callback.end(state))

    def _stop(self) -> str:
        """After a signal: save, and return the message for it."""
        # Before the first step there is nothing to keep, and the next start may bring another recipe.
        saved = f"saved to {self._save()}. The same command continues." if self.step else "there is nothing to save."
        message = f"Stopped at step {self.step}; {saved}"
        self.console.end()
        self.console.log(message)
        return message
