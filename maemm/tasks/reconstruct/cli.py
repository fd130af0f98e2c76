"""``maemm reconstruct RUN_OR_WEIGHTS DATA [-o FILE]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.ui.parser import Verb, split, values, verb_parser

VERB = Verb("reconstruct", "RUN_OR_WEIGHTS DATA [-o FILE]", "draw input, visible part and reconstruction")

EPILOG = """key=value: count=8 samples, seed=0 of the masks, and what weights do not record: heads=12, decoder_heads=16,
norm_pix=true, mask_ratio=0.75"""


def run(argv: list[str], flags: Namespace) -> int:
    """Draw what a model makes of somebody's own files."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="picture to write (default: reconstruction.png)")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")
    args = parser.parse_intermixed_args(argv)
    (what, data), overrides = split(args.words, 2, 2, VERB.usage)
    known, out = values(overrides, args), args.out or "reconstruction.png"
    if args.kind is not None:
        known["kind"] = args.kind
    from maemm.config.options import check
    from maemm.tasks.reconstruct.run import reconstruct

    asked = {key: known.pop(key) for key in ("count", "seed") if key in known}
    made = reconstruct(str(what), str(data), str(out), **check(reconstruct, asked, "reconstruct"), **known)
    print(json.dumps({"file": str(made.path), "shown": made.shown, "skipped": made.skipped}) if flags.json else made)
    return 0
