"""``maemm diagnose RUN_OR_WEIGHTS [DATA] [-o FILE]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.words import EPILOG, words
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb("diagnose", "RUN_OR_WEIGHTS [DATA] [-o FILE]", "rank, spread, attention, clusters and losses on one page")

MORE = """Writes a page, and its figures beside it as JSON. Without -o: diagnose.html in the run's folder.

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Say what a model has learned, beside the same network untrained."""
    parser = verb_parser(VERB, MORE + EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="page to write: .html")
    parser.add_argument("--samples", type=int, default=512, help="samples, evenly spread (default: 512)")
    parser.add_argument("--alone", action="store_true", help="without the untrained network beside it")
    parser.add_argument("--ratios", metavar="R,R", help="shares of hidden tokens at which the loss is taken")
    parser.add_argument("--clusters", type=int, default=6, metavar="K", help="clusters of tokens (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of masks, views and clusters (default: 0)")
    parser.add_argument("--batch", type=int, default=32, help="samples at a time (default: 32)")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 1, 2, VERB.usage)
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    options = words(overrides, args) | ({} if args.kind is None else {"kind": args.kind})
    if args.ratios is not None:
        options["ratios"] = _shares(args.ratios)
    settings = {"samples": args.samples, "clusters": args.clusters, "seed": args.seed, "batch": args.batch}
    from maemm.tasks.diagnose.run import diagnose
    from maemm.ui.progress import progress

    with progress("diagnose", "readings") as show:
        made = diagnose(str(what), data, args.out, beside=not args.alone, on_progress=show, **settings, **options)
    print(json.dumps({"file": str(made.path), **made.record()}) if flags.json else made)
    return 0


def _shares(text: str) -> list[float]:
    try:
        return [float(one) for one in text.split(",")]
    except ValueError:
        raise MaemmError(f"--ratios is {text!r}; give shares with commas between them, such as 0.5,0.75") from None
