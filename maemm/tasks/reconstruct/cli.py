"""``maemm reconstruct RUN_OR_WEIGHTS DATA [-o FILE]``."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import asdict

from maemm.tasks._shared.cli_options import options_and_settings
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("reconstruct", "RUN_OR_WEIGHTS DATA [-o FILE]", "draw input, visible part and reconstruction")

EPILOG = """key=value: count=8 samples, seed=0 of the masks, and what weights do not record: heads=12, decoder_heads=16,
norm_pix=true, mask_ratio=0.75"""


def run(argv: list[str], flags: Namespace) -> int:
    """Draw how a model reconstructs samples of any data."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="picture to write (default: reconstruction.png)")
    parser.add_argument(
        "--latents",
        action="store_true",
        help="what latent tokens give back, of samples or of a file of embed --latents",
    )
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")
    args, (weights, data), overrides = parser.parse(argv, 2, 2)
    from maemm.tasks.reconstruct.run import reconstruct

    options, settings = options_and_settings(overrides, reconstruct, ("count", "seed"))
    out = args.out or "reconstruction.png"
    if args.kind is not None:
        settings["kind"] = args.kind
    reconstruction = reconstruct(str(weights), str(data), str(out), latents=args.latents, **options, **settings)
    if flags.json:
        record = {
            "file": str(reconstruction.path),
            "shown": reconstruction.shown,
            "skipped": len(reconstruction.skipped),
            "bad_samples": [asdict(bad) for bad in reconstruction.skipped],
        }
        if reconstruction.psnr is not None:
            record["psnr"] = reconstruction.psnr
        print_json(record)
    else:
        print_result(reconstruction)
    return 0
