"""``maemm knn RUN_OR_WEIGHTS [DATA] [--test DATA]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.cli.parser import verb_parser
from maemm.cli.probe import add_flags, go
from maemm.cli.subject import EPILOG
from maemm.errors import MaemmError


def run(argv: list[str], flags: Namespace) -> int:
    """Classify by the nearest neighbours of frozen features."""
    parser = verb_parser("knn", EPILOG)
    parser.add_argument("-k", type=int, default=20, help="neighbours that vote (default: 20)")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes (default: 0.07)")
    add_flags(parser)
    args = parser.parse_intermixed_args(argv)
    if args.k < 1 or args.temperature <= 0:
        raise MaemmError(f"-k is {args.k} and --temperature {args.temperature:g}; give numbers above 0")
    return go("knn", args, flags, {"k": args.k, "temperature": args.temperature})
