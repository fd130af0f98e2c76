"""``maemm convert WEIGHTS OUT [--to KIND]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.tasks._shared.cli_options import settings_of
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("convert", "WEIGHTS OUT [--to KIND]", "turn published weights into maemm's format, or back")

EPILOG = "key=value: what the weights do not record: heads=12, decoder_heads=16, norm_pix=true, mask_ratio=0.75"


def run(argv: list[str], flags: Namespace) -> int:
    """Published weights to maemm's format, or back."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--kind", help="format of WEIGHTS, where it cannot be recognised")
    parser.add_argument("--to", metavar="KIND", help="write this published layout instead of maemm's")
    args, (source, out), overrides = parser.parse(argv, 2, 2)
    settings = settings_of(overrides)
    from maemm.tasks.convert.run import convert

    text = convert(str(source), str(out), kind=args.kind, to=args.to, **settings)
    if flags.json:
        print_json({"file": str(out), "text": text})
    else:
        print_result(text)
    return 0
