"""``maemm knn RUN_OR_WEIGHTS [DATA] [--test DATA]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import EPILOG
from maemm.tasks.probe.cli import add_probe_flags, run_verb
from maemm.ui.parser import Verb, verb_parser

VERB = Verb("knn", "RUN_OR_WEIGHTS [DATA] [--test DATA]", "classify by the nearest neighbours of frozen features")


def run(argv: list[str], flags: Namespace) -> int:
    """Classify by the nearest neighbours of frozen features."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("-k", type=int, default=20, help="neighbours that vote (default: 20)")
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.07,
        help="of the softmax that weighs votes by cosine similarity (default: 0.07)",
    )
    add_probe_flags(parser)
    parsed = parser.parse(argv, 1, 2)
    args = parsed[0]
    if args.k < 1 or args.temperature <= 0:
        raise MaemmError(f"-k is {args.k} and --temperature {args.temperature:g}; give numbers above 0")
    from maemm.tasks.knn.run import knn

    return run_verb(knn, parsed, flags, {"k": args.k, "temperature": args.temperature})
