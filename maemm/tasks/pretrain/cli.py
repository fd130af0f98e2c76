"""``maemm pretrain RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json

VERB = Verb(
    "pretrain", "RECIPE [DATA] [key=value ...]", "train a recipe; the same command again continues", shared=True
)


def run(argv: list[str], flags: Namespace) -> int:
    """Train a recipe and return the exit status. DATA is short for data.root=DATA."""
    parser = verb_parser(VERB, _keys() if {"-h", "--help"} & set(argv) else "")
    _, (recipe_name, data), overrides = parser.parse(argv, 1, 2)
    if data is not None:
        if any(override.startswith("data.root=") for override in overrides):
            raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
        overrides.append(f"data.root={json.dumps(data)}")  # JSON is YAML: a folder called 2024 stays a string
    from maemm.config import load

    recipe = load(str(recipe_name), overrides, training=True)
    from maemm.tasks.pretrain.run import train_recipe

    folder = train_recipe(recipe)
    if flags.json:
        print_json({"run": str(folder)})
    return 0


def _keys() -> str:
    """The help text on the keys of ``data`` and ``train``."""
    from maemm.config.schema import DataConfig, TrainConfig, keys_of

    lines = ["DATA is short for data.root=DATA. out=FOLDER names the run folder."]
    lines += ["Of a recipe with stages: stages.NAME.KEY=VALUE sets a key of one, stage=NAME trains one alone.", ""]
    for section, schema in (("data", DataConfig), ("train", TrainConfig)):
        for key in (key for outer in keys_of(schema) for key in (outer, *outer.inner())):
            lines.append(f"  {section + '.' + key.name:<22}{key.doc} [{key.shown_default}]")
    lines += ["", "options of modalities, maskings, encoders, decoders: maemm plugins show NAME"]
    return "\n".join(lines)
