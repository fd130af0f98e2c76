"""``maemm show FILE_OR_FOLDER [--recipe R] [-o FILE]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.ui.parser import Verb, split_words, verb_parser

VERB = Verb(
    "show", "FILE_OR_FOLDER [--recipe R] [-o FILE]", "draw samples as the model gets them, with tokens and masks"
)

EPILOG = """Without --recipe, the one for the endings of the files. key=value changes the recipe:
modalities.NAME.masking.ratio=0.9"""


def run(argv: list[str], flags: Namespace) -> int:
    """Draw samples as a recipe's model gets them."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--recipe", metavar="R", help="recipe, YAML file or run folder")
    parser.add_argument("-o", "--out", metavar="FILE", default="show.html", help=".html or .png (default: show.html)")
    parser.add_argument("--count", type=int, default=6, help="samples, evenly spaced (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of masks and augmentation (default: 0)")
    parser.add_argument("--augment", action="store_true", help="also show what augmentation does")
    args = parser.parse_intermixed_args(argv)
    (data,), overrides = split_words(args.words, 1, 1, VERB.usage)
    from maemm.tasks.show.run import show

    shown = show(
        str(data),
        args.out,
        recipe=args.recipe,
        count=args.count,
        seed=args.seed,
        augment=args.augment,
        overrides=overrides,
    )
    refused = {sample.id: sample.reason for sample in shown.refused}
    record = {"file": str(shown.path), "recipe": shown.opened.name, "shown": shown.ids, "refused": refused}
    print(json.dumps(record) if flags.json else shown)
    return 0
