"""``maemm estimate RECIPE [key=value ...] [--gpu h100 --gpus 64 --data N]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "estimate", "RECIPE [key=value ...]", "what a training costs, before it runs: memory, operations, time, storage"
)

MORE = """Nothing is trained, and no GPU is needed: the step is done on shapes alone. Times are modelled, not measured,
unless --efficiency says what share of the peak your GPUs reach (mfu in the log of a run)."""


def run(argv: list[str], flags: Namespace) -> int:
    """Say what a training costs."""
    parser = verb_parser(VERB, MORE)
    parser.add_argument("--gpu", default="h100", help="its kind: a100-80, b200, l40s, mi300x, ... (default: h100)")
    parser.add_argument("--gpus", type=int, default=1, help="how many, over all nodes of 8 (default: 1)")
    parser.add_argument("--data", type=int, metavar="N", help="samples, where the recipe's data are not here")
    parser.add_argument(
        "--efficiency", type=float, metavar="X", help="share of the peak, such as 0.4 (default: modelled)"
    )
    parser.add_argument(
        "--sample-bytes", type=float, metavar="N", help="bytes of a sample in storage (default: of its files)"
    )
    args, (recipe,), overrides = parser.parse(argv, 1, 1)
    from maemm.tasks.estimate.run import compute

    estimates = compute(
        str(recipe),
        overrides,
        gpu=args.gpu,
        gpus=args.gpus,
        data=args.data,
        efficiency=args.efficiency,
        sample_bytes=args.sample_bytes,
    )
    if flags.json:
        print_json([estimate.record() for estimate in estimates])
    else:
        print_result("\n\n".join(map(str, estimates)))
    return 0
