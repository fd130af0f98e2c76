"""Options of several verbs: flags for how a model is embedded, and the words ``data.KEY=value`` and ``KEY=value``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from maemm.config import reader
from maemm.config.messages import validate
from maemm.config.options import check
from maemm.config.schema import DataConfig, key_types
from maemm.contract.errors import MaemmError
from maemm.ui.parser import Parser

EPILOG = """Without DATA, the data of the run's recipe. key=value: data.source=NAME, data.list=FILE, data.workers=N in
place of the recipe's, and what published weights do not record: heads=12, size=224"""
_DATA_KEYS = ("list", "source", "workers")


def add_embedding_flags(parser: Parser) -> None:
    """Flags that say how a model is embedded."""
    parser.add_argument(
        "--pool",
        help="mean, cls, max, cls+max or latents (default: mean, of latent tokens if there are any; fine-tuned models: "
        "their own)",
    )
    parser.add_argument("--norm", help="the encoder's final norm: before (default) or after the pool, or none")
    parser.add_argument("--layers", metavar="I,J", help="features of these blocks, counted from 0, without a norm")
    parser.add_argument(
        "--stream", metavar="A|A+B", help="one of several modalities, or some together; only their data are read"
    )
    parser.add_argument("--batch", type=int, default=64, help="samples at a time (default: 64)")
    add_model_flags(parser)


def add_model_flags(parser: Parser) -> None:
    """Flags that say how weights are read and run: :func:`model_options`."""
    parser.add_argument("--kind", help="format of published weights, where it cannot be recognised")
    parser.add_argument(
        "--precision", help="auto (default): bf16 on a GPU, unless trained in fp32; or fp32, or bf16; results are fp32"
    )


def model_options(args: Namespace) -> dict[str, Any]:
    """Those of :func:`add_model_flags` that are set, as keyword arguments of the verb's function."""
    return {key: value for key in ("kind", "precision") if (value := getattr(args, key)) is not None}


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
    if args.stream is not None:
        options["stream"] = args.stream
    return {**options, **model_options(args), **data_and_settings(overrides)}


# ------------------------------------------------------------------------------------------- KEY=value
# A word is an option of the verb, a key of the recipe's ``data``, or a setting that published weights do not record.
# All that is none of them is refused here, before it can meet a parameter of the same name in a Python function.
def data_and_settings(overrides: list[str], *more: str) -> dict[str, Any]:
    """``data.KEY=value`` of the keys above and ``more``, and ``KEY=value`` for :func:`maemm.load` -> {KEY: value}.

    Raises :class:`MaemmError` for unknown keys, and for values of ``data`` that a recipe may not have.
    """
    keys = (*_DATA_KEYS, *more)
    data, others = {}, []
    for word in overrides:
        key, _, text = word.partition("=")
        name = key.removeprefix("data.")
        if name in keys:
            data[name] = reader.value(text, key)
        else:
            others.append(word)
    return {**_checked_data(data), **settings_of(others, *(f"data.{name}" for name in keys))}


def settings_of(overrides: list[str], *others: str) -> dict[str, Any]:
    """``heads=12``: what published weights do not record -> {KEY: value}.

    Raises :class:`MaemmError` for unknown keys; ``others``: keys that the verb knows too.
    """
    settings: dict[str, Any] = {}
    for word in overrides:
        key, _, text = word.partition("=")
        if key not in _format_options():
            choices = ", ".join([*others, *_format_options()])
            raise MaemmError(f"{key!r} means nothing here (override {word}); known: {choices}")
        settings[key] = reader.value(text, key)
    return settings


def options_and_settings(
    overrides: list[str], function: Callable[..., Any], names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(keyword arguments ``names`` of a verb's function, checked by their types; settings, see :func:`settings_of`)."""
    own = [word for word in overrides if word.partition("=")[0] in names]
    values = {key: reader.value(text, key) for key, _, text in (word.partition("=") for word in own)}
    settings = settings_of([word for word in overrides if word not in own], *names)
    return check(function, values, function.__name__), settings


def _checked_data(values: dict[str, Any]) -> dict[str, Any]:
    types = key_types(DataConfig)
    checked, mistakes = validate(DataConfig.model_validate_json, values, "data", types)
    if mistakes:
        raise MaemmError("\n".join(mistakes))
    return {key: value for key, value in checked.model_dump().items() if key in values}


def _format_options() -> list[str]:
    """What published weights do not record, of all formats."""
    from maemm.weights.foreign import setting_names

    return sorted(setting_names() | {"checkpoint_key"})
