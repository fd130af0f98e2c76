"""``maemm data check DATA`` and ``maemm data stats DATA``."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from typing import Any

from maemm.cli.parser import VERBS, split, verb_parser
from maemm.errors import MaemmError
from maemm.nearest import advice

ACTIONS = ("check", "stats")
EPILOG = """check reads everything once and lists every sample in DATA.check.csv, broken and repeated ones first; after
an interruption the same command goes on. stats prints mean and spread alone, as lines for a recipe. Without --recipe,
the one that fits the endings of the files is taken. key=value changes the recipe: modalities.NAME.size=96"""


def run(argv: list[str], flags: Namespace) -> int:
    """Look at a whole data set before training on it."""
    parser = verb_parser("data", EPILOG)
    parser.add_argument("--recipe", metavar="R", help="recipe, YAML file or run folder")
    parser.add_argument("--workers", type=int, help="processes that read (default: as the recipe says)")
    parser.add_argument("-o", "--out", metavar="FILE", help="list of check (default: DATA.check.csv)")
    args = parser.parse_intermixed_args(argv)
    (action, data), overrides = split(args.words, 1, 2, f"data {VERBS['data'].words}")
    if action not in ACTIONS:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if data is None:
        raise MaemmError(f"too few words; write: maemm data {action} DATA [--recipe R]")
    if args.workers is not None and args.workers < 0:
        raise MaemmError(f"--workers is {args.workers}; give 0 or more")
    if action == "stats" and args.out is not None:
        raise MaemmError("stats writes no file, so -o means nothing; use: maemm data check")
    return _go(str(action), str(data), args, overrides, flags.json)


def _go(action: str, data: str, args: Namespace, overrides: list[str], as_json: bool) -> int:
    from maemm.evaluate.progress import progress
    from maemm.report.check import check, stats

    options: dict[str, Any] = {"recipe": args.recipe, "workers": args.workers, "overrides": overrides}
    with progress(f"data {action}") as show:
        if action == "check":
            found = check(data, args.out, on_progress=show, say=lambda line: print(line, file=sys.stderr), **options)
        else:
            found = stats(data, on_progress=show, **options)
    if as_json:
        print(json.dumps(found.as_dict(), indent=2))
    elif action == "check":
        print(found)
    else:
        used = found.findings.samples - found.findings.broken
        print(
            "\n".join([f"# {used:,} samples of {found.opened.title}, {found.findings.broken:,} broken", *found.yaml()])
        )
    return 0
