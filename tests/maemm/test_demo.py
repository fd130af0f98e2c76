"""The demo's page, and pieces of a page that do more than a picture."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from maemm import MaemmError
from maemm.tasks._shared.run_files import read_run
from maemm.tasks._shared.run_page import write_page
from maemm.tasks.demo import run as demos
from maemm.ui.interactive import LARGEST, interactive_beside, save_interactive
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import save_pictures

spec = importlib.util.spec_from_file_location("report_helpers", Path(__file__).with_name("test_report.py"))
helpers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(helpers)


def run_of(folder, recipe="toy/tiny"):
    made = helpers.make_run(folder)
    (made / "recipe.yaml").write_text(f"name: {recipe}\nmodalities: {{toy: {{size: 16}}}}\n")
    return read_run(made)


# ------------------------------------------------------------------------------------------------- pieces
class Turning(helpers.GridModality):
    def interactive(self, columns):
        return f"<div>{len(columns)} columns of {len(next(iter(columns.values())))}</div><script>1</script>"


def test_a_modality_may_give_a_piece_of_html(tmp_path):
    model = helpers.toy()
    save_pictures(model, helpers.batch(), tmp_path / "plain.png", interactive=True)
    assert not (tmp_path / "plain.html").exists()  # none by default
    model.modalities["toy"].__class__ = Turning
    save_pictures(model, helpers.batch(), tmp_path / "a.png", count=2, interactive=True)
    assert (tmp_path / "a.html").read_text() == "<div>4 columns of 2</div><script>1</script>"
    shown = interactive_beside(tmp_path / "a.png")
    assert shown == "<div>4 columns of 2</div><script>1</script>"
    save_pictures(model, helpers.batch(), tmp_path / "b.png")
    assert not (tmp_path / "b.html").exists()


def test_pieces_of_several_modalities_have_their_names(tmp_path):
    turning = Turning(size=4, patch=2)
    signal = {"input": torch.zeros(1, 1, 4, 4)}
    made = {"<a>": Rows(signal), "b": Rows(note="no pictures")}
    save_interactive({"<a>": turning, "b": turning}, made, tmp_path / "x.html")
    assert (tmp_path / "x.html").read_text().startswith("<h4>&lt;a&gt;</h4><div>1 columns")


def test_a_piece_that_is_missing_broken_or_too_large_is_left_out(tmp_path):
    assert interactive_beside(tmp_path / "none.png") == ""
    (tmp_path / "bytes.html").write_bytes(b"\xff\xfe")
    (tmp_path / "large.html").write_text("x" * (LARGEST + 1))
    (tmp_path / "folder.html").mkdir()
    assert [interactive_beside(tmp_path / f"{name}.png") for name in ("bytes", "large", "folder")] == ["", "", ""]


def test_the_page_of_a_run_shows_the_last_piece(tmp_path):
    run = run_of(tmp_path / "run")
    for step in (10, 30):
        (run.folder / "pictures" / f"step-{step:06d}.png").write_bytes(helpers.PNG)
        (run.folder / "pictures" / f"step-{step:06d}.html").write_text(f"<p>piece {step}</p>")
    page = write_page(run.folder).read_text()
    assert "<p>piece 30</p>" in page and "piece 10" not in page


# --------------------------------------------------------------------------------------------------- demo
class Links(helpers.Checker):
    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, [(k, v) for k, v in attrs if not (k == "href" and v.startswith("#"))])
        self.ids = [*getattr(self, "ids", []), *(v for k, v in attrs if k == "id")]
        self.jumps = [*getattr(self, "jumps", []), *(v[1:] for k, v in attrs if k == "href" and v.startswith("#"))]


def test_one_page_for_all(tmp_path):
    runs = {name: run_of(tmp_path / name, f"{name}/tiny") for name in ("one", "two")}
    html = demos._page(runs, {"three": "needs <sonar>"})
    page = Links()
    page.feed(html)
    assert page.open == [] and page.ids == page.jumps == ["one", "two", "next-steps"]
    for says in ("Recipe one/tiny", "Left out: needs <sonar>", "maemm pretrain two/tiny data.root=YOUR/FOLDER"):
        assert says in page.text, says
    assert html.count("data:image/png") == 2 and "http" not in html


def test_what_one_plugin_cannot_do_costs_a_line(tmp_path, monkeypatch):
    shows = [demos.Show("good", "good/tiny", "good"), demos.Show("bad", "bad/tiny", "bad")]
    monkeypatch.setattr(demos, "_shows", lambda: shows)

    def train(show, out, overrides, say):
        if show.name == "bad":
            raise MaemmError("no reader (bad); install one")
        return run_of(out / show.name)

    monkeypatch.setattr(demos, "_train", train)
    said = []
    page = demos.demo(tmp_path / "demo", say=said.append)
    assert page == tmp_path / "demo" / "report.html" and "Left out: no reader" in page.read_text()
    assert said[0].startswith("maemm demo: 2 modalities") and "left out: no reader" in said[1] and "Done in" in said[-1]
    monkeypatch.setattr(demos, "_shows", lambda: shows[1:])
    with pytest.raises(MaemmError, match="no reader"):
        demos.demo(tmp_path / "demo", say=said.append)


def test_the_line_of_a_run(tmp_path):
    run = run_of(tmp_path / "run")
    rows = [
        json.loads(line) | {"steps": 30, "seconds": 12.0}
        for line in (run.folder / "metrics.jsonl").read_text().splitlines()
    ]
    (run.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    line = demos.summary("toy", read_run(run.folder))
    assert line == f"toy         {'█' * 20}  30/30  loss 0.033 (predicting the mean: 1.000)   12 s"
    assert demos.summary("toy", read_run(run.folder), before=12.0).endswith("finished before")


def test_long_recipes_are_shortened():
    recipe = {"train": {"epochs": 60, "warmup_epochs": 4, "steps": None}, "out": "x"}
    assert demos._shortened(recipe)["train"] == {"epochs": demos.EPOCHS, "warmup_epochs": 1, "steps": None}
    assert recipe["train"]["epochs"] == 60
    for train in ({"epochs": 3, "warmup_epochs": 2}, {"epochs": 60, "steps": 4}, {"steps": 4}):
        assert demos._shortened({"train": train})["train"] == train


@pytest.mark.slow
def test_every_plugin_takes_part(tmp_path):
    """A few steps of every demo recipe, with its real sample set."""
    said = []
    page = demos.demo(tmp_path, overrides=["train.steps=2", "train.warmup_epochs=0"], say=said.append)
    names = [show.name for show in demos._shows()]
    assert len(names) >= 2 and not [line for line in said if "left out" in line or line.startswith("no ")]
    assert page.stat().st_size < 5_000_000
    checked = Links()
    checked.feed(page.read_text())
    assert checked.ids[: len(names)] == names and "http" not in page.read_text()
