"""``maemm finetune RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

import json
from argparse import Namespace

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
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, f"finetune {VERBS['finetune'].words}")
    if data is not None and any(one.startswith("data.root=") for one in overrides):
        raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
    from maemm.evaluate.evaluate import evaluate
    from maemm.evaluate.finetune import finetune, pairs

    folder = finetune(str(what), data, scratch=args.scratch, **pairs(overrides))
    found = None if args.test is None else evaluate(folder, args.test)
    if flags.json:
        print(json.dumps({"run": str(folder), **({} if found is None else {"test": found.record()})}))
    elif found is not None:
        print(found)
    return 0
