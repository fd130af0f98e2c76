"""``maemm data check DATA``, ``data stats DATA``, ``data pack DATA OUT`` and ``data index DATA``."""

from __future__ import annotations

import sys
from argparse import Namespace
from typing import Any

from maemm.config import reader
from maemm.contract.errors import MaemmError, advice
from maemm.ui.parser import Verb, verb_parser
from maemm.ui.streams import print_json, print_result

VERB = Verb(
    "data",
    "check | stats DATA [--recipe R] | pack DATA OUT [key=value ...] | index DATA",
    "find broken files, sizes, labels, mean and std; rewrite files faster, or as shards",
)

ACTIONS = ("check", "stats", "pack", "index")
SHARDS = "shards"
INCOMPLETE = 3  # exit status where files could not be packed
_SHOWN = 10  # names of unreadable files on the screen
EPILOG = f"""check reads everything once and lists every sample in DATA.check.csv, broken and repeated ones first; after
an interruption the same command resumes. stats prints mean and std alone, as lines for a recipe. Without --recipe, the
one that fits the endings of the files is taken. key=value changes the recipe: modalities.NAME.size=96

pack rewrites the files of DATA to the folder OUT in a form that is faster to read: the one that fits their endings, or
--as NAME. key=value are its options: maemm plugins show NAME. Files appear whole or not at all; after an interruption
the same command resumes. Unreadable files are named, and listed in OUT/bad_samples.jsonl; the exit status is then
{INCOMPLETE}. Train with data.root=OUT

pack --as {SHARDS} copies the samples of any recipe to tar files (--megabytes, --samples of each at most) with an index;
key=value changes the recipe. index makes that index for tar files that exist, in the layout of WebDataset: a folder, a
pattern, or a URL with -o FOLDER. Train with data.source={SHARDS} data.root=OUT: a folder, or a URL of any storage"""


def run(argv: list[str], flags: Namespace) -> int:
    """Check a whole data set before training on it, or rewrite it to a faster form."""
    parser = verb_parser(VERB, EPILOG)
    parser.add_argument("--recipe", metavar="R", help="check, stats: recipe, YAML file or run folder")
    parser.add_argument("--as", metavar="NAME", dest="packer", help="pack: the packed form (default: by endings)")
    parser.add_argument("--workers", type=int, help="processes (default: as the recipe says; pack: one per core)")
    parser.add_argument("-o", "--out", metavar="FILE", help="list of check (DATA.check.csv), folder of pack or index")
    parser.add_argument("--megabytes", type=int, help="pack --as shards: MB of a shard at most (256)")
    parser.add_argument("--samples", type=int, help="pack --as shards: samples of a shard at most (10000)")
    args, (action, data, out), overrides = parser.parse(argv, 1, 3)
    if action not in ACTIONS:
        raise MaemmError(f"unknown action {action!r}; {advice(str(action), ACTIONS)}")
    if args.workers is not None and args.workers < 0:
        raise MaemmError(f"--workers is {args.workers}; give 0 or more")
    for flag in ("megabytes", "samples"):
        value = getattr(args, flag)
        if value is not None and (action != "pack" or args.packer != SHARDS):
            raise MaemmError(f"--{flag} belongs to: maemm data pack DATA OUT --as {SHARDS}")
        if value is not None and value < 1:
            raise MaemmError(f"--{flag} is {value}; give 1 or more")
    if action == "index":
        return _index(data, out, args, overrides, flags.json)
    if action == "pack" and args.packer == SHARDS:
        return _shards(data, out, args, overrides, flags.json)
    if action == "pack":
        return _pack(data, out, args, overrides, flags.json)
    if data is None:
        raise MaemmError(f"missing argument; usage: maemm data {action} DATA [--recipe R]")
    if out is not None:
        raise MaemmError(f"one word too many: {out!r}; write: maemm data {action} DATA [--recipe R]")
    if args.packer is not None:
        raise MaemmError("--as belongs to: maemm data pack")
    if action == "stats" and args.out is not None:
        raise MaemmError("stats writes no file, so -o means nothing; use: maemm data check")
    return _check_or_stats(str(action), data, args, overrides, flags.json)


