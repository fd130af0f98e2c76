"""``maemm export RUN_OR_WEIGHTS --to TARGET -o PATH``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, split, values, verb_parser

VERB = Verb(
    "export", "RUN_OR_WEIGHTS --to TARGET -o PATH", "write a model for timm, transformers, torch or ONNX, checked"
)

EPILOG = """targets: safetensors (with a card in JSON), torch (torch.export, .pt2), onnx, and the libraries whose layout
a checkpoint format knows: timm, hf (transformers; a folder). Graphs take prepared samples of one shape, any batch.
key=value: what published weights do not record: heads=12, size=224"""


def run(argv: list[str], flags: Namespace) -> int:
    """Write a model for another tool, and check it there."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--to", metavar="TARGET", help="safetensors, torch, onnx, timm or hf")
    parser.add_argument("-o", "--out", metavar="PATH", help="file to write (for hf a folder)")
    parser.add_argument("--output", help="features, tokens or logits (default: logits of a classifier, else features)")
    parser.add_argument("--pool", help="of features: mean (default), cls, max or cls+max")
    parser.add_argument("--shape", help="of one prepared sample where it is not the usual one: 3,64,64 or NAME=...;...")
    parser.add_argument("--force", action="store_true", help="replace what lies at PATH")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")
    args = parser.parse_intermixed_args(argv)
    (what,), overrides = split(args.words, 1, 1, VERB.usage)
    if args.to is None:
        raise MaemmError("no target is given; add --to safetensors (or torch, onnx, timm, hf)")
    if args.out is None:
        raise MaemmError("no file to write is given; add -o PATH")
    from maemm.tasks.export.run import export

    known = values(overrides, args) | ({} if args.kind is None else {"kind": args.kind})
    settings = {"output": args.output, "pool": args.pool, "shape": args.shape, "force": args.force}
    made = export(str(what), args.out, to=args.to, **settings, **known)
    if flags.json:
        about = {"file": str(made.path), "to": made.to, "output": made.output, "inputs": made.inputs}
        about |= {"call": made.call, "checked_with": made.by, "card": made.card and str(made.card)}
        print(json.dumps({**about, "differences": {str(key): value for key, value in made.differences.items()}}))
    else:
        print(made)
    return 0
