"""``maemm show FILE_OR_FOLDER [--recipe R] [-o FILE]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

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
    args, (data,), overrides = parser.parse(argv, 1, 1)
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
    record["steps_on_gpu"] = shown.steps
    if flags.json:
        print_json(record)
    else:
        print_result(shown)
    return 0
