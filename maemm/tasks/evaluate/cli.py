"""``maemm evaluate RUN_OR_WEIGHTS [DATA]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.tasks._shared.cli_options import EPILOG, add_model_flags, data_and_settings, model_options
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result, warn

VERB = Verb("evaluate", "RUN_OR_WEIGHTS [DATA]", "evaluate a fine-tuned model on labelled data")

MORE = """
modalities.NAME.KEY=value: how samples are read and in how many views, where that is not as in training"""


def run(argv: list[str], flags: Namespace) -> int:
    """Evaluate a fine-tuned model on labelled data."""
    parser = verb_parser(VERB, EPILOG + MORE)
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    parser.add_argument("--per-class", action="store_true", help="also metrics of every class, and confusions")
    parser.add_argument("--no-tta", action="store_true", help="one view of each sample, where there are more")
    parser.add_argument("--average", choices=["probabilities", "logits"], default="probabilities", help="over views")
    parser.add_argument("-o", "--out", metavar="FILE", help="metrics as JSON (default: evaluate/ in the run's folder)")
    add_model_flags(parser)
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    reading = [word for word in overrides if word.startswith("modalities.")]
    options = data_and_settings([word for word in overrides if word not in reading], "classes")
    options |= model_options(args)
    from maemm.tasks.evaluate.run import evaluate
    from maemm.ui.progress import progress

    with progress("evaluate") as show:
        answers = evaluate(
            str(weights), data, batch=args.batch, tta_views=not args.no_tta, average=args.average, overrides=reading,
            compare=True, out=args.out, on_progress=show, **options,
        )  # fmt: skip
    if flags.json:
        print_json(answers.record())
        return 0
    for text in answers.warnings:
        warn(text)
    print_result(f"{answers}\n\n{answers.details()}" if args.per_class else answers)
    return 0
