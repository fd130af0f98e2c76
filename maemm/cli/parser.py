"""The grammar of the command line: ``maemm VERB WHAT [DATA] [key=value ...] [--flags]``."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any, NoReturn

from maemm.config.layers import OVERRIDE
from maemm.errors import MaemmError
from maemm.nearest import advice


@dataclass(frozen=True)
class Verb:
    """One verb: its module in maemm.cli is imported when it is called."""

    words: str  # what follows it
    summary: str


# In the order of a person's work.
VERBS = {
    "demo": Verb("[out=FOLDER]", "pre-train a small model on a sample set, offline, and write a page of pictures"),
    "config": Verb("ls | show RECIPE [key=value ...] | cat RECIPE", "list recipes, show one resolved, print its file"),
    "plugins": Verb(
        "[show NAME | new NAME | check NAME]", "list plugins; show the options of one, write a new one, check one"
    ),
    "show": Verb("FILE_OR_FOLDER [--recipe R] [-o FILE]", "draw samples as the model gets them, with tokens and masks"),
    "data": Verb(
        "check | stats DATA [--recipe R] | pack DATA OUT [key=value ...]",
        "find broken files, sizes, labels, mean and spread; rewrite files to a faster form",
    ),
    "pretrain": Verb("RECIPE [DATA] [key=value ...]", "train a recipe; the same command again continues"),
    "reconstruct": Verb("RUN_OR_WEIGHTS DATA [-o FILE]", "draw input, visible part and reconstruction"),
    "embed": Verb("RUN_OR_WEIGHTS [DATA] -o FILE", "features of every sample in one file, with ids and labels"),
    "knn": Verb("RUN_OR_WEIGHTS [DATA] [--test DATA]", "classify by the nearest neighbours of frozen features"),
    "probe": Verb("RUN_OR_WEIGHTS [DATA] [--test DATA]", "fit linear or attentive classifiers on frozen features"),
    "finetune": Verb("RUN_OR_WEIGHTS_OR_RECIPE [DATA] [key=value ...]", "train a classifier from what was pre-trained"),
    "evaluate": Verb("RUN_OR_WEIGHTS [DATA]", "ask a fine-tuned model about labelled data"),
    "retrieve": Verb("RUN_OR_WEIGHTS [DATA] [--pair A,B]", "find the partners of one modality in another"),
    "score": Verb("RUN_OR_WEIGHTS [DATA] -o FILE", "reconstruction error of every sample, to find odd ones"),
    "diagnose": Verb("RUN_OR_WEIGHTS [DATA] [-o FILE]", "rank, spread, attention, clusters and losses on one page"),
    "convert": Verb("WEIGHTS OUT [--to KIND]", "turn published weights into maemm's format, or back"),
    "export": Verb(
        "RUN_OR_WEIGHTS --to TARGET -o PATH", "write a model for timm, transformers, torch or ONNX, checked"
    ),
}
FLAGS = {
    "--plugin PATH": "also use the plugin in this folder (more than once for several)",
    "--json": "print for programs",
    "--traceback": "show where an error comes from",
    "--version": "print the version",
}


class Parser(argparse.ArgumentParser):
    """argparse, with mistakes as :class:`MaemmError` and no guessing at shortened flags."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split())
        verb = self.prog.removeprefix("maemm").strip()
        flags = [flag for action in self._actions for flag in action.option_strings] + [one.split()[0] for one in FLAGS]
        words = text.removeprefix("unrecognized arguments: ").split()
        if words and text.startswith("unrecognized"):
            raise MaemmError(f"unknown flag {words[0]}; {advice(words[0], flags)}")
        raise MaemmError(f"{text}; see: maemm {verb} --help".replace("  ", " "))


def common(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags that every verb takes, wherever they stand, and the rest."""
    parser = Parser(prog="maemm", add_help=False)
    parser.add_argument("--plugin", action="append", default=[], metavar="PATH")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--traceback", action="store_true")
    parser.add_argument("--version", action="store_true")
    return parser.parse_known_args(argv)


def verb_parser(name: str, epilog: str = "") -> Parser:
    """The parser of one verb; the verb's module adds its own flags."""
    verb = VERBS[name]
    flags = "\n".join(f"  {flag:<16}{text}" for flag, text in FLAGS.items() if flag != "--version")
    parser = Parser(
        prog=f"maemm {name}",
        usage=f"maemm {name} {verb.words} [--flags]",
        description=verb.summary[0].upper() + verb.summary[1:] + ".",
        epilog=f"flags of every verb:\n{flags}" + (f"\n\n{epilog}" if epilog else ""),
    )
    parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    return parser


def split(words: list[str], least: int, most: int, usage: str) -> tuple[list[str | None], list[str]]:
    """Words -> ``most`` positional ones (None where left out) and the ``key=value`` overrides."""
    overrides = [word for word in words if OVERRIDE.match(word)]
    plain: list[str | None] = [word for word in words if not OVERRIDE.match(word)]
    if len(plain) < least:
        raise MaemmError(f"too few words; write: maemm {usage}")
    if len(plain) > most:
        raise MaemmError(f"one word too many: {plain[most]!r}; write: maemm {usage}")
    return plain + [None] * (most - len(plain)), overrides


def screen(version: str) -> str:
    """What ``maemm`` alone prints: the verbs, one line each, and the first command to try."""
    verbs = "\n".join(f"  {name:<13}{verb.summary}" for name, verb in VERBS.items())
    flags = "\n".join(f"  {flag:<16}{text}" for flag, text in FLAGS.items())
    return (
        f"maemm {version}: masked autoencoders for any modality\n\n"
        f"maemm VERB WHAT [DATA] [key=value ...] [--flags]\n\n{verbs}\n\n{flags}\n\n"
        "Start with:  maemm demo      More:  maemm VERB --help"
    )


def refuse_flag(word: str, args: argparse.Namespace) -> None:
    """Raises :class:`MaemmError` for ``KEY=value`` where KEY is a flag of the verb."""
    key, _, text = word.partition("=")
    if key == "words" or key not in vars(args):
        return
    flag = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
    given = "" if isinstance(vars(args)[key], bool) else f" {text}"
    raise MaemmError(f"{key} is a flag (override {word}); write {flag}{given}")
