"""``maemm score RUN_OR_WEIGHTS [DATA] -o FILE``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.words import EPILOG, words
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb("score", "RUN_OR_WEIGHTS [DATA] -o FILE", "reconstruction error of every sample, to find odd ones")

MORE = """A .csv holds id, label and score; a .npz also the error of every token.

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Write the reconstruction error of every sample to a file."""
    parser = verb_parser(VERB, MORE + EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="file to write: .csv or .npz")
    parser.add_argument("--pictures", type=int, default=0, metavar="N", help="draw the N highest scores (default: 0)")
    parser.add_argument("--plans", type=int, default=4, metavar="K", help="masks drawn for each sample (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the masks (default: 0)")
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, VERB.usage)
    if args.out is None:
        raise MaemmError("no file to write is given; add -o scores.csv (or .npz)")
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    from maemm.tasks.score.run import score_data
    from maemm.ui.progress import progress

    options = words(overrides, args) | ({} if args.kind is None else {"kind": args.kind})
    with progress("score") as show:
        made = score_data(
            str(what),
            data,
            args.out,
            pictures=args.pictures,
            plans=args.plans,
            batch=args.batch,
            seed=args.seed,
            on_progress=show,
            **options,
        )
    scores = made.scores
    about = {"file": str(made.path), "samples": len(scores), "skipped": len(scores.skipped)}
    about["mean"] = float(scores.samples.mean())
    about["worst"] = {scores.ids[row]: float(scores.samples[row]) for row in scores.worst(10)}
    print(json.dumps({**about, "pictures": made.pictures and str(made.pictures)}) if flags.json else made)
    return 0
