"""Launches and bytes of a step of each recipe, shrunk, beside those on record.

python -m tests.pretended_gpu.ratchet             # prints them
python -m tests.pretended_gpu.ratchet --record    # and writes them, where fewer are needed now or more are worth it
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from .device import gpu
from .recipes import RECIPES, Samples, counted_step, shrunk
from .work import counted

RECORD = Path(__file__).with_name("launches.json")
MORE = 1.02  # times what is on record: what a step may need


def needed(name: str, samples: Samples) -> dict[str, int]:
    """{"launches", "bytes", "kept"} of a step, "kept": bytes that the forward pass keeps for the backward pass."""
    with gpu(values=False) as seen, counted(seen) as work:
        memory = counted_step(shrunk(name), samples, seen, work)
    return {"launches": work.launches, "bytes": work.bytes, "kept": memory["kept"]}


def main(arguments: list[str]) -> None:
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        samples = Samples(Path(folder))
        steps = {name: needed(name, samples) for name in RECIPES}
    for name, step in steps.items():
        print(f"{name:44}", *(f"{key} {step[key]:,} ({record.get(name, {}).get(key, 0):,})" for key in step))
    if "--record" in arguments:
        lines = [f" {json.dumps(name)}: {json.dumps(step)}" for name, step in steps.items()]
        RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
