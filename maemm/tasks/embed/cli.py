"""``maemm embed RUN_OR_WEIGHTS [DATA] -o FILE``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import EPILOG, add_embedding_flags, embedding_options
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("embed", "RUN_OR_WEIGHTS [DATA] -o FILE", "features of every sample in one file, with ids and labels")


def run(argv: list[str], flags: Namespace) -> int:
    """Write the features of a data set to a file."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("-o", "--out", metavar="FILE", help="file to write: .npz, .safetensors or .parquet")
    parser.add_argument("--tokens", action="store_true", help="features of every token")
    parser.add_argument(
        "--latents", action="store_true", help="latent tokens, of which reconstruct --latents makes the signal again"
    )
    add_embedding_flags(parser)
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    if args.out is None:
        raise MaemmError("no file to write is given; add -o features.npz (or .safetensors, .parquet)")
    from maemm.tasks.embed.run import embed
    from maemm.ui.progress import progress

    options = {**embedding_options(args, overrides), "tokens": args.tokens, "latents": args.latents}
    with progress("embed") as show:
        embedded = embed(str(weights), data, args.out, on_progress=show, **options)
    shapes = {name: list(shape) for name, shape in embedded.shapes.items()}
    skipped = len(embedded.skipped)
    about = {"file": str(embedded.path), "embeddings": embedded.count, "features": shapes, "skipped": skipped}
    if flags.json:
        print_json(about)
    else:
        print_result(embedded)
    return 0
