"""``maemm demo [out=FOLDER]``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, parse_keys, verb_parser
from maemm.ui.streams import print_json

VERB = Verb("demo", "[out=FOLDER]", "pre-train a small model on a sample set, offline, and write a page of pictures")


def run(argv: list[str], flags: Namespace) -> int:
    """Pre-train a small model on the sample set of each plugin and write one page."""
    _, _, overrides = verb_parser(VERB, "The default of FOLDER is runs/demo.").parse(argv, 0, 0)
    options = parse_keys(overrides)
    for key in options.keys() - {"out"}:
        raise MaemmError(f"unknown key {key!r}; {advice(key, ['out'])}")
    from maemm.tasks.demo.run import demo

    page = demo(Path(str(options.get("out", "runs/demo"))))
    if flags.json:
        print_json({"page": str(page)})
    return 0
