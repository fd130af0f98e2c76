"""Pictures, curves and the page: what a person looks at."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maemm import MaemmError, Plan, Preprocessed, Rng
from maemm.contract import Tokens
from maemm.contract.grid import GridModality
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT
from maemm.model.masking.random import Random
from maemm.model.model import Model
from maemm.tasks._shared.run_files import read_run
from maemm.tasks._shared.run_page import write_page
from maemm.ui.charts import Line, chart, charts, ticks
from maemm.ui.page import embedded
from maemm.ui.pictures import INPUT, NEAREST, OUTRIGHT, TRUE, _put, _with_nearest, make_rows, save_pictures

PNG = b"\x89PNG\r\n\x1a\n"


def toy(decoder=True, **options):
    torch.manual_seed(0)
    modality = GridModality(size=16, patch=4, channels=1, **options)
    encoder = ViT(["toy"], dim=16, depth=1, heads=2)
    full = Full({"toy": modality.output_dim()}, 16, 1, dim=16, depth=1, heads=2) if decoder else None
    modality.connect(16, 16 if decoder else None)
    return Model({"toy": modality}, Random(ratio=0.75), encoder, full)


def batch(rows=3):
    return {"toy": torch.rand(rows, 1, 16, 16, generator=torch.Generator().manual_seed(1))}


# ----------------------------------------------------------------------------------------------- pictures
def test_columns_show_what_their_captions_say():
    model = toy().train()
    rows = make_rows(model, batch(), seed=3, count=2)["toy"]
    captions = list(rows.columns)
    assert captions == [INPUT, "visible to the encoder (25 %)", TRUE, NEAREST] and model.training
    assert "true mean and std" in TRUE  # said plainly
    given, seen, own, lent = rows.columns.values()
    assert torch.equal(given, batch()["toy"][:2])
    hidden = seen.isnan()
    assert hidden.float().mean() == 0.75
    for column in (seen, own, lent):
        assert torch.equal(column[~hidden], given[~hidden])  # visible ones come from the input
    assert own.isfinite().all() and lent.isfinite().all() and not torch.equal(own, lent)
    # The true statistics are in the one, and not in the other.
    patches = model.modalities["toy"].tokenize
    means = [patches(Preprocessed(column)).values.mean(-1) for column in (given, own, lent)]
    assert not torch.allclose(means[0], means[2], atol=0.02)
    pred_mean = (means[1] - means[0]).abs().max()
    assert pred_mean < (means[2] - means[0]).abs().max()


def test_the_last_column_knows_only_what_is_visible():
    model = toy()
    first = make_rows(model, batch(), count=3)["toy"].columns
    x = batch()["toy"].clone()
    hidden = next(v for k, v in first.items() if k.startswith("visible")).isnan()
    x[hidden] = torch.rand(int(hidden.sum()), generator=torch.Generator().manual_seed(9))
    second = make_rows(model, {"toy": x}, count=3)["toy"].columns
    assert torch.equal(first[NEAREST], second[NEAREST])
    assert not torch.equal(first[TRUE], second[TRUE])


def test_raw_targets_need_no_statistics():
    rows = make_rows(toy(normalize="none"), batch(), count=2)["toy"]
    assert list(rows.columns)[2:] == [OUTRIGHT]


def test_several_plans_of_a_sample_and_padding():
    values = torch.arange(12.0).reshape(2, 3, 2)
    whole = torch.full((2, 3, 2), torch.nan)
    index = torch.tensor([[0, 2, 2], [1, 1, 1]])
    valid = torch.tensor([[True, True, False], [True, False, False]])
    put = _put(whole, values, index, valid)
    assert put[0, 0].tolist() == [0, 1] and put[0, 2].tolist() == [2, 3] and put[0, 1].isnan().all()
    assert put[1, 1].tolist() == [6, 7] and put[1, 0].isnan().all() and put[1, 2].isnan().all()
    tokens = Tokens(torch.arange(4.0).reshape(1, 4, 1), torch.tensor([[[0.0], [1.0], [5.0], [6.0]]]))
    lent = _with_nearest(tokens, Plan(torch.tensor([[0, 3]]), torch.tensor([[1, 2]])))
    assert lent.values.flatten().tolist() == [0, 0, 3, 3]


def test_a_modality_without_an_inverse_is_left_out_with_a_note(tmp_path):
    model = toy()
    model.modalities["toy"].untokenize = lambda values, tokens, index=None: None
    rows = make_rows(model, batch())["toy"]
    assert not rows.columns and "no pictures" in rows.note
    assert save_pictures(model, batch(), tmp_path / "x.png").read_bytes().startswith(PNG)


def test_the_picture_file_is_the_same_each_time_and_whole(tmp_path):
    one = save_pictures(toy(), batch(), tmp_path / "new" / "one.png", seed=1, count=2)
    two = save_pictures(toy(), batch(), tmp_path / "new" / "two.png", seed=1, count=2)
    other = save_pictures(toy(), batch(), tmp_path / "new" / "other.png", seed=2, count=2)
    assert one.read_bytes() == two.read_bytes() != other.read_bytes()
    assert one.read_bytes().startswith(PNG) and len(list((tmp_path / "new").iterdir())) == 3


def test_pictures_neither_draw_from_nor_seed_the_global_stream(tmp_path):
    model = toy()
    state = torch.get_rng_state()
    save_pictures(model, batch(), tmp_path / "x.png")
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_alone_cannot_draw(tmp_path):
    with pytest.raises(MaemmError, match="no decoder"):
        save_pictures(toy(decoder=False), batch(), tmp_path / "x.png")


def test_a_picture_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match="cannot write the picture"):
        save_pictures(toy(), batch(), tmp_path / "file" / "x.png")


# ------------------------------------------------------------------------------------------------- curves
def test_ticks_are_round_and_inside():
    assert ticks(0, 1, 6) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and ticks(-7, 24, 5) == [0, 10, 20]
    for low, high in [(0, 800), (0.31, 1.12), (-3, 3), (1e-9, 2e-9), (5, 5), (0, 0), (1e8, 1e8 + 3)]:
        found = ticks(low, high, 5)
        assert 1 <= len(found) <= 12 and found == sorted(set(found))


def test_a_gap_splits_a_line_and_a_lonely_point_is_a_dot():
    nan = float("nan")
    made = chart(
        [Line("a", [1, 2, 3, 4, 5], [1, 2, nan, float("inf"), 3])], x_label="x", y_label="y", width=400, height=200
    )
    assert made.count('<path class="line main"') == 1 and made.count("<circle") == 1
    assert "nan" not in made and "inf" not in made


def test_names_along_x_and_error_bars():
    line = Line("a", [0, 1, 2], [0.2, float("nan"), 0.6], "main dashed", [0.1, 0.1, 0.0])
    made = chart([line], x_label="x", y_label="y", width=400, height=200, x_names=["1", "<5", "50%"])
    assert made.count('<path class="bar main dashed"') == 1 and made.count("<circle") == 2
    assert ">&lt;5<" in made and ">50%<" in made


def test_a_legend_names_lines_that_have_a_label():
    lines = [Line("<a>", [1, 2], [1, 2]), Line("", [1, 2], [2, 1])]
    made = charts(lines, x_label="x", y_label="y", width=400, height=200)
    assert made.count("&lt;a&gt;</span>") == 1 and made.count("<span>") == 1 and made.count('role="img"') == 2
    assert "legend" not in charts(lines[1:], x_label="x", y_label="y", width=400, height=200)


def test_long_lines_are_thinned_and_keep_their_ends():
    line = Line("a", list(range(100_000)), [1.0] * 99_999 + [7.0])
    made = chart([line], x_label="x", y_label="y", width=400, height=200)
    assert len(made) < 15_000 and ">6<" in made or ">7<" in made


def test_nothing_to_draw_says_so():
    for line in (Line("a", [], []), Line("a", [1], [float("nan")])):
        assert "nothing logged yet" in chart([line], x_label="x", y_label="y", width=400, height=200)


# --------------------------------------------------------------------------------------------------- page
class Checker(HTMLParser):
    """Every tag is closed in order, and nothing is fetched."""

    VOID = {"meta", "link", "img", "line", "path", "circle", "br"}

    def __init__(self):
        super().__init__()
        self.open, self.text, self.tags = [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert value.startswith("data:"), value
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check(path):
    html = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert checker.open == [] and "script" not in checker.tags
    assert not re.search(r"url\(|@import|http", html)
    return checker.text


def make_run(folder, rows=30, picture=PNG + b"rest"):
    (folder / "pictures").mkdir(parents=True)
    (folder / "pictures" / "step-000030.png").write_bytes(picture)
    (folder / "recipe.yaml").write_text("modalities: {toy: {size: 16}}\nout: <b>bold</b>\n")
    with open(folder / "metrics.jsonl", "w") as file:
        for step in range(1, rows + 1):
            row = {"step": step, "epoch": step / 10, "loss": 1 / step, "baseline": 1.0, "lr": 1e-3}
            file.write(json.dumps(row) + "\n")
    (folder / "bad_samples.jsonl").write_text('{"id": "a", "reason": "x"}\n{"id": "b", "reason": "y"}\n')
    return folder


def test_one_file_with_everything(tmp_path):
    page = write_page(make_run(tmp_path / "my <run>"))
    text = check(page)
    assert page.name == "report.html"
    for expected in ("my <run>", "mean-predictor", "0.03333", "unreadable samples", "<b>bold</b>", "maemm reconstruct"):
        assert expected in text, expected
    html = page.read_text()
    assert "<b>bold" not in html and "data:image/png;base64," in html and "width=device-width" in html
    assert "prefers-color-scheme: dark" in html


@pytest.mark.parametrize(
    "content", [None, b"", b"\n", b'{"step": 3, "lo', b"\xff\xfe\x00", b'[1]\n{"loss": 2}\n{"step": "x"}\n']
)
def test_a_run_that_has_hardly_begun(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    text = check(write_page(tmp_path))
    assert "nothing logged yet" in text and "No pictures yet" in text and "No recipe.yaml" in text


def test_values_that_are_no_numbers_leave_gaps(tmp_path):
    values = ["NaN", "Infinity", "-Infinity", '"high"', "null", "true", "{}", "[1]", "1e400", "0.5"]
    lines = [
        f'{{"step": {k}, "loss": {value}, "baseline": {value}, "epoch": {value}}}' for k, value in enumerate(values)
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert read_run(tmp_path).last("loss") == 0.5
    assert "0.5" in check(write_page(tmp_path))


def test_resumed_steps_count_once_and_broken_lines_are_reported(tmp_path):
    lines = ['{"step": 1, "loss": 9}', '{"step": 2, "loss": 8}', "broken", '{"step": 2, "loss": 7}', '{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    run = read_run(tmp_path)
    assert run.column("loss") == ([1.0, 2.0], [9.0, 7.0])
    assert run.unread == ["1 lines of metrics.jsonl cannot be read"]


def test_what_is_no_picture_is_not_embedded(tmp_path):
    text = check(write_page(make_run(tmp_path / "run", picture=b"<script>alert(1)</script>")))
    assert "Not shown: step-000030.png" in text


def test_pictures_are_embedded_small():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    whole, narrow = embedded(file.getvalue()), embedded(file.getvalue(), width=48)
    assert whole.startswith("data:image/webp;base64,") and len(narrow) < len(whole) < len(file.getvalue())
    assert Image.open(io.BytesIO(base64.b64decode(narrow.partition(",")[2]))).size == (48, 32)
    assert embedded(PNG + b"broken").startswith("data:image/png;base64,")
    assert embedded(b"<svg>") == embedded(Path("missing.png")) == embedded(PNG + bytes(2**24)) == ""


def test_hostile_names_stay_text(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "recipe.yaml").write_text('name: "<img src=x onerror=alert(1)>"\nmodalities: [\n')
    assert "is not valid YAML" in check(write_page(folder))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 1, "terms": {"<i>a": 1, "</svg>": 2}}\n')
    assert "<i>a" in check(write_page(folder))


def test_no_folder(tmp_path):
    with pytest.raises(MaemmError, match="no run folder"):
        write_page(tmp_path / "missing")


def test_draws_of_pictures_do_not_depend_on_the_batch(tmp_path):
    few, many = (make_rows(toy(), batch(rows), count=2)["toy"].columns for rows in (2, 5))
    assert all(torch.equal(few[k].nan_to_num(), many[k].nan_to_num()) for k in few)
    assert Rng((0, "pictures"), range(2), 2).uniform("x", 3).shape == (2, 3)
