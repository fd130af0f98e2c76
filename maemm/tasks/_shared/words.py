"""What the verbs of evaluation share: how a model is embedded, and the words ``data.KEY=value`` and ``KEY=value``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from maemm.config import reader
from maemm.contract.errors import MaemmError
from maemm.ui.parser import Parser, refuse_flag

EPILOG = """Without DATA, the data of the run's recipe. key=value: data.source=NAME, data.list=FILE, data.workers=N in
place of the recipe's, and what published weights do not record: heads=12, size=224"""
_DATA = ("list", "source", "workers")


def add_subject_flags(parser: Parser) -> None:
    """Flags that say how a model is embedded."""
    parser.add_argument("--pool", help="mean, cls, max or cls+max (default: mean; of fine-tuned models their own)")
    parser.add_argument(
        "--norm", help="where the encoder's final norm stands: before (default) or after the pool, none"
    )
    parser.add_argument("--layers", metavar="I,J", help="features of these blocks, counted from 0, without a norm")
    parser.add_argument(
        "--stream", metavar="A|A+B", help="of several modalities, one alone or some together; only their data are read"
    )
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    parser.add_argument("--kind", help="published layout of the weights, where it cannot be told")


def subject(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Flags and words -> keyword arguments of the verb's function."""
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    found = {"pool": args.pool, "norm": args.norm, "batch": args.batch}
    if args.layers is not None:
        found["layers"] = numbers(args.layers, "--layers")
    for key in ("kind", "stream"):
        if getattr(args, key) is not None:
            found[key] = getattr(args, key)
    return {**found, **words(overrides, args)}


def words(overrides: list[str], args: Namespace, *more: str) -> dict[str, Any]:
    """``data.KEY=value`` of the known keys and ``more``, and ``KEY=value`` for :func:`maemm.load` -> {KEY: value}.

    ``args``: the flags of the verb, which are no words.
    """
    known, found = (*_DATA, *more), {}
    for word in overrides:
        key, _, text = word.partition("=")
        name = key.removeprefix("data.")
        if name not in known:
            refuse_flag(word, args)
        if name not in known and key not in _untold():
            told = [*(f"data.{one}" for one in known), *_untold()]
            raise MaemmError(f"{key!r} means nothing here (override {word}); known: {', '.join(told)}")
        found[name] = reader.value(text, key)
    return found


def _untold() -> list[str]:
    """What published weights do not tell, of all kinds."""
    from maemm import registry
    from maemm.config.options import options_of

    kinds = [registry.find("weights", name) for name in registry.names("weights")]
    return sorted({option for kind in kinds for option in options_of(kind.read)})


def numbers(text: str, flag: str) -> list[int]:
    """ "3,5" -> [3, 5]."""
    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise MaemmError(f"{flag} is {text!r}; give whole numbers with commas between them, such as 3,5") from None
