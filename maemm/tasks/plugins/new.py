"""``maemm plugins new NAME [--axes 1|2|3 | --set] [--into DIR]``."""

from __future__ import annotations

import json
from argparse import Namespace

from maemm.contract.errors import MaemmError


def run(name: str, args: Namespace, flags: Namespace) -> int:
    """Write a package that works as it is, and say what to do next."""
    if args.as_set and args.axes is not None:
        raise MaemmError("--axes and --set are both given; a set of elements has no axes, leave one out")
    from maemm.tasks.plugins.scaffold import new

    folder = new(name, args.into or ".", axes=args.axes or 2, as_set=args.as_set)
    if flags.json:
        print(json.dumps({"folder": str(folder)}))
        return 0
    package = f"maemm_{name}"
    print(
        f"{folder}: a package that works as it is. Next:\n"
        f"  pip install -e {folder}\n"
        f"  maemm plugins check {name}\n"
        f"  maemm pretrain {name}/tiny data.root=FOLDER      FOLDER: .npy or .npz files with a sample each\n"
        f"Edit {package}/modality.py (what a sample is) and {package}/sources.py (how files are read)."
    )
    return 0
