"""The report of a run: one HTML file that needs no network and no other file; scripts only to turn or to play."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta
from html import escape
from pathlib import Path

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.evaluations import evaluations
from maemm.tasks._shared.run_files import Run, read_run
from maemm.ui.charts import Line, charts
from maemm.ui.interactive import interactive_beside
from maemm.ui.page import document, picture_figure, write_html

_EARLIER = 5  # pictures of earlier steps that the page shows besides the last one


def write_page(run_folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Shows what there is: a run without metrics, pictures or recipe gets a page that says so.
    Raises :class:`MaemmError` when the folder is missing or cannot be written.
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise MaemmError(f"there is no run folder {folder}; give the folder that pretrain wrote (out=...)")
    run = read_run(folder)
    lead = f"Recipe {name_of(run)}. Everything in this page comes from the files beside it."
    multiple = not run.rows and bool(
        evaluations(folder)
    )  # a folder of runs, to be continued by the command that made it
    parts = [section(run)] if multiple else [section(run), commands(run)]
    return write_html(folder / "report.html", document(run_title(run), lead, parts))


def run_title(run: Run) -> str:
    """The folder's own name, also for ``.``."""
    return run.folder.resolve().name or str(run.folder)


def name_of(run: Run) -> str:
    """The recipe's name where the run tells it."""
    name = run.recipe.get("name")
    return str(name) if name else ", ".join(map(str, run.recipe.get("modalities") or {})) or "unknown"


def section(run: Run) -> str:
    """Figures, curves, pictures and recipe of one run."""
    unread = "".join(f'<p class="note warn">{escape(text)}</p>' for text in run.unread)
    if not run.rows and (asked := evaluations(run.folder)):  # figures of several runs
        return unread + asked
    return unread + _tiles(run) + _loss(run) + evaluations(run.folder) + _pictures(run) + _speed(run) + _details(run)


def brief(run: Run) -> str:
    """The same with the pictures first and the rest folded away: one of several on a page."""
    unread = "".join(f'<p class="note warn">{escape(text)}</p>' for text in run.unread)
    more = f"<details><summary>Speed, figures, recipe</summary>{_speed(run)}{_details(run)}</details>"
    return unread + _tiles(run) + _pictures(run) + _loss(run) + more


# ------------------------------------------------------------------------------------------------ figures
def _tiles(run: Run) -> str:
    tiles = [
        (_number(run.last("loss")), "loss"),
        (_number(run.last("baseline")), "loss of predicting the mean"),
        (_steps(run), "steps"),
        (_number(run.last("samples_per_second")), "samples per second"),
        (_percent(run.last("data_wait")), "of the time waiting for data"),
        (f"{run.bad:,}", "bad samples"),
    ]
    cells = [f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _details(run: Run) -> str:
    rows: list[tuple[str, str]] = [("parameters", _number(run.last("parameters")))]
    rows += [(f"last {name.removeprefix('terms.')}", _number(run.last(name))) for name in run.terms()]
    rows += [
        ("epochs", _number(run.last("epoch"))),
        ("learning rate now", _number(run.last("lr"))),
        ("peak memory on the device", _gigabytes(run.last("memory"))),
        ("time in training", _duration(run.last("seconds"))),
    ]
    cells = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in rows if v != "-")
    table = f'<h3>Figures</h3><div class="card"><table>{cells}</table></div>' if cells else ""
    if not run.recipe_text:
        return table + '<p class="note">No recipe.yaml in this folder.</p>'
    return table + f"<details><summary>The recipe</summary><pre>{escape(run.recipe_text)}</pre></details>"


def _steps(run: Run) -> str:
    if not run.rows:
        return "-"
    total = run.last("steps")
    return f"{run.rows[-1]['step']:,}" + (f" of {int(total):,}" if total else "")


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _gigabytes(value: float | None) -> str:
    return f"{value / 2**30:.2f} GiB" if value else "-"


def _duration(value: float | None) -> str:
    return "-" if value is None else str(timedelta(seconds=round(value)))


# ------------------------------------------------------------------------------------- curves and pictures
def _loss(run: Run) -> str:
    lines = [Line("training", *run.column("loss"))]
    if len(run.terms()) > 1:
        lines += [Line(name.removeprefix("terms."), *run.column(name), "other") for name in run.terms()]
    baseline = Line("predicting the mean", *run.column("baseline"), "baseline")
    if any(map(math.isfinite, baseline.y)):
        lines.append(baseline)
    drawn = charts(lines, x_label="step", y_label="loss", width=1100, height=330)
    caption = "The dashed line is the loss of always answering with the mean: below it, something has been learned."
    return f"<h3>How it learned</h3><figure>{drawn}<figcaption>{caption}</figcaption></figure>"


def _speed(run: Run) -> str:
    figures = ""
    for column, label in (("lr", "learning rate"), ("samples_per_second", "samples per second")):
        line = Line("", *run.column(column))
        figures += f"<figure>{charts([line], x_label='step', y_label=label, width=540, height=190, zero=True)}</figure>"
    return f'<h3>How it went</h3><div class="pair">{figures}</div>'


def _pictures(run: Run) -> str:
    if not run.pictures:
        return '<h3>What it sees and says</h3><p class="note">No pictures yet (train.picture_every sets how often).</p>'
    caption = (
        "Input, what the encoder sees, and what the model makes of it. A column says when it uses the true mean and "
        "spread of hidden patches, which a model that predicts normalised patches does not know."
    )
    last = interactive_beside(run.pictures[-1]) + picture_figure(run.pictures[-1], caption)
    earlier = _spread(run.pictures[:-1], _EARLIER)
    if not earlier:
        return f"<h3>What it sees and says</h3>{last}"
    frames = "".join(picture_figure(path, path.stem) for path in earlier)
    more = f'<details><summary>Earlier</summary><div class="over">{frames}</div></details>'
    return f"<h3>What it sees and says</h3>{last}{more}"


def _spread(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of them, evenly, the first included."""
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


def commands(run: Run, heading: bool = True) -> str:
    """What to type next."""
    recipe, folder = name_of(run), run.folder
    text = (
        f"# the same command again continues the run; pictures of your own files:\n"
        f"maemm reconstruct {folder} YOUR/FOLDER -o reconstruction.png\n\n"
        f"# the same recipe on your own files:\n"
        f"maemm pretrain {recipe} data.root=YOUR/FOLDER out=runs/mine\n\n"
        f"# the encoder from Python:\n"
        f'import maemm\nmodel = maemm.load("{folder}")\nfeatures = model.embed(batch)   # {{name: (B, D)}}'
    )
    return f"{'<h3>Go on</h3>' if heading else ''}<pre>{escape(text)}</pre>"
