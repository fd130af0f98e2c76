"""``maemm pretrain RECIPE [DATA] [key=value ...]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, split, verb_parser

VERB = Verb("pretrain", "RECIPE [DATA] [key=value ...]", "train a recipe; the same command again continues")


def run(argv: list[str], flags: Namespace) -> int:
    """Train a recipe; DATA is short for data.root=DATA."""
    words = verb_parser(VERB, _keys() if {"-h", "--help"} & set(argv) else "").parse_intermixed_args(argv).words
    (what, data), overrides = split(words, 1, 2, VERB.usage)
    if data is not None:
        if any(one.startswith("data.root=") for one in overrides):
            raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
        overrides.append(f"data.root={json.dumps(data)}")  # JSON is YAML: a folder called 2024 stays a text
    from maemm.config import load

    recipe = load(str(what), overrides, training=True)
    from maemm.tasks.pretrain.run import train_recipe

    folder = train_recipe(recipe)
    if flags.json:
        print(json.dumps({"run": str(folder)}))
    return 0


def _keys() -> str:
    """The keys of ``data`` and ``train`` for the help text."""
    from maemm.config.schema import DataConfig, TrainConfig, keys_of

    lines = ["DATA is short for data.root=DATA. out=FOLDER names the run folder.", ""]
    for above, model in (("data", DataConfig), ("train", TrainConfig)):
        for one in keys_of(model):
            lines.append(f"  {above + '.' + one.name:<22}{one.doc} [{one.shown_default}]")
    lines += ["", "options of modalities, maskings, encoders, decoders: maemm plugins show NAME"]
    return "\n".join(lines)
