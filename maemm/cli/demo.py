"""``maemm demo [out=FOLDER]``."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from maemm.cli.parser import VERBS, split, verb_parser
from maemm.cli.reconstruct import values
from maemm.errors import MaemmError
from maemm.nearest import advice


def run(argv: list[str], flags: Namespace) -> int:
    """Pre-train a small model on the sample set of each plugin and write one page."""
    args = verb_parser("demo", "The default of FOLDER is runs/demo.").parse_intermixed_args(argv)
    _, overrides = split(args.words, 0, 0, f"demo {VERBS['demo'].words}")
    given = values(overrides, args)
    for key in given.keys() - {"out"}:
        raise MaemmError(f"unknown key {key!r}; {advice(key, ['out'])}")
    from maemm.report.demo import demo

    page = demo(Path(str(given.get("out", "runs/demo"))))
    if flags.json:
        print(json.dumps({"page": str(page)}))
    return 0
