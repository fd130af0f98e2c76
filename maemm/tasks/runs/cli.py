"""``maemm runs ls [FOLDER] | best [FOLDER] | compare RUN RUN ...``."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "runs",
    "ls [FOLDER] | best [FOLDER] [--by KEY] | compare RUN RUN ...",
    "list runs, find the best checkpoint, compare runs: recipes, figures, curves",
)
ACTIONS = ("ls", "best", "compare")
_MOST = 64  # runs that are compared
MORE = """FOLDER is runs, unless it is given; what lies below it is searched too, stages and the runs of maemm ablate.

best prints the path of a checkpoint, for other verbs: maemm embed $(maemm runs best --by knn) DATA -o x.npz
KEY is a column of metrics.jsonl or the end of its name: loss, validation.accuracy, knn. Without it: the validation
metric that decides (accuracy, mAP, loss), where there is one, else the loss."""


def run(argv: list[str], flags: Namespace) -> int:
    """List, choose or compare runs."""
    parser = verb_parser(VERB, MORE)
    parser.add_argument("--by", metavar="KEY", help="best: the column that decides")
    parser.add_argument("--max", action="store_true", help="best: the highest value is the best")
    parser.add_argument("--min", action="store_true", help="best: the lowest is")
    parser.add_argument("--page", metavar="FILE", help="compare: write a page with the curves")
    args, (action, *words), overrides = parser.parse(argv, 1, 1 + _MOST)
    folders = [word for word in words if word is not None]
    action = "ls" if action == "list" else action
    if action not in ACTIONS:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if overrides:
        raise MaemmError(f"runs does not accept {overrides[0]!r}; see: maemm runs --help")
    for flag, owner in (("by", "best"), ("max", "best"), ("min", "best"), ("page", "compare")):
        if getattr(args, flag) and action != owner:
            raise MaemmError(f"--{flag} belongs to another action; write: maemm runs {owner}, or leave it out")
    if args.max and args.min:
        raise MaemmError("--max and --min are both given; leave one out")
    if action != "compare" and len(folders) > 1:
        raise MaemmError(f"unexpected argument {folders[1]!r}; usage: maemm runs {action} [FOLDER]")
    if action == "compare":
        return _compare(folders, args.page, flags.json)
    from maemm.tasks.runs.run import FOLDER

    folder = folders[0] if folders else FOLDER
    return _list(folder, flags.json) if action == "ls" else _best(folder, args, flags.json)


def _list(folder: str, as_json: bool) -> int:
    from maemm.tasks.runs.listing import table
    from maemm.tasks.runs.run import runs

    found = runs(folder)
    if as_json:
        print_json([run.record() for run in found], indent=2)
    else:
        print_result(table(found) if found else f"no runs below {folder}")
    return 0


def _best(folder: str, args: Namespace, as_json: bool) -> int:
    from maemm.tasks.runs.run import runs_best

    highest: Any = True if args.max else False if args.min else None
    best = runs_best(folder, args.by, highest=highest)
    if as_json:
        print_json(best.record())
        return 0
    print(best, file=sys.stderr)
    print_result(best.path)
    return 0


def _compare(folders: list[str], page: str | None, as_json: bool) -> int:
    from maemm.tasks.runs.run import runs_compare

    comparison = runs_compare(*folders, page=page)
    if as_json:
        print_json(comparison.record(), indent=2)
        return 0
    print_result(f"{comparison}\n\nOpen {comparison.page}" if comparison.page else comparison)
    return 0
