"""``maemm score RUN_OR_WEIGHTS [DATA] -o FILE``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import EPILOG, add_model_flags, data_and_settings, model_options
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("score", "RUN_OR_WEIGHTS [DATA] -o FILE", "reconstruction error of every sample, to find odd ones")

MORE = """A .csv holds id, label and score of every sample; a .npz also the error of every token.

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Write the reconstruction error of every sample to a file."""
    parser = verb_parser(VERB, MORE + EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="file to write: .csv or .npz")
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help="draw the N highest scores (default: 0)")
    parser.add_argument("--plans", type=int, default=4, metavar="K", help="masks drawn for each sample (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    add_model_flags(parser)
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    if args.out is None:
        raise MaemmError("no file to write is given; add -o scores.csv (or .npz)")
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    from maemm.tasks.score.run import score_data
    from maemm.ui.progress import progress

    options = {**data_and_settings(overrides), **model_options(args)}
    with progress("score") as on_progress:
        scored = score_data(
            str(weights),
            data,
            args.out,
            pictures=args.pictures,
            plans=args.plans,
            batch=args.batch,
            seed=args.seed,
            on_progress=on_progress,
            **options,
        )
    if flags.json:
        scores = scored.scores
        record = {
            "file": str(scored.path),
            "samples": len(scores),
            "skipped": len(scores.skipped),
            "mean": float(scores.samples.mean()),
            "worst": {scores.ids[row]: float(scores.samples[row]) for row in scores.worst(10)},
            "pictures": None if scored.pictures is None else str(scored.pictures),
        }
        print_json(record)
    else:
        print_result(scored)
    return 0
