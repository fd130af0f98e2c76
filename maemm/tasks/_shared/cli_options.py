"""Options of several verbs: flags for how a model is embedded, and the words ``data.KEY=value`` and ``KEY=value``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from maemm.config import reader
from maemm.contract.errors import MaemmError
from maemm.ui.parser import Parser, refuse_flag

EPILOG = """Without DATA, the data of the run's recipe. key=value: data.source=NAME, data.list=FILE, data.workers=N in
place of the recipe's, and what published weights do not record: heads=12, size=224"""
_DATA_KEYS = ("list", "source", "workers")


def add_embedding_flags(parser: Parser) -> None:
    """Flags that say how a model is embedded."""
    parser.add_argument("--pool", help="mean, cls, max or cls+max (default: mean; fine-tuned models: their own)")
    parser.add_argument("--norm", help="the encoder's final norm: before (default) or after the pool, or none")
    parser.add_argument("--layers", metavar="I,J", help="features of these blocks, counted from 0, without a norm")
    parser.add_argument(
        "--stream", metavar="A|A+B", help="one of several modalities, or some together; only their data are read"
    )
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")


def embedding_options(args: Namespace, overrides: list[str]) -> dict[str, Any]:
    """Flags of :func:`add_embedding_flags` and overrides -> keyword arguments of the verb's function."""
    if args.batch < 1:
        raise MaemmError(f"--batch is {args.batch}; give 1 or more")
    options = {"pool": args.pool, "norm": args.norm, "batch": args.batch}
    if args.layers is not None:
        try:
            options["layers"] = [int(text) for text in args.layers.split(",")]
        except ValueError:
            raise MaemmError(
                f"--layers is {args.layers!r}; give whole numbers with commas between them, such as 3,5"
            ) from None
    for key in ("kind", "stream"):
        if getattr(args, key) is not None:
            options[key] = getattr(args, key)
    return {**options, **words(overrides, args)}


def words(overrides: list[str], args: Namespace, *more: str) -> dict[str, Any]:
    """``data.KEY=value`` of the keys above and ``more``, and ``KEY=value`` for :func:`maemm.load` -> {KEY: value}.

    ``args``: the flags of the verb, which are refused as words. Raises :class:`MaemmError` for unknown keys.
    """
    keys, options = (*_DATA_KEYS, *more), {}
    for word in overrides:
        key, _, text = word.partition("=")
        name = key.removeprefix("data.")
        if name not in keys:
            refuse_flag(word, args)
        if name not in keys and key not in _format_options():
            choices = [*(f"data.{name}" for name in keys), *_format_options()]
            raise MaemmError(f"{key!r} means nothing here (override {word}); known: {', '.join(choices)}")
        options[name] = reader.value(text, key)
    return options


def _format_options() -> list[str]:
    """What published weights do not record, of all formats."""
    from maemm import registry
    from maemm.config.options import options_of

    formats = [registry.find("weights", name) for name in registry.names("weights")]
    return sorted({option for format in formats for option in options_of(format.read)})
