"""The grammar of the command line: ``maemm VERB WHAT [DATA] [key=value ...] [--flags]``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from maemm.config import reader
from maemm.config.layers import OVERRIDE
from maemm.contract.errors import MaemmError, advice


@dataclass(frozen=True)
class Verb:
    """One verb of the command line, as ``maemm`` lists it."""

    name: str
    words: str  # its arguments
    summary: str

    @property
    def usage(self) -> str:
        """``pretrain RECIPE [DATA] [key=value ...]``."""
        return f"{self.name} {self.words}"


FLAGS = {
    "--plugin PATH": "also use the plugin in this folder (more than once for several)",
    "--json": "print for programs",
    "--traceback": "show where an error comes from",
    "--version": "print the version",
}


class Parser(argparse.ArgumentParser):
    """argparse that raises :class:`MaemmError` and accepts no abbreviated flags."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        verb = self.prog.removeprefix("maemm").strip()
        flags = [flag for action in self._actions for flag in action.option_strings]
        flags += [entry.split()[0] for entry in FLAGS]
        words = text.removeprefix("unrecognized arguments: ").split()
        if words and text.startswith("unrecognized"):
            raise MaemmError(f"unknown flag {words[0]}; {advice(words[0], flags)}")
        raise MaemmError(f"{text}; see: maemm {verb} --help".replace("  ", " "))


def parse_common_flags(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that every verb accepts, wherever they stand, and the remaining arguments."""
    parser = Parser(prog="maemm", add_help=False)
    parser.add_argument("--plugin", action="append", default=[], metavar="PATH")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traceback", action="store_true")
    parser.add_argument("--version", action="store_true")
    return parser.parse_known_args(argv)


def verb_parser(verb: Verb, epilog: str = "") -> Parser:
    """The parser of one verb; the verb's module adds its own flags."""
    flags = "\n".join(f"  {flag:<16}{text}" for flag, text in FLAGS.items() if flag != "--version")
    parser = Parser(
        prog=f"maemm {verb.name}",
        usage=f"maemm {verb.usage} [--flags]",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=f"flags of every verb:\n{flags}" + (f"\n\n{epilog}" if epilog else ""),
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return parser


def split_words(words: list[str], least: int, most: int, usage: str) -> tuple[list[str | None], list[str]]:
    """Arguments -> ``most`` positional ones (None where left out) and the ``key=value`` overrides.

    Raises :class:`MaemmError` for less than ``least`` positional ones, and for more than ``most``.
    """
    overrides = [word for word in words if OVERRIDE.match(word)]
    plain: list[str | None] = [word for word in words if not OVERRIDE.match(word)]
    if len(plain) < least:
        raise MaemmError(f"missing argument; usage: maemm {usage}")
    if len(plain) > most:
        raise MaemmError(f"unexpected argument {plain[most]!r}; usage: maemm {usage}")
    return plain + [None] * (most - len(plain)), overrides


def help_screen(version: str, verbs: Iterable[Verb]) -> str:
    """The help that ``maemm`` alone prints: the verbs, one line each, and the first command to try."""
    lines = "\n".join(f"  {verb.name:<13}{verb.summary}" for verb in verbs)
    flags = "\n".join(f"  {flag:<16}{text}" for flag, text in FLAGS.items())
    return (
        f"maemm {version}: masked autoencoders for any modality\n\n"
        f"maemm VERB WHAT [DATA] [key=value ...] [--flags]\n\n{lines}\n\n{flags}\n\n"
        "Start with:  maemm demo      More:  maemm VERB --help"
    )


def refuse_flag(word: str, args: argparse.Namespace) -> None:
    """Raises :class:`MaemmError` for ``KEY=value`` where KEY is a flag of the verb."""
    key, _, text = word.partition("=")
    if key == "words" or key not in vars(args):
        return
    flag = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
    value = "" if isinstance(vars(args)[key], bool) else f" {text}"
    raise MaemmError(f"{key} is a flag (override {word}); write {flag}{value}")


def parse_overrides(overrides: list[str], args: argparse.Namespace) -> dict[str, object]:
    """``["heads=12"]`` -> {"heads": 12}, for verbs whose keys have no dots. Raises :class:`MaemmError` for flags."""
    parsed: dict[str, object] = {}
    for word in overrides:
        key, _, text = word.partition("=")
        refuse_flag(word, args)
        if "." in key:
            raise MaemmError(f"{key!r} means nothing here (override {word}); write keys without dots")
        parsed[key] = reader.value(text, key)
    return parsed
