"""``maemm probe RUN_OR_WEIGHTS [DATA] [--test DATA]``, and what ``maemm knn`` shares with it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.cli_options import EPILOG, add_embedding_flags, embedding_options
from maemm.ui.parser import Parser, Verb, verb_parser
from maemm.ui.streams import print_json, print_result, warn

if TYPE_CHECKING:  # it loads torch
    from maemm.tasks._shared.comparison import Comparison

VERB = Verb("probe", "RUN_OR_WEIGHTS [DATA] [--test DATA]", "fit linear or attentive classifiers on frozen features")


def run(argv: list[str], flags: Namespace) -> int:
    """Fit classifiers on frozen features."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument(
        "--protocol",
        default="linear",
        metavar="NAME",
        help="linear (logistic regression, its penalty chosen inside the training part; default), published "
        "(BatchNorm, linear, LARS), attentive (one query over all tokens); several with commas",
    )
    parser.add_argument("--attentive", action="store_true", help="the attentive probe too")
    parser.add_argument("--balanced", action="store_true", help="weigh classes by the inverse of their frequency")
    parser.add_argument("--epochs", type=int, help="of the protocols published (default: 90) and attentive (30)")
    parser.add_argument(
        "--base-lr",
        metavar="X,Y",
        help="for a batch of 256; of several the best on a held-out tenth (published, small data: 0.1,1,10,100)",
    )
    add_probe_flags(parser)
    args, words, overrides = parser.parse(argv, 1, 2)
    names = args.protocol.split(",") + (["attentive"] if args.attentive else [])
    options: dict[str, Any] = {
        "protocols": list(dict.fromkeys(names)),
        "balanced": args.balanced,
        "epochs": args.epochs,
    }
    if args.base_lr is not None:
        options["base_lr"] = _rates(args.base_lr)
    from maemm.tasks.probe.run import probe

    return run_verb(probe, (args, words, overrides), flags, options)


def add_probe_flags(parser: Parser) -> None:
    """Flags of the verbs that fit classifiers on frozen features."""
    parser.add_argument("--test", metavar="DATA", help="data to test on; without: folds of DATA")
    parser.add_argument("--folds", type=int, metavar="K", help="folds of DATA (default: 5, or one per group, up to 10)")
    parser.add_argument(
        "--groups", metavar="REGEX", help="the part of an id that names its group; folds do not split groups"
    )
    parser.add_argument("--shots", metavar="1,5,10%", help="labels of each class to train on: a number or a fraction")
    parser.add_argument(
        "--seeds", type=int, default=3, help="how often splits, labels and fresh weights are drawn (default: 3)"
    )
    parser.add_argument("--baselines", action="store_true", help="also raw values and the untrained network")
    parser.add_argument("--per-class", action="store_true", help="also metrics of every class, and confusions")
    parser.add_argument("-o", "--out", metavar="FILE", help="metrics as JSON (default: evaluate/ in the run's folder)")
    add_embedding_flags(parser)


def run_verb(
    function: Callable[..., Comparison],
    parsed: tuple[Namespace, list[str | None], list[str]],
    flags: Namespace,
    options: dict[str, Any],
) -> int:
    """Call the verb's function with the flags of :func:`add_probe_flags` and ``options``, and print its results."""
    args, (weights, data), overrides = parsed
    options |= {key: getattr(args, key) for key in ("test", "folds", "groups", "seeds", "baselines", "out")}
    options["shots"] = args.shots.split(",") if args.shots else ()
    from maemm.ui.progress import progress

    with ExitStack() as stack:
        comparison = function(
            str(weights),
            data,
            show=lambda kind: stack.enter_context(progress(f"embed, {kind}")),
            **embedding_options(args, overrides),
            **options,
        )
    if flags.json:
        print_json(comparison.record())
        return 0
    for text in (*comparison.warnings, *comparison.notes):
        warn(text)
    print_result(f"{comparison}\n\n{comparison.details()}" if args.per_class else comparison)
    return 0


def _rates(text: str) -> list[float]:
    """ "0.1,0.3" -> [0.1, 0.3]."""
    try:
        rates = [float(number) for number in text.split(",")]
    except ValueError:
        rates = []
    if not rates or min(rates) <= 0:
        raise MaemmError(f"--base-lr is {text!r}; give numbers above 0 with commas between them, such as 0.1,0.3")
    return rates
