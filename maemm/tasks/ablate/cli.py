"""``maemm ablate RECIPE_OR_STUDY [DATA] [key=value ...] [--set KEY=V1,V2]``."""

from __future__ import annotations

from argparse import Namespace

from maemm.contract.errors import MaemmError
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result, warn

VERB = Verb("ablate", "RECIPE|STUDY [DATA] [key=value ...]", "compare parts by equal short trainings: --set KEY=V1,V2")

MORE = """Trains every variant with every seed for the same steps on the same batches, measures frozen features alike,
and writes a table with spreads and a page. key=value changes the recipe of all variants. Each run is an ordinary run in
FOLDER/VARIANT/seed-K; the same command again continues.

--set KEY=V1,V2: KEY is a key of the recipe or its end (masking.ratio, patch); a value is YAML, of a part also
NAME:VALUE or NAME:OPTION=VALUE:
  maemm ablate RECIPE DATA --set masking=random,scan:spiral --set decoder.depth=1,4 --steps 400

"""


def run(argv: list[str], flags: Namespace) -> int:
    """Compare variants of a recipe."""
    parser = verb_parser(VERB, MORE + (_ready() if {"-h", "--help"} & set(argv) else ""))
    parser.add_argument(
        "--set", metavar="KEY=V1,V2", action="append", default=[], dest="sets", help="what differs; several: a grid"
    )
    parser.add_argument("--one-at-a-time", action="store_true", help="of several --set: each alone, no combinations")
    parser.add_argument("--only", metavar="NAME;NAME", help="these variants of the study, with ; between them")
    parser.add_argument(
        "--reference", metavar="NAME", help="the variant to compare with (default: the recipe as it is)"
    )
    parser.add_argument("--seeds", type=int, help="runs of each variant (default: 3, or as the study says)")
    parser.add_argument("--steps", type=int, help="steps of each run (default: as the study or the recipe says)")
    parser.add_argument(
        "--measures", metavar="A,B", help="of frozen features: linear, knn, rank (default: all), or none"
    )
    parser.add_argument("--test", metavar="DATA", help="data to test classifiers on; without: five folds")
    parser.add_argument("--probe", metavar="DATA", help="data to fit classifiers on (default: the training data)")
    parser.add_argument("--samples", type=int, metavar="N", help="measure features on N samples of either part at most")
    parser.add_argument("--alone", action="store_true", help="without rows of raw values and the untrained network")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="of all runs (default: runs/ablate-NAME)")
    args, (recipe, data), overrides = parser.parse(argv, 1, 2)
    if data is not None and any(override.startswith("data.root=") for override in overrides):
        raise MaemmError(f"the data are given twice ({data} and data.root=); give them once")
    measures = None
    if args.measures is not None:
        measures = [] if args.measures == "none" else args.measures.split(",")
    from maemm.tasks.ablate.run import ablate

    ablation = ablate(
        str(recipe),
        data,
        sets=args.sets,
        one_at_a_time=args.one_at_a_time,
        only=None if args.only is None else [name.strip() for name in args.only.split(";")],
        reference=args.reference,
        seeds=args.seeds,
        steps=args.steps,
        measures=measures,
        test=args.test,
        probe=args.probe,
        samples=args.samples,
        baselines=not args.alone,
        jobs=args.jobs,
        out=args.out,
        overrides=overrides,
    )
    if flags.json:
        print_json(ablation.record())
        return 0
    for outcome in ablation.failed:
        warn(f"{outcome.variant}, seed {outcome.seed} failed ({outcome.error})")
    print_result(f"\n{ablation}\n\nOpen {ablation.folder / 'report.html'}")
    return 0


def _ready() -> str:
    """The help text on the studies that come with maemm and its plugins."""
    from maemm.config import studies, summary

    lines = ["studies:", *(f"  {name:<32}{summary(path)}" for name, path in studies().items())]
    return "\n".join(lines)
