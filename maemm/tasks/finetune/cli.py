"""``maemm finetune RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb(
    "finetune", "RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]", "train a classifier from what was pre-trained"
)

EPILOG = """DATA is short for data.root=DATA. A pre-trained run or weights give a recipe with the settings of MAE's
fine-tuning; any key of it can be set: train.epochs, train.layer_decay, train.trainable=last_2_blocks,
encoder.drop_path, objectives.classify.mixup=0.8, .cutmix=1.0, .erase=0.25, .smoothing, train.ema=0.999,
data.validation=FOLDER or a share, train.patience=5. test.source.split=test, test.list=FILE and test.source=NAME: what
is other for --test than for DATA. The same command again continues."""


def run(argv: list[str], flags: Namespace) -> int:
    """Train a classifier from what was pre-trained."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--test", metavar="DATA", help="data to ask about in the end; nothing is chosen by them")
    parser.add_argument("--scratch", action="store_true", help="the same network with fresh weights, to compare with")
    parser.add_argument("--balanced", action="store_true", help="weigh classes by the inverse of their frequency")
    parser.add_argument(
        "--shots",
        metavar="1,5,10%,all",
        help="labels of each class: a run for each, and from scratch, then a table and a curve",
    )
    parser.add_argument("--folds", type=int, metavar="K", help="a run for each fold of DATA, asked about that fold")
    parser.add_argument("--groups", metavar="REGEX", help="part of the ids that names what folds must not tear apart")
    parser.add_argument("--seeds", type=int, default=1, help="a run for each: weights, order, folds and labels (1)")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, VERB.usage)
    if data is not None and any(one.startswith("data.root=") for one in overrides):
        raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
    from maemm.tasks.finetune.run import pairs

    given = pairs(overrides)
    asked = {key.removeprefix("test."): given.pop(key) for key in [*given] if key.startswith("test.")}
    if asked and args.test is None:
        raise MaemmError(f"test.{next(iter(asked))} is given without a test part; add --test DATA")
    if args.shots or args.folds is not None or args.groups is not None or args.seeds != 1:
        return _multilabel(args, flags, str(what), data, given, asked)
    return _one(args, flags, str(what), data, given, asked)


def _one(
    args: Namespace, flags: Namespace, what: str, data: str | None, given: dict[str, Any], asked: dict[str, Any]
) -> int:
    from maemm.tasks._shared.inputs import open_part
    from maemm.tasks.evaluate.run import evaluate
    from maemm.tasks.finetune.run import beginning
    from maemm.tasks.pretrain.run import train_recipe
    from maemm.train.distributed import joined

    recipe = beginning(what, data, given, scratch=args.scratch, balanced=args.balanced)
    test = None if args.test is None else open_part(recipe, args.test, asked)
    with joined() as dist_context:
        folder = train_recipe(recipe)
    if not dist_context.is_rank0:
        return 0
    found = None if test is None else evaluate(folder, test, compare=True)
    for text in () if found is None else found.warnings:
        print(f"maemm: warning: {text}", file=sys.stderr)
    if flags.json:
        print(json.dumps({"run": str(folder), **({} if found is None else {"test": found.record()})}))
    elif found is not None:
        print(found)
    return 0


def _multilabel(
    args: Namespace, flags: Namespace, what: str, data: str | None, given: dict[str, Any], asked: dict[str, Any]
) -> int:
    if args.test is None and args.folds is None and args.groups is None:
        flag = "--shots" if args.shots else "--seeds"
        raise MaemmError(f"{flag} needs --test DATA, or --folds or --groups, to ask about what was learned")
    if args.shots and (args.scratch or args.balanced):
        raise MaemmError("--shots trains from scratch by itself, and takes no --balanced; leave --scratch and it out")
    from maemm.tasks.finetune.efficiency import label_efficiency, repeated

    split = {key: getattr(args, key) for key in ("test", "folds", "groups", "seeds")} | {"options": asked}
    if args.shots:
        found, folder = label_efficiency(what, data, shots=args.shots.split(","), **split, **given)
    else:
        found, folder = repeated(what, data, scratch=args.scratch, balanced=args.balanced, **split, **given)
    if found is None:  # another process tells
        return 0
    for text in found.warnings:
        print(f"maemm: warning: {text}", file=sys.stderr)
    if flags.json:
        print(json.dumps({"folder": str(folder), **found.record()}))
    else:
        print(f"{found}\nOpen {folder / 'report.html'}")
    return 0
