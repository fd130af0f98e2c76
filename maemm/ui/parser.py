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
    shared: bool = False  # whether several processes (torchrun) share its work; else rank 0 does it alone

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

    def parse(self, argv: list[str], least: int, most: int) -> tuple[argparse.Namespace, list[str | None], list[str]]:
        """(flags, ``most`` positional words, None where left out, and the words ``KEY=value``).

        Raises :class:`MaemmError` for less than ``least`` positional words, for more than ``most``, and for
        ``KEY=value`` where KEY is a flag of the verb.
        """
        args = self.parse_intermixed_args(argv)
        usage = (self.usage or "").removesuffix(" [--flags]")
        plain: list[str | None] = [word for word in args.words if not OVERRIDE.match(word)]
        overrides = [word for word in args.words if OVERRIDE.match(word)]
        for word in overrides:
            self._refuse_flag(word)
        if len(plain) < least:
            raise MaemmError(f"missing argument; usage: {usage}")
        if len(plain) > most:
            raise MaemmError(f"unexpected argument {plain[most]!r}; usage: {usage}")
        return args, plain + [None] * (most - len(plain)), overrides

    def _refuse_flag(self, word: str) -> None:
        key, _, text = word.partition("=")
        names = {f"-{key}", f"--{key.replace('_', '-')}"}
        for action in self._actions:
            flags = [flag for flag in action.option_strings if flag in names]
            if flags and action.dest != "help":
                value = "" if action.nargs == 0 else f" {text}"
                raise MaemmError(f"{key} is a flag (override {word}); write {flags[0]}{value}")

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


def help_screen(version: str, verbs: Iterable[Verb]) -> str:
    """The help that ``maemm`` alone prints: the verbs, one line each, and the first command to try."""
    lines = "\n".join(f"  {verb.name:<13}{verb.summary}" for verb in verbs)
    flags = "\n".join(f"  {flag:<16}{text}" for flag, text in FLAGS.items())
    return (
        f"maemm {version}: masked autoencoders for any modality\n\n"
        f"maemm VERB WHAT [DATA] [key=value ...] [--flags]\n\n{lines}\n\n{flags}\n"
        "Start with:  maemm demo      More:  maemm VERB --help"
    )


def parse_keys(overrides: list[str]) -> dict[str, object]:
    """``["heads=12"]`` -> {"heads": 12}, for verbs whose keys have no dots. Raises :class:`MaemmError` for others."""
    parsed: dict[str, object] = {}
    for word in overrides:
        key, _, text = word.partition("=")
        if "." in key:
            raise MaemmError(f"{key!r} means nothing here (override {word}); write keys without dots")
        parsed[key] = reader.value(text, key)
    return parsed
