"""``maemm parity RECIPE [DATA] [key=value ...] --change KEY=VALUE``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "parity", "RECIPE [DATA] [key=value ...]", "whether a faster setting, such as train.compile, learns the same"
)

MORE = """Trains the recipe from one state without and with the change, and further seeds for the noise of the loss:
nothing is written. The exit status is 1 where they are not alike. What opens after these steps is not seen.

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Compare two trainings; the exit status is 1 where they are not alike."""
    parser = verb_parser(VERB, MORE)
    parser.add_argument(
        "--change",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="what is compared, may be repeated (default: train.compile=blocks)",
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of each training (default: 300)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings with other masks, at least 2 (default: 3)")
    args, (recipe, data), overrides = parser.parse(argv, 1, 2)
    from maemm.config.layers import flatten, from_overrides
    from maemm.tasks.parity.run import CHANGE, compare
    from maemm.ui.progress import progress

    if data is not None:
        if any(override.startswith("data.root=") for override in overrides):
            raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
        overrides.append(f"data.root={json.dumps(data)}")  # JSON is YAML: a folder called 2024 stays a string
    with progress("parity", "steps") as on_progress:
        comparison = compare(
            str(recipe),
            flatten(from_overrides(overrides).values),
            flatten(from_overrides(args.change).values) or CHANGE,
            steps=args.steps,
            seeds=args.seeds,
            on_progress=on_progress,
        )
    if flags.json:
        print_json(comparison.record())
    else:
        print_result(comparison)
    return 0 if comparison.alike else 1
