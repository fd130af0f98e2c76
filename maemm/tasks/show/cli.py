"""``maemm show FILE_OR_FOLDER [--recipe R] [-o FILE]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb(
    "show", "FILE_OR_FOLDER [--recipe R] [-o FILE]", "draw samples as the model gets them, with tokens and masks"
)

EPILOG = """Without --recipe, the one that fits the endings of the files. key=value changes the recipe:
modalities.NAME.masking.ratio=0.9"""


def run(argv: list[str], flags: Namespace) -> int:
    """Draw what a recipe's model gets of somebody's files."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--recipe", metavar="R", help="recipe, YAML file or run folder")
    parser.add_argument("-o", "--out", metavar="FILE", default="show.html", help=".html or .png (default: show.html)")
    parser.add_argument("--count", type=int, default=6, help="samples, spread evenly (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="of masks and augmentation (default: 0)")
    parser.add_argument("--augment", action="store_true", help="also show what augmentation does")
    args = parser.parse_intermixed_args(argv)
    (data,), overrides = split(args.words, 1, 1, VERB.usage)
    from maemm.tasks.show.run import show

    made = show(
        str(data),
        args.out,
        recipe=args.recipe,
        count=args.count,
        seed=args.seed,
        augment=args.augment,
        overrides=overrides,
    )
    refused = {one.id: one.reason for one in made.refused}
    about = {"file": str(made.path), "recipe": made.opened.name, "shown": made.ids, "refused": refused}
    print(json.dumps(about) if flags.json else made)
    return 0
