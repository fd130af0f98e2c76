"""Accuracy over the number of labels, as a picture."""

from __future__ import annotations

from pathlib import Path

from maemm.tasks._shared.comparison import Comparison

_COLOURS = {"raw values": "#8a8f94", "untrained": "#b4572a", "trained": "#0f6fb5"}
_COLOURS |= {"from scratch": "#b4572a", "fine-tuned": "#0f6fb5"}
_STYLES = ("-", "--", ":", "-.")


def draw_curves(found: Comparison, path: Path) -> None:
    """A line with its spread for every kind of features and protocol; the largest class as a floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(found.shots))
    protocols = list(dict.fromkeys(one.protocol for one in found.cells))
    for kind, protocol in dict.fromkeys((one.features, one.protocol) for one in found.cells):
        cells = {one.shots: one for one in found.cells if (one.features, one.protocol) == (kind, protocol)}
        means = [cells[shots].mean for shots in found.shots]
        spreads = [cells[shots].std or 0.0 for shots in found.shots]
        label = kind if len(protocols) == 1 else f"{kind}, {protocol}"
        colour, style = _COLOURS.get(kind.partition(",")[0]), _STYLES[protocols.index(protocol) % len(_STYLES)]
        axes.errorbar(places, means, spreads, label=label, color=colour, linestyle=style, marker="o", capsize=3)
    if "majority" in found.data:
        axes.axhline(found.data["majority"], color="#c9c5bd", linewidth=1, zorder=0, label="largest class")
    axes.set_xticks(list(places), found.shots)
    axes.set_xlabel("labels of each class" if not any("%" in one for one in found.shots) else "labels (of each class)")
    axes.set_ylabel(found.cells[0].metric)
    axes.grid(axis="y", color="#e2e0db", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
