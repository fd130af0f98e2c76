"""``maemm diagnose RUN_OR_WEIGHTS [DATA] [-o FILE]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import EPILOG, add_model_flags, data_and_settings, model_options
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "diagnose", "RUN_OR_WEIGHTS [DATA] [-o FILE]", "rank, alignment, attention, clusters and losses on one page"
)

MORE = """Writes a page, and its metrics beside it as JSON. Without -o: diagnose.html in the run's folder.

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Show what a model has learned, beside the same network untrained."""
    parser = verb_parser(VERB, MORE + EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="page to write: .html")
    parser.add_argument("--samples", type=int, default=512, help="samples, at regular intervals (default: 512)")
    parser.add_argument("--alone", action="store_true", help="without the untrained network")
    parser.add_argument("--ratios", metavar="R,R", help="mask ratios at which the loss is taken")
    parser.add_argument("--clusters", type=int, default=6, metavar="K", help="clusters of tokens (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of masks, views and clusters (default: 0)")
    parser.add_argument("--batch", type=int, default=32, help="samples at a time (default: 32)")
    add_model_flags(parser)
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    options = {**data_and_settings(overrides), **model_options(args)}
    if args.ratios is not None:
        try:
            options["ratios"] = [float(text) for text in args.ratios.split(",")]
        except ValueError:
            raise MaemmError(
                f"--ratios is {args.ratios!r}; give numbers with commas between them, such as 0.5,0.75"
            ) from None
    from maemm.tasks.diagnose.run import diagnose
    from maemm.ui.progress import progress

    with progress("diagnose", "readings") as on_progress:
        diagnosis = diagnose(
            str(weights),
            data,
            args.out,
            samples=args.samples,
            baseline=not args.alone,
            clusters=args.clusters,
            seed=args.seed,
            batch=args.batch,
            on_progress=on_progress,
            **options,
        )
    if flags.json:
        print_json({"file": None if diagnosis.path is None else str(diagnosis.path), **diagnosis.record()})
    else:
        print_result(diagnosis)
    return 0
