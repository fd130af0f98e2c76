"""``maemm evaluate RUN_OR_WEIGHTS [DATA]``."""

from __future__ import annotations

import json
import sys
from argparse import Namespace

from maemm.tasks._shared.words import EPILOG, words
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb("evaluate", "RUN_OR_WEIGHTS [DATA]", "ask a fine-tuned model about labelled data")

MORE = """
modalities.NAME.KEY=value: how samples are read and in how many views, where that is not as in training"""


def run(argv: list[str], flags: Namespace) -> int:
    """Ask a fine-tuned model about labelled data."""
    parser = verb_parser(VERB, EPILOG + MORE)
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    parser.add_argument("--per-class", action="store_true", help="also figures of every class, and confusions")
    parser.add_argument("--no-tta", action="store_true", help="ask about one view of each sample where there are more")
    parser.add_argument("--average", choices=["probabilities", "logits"], default="probabilities", help="over views")
    parser.add_argument("-o", "--out", metavar="FILE", help="figures as JSON (default: evaluate/ in the run's folder)")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, VERB.usage)
    reading = [one for one in overrides if one.startswith("modalities.")]
    options = words([one for one in overrides if one not in reading], args, "classes")
    options |= {} if args.kind is None else {"kind": args.kind}
    from maemm.tasks.evaluate.run import evaluate
    from maemm.ui.progress import progress

    with progress("evaluate") as show:
        found = evaluate(
            str(what), data, batch=args.batch, tta_views=not args.no_tta, average=args.average, overrides=reading,
            compare=True, out=args.out, on_progress=show, **options,
        )  # fmt: skip
    for text in found.warnings if not flags.json else ():
        print(f"maemm: warning: {text}", file=sys.stderr)
    print(json.dumps(found.record()) if flags.json else found)
    if args.per_class and not flags.json:
        print(f"\n{found.details()}")
    return 0
