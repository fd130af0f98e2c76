"""``maemm reconstruct RUN_OR_WEIGHTS DATA [-o FILE]``."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from maemm.ui.parser import Verb, parse_overrides, split_words, verb_parser

VERB = Verb("reconstruct", "RUN_OR_WEIGHTS DATA [-o FILE]", "draw input, visible part and reconstruction")

EPILOG = """key=value: count=8 samples, seed=0 of the masks, and what weights do not record: heads=12, decoder_heads=16,
norm_pix=true, mask_ratio=0.75"""


def run(argv: list[str], flags: Namespace) -> int:
    """Draw how a model reconstructs samples of any data."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="picture to write (default: reconstruction.png)")
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")
    args = parser.parse_intermixed_args(argv)
    (weights, data), overrides = split_words(args.words, 2, 2, VERB.usage)
    settings: dict[str, Any] = parse_overrides(overrides, args)
    out = args.out or "reconstruction.png"
    if args.kind is not None:
        settings["kind"] = args.kind
    from maemm.config.options import check
    from maemm.tasks.reconstruct.run import reconstruct

    keys: dict[str, Any] = {key: settings.pop(key) for key in ("count", "seed") if key in settings}
    options = check(reconstruct, keys, "reconstruct")
    reconstruction = reconstruct(str(weights), str(data), str(out), **options, **settings)
    if flags.json:
        record = {
            "file": str(reconstruction.path),
            "shown": reconstruction.shown,
            "skipped": len(reconstruction.skipped),
            "bad_samples": [asdict(bad) for bad in reconstruction.skipped],
        }
        print(json.dumps(record))
    else:
        print(reconstruction)
    return 0
