"""``maemm finetune RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any

from maemm.cli.parser import VERBS, split, verb_parser
from maemm.errors import MaemmError

EPILOG = """DATA is short for data.root=DATA. A pre-trained run or weights give a recipe with the settings of MAE's
fine-tuning; any key of it can be set: train.epochs, train.layer_decay, train.trainable=last_2_blocks,
encoder.drop_path, objectives.classify.mixup=0.8, .cutmix=1.0, .erase=0.25, .smoothing, train.ema=0.999,
data.validation=FOLDER or a share, train.patience=5. The same command again continues."""


def run(argv: list[str], flags: Namespace) -> int:
    """Train a classifier from what was pre-trained."""
    parser = verb_parser("finetune", EPILOG)
    parser.add_argument("--test", metavar="DATA", help="data to ask about in the end; nothing is chosen by them")
    parser.add_argument("--scratch", action="store_true", help="the same network with fresh weights, to compare with")
    parser.add_argument("--balanced", action="store_true", help="weigh classes by the inverse of their frequency")
    parser.add_argument(
        "--shots",
        metavar="1,5,10%,all",
        help="labels of each class: a run for each, and from scratch, then a table and a curve (with --test)",
    )
    parser.add_argument("--seeds", type=int, default=1, help="with --shots: how often labels and weights are drawn (1)")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, f"finetune {VERBS['finetune'].words}")
    if data is not None and any(one.startswith("data.root=") for one in overrides):
        raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
    from maemm.evaluate.evaluate import evaluate, shared_with_training
    from maemm.evaluate.finetune import finetune, pairs

    if args.shots:
        return _few_labels(args, flags, str(what), data, pairs(overrides))
    folder = finetune(str(what), data, scratch=args.scratch, balanced=args.balanced, **pairs(overrides))
    found = None if args.test is None else evaluate(folder, args.test)
    if found is not None and (shared := shared_with_training(folder, args.test)) is not None and shared.content:
        print(f"maemm: warning: {shared}", file=sys.stderr)
    if flags.json:
        print(json.dumps({"run": str(folder), **({} if found is None else {"test": found.record()})}))
    elif found is not None:
        print(found)
    return 0


def _few_labels(args: Namespace, flags: Namespace, what: str, data: str | None, given: dict[str, Any]) -> int:
    if args.test is None or args.scratch or args.balanced:
        raise MaemmError("--shots needs --test DATA, trains from scratch by itself, and takes no --balanced")
    from maemm.evaluate.efficiency import label_efficiency

    found, folder = label_efficiency(what, data, test=args.test, shots=args.shots.split(","), seeds=args.seeds, **given)
    for text in found.warnings:
        print(f"maemm: warning: {text}", file=sys.stderr)
    if flags.json:
        print(json.dumps({"folder": str(folder), **found.record()}))
    else:
        print(f"{found}\nOpen {folder / 'report.html'}")
    return 0