def _check_or_stats(action: str, data: str, args: Namespace, overrides: list[str], as_json: bool) -> int:
    from maemm.tasks.data.check import data_check, data_stats
    from maemm.ui.progress import progress

    options: dict[str, Any] = {"recipe": args.recipe, "workers": args.workers, "overrides": overrides}
    with progress(f"data {action}") as on_progress:
        options["on_progress"] = on_progress
        if action == "check":
            checked = data_check(data, args.out, echo=lambda line: print(line, file=sys.stderr), **options)
        else:
            checked = data_stats(data, **options)
    if as_json:
        print_json(checked.as_dict(), indent=2)
    elif action == "check":
        print_result(checked)
    else:
        broken = checked.findings.broken
        used = checked.findings.samples - broken
        print_result("\n".join([f"# {used:,} samples of {checked.opened.title}, {broken:,} broken", *checked.yaml()]))
    return 0


def _pack(data: str | None, out: str | None, args: Namespace, overrides: list[str], as_json: bool) -> int:
    """Returns 0, or ``INCOMPLETE`` where files could not be read."""
    out = args.out if out is None else out
    if data is None or out is None:
        raise MaemmError("missing argument; usage: maemm data pack DATA OUT [key=value ...]")
    if args.recipe is not None:
        raise MaemmError("pack has no recipe; choose the form with --as NAME and key=value")
    from maemm.tasks.data.pack import data_pack
    from maemm.ui.progress import progress

    options = {key: reader.value(text, key) for key, _, text in (word.partition("=") for word in overrides)}
    with progress("data pack", "files") as on_progress:
        packed = data_pack(data, out, args.packer, options, workers=args.workers, on_progress=on_progress)
    return _print_packed(packed, as_json)


def _shards(data: str | None, out: str | None, args: Namespace, overrides: list[str], as_json: bool) -> int:
    """Returns 0, or ``INCOMPLETE`` where files could not be read."""
    out = args.out if out is None else out
    if data is None or out is None:
        raise MaemmError(
            f"missing argument; usage: maemm data pack DATA OUT --as {SHARDS} [--recipe R] [key=value ...]"
        )
    from maemm.tasks.data.pack import data_shards
    from maemm.ui.progress import progress

    limits = {key: value for key in ("megabytes", "samples") if (value := getattr(args, key)) is not None}
    with progress("data pack", "samples") as on_progress:
        packed = data_shards(data, out, args.recipe, overrides, workers=args.workers, on_progress=on_progress, **limits)
    return _print_packed(packed, as_json)


def _index(data: str | None, out: str | None, args: Namespace, overrides: list[str], as_json: bool) -> int:
    if data is None or overrides or args.recipe is not None or args.packer is not None:
        raise MaemmError("the index is of files, whatever reads them; usage: maemm data index DATA [-o FOLDER]")
    from maemm.tasks.data.pack import data_index
    from maemm.ui.progress import progress

    with progress("data index", "shards") as on_progress:
        indexed = data_index(data, out or args.out, workers=args.workers, on_progress=on_progress)
    return _print_packed(indexed, as_json)


def _print_packed(packed: Any, as_json: bool) -> int:
    if as_json:
        print_json(packed.as_dict(), indent=2)
    else:
        for bad in packed.bad[:_SHOWN]:
            print(f"unreadable: {bad.id}: {bad.reason}", file=sys.stderr)
        if len(packed.bad) > _SHOWN:
            print(f"unreadable: and {len(packed.bad) - _SHOWN:,} others", file=sys.stderr)
        print_result(packed)
    return INCOMPLETE if packed.bad else 0
