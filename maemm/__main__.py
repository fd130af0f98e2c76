"""The command line. Lists and help texts do not import torch; each verb imports what it needs when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback

from maemm.config.values import refuse_undecodable
from maemm.contract.errors import MaemmError, advice
from maemm.contract.version import __version__
from maemm.tasks import VERBS
from maemm.ui.parser import Verb, help_screen, parse_common_flags
from maemm.ui.processes import only_rank0
from maemm.ui.stopping import stopped_by_signals
from maemm.ui.streams import guarded, print_result, readable

USER_ERROR, INTERNAL_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 2 for a mistake of the user, 1 for a bug, 130 for Ctrl-C."""
    argv = sys.argv[1:] if argv is None else argv
    with guarded(as_json="--json" in argv):
        try:
            with stopped_by_signals():
                return _run(argv)
        except SystemExit as leaving:  # --help
            return leaving.code if isinstance(leaving.code, int) else 0
        except KeyboardInterrupt as stop:
            print("maemm: stopped", file=sys.stderr)
            return getattr(stop, "status", INTERRUPTED)
        except BrokenPipeError:  # nobody reads the result
            return BROKEN_PIPE
        except Exception as error:
            if "--traceback" in argv:
                traceback.print_exc()
            interrupted = getattr(error, "status", None)  # maemm.train.signals.Interrupted: it is reported
            if isinstance(interrupted, int):
                return interrupted
            text, status = _message(error)
            for line in text.splitlines():
                print(f"maemm: error: {readable(line)}", file=sys.stderr)
            return status


def _run(argv: list[str]) -> int:
    for number, word in enumerate(argv, start=1):
        refuse_undecodable(word, f"argument {number}")
    flags, rest = parse_common_flags(argv)
    if flags.version:
        print_result(f"maemm {__version__}")
        return 0
    if not rest or rest[0] in ("-h", "--help", "help"):
        print_result(help_screen(__version__, map(_verb, VERBS)))
        return 0
    verb = rest[0]
    if verb not in VERBS:
        kind = "flag" if verb.startswith("-") else "verb"
        raise MaemmError(f"unknown {kind} {verb!r}; {advice(verb, VERBS)}")
    if flags.plugin:
        from maemm.registry import add_path

        for path in flags.plugin:
            add_path(path)
    module = importlib.import_module(f"maemm.tasks.{verb}.cli")
    if module.VERB.shared:
        return module.run(rest[1:], flags)
    with only_rank0() as works:
        return module.run(rest[1:], flags) if works else 0


def _verb(name: str) -> Verb:
    return importlib.import_module(f"maemm.tasks.{name}.cli").VERB


def _message(error: BaseException) -> tuple[str, int]:
    """The text to print for an error, and the exit status."""
    text = " ".join(str(error).split())
    if isinstance(error, MaemmError):
        return str(error), USER_ERROR
    if isinstance(error, OSError) and error.strerror:
        path = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{path}; check the path, the permissions and the free space", USER_ERROR
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return f"out of memory ({text[:120]}); set train.micro_batch lower", USER_ERROR
    return f"internal: {type(error).__name__}: {text} (rerun with --traceback; please report)", INTERNAL_ERROR


if __name__ == "__main__":
    sys.exit(main())
