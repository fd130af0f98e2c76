"""``maemm export RUN_OR_WEIGHTS --to TARGET -o PATH``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import settings_of
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "export", "RUN_OR_WEIGHTS --to TARGET -o PATH", "write a model for timm, transformers, torch or ONNX, checked"
)

EPILOG = """targets: safetensors (with a card in JSON), torch (torch.export, .pt2), onnx, and the libraries that
checkpoint formats write for: timm, hf (transformers; a folder). Graphs accept preprocessed samples of one shape, in
batches of any size. Where samples may be padded or have gaps, a second input NAME_valid (bool) is false there, and sets
may have any number of elements; --whole leaves it out. key=value: what published weights do not record: heads=12,
size=224"""


def run(argv: list[str], flags: Namespace) -> int:
    """Write a model for another tool, and check it there."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--to", metavar="TARGET", help="safetensors, torch, onnx, timm or hf")
    parser.add_argument("-o", "--out", metavar="PATH", help="file to write (for hf a folder)")
    parser.add_argument(
        "--output", help="features, tokens, latents or logits (default: logits of a classifier, else features)"
    )
    parser.add_argument("--pool", help="of features: mean (default), cls, max or cls+max")
    parser.add_argument("--shape", help="of a preprocessed sample (default: the recipe's): 3,64,64 or NAME=...;...")
    parser.add_argument("--whole", action="store_true", help="no inputs for validity: whole samples alone, not padded")
    parser.add_argument("--force", action="store_true", help="replace PATH where it exists")
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")
    args, (weights,), overrides = parser.parse(argv, 1, 1)
    if args.to is None:
        raise MaemmError("no target is given; add --to safetensors (or torch, onnx, timm, hf)")
    if args.out is None:
        raise MaemmError("no file to write is given; add -o PATH")
    from maemm.tasks.export.run import export

    settings = {**settings_of(overrides), "output": args.output, "pool": args.pool, "shape": args.shape}
    if args.kind is not None:
        settings["kind"] = args.kind
    exported = export(str(weights), args.out, to=args.to, force=args.force, whole=args.whole, **settings)
    if flags.json:
        record = {
            "file": str(exported.path),
            "to": exported.to,
            "output": exported.output,
            "inputs": exported.inputs,
            "call": exported.call,
            "checked_with": exported.checked_with,
            "card": None if exported.card is None else str(exported.card),
            "differences": exported.differences,
        }
        print_json(record)
    else:
        print_result(exported)
    return 0
