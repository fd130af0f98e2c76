"""``maemm convert WEIGHTS OUT [--to KIND]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.ui.parser import Verb, parse_overrides, split_words, verb_parser

VERB = Verb("convert", "WEIGHTS OUT [--to KIND]", "turn published weights into maemm's format, or back")

EPILOG = "key=value: what the weights do not record: heads=12, decoder_heads=16, norm_pix=true, mask_ratio=0.75"


def run(argv: list[str], flags: Namespace) -> int:
    """Published weights to maemm's format, or back."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--kind", help="format of WEIGHTS, where it cannot be recognised")
    parser.add_argument("--to", metavar="KIND", help="write this published layout instead of maemm's")
    args = parser.parse_intermixed_args(argv)
    (source, out), overrides = split_words(args.words, 2, 2, VERB.usage)
    settings = parse_overrides(overrides, args)
    from maemm.tasks.convert.run import convert

    text = convert(str(source), str(out), kind=args.kind, to=args.to, **settings)
    print(json.dumps({"file": str(out), "text": text}) if flags.json else text)
    return 0
