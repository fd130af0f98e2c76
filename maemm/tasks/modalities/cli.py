"""``maemm modalities RUN_OR_WEIGHTS [DATA] [-o FOLDER]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.tasks._shared.cli_options import options_and_settings
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb("modalities", "RUN_OR_WEIGHTS [DATA]", "what each modality is worth: every subset of inputs, all outputs")

EPILOG = """Features of every subset under kNN and a linear probe, beside the untrained network and raw values; the loss
of every output from every subset; pictures of some. key=value: visible=0.5 of the tokens of the inputs where losses are
measured, samples=2000 of either part at most, seeds=1, pictures=4, and what weights do not record"""


def run(argv: list[str], flags: Namespace) -> int:
    """Compare all subsets of the inputs of a joint model."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--test", metavar="DATA", help="data to test classifiers on; without: five folds")
    parser.add_argument("--inputs", metavar="A,B", help="the modalities to combine (default: all)")
    parser.add_argument(
        "-o", "--out", metavar="FOLDER", help="results.json, pictures and report.html (default: RUN/modalities)"
    )
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")
    args, (weights, data), overrides = parser.parse(argv, 1, 2)
    from pathlib import Path

    from maemm.config.paths import expanded
    from maemm.tasks.modalities.run import modalities
    from maemm.ui.progress import progress

    options, settings = options_and_settings(overrides, modalities, ("visible", "samples", "seeds", "pictures"))
    if args.kind is not None:
        settings["kind"] = args.kind
    folder = expanded(str(weights))
    out = args.out or (folder if folder.is_dir() else Path.cwd()) / "modalities"
    with progress("losses") as on_progress:
        result = modalities(
            str(weights),
            data,
            args.test,
            inputs=None if args.inputs is None else [name.strip() for name in args.inputs.split(",")],
            out=str(out),
            on_progress=on_progress,
            **options,
            **settings,
        )
    if flags.json:
        print_json(result.as_dict(), indent=2)
    else:
        print_result(result)
    return 0
