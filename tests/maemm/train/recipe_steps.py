"""Two training steps of packaged recipes, shrunk: run by tests in their own process, and as a script on each rank."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

CONFIGS = Path(__file__).parents[3] / "configs"
RECIPES = sorted(
    path.relative_to(CONFIGS).with_suffix("").as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "studies"
)
SMALL = {"dim": 48, "depth": 1, "heads": 2}


def shrunk(name, overrides):
    from maemm import config

    recipe = config.load(name, overrides)
    changes = {
        f"{part}.{key}": value
        for part in ("encoder", "decoder")
        for key, value in SMALL.items()
        if key in (recipe.get(part) or {})
    }
    batch = 2 * (recipe["data"].get("aug_repeats") or 1)
    return config.load(name, {**changes, "train.batch": batch, "train.micro_batch": None, **overrides})


def two_steps(name, dist_context, overrides=None):
    """(parameters to train that get no gradient, those that get 0 everywhere, those found to be unused, updated?)."""
    from maemm.contract.rng import Rng
    from maemm.train.optim import set_lr
    from maemm.train.setup import make_train_state
    from maemm.train.state import MicroBatches
    from maemm.train.step import leave_out_unused, take_step

    recipe = shrunk(name, overrides or {})
    state = make_train_state(recipe, 10, 1, dist_context)
    set_lr(state.optimizer, 1e-3)
    trainable = {key: value for key, value in state.model.named_parameters() if value.requires_grad}
    before = {key: value.detach().clone() for key, value in trainable.items()}
    sizes: dict[str, float] = {}
    for key, parameter in trainable.items():
        parameter.register_hook(lambda gradient, key=key: sizes.__setitem__(key, float(gradient.abs().max())))

    # Two samples, as often as the recipe repeats them: views are told from those of other samples.
    rows = 2 * (recipe["data"].get("aug_repeats") or 1)

    def batch(step):
        rng = Rng((0, step, dist_context.rank), range(rows), rows)
        examples = {key: _example(modality, rng) for key, modality in state.model.modalities.items()}
        sets = state.model.plan_sets(examples, rng)
        counts = {key: value.float() for key, value in state.model.counts(sets[0]).items()}
        labels = None
        if state.model.head is not None:
            many = recipe["objectives"]["classify"].get("loss") == "sigmoid"
            labels = torch.eye(2, state.model.head.classes) if many else torch.arange(2)
            labels = labels.repeat_interleave(rows // 2, 0)
        ids = [str(row * 2 // rows) for row in range(rows)]
        return MicroBatches(step, [sets[0]], counts, [ids], [labels])

    unused = leave_out_unused(state, batch(0))
    sizes.clear()
    results = [take_step(state, batch(step), first=step == 0) for step in range(2)]
    assert not any(bool(result.bad) for result in results)
    unused = unused or results[0].without_gradient
    missing = [key for key in trainable if key not in sizes]
    zero = [key for key, size in sizes.items() if size == 0]
    same = [key for key, value in before.items() if key in sizes and torch.equal(value, trainable[key])]
    return {"missing": missing, "zero": zero, "unused": unused, "same": same, "trainable": len(trainable)}


def _example(modality, rng):
    """With the side inputs that the recipe's target reads beside samples: a number for every token."""
    from dataclasses import replace

    rows = len(rng.rows)
    x = modality.example(rows, rng)
    if not modality.side_inputs:
        return x
    numbers = torch.arange(rows * modality.tokenize(x).count).view(rows, -1)
    sides = dict.fromkeys(modality.side_inputs, numbers)
    if "regions" in sides:
        sides["regions"] = torch.arange(4, dtype=torch.uint8).view(4, 1, 1).expand(rows, 4, *x.x.shape[2:])
    return replace(x, info={**x.info, **sides})


def main(cases, out):
    """{case: :func:`two_steps`}, written by rank 0 to ``out``."""
    torch.set_num_threads(1)
    from maemm.train.distributed import start

    with start() as dist_context:
        answers = {}
        for key, (name, overrides) in cases.items():
            answers[key] = two_steps(name, dist_context, overrides)
        if dist_context.is_rank0:
            Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
