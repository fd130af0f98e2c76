"""``maemm retrieve RUN_OR_WEIGHTS [DATA] [--pair A,B]``."""

from __future__ import annotations

from argparse import Namespace
from contextlib import ExitStack

from maemm.tasks._shared.cli_options import EPILOG, add_model_flags, data_and_settings, model_options
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("retrieve", "RUN_OR_WEIGHTS [DATA] [--pair A,B]", "find the partners of one modality in another")


def run(argv: list[str], flags: Namespace) -> int:
    """Find the partners of one modality in another, both ways."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--pair", metavar="A,B", help="the two modalities (default: the first two)")
    parser.add_argument("--tta", action="store_true", help="mean over all views of a sample: all frames of a clip")
    parser.add_argument("--baselines", action="store_true", help="also the untrained network")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    add_model_flags(parser)
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    from maemm.tasks.retrieve.run import retrieve
    from maemm.ui.progress import progress

    with ExitStack() as stack:
        retrieval = retrieve(
            str(weights),
            data,
            pair=args.pair.split(",") if args.pair else None,
            tta=args.tta,
            batch=args.batch,
            baselines=args.baselines,
            show=lambda kind: stack.enter_context(progress(f"embed, {kind}")),
            **data_and_settings(overrides),
            **model_options(args),
        )
    if flags.json:
        print_json(retrieval.record())
        return 0
    lines = [str(retrieval)]
    if retrieval.skipped:
        first = retrieval.skipped[0]
        lines.append(f"{len(retrieval.skipped):,} samples skipped (first: {first.id}: {first.reason})")
    print_result("\n".join(lines))
    return 0
