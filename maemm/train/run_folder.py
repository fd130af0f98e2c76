"""The run folder: one recipe, one run at a time, and the same command again continues."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maemm.config import RECIPE, diff, dump, load
from maemm.config.layers import flatten
from maemm.contract.errors import MaemmError
from maemm.contract.rng import RNG_VERSION
from maemm.data.atomic import write_json, write_text
from maemm.data.locks import folder_locked
from maemm.train.initialize import InitReport
from maemm.weights.checkpoints import CHECKPOINTS

METRICS, BAD, INIT, END = "metrics.jsonl", "bad_samples.jsonl", "init.json", "end.json"

# Keys that may change in an existing run: the numbers of a step do not depend on them.
FREE = {
    "out", "name", "data.workers", "data.timeout", "data.prefetch", "data.max_bad_fraction", "train.micro_batch",
    "train.log_every", "train.save_every", "train.async_save", "train.keep", "train.picture_every", "train.tensorboard",
    "train.max_nonfinite", "train.rank_timeout", "train.parallel", "train.shard",
    "train.peak_tflops", "train.monitor", "train.monitor.every",
    "train.monitor.samples", "train.monitor.data", "train.monitor.stop_on_alarm",
    "train.mirror", "train.mirror.url", "train.mirror.options", "train.mirror.keep", "train.mirror.patience",
}  # fmt: skip
FREE_BELOW = "train.trackers"  # whatever stands below it is free too
# Keys that may change too, though the learning rate of the remaining steps changes with them.
LENGTH = {"train.epochs", "train.steps"}
# Keys that may be set where a run needs them: steps before it stay as they are.
GUARD = "train.spikes"
# Keys that say where the data lie: they may change where the fingerprint of the data does not.
VALIDATION = "data.validation"
_LISTED = 8  # keys that differ, in a message
PLACES = re.compile(
    r"data\.(validation|(mix\.[^.]+\.)?(source\.((parts\.[^.]+|videos)\.)?(labels|images|cache|root|list)|root|list))"
)


class RunFolder:
    """Paths inside a run folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.recipe, self.metrics, self.bad = self.path / RECIPE, self.path / METRICS, self.path / BAD
        self.init = self.path / INIT  # what became of every tensor where the run began with weights
        self.checkpoints, self.pictures = self.path / CHECKPOINTS, self.path / "pictures"
        self.end = self.path / END  # how the last start ended, unless it runs or was killed
        self.moved: dict[str, str] = {}  # keys that say where the data lie, of those that changed, and how

    @contextmanager
    def opened(self, recipe: Mapping[str, Any], log: Callable[[str], Any]) -> Iterator[None]:
        """Create the folder, locked within the block.

        A folder with checkpoints must hold the same recipe, see :func:`compare`; without any, every recipe may begin.
        The recipe is not stored before :meth:`store`. Raises :class:`MaemmError` where the folder cannot be used.
        """
        with folder_locked(self.path, user="run", log=log):
            if begun := stages_begun(self.path):
                raise MaemmError(
                    f"{self.path} holds a run of stages ({', '.join(begun)}); choose another out=, or delete it"
                )
            if has_checkpoints(self.path):
                if not self.recipe.exists():
                    raise MaemmError(f"{self.path} has checkpoints but no {RECIPE}; choose another out=, or delete it")
                self.moved = compare(self.path, load(self.recipe, training=True), recipe, log)
            yield

    def store(self, recipe: Mapping[str, Any], init: InitReport | None = None) -> None:
        """Write the recipe of a start that has succeeded: its data are open, and the first batch has been checked.

        ``init``: of a start with weights, what became of them.
        """
        advice = "free space or choose another out="
        write_text(self.recipe, dump(recipe), "the recipe of the run", advice=advice)
        if init is not None:
            text = json.dumps(init.as_dict(), indent=1) + "\n"
            write_text(self.init, text, "what became of the weights of init", advice=advice)

    def begin(self) -> None:
        """A start begins: nothing is known of how it ends."""
        self.end.unlink(missing_ok=True)

    def note_end(self, state: str, step: int, reason: str | None) -> None:
        """``state``: finished, stopped by a signal, or failed for a ``reason``. A full disk is no error here."""
        about = {"state": state, "step": step, "reason": reason}
        with suppress(MaemmError):
            write_json(self.end, about, "how the run has ended")

    def check_random_numbers(self, meta: Mapping[str, Any]) -> None:
        """Raises :class:`MaemmError` where the steps before a checkpoint drew their random numbers in another way."""
        version = meta.get("rng_version", 1)
        if version != RNG_VERSION:
            maemm = (meta.get("versions") or {}).get("maemm", "that it was begun with")
            raise MaemmError(
                f"{self.path} drew its random numbers in another way (version {version}, now {RNG_VERSION}), so it "
                f"would not continue exactly; finish it with maemm {maemm}, or start from its weights: "
                f"init={self.path} out=..."
            )

    def check_data(self, meta: Mapping[str, Any], step: int, data: str, validation: str | None) -> None:
        """Raises :class:`MaemmError` where the fingerprints of the data are not those in ``meta`` of a checkpoint.

        Validation data are compared where they are said to have moved, as older checkpoints do not record them.
        """
        old, where = meta.get("data"), [line for key, line in self.moved.items() if key != VALIDATION]
        new: str | None = data
        if old == new and VALIDATION in self.moved:
            old, new, where = meta.get("validation", "not recorded"), validation, [self.moved[VALIDATION]]
        if old != new:
            places = f"{', '.join(where)}; " if where else ""
            raise MaemmError(
                f"the data of {self.path} have changed since step {step} ({places}{old} -> {new}); "
                "bring the old data back, or choose another out="
            )


