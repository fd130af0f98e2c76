"""Scripts without ``if __name__ == "__main__":`` where worker processes import them (start methods spawn, forkserver).

Such a worker runs the whole script again, up to the call that started it. It ends quietly there, with an exit status by
which the process that started it can say what to do.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

STATUS = 78  # of a worker that ended here: a configuration error in sysexits.h
ADVICE = 'put the calls of the script under if __name__ == "__main__":, or set data.workers=0'


def refuse_in_child() -> None:
    """End this process if it is a worker that still imports the main module of the process that started it."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(STATUS)


def imports_main() -> bool:
    """Whether worker processes import the main module: not those that are forked."""
    return multiprocessing.get_start_method() != "fork"


def text() -> str:
    """The message for a script without the guard."""
    return f"workers run the script again ({_path() or 'the main module'}); {ADVICE}"


def unreadable_main() -> str | None:
    """Why workers cannot import the main module, which has no file; None where they can, or need not."""
    path = _path()
    if path is None or not imports_main() or Path(path).exists():
        return None
    return f"workers cannot read the script again ({path}); write it to a file, or set data.workers=0"


def _path() -> str | None:
    return getattr(sys.modules.get("__main__"), "__file__", None)
