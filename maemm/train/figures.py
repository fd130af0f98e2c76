"""Figures of a run: which are better when they are higher, and those that fit on a line. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HIGHER_IS_BETTER = ("accuracy", "mAP")  # the first of these that there is decides; without any, the loss does
# Figures of a monitor on the console, with the words for them; metrics.jsonl has all.
MONITORED = {"knn": "kNN", "ridge": "ridge", "effective_rank": "rank"}
# By the last part of a name.
_HIGHER = {*HIGHER_IS_BETTER, "top5_accuracy", "samples_per_second", "mfu", *MONITORED}
_LOWER = {"loss", "relative_loss", "data_wait", "memory", "seconds", "nonfinite_steps", "unreadable_samples"}


def higher_is_better(name: str) -> bool | None:
    """Whether the higher value of a column of metrics.jsonl is the better one; None where that depends."""
    if name.startswith("terms."):
        return False
    last = name.rpartition(".")[2]
    return True if last in _HIGHER else False if last in _LOWER else None


def monitor_text(figures: Mapping[str, Any]) -> str:
    """The figures of a monitor that a line shows, those of several modalities with their names."""
    names = dict.fromkeys(key.rpartition(".")[0] for key in figures if key.endswith(".effective_rank"))
    text = ""
    for name in names:
        pairs = [(words, figures.get(f"{name}.{figure}")) for figure, words in MONITORED.items()]
        text += f"  {name}" * (len(names) > 1) + "".join(f"  {words} {x:.3g}" for words, x in pairs if x is not None)
    return text