def has_checkpoints(path: Path) -> bool:
    """Whether a run in the folder has written a checkpoint, whole or not."""
    return any((path / CHECKPOINTS).glob("step-*"))


def stored_recipe(path: Path) -> dict[str, Any] | None:
    """The recipe of a run folder, with defaults for what older versions did not have; None where there is none."""
    return load(path / RECIPE, training=True) if (path / RECIPE).exists() else None


def stages_begun(path: Path) -> list[str]:
    """The stages of a run folder that have checkpoints, in order; none where its recipe cannot be read."""
    try:
        stored = None if has_checkpoints(path) else stored_recipe(path)
    except MaemmError:
        return []
    return [name for name in (stored or {}).get("stages") or () if has_checkpoints(path / name)]


def with_stored_classes(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the classes of the run in the folder, where it does not say which: data of that run gave them."""
    stored = stored_recipe(path) if has_checkpoints(path) else None
    if stored is None or recipe["data"].get("classes") is not None:
        return recipe
    return {**recipe, "data": {**recipe["data"], "classes": stored["data"].get("classes")}}


def compare(path: Path, old: Mapping[str, Any], new: Mapping[str, Any], log: Callable[[str], Any]) -> dict[str, str]:
    """Let a run continue with a recipe that trains the same, and log where its length has changed.

    Returns {key: "key: old -> new"} of the places of the data that differ, which is right if the data are the same.
    Raises :class:`MaemmError` that lists every other key that differs.
    """
    changed = {line.partition(": ")[0]: line for line in diff(old, new)}
    before, after = flatten(old), flatten(new)
    moved = {key: line for key, line in changed.items() if _is_place(key, before.get(key), after.get(key))}
    same = [key for key in ("init", "init.weights") if key in changed and _same_weights(key, before, after)]
    guard = [key for key in changed if key == GUARD or key.startswith(f"{GUARD}.")]
    kept = LENGTH | {*moved, *same, *guard}
    refused = [line for key, line in changed.items() if not is_free(key) and key not in kept]
    if refused:
        more = f", and {len(refused) - _LISTED} more keys" if len(refused) > _LISTED else ""
        listed = ", ".join(refused[:_LISTED]) + more
        raise MaemmError(f"{path} holds a run with another recipe ({listed}); choose another out=, or delete it")
    if guard:
        log(f"{path} goes on with another guard against loss spikes ({', '.join(changed[key] for key in guard)})")
    length = [line for key, line in changed.items() if key in LENGTH]
    if length:
        log(
            f"{path} was started with another length ({', '.join(length)}): it continues, but does not equal a run of "
            "the new length, as the learning rate has followed the old schedule until here"
        )
    return moved


def is_free(key: str) -> bool:
    """Whether a key of an existing run may change, as nothing that it learns depends on it."""
    return key in FREE or f"{key}.".startswith(f"{FREE_BELOW}.")


def _is_place(key: str, old: Any, new: Any) -> bool:
    """Whether a change says that the data lie elsewhere. Validation that is a fraction on one side is another one."""
    if not PLACES.fullmatch(key):
        return False
    values = [value for value in (old, new) if value is not None]
    return all(isinstance(value, str) for value in values) and (key != VALIDATION or len(values) == 2)


def _same_weights(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two flat recipes begin with the same file, or with one that has moved together with the run: a stage."""
    before, after = old.get(key), new.get(key)
    if not (isinstance(before, str) and isinstance(after, str)):
        return False
    if Path(before).resolve() == Path(after).resolve():
        return True
    places = [(path, flat.get("out")) for path, flat in ((before, old), (after, new))]
    beside = [os.path.relpath(path, out) for path, out in places if isinstance(out, str)]
    return len(beside) == 2 and beside[0] == beside[1] and Path(beside[0]).parts[:1] == (os.pardir,)
