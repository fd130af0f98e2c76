"""``maemm finetune RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from typing import Any

from maemm.config.check import KEYS
from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result, warn

VERB = Verb(
    "finetune",
    "RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]",
    "train a classifier from a pre-trained model",
    shared=True,
)

EPILOG = """DATA is short for data.root=DATA. A pre-trained run or weights give a recipe with the settings of MAE's
fine-tuning; any key of it can be set: train.epochs, train.layer_decay, train.trainable=last_2_blocks,
encoder.drop_path, objectives.classify.mixup=0.8, .cutmix=1.0, .erase=0.25, .smoothing, train.ema=0.999,
data.validation=FOLDER or a fraction, train.patience=5. test.source.split=test, test.list=FILE and test.source=NAME:
options of the source that differ for --test. What published weights do not record is given beside them: heads=4. The
same command again continues."""


def run(argv: list[str], flags: Namespace) -> int:
    """Train a classifier from a pre-trained model."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--test", metavar="DATA", help="data to evaluate on in the end; nothing is chosen by them")
    parser.add_argument("--scratch", action="store_true", help="the same network with fresh weights, to compare with")
    parser.add_argument("--balanced", action="store_true", help="weigh classes by the inverse of their frequency")
    parser.add_argument(
        "--shots",
        metavar="1,5,10%,all",
        help="labels of each class: a run for each, and from scratch, then a table and a curve",
    )
    parser.add_argument("--folds", type=int, metavar="K", help="a run for each fold of DATA, evaluated on that fold")
    parser.add_argument("--groups", metavar="REGEX", help="part of the ids by which samples stay in one fold")
    parser.add_argument("--seeds", type=int, default=1, help="a run for each: weights, order, folds and labels (1)")
    args, (weights, data), words = parser.parse(argv, 1, 2)
    if data is not None and any(word.startswith("data.root=") for word in words):
        raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
    from maemm.tasks.finetune.recipe import parse_overrides, weights_settings

    keys = {*KEYS, *weights_settings()}
    overrides = parse_overrides(words)
    for key in overrides:
        if key == "data":
            raise MaemmError("data is a section of a recipe (override data=...); set a key of it: data.root=FOLDER")
        if "." not in key and key not in keys:
            raise MaemmError(f"{key!r} is no key of a recipe (override {key}=...); {advice(key, keys)}")
    test_options = {key.removeprefix("test."): overrides.pop(key) for key in [*overrides] if key.startswith("test.")}
    if test_options and args.test is None:
        raise MaemmError(f"test.{next(iter(test_options))} is given without a test part; add --test DATA")
    several = args.shots or args.folds is not None or args.groups is not None or args.seeds != 1
    finetune = _several_runs if several else _one_run
    return finetune(args, flags, str(weights), data, overrides, test_options)


def _one_run(
    args: Namespace,
    flags: Namespace,
    weights: str,
    data: str | None,
    overrides: dict[str, Any],
    test_options: dict[str, Any],
) -> int:
    from maemm.tasks._shared.inputs import open_part
    from maemm.tasks.evaluate.run import evaluate
    from maemm.tasks.finetune.recipe import scratch_or_tuned_recipe
    from maemm.tasks.pretrain.run import train_recipe
    from maemm.train.distributed import joined

    recipe = scratch_or_tuned_recipe(weights, data, overrides, scratch=args.scratch, balanced=args.balanced)
    # Opened before hours of training: a mistake is reported now.
    test = None if args.test is None else open_part(recipe, args.test, test_options)
    with joined() as dist_context:
        folder = train_recipe(recipe)
    if not dist_context.is_rank0:
        return 0
    answers = None if test is None else evaluate(folder, test, compare=True)
    if answers is not None:
        _print_warnings(answers.warnings)
    if flags.json:
        print_json({"run": str(folder), **({} if answers is None else {"test": answers.record()})})
    elif answers is not None:
        print_result(answers)
    return 0


def _several_runs(
    args: Namespace,
    flags: Namespace,
    weights: str,
    data: str | None,
    overrides: dict[str, Any],
    test_options: dict[str, Any],
) -> int:
    if args.test is None and args.folds is None and args.groups is None:
        flag = "--shots" if args.shots else "--seeds"
        raise MaemmError(f"{flag} needs --test DATA, or --folds or --groups, to evaluate the runs")
    if args.shots and args.scratch:
        raise MaemmError("--shots trains from scratch too, to compare with; leave --scratch out")
    if args.shots and args.balanced:
        raise MaemmError(
            "--shots cannot be combined with --balanced, as classes have equal shares; leave --balanced out"
        )
    from maemm.tasks.finetune.run import label_efficiency, repeated

    splits: dict[str, Any] = {
        "test": args.test,
        "folds": args.folds,
        "groups": args.groups,
        "seeds": args.seeds,
        "test_options": test_options,
    }
    if args.shots:
        comparison, folder = label_efficiency(weights, data, shots=args.shots.split(","), **splits, **overrides)
    else:
        comparison, folder = repeated(
            weights, data, scratch=args.scratch, balanced=args.balanced, **splits, **overrides
        )
    if comparison is None:  # rank 0 reports
        return 0
    _print_warnings(comparison.warnings)
    if flags.json:
        print_json({"folder": str(folder), **comparison.record()})
    else:
        print_result(f"{comparison}\nOpen {folder / 'report.html'}")
    return 0


def _print_warnings(warnings: Iterable[str]) -> None:
    for text in warnings:
        warn(text)
