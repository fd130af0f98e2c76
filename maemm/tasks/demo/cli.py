"""``maemm demo [out=FOLDER]``."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, parse_overrides, split_words, verb_parser

VERB = Verb("demo", "[out=FOLDER]", "pre-train a small model on a sample set, offline, and write a page of pictures")


def run(argv: list[str], flags: Namespace) -> int:
    """Pre-train a small model on the sample set of each plugin and write one page."""
    args = verb_parser(VERB, "The default of FOLDER is runs/demo.").parse_intermixed_args(argv)
    _, overrides = split_words(args.words, 0, 0, VERB.usage)
    options = parse_overrides(overrides, args)
    for key in options.keys() - {"out"}:
        raise MaemmError(f"unknown key {key!r}; {advice(key, ['out'])}")
    from maemm.tasks.demo.run import demo

    page = demo(Path(str(options.get("out", "runs/demo"))))
    if flags.json:
        print(json.dumps({"page": str(page)}))
    return 0
