"""Showing data before training, and choosing the recipe by endings."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from maemm import registry
from maemm.__main__ import main
from maemm.config.guess import guess
from maemm.contract import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.registry import Plugin
from maemm.tasks.show.page import page
from maemm.tasks.show.run import _every_second, show
from maemm.tasks.show.shown import padding, statistics

MANIFEST = """
    from maemm.registry import Plugin
    plugin = Plugin(name="{name}", version="1", contract=2, modalities={{"{name}": "parts:Grid"}},
                    sources={{"{name}": "parts:open_files"}}, files={{"{name}/tiny": "{endings}"}})
"""
PARTS = """
    from pathlib import Path
    import numpy as np
    import torch
    from maemm.contract import Preprocessed, Sample, Source
    from maemm.contract.grid import GridModality

    class Texts(Source):
        '''A file of numbers is a sample of that length.'''
        classes = ["short", "long"]
        def __init__(self, root, name):
            self.paths = sorted(root.iterdir()) if root.is_dir() else [root]
            self.modality = name
        def __len__(self):
            return len(self.paths)
        def name(self, index):
            return self.paths[index].name
        def read(self, index, rng):
            x = np.array(self.paths[index].read_text().split(), "float32")
            if not len(x):
                raise ValueError("no numbers")
            return Sample({self.modality: x}, self.name(index), int(len(x) > 6))

    def open_files(root, list=None, *, name: str = "toy"):
        return Texts(Path(root), name)

    class Grid(GridModality):
        '''Series of up to ``size`` values, padded.

        Options
            inverse: has an untokenize
        '''
        axes = 1
        def __init__(self, *, size: int = 8, patch: int = 2, inverse: bool = True, **rest):
            super().__init__(size=size, patch=patch, channels=1, **rest)
            self.inverse = inverse
        def load(self, raw, rng):
            x = torch.zeros(1, *self.size)
            x[0, :len(raw)] = torch.from_numpy(raw) if rng is None else torch.from_numpy(raw) + rng.uniform("shift")
            return {"x": x, "valid": torch.arange(self.size[0]) < len(raw)}
        def preprocess(self, raw, rng):
            return Preprocessed(raw["x"], raw["valid"])
        def untokenize(self, values, tokens, index=None):
            return super().untokenize(values, tokens, index) if self.inverse else None
"""
RECIPE = """
    modalities:
      {name}: {{size: 8, patch: 2, masking: {{type: random, ratio: 0.5}}}}
    encoder: {{type: vit, dim: 16, depth: 1, heads: 2}}
    decoder: {{type: full, dim: 16, depth: 1, heads: 2}}
"""


def files_of(name, endings):
    return {
        "__init__.py": MANIFEST.format(name=name, endings=endings),
        "parts.py": PARTS,
        "configs/tiny.yaml": RECIPE.format(name=name),
    }


@pytest.fixture
def data(make_plugin, tmp_path, monkeypatch):
    """A folder of five series, of which one holds nothing, and the plugin that reads them."""
    monkeypatch.chdir(tmp_path)
    make_plugin("toy", **files_of("toy", ".num .ser"))
    folder = tmp_path / "data"
    folder.mkdir()
    for k, text in enumerate(["1 2 3 4 5 6 7 8", "3 1 4 1", "", "5 5", "2 7 1 8 2 8 1 8"]):
        (folder / f"{k}.num").write_text(text)
    return folder


# ------------------------------------------------------------------------------------------------ recipes
def test_the_recipe_follows_from_endings(data, make_plugin):
    assert guess(data) == guess(data / "0.num") == ("toy/tiny", ".num")
    assert guess(str(data / "missing-yet.NUM").replace("missing-yet.NUM", "0.num"))[0] == "toy/tiny"
    make_plugin("other", **files_of("other", ".num .oth"))
    with pytest.raises(MaemmError, match=r"several recipes fit these data .*other/tiny 5, toy/tiny 5 files.*--recipe"):
        guess(data)
    for k in range(7):
        (data / f"{k}.oth").write_text("1")
    (data / ".hidden").write_text("")
    with pytest.raises(MaemmError, match="other/tiny 12, toy/tiny 5"):
        guess(data)
    for k in range(100):
        (data / f"more{k}.oth").write_text("1")
    assert guess(data) == ("other/tiny", ".oth")  # a few strays of another kind do not count


def test_no_recipe_fits(data, tmp_path):
    (tmp_path / "x.unknown").write_text("")
    with pytest.raises(MaemmError, match=r"no recipe is known .*x\.unknown: \.unknown.*--recipe, such as: .*toy/tiny"):
        guess(tmp_path / "x.unknown")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MaemmError, match="empty: no files"):
        guess(tmp_path / "empty")
    with pytest.raises(MaemmError, match="cannot be opened .*No such file"):
        guess(tmp_path / "missing")


@pytest.mark.parametrize("files", ["x", {"a/b": 3}, {"a/b": "jpg"}, {"a/b": ".JPG"}, {3: ".a"}])
def test_manifests_with_malformed_files(files):
    with pytest.raises(MaemmError, match="files must be a dict"):
        Plugin(name="toy", version="1", contract=2, files=files)


def test_recipes_of_manifests_exist():
    from maemm import config

    for one in registry.all_plugins():
        for recipe in one.plugin.files if one.plugin else ():
            config.locate(recipe)


# ------------------------------------------------------------------------------------------------ pages
def test_a_page_with_everything(data, tmp_path):
    made = show(data, tmp_path / "new" / "page.html", count=9, augment=True)
    assert made.ids == ["0.num", "1.num", "3.num", "4.num"] and made.labels == [1, 0, 0, 1]
    assert [(one.id, one.reason) for one in made.refused] == [("2.num", "ValueError: no numbers")]
    assert "4 of 5 samples, 1 refused" in str(made) and "refused 2.num: ValueError: no numbers" in str(made)
    part = made.parts["toy"]
    columns = part.rows.columns
    assert list(columns) == [
        "as the model gets it", "every second token", "visible (45 %)", "hidden: to predict", "target of the hidden",
    ]  # fmt: skip
    assert list(part.augmented.columns) == [f"augmented {k}" for k in (1, 2, 3, 4)]
    whole, seen, hidden = (columns[name] for name in ("as the model gets it", "visible (45 %)", "hidden: to predict"))
    assert (whole.isnan() == (seen.isnan() & hidden.isnan())).all() and not (~seen.isnan() & ~hidden.isnan()).any()
    assert whole[1, 0].tolist()[:4] == [3, 1, 4, 1] and whole[1, 0, 4:].isnan().all()
    assert padding(part.preprocessed) == pytest.approx(1 - (8 + 4 + 2 + 8) / 32)
    html = made.path.read_text()
    assert html.count('<img alt="') == 4 * 9 and "2.num" in html and "label long" in html and "padding 75 %" in html
    assert "(chosen by .num)" in html and "31.2 %" in html and "maemm data check" in html
    assert not re.search(r"url\(|@import|http|<script", html)
    image = re.search(r'src="data:image/webp;base64,([^"]+)"', html).group(1)
    assert base64.b64decode(image).startswith(b"RIFF")
    assert list(made.path.parent.iterdir()) == [made.path]
    one, two = (show(data / "1.num", tmp_path / name, augment=True) for name in ("one.html", "two.html"))
    assert one.path.read_text() == two.path.read_text()


def test_samples_of_several_labels(data, tmp_path):
    shown = show(data, tmp_path / "x.html", count=9)
    shown.labels = [(0, 1), (), 1, 7]
    page(shown)
    html = shown.path.read_text()
    assert all(f"label {text}" in html for text in ("short + long,", "none,", "long,", "7,"))


def test_seed_and_overrides_change_the_plan(data, tmp_path, monkeypatch):
    assert show(data, tmp_path / "y.png").path.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("maemm.tasks.show.run._write", lambda shown: None)
    one, two, other = (show(data, tmp_path / "x.png", seed=seed, count=9).parts["toy"].plan for seed in (1, 1, 2))
    assert torch.equal(one.visible, two.visible) and not torch.equal(one.visible, other.visible)
    less = show(data, tmp_path / "x.png", overrides=["modalities.toy.masking.ratio=0"]).parts["toy"]
    assert less.notes == ["This plan hides nothing."]


def test_what_cannot_be_drawn_is_told(data, tmp_path):
    part = show(data, tmp_path / "x.html", overrides={"modalities.toy.inverse": False}).parts["toy"]
    assert not part.rows.columns and "cannot be put together" in (tmp_path / "x.html").read_text()
    part = show(data, tmp_path / "x.html", overrides={"modalities.toy.normalize": None}).parts["toy"]
    assert "target cannot be shown" in part.notes[0] and "hidden: to predict" in part.rows.columns
    assert show(data, tmp_path / "x.png", overrides={"modalities.toy.inverse": False}).path.exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("2.num", {}, r"2.num cannot be read \(ValueError: no numbers\); give other data"),
        (".", {"out": "x.pdf"}, "writes .html or .png, not '.pdf'"),
        (".", {"out": "x"}, "writes .html or .png, not 'x'"),
        (".", {"count": 0}, "count is 0"),
        (".", {"recipe": "toy/tny"}, "unknown recipe 'toy/tny'; did you mean 'toy/tiny'"),
        (".", {"overrides": ["modalities.toy.patch=3"]}, "size 8|multiple"),
    ],
)
def test_mistakes(data, tmp_path, name, options, message):
    with pytest.raises(MaemmError, match=message):
        show(data / name, **{"out": tmp_path / "x.html", **options})
    assert not (tmp_path / "x.html").exists()


# ------------------------------------------------------------------------------------------------ command line
def test_commands(data, capsys):
    assert main(["show", str(data), "--count", "2", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith(f"{data} as toy/tiny (chosen by .num): 1 of 5 samples, 1 refused")
    assert Path("show.html").exists()
    assert main(["data", "stats", str(data), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"# 4 samples of {data} as toy/tiny (chosen by .num), 1 broken\nmodalities:\n  toy: {{}}  #")
    assert main(["data", "check", str(data), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "5 samples, 1 broken, 0 repeated (list: data.check.csv)" in out and "1 broken  ValueError: no numbers" in out
    assert Path("data.check.csv").read_text().splitlines()[1] == "broken,2.num,,ValueError: no numbers,,"
    assert not Path("data.check.csv.part").exists()
    assert main(["data", "check", str(data / "2.num")]) == 2
    assert "none of 1 samples can be read (first: 2.num: ValueError: no numbers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["data"], "missing argument"),
        (["data", "chek", "x"], "unknown action 'chek'; did you mean 'check'?"),
        (["data", "check"], "missing argument; usage: maemm data check DATA"),
        (["data", "check", "x", "--workers", "-1"], "--workers is -1"),
        (["data", "stats", "x", "-o", "y.csv"], "stats writes no file"),
        (["data", "stats", "missing"], "cannot be opened (missing: No such file"),
        (["show"], "missing argument"),
        (["show", "x", "--count", "a"], "invalid int value"),
        (["show", "missing"], "cannot be opened (missing"),
        (["score", "x"], "no file to write is given; add -o scores.csv"),
        (["score", "x", "-o", "y.pdf"], "score writes .csv or .npz, not '.pdf'"),
        (["score", "x", "-o", "y.csv", "--batch", "0"], "--batch is 0"),
        (["score", "missing", "data", "-o", "y.csv"], "no such weights: missing"),
    ],
)
def test_mistakes_in_grammar(argv, message, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------------------ pieces
def test_every_second_token_is_a_chessboard():
    flat = Tokens(torch.zeros(2, 5, 1), torch.zeros(1, 5, 1))
    assert _every_second(flat).tolist() == [[True, False, True, False, True]] * 2
    board = Tokens(torch.zeros(1, 6, 1), torch.zeros(1, 6, 2), grid=(2, 3))
    assert _every_second(board).tolist() == [[True, False, True, False, True, False]]
    board = Tokens(torch.zeros(1, 4, 1), torch.zeros(1, 4, 2), grid=(2, 2))
    assert _every_second(board).tolist() == [[True, False, False, True]]


def test_statistics_of_odd_tensors():
    assert statistics(torch.zeros(2, 0)) == {"shape": "2 x 0", "type": "float32", "range": "no values"}
    assert statistics(torch.tensor([1, 3], dtype=torch.uint8))["range"] == "1 .. 3"
    odd = statistics(torch.tensor([1.0, float("nan"), 3.0, float("inf")]), torch.tensor([True, True, True, False]))
    assert (odd["mean"], odd["std"], odd["not finite"]) == ("2", "1", "1")
    assert padding(Preprocessed(torch.zeros(2, 3))) == 0


def test_the_page_names_what_objectives_predict_beside(tmp_path):
    """Beside the modality's own target, and what replaces that."""
    objective = {"type": "predict", "target": {"type": "codebook", "vocab": 8}, "weight": 0.5}
    options = {"objectives": {"reconstruct": {}, "words": objective}, "modalities.image.target": "frequency"}
    np.save(tmp_path / "pictures.npy", np.zeros((1, 64, 64, 3), np.uint8))
    shown = show(
        tmp_path / "pictures.npy", recipe="image/mae_tiny_cpu", overrides=options, out=tmp_path / "show.html", count=1
    )
    notes = " ".join(shown.parts["image"].notes)
    assert "features (frequency)" in notes and "words predicts codebook: vocab 8 beside it, with weight 0.5" in notes


def test_the_page_says_what_other_objectives_do(tmp_path):
    """In the words of their authors, with their weights; those of another modality are not named."""
    objectives = {
        "reconstruct": {"weight": 0.5},
        "apart": {"type": "uniformity", "weight": 0.25},
        "views": {},
        "looks": {"type": "perceptual", "target": {"type": "teacher", "seed": 3}, "modalities": ["image"]},
        "elsewhere": {"type": "perceptual", "target": "teacher", "modalities": ["sound"]},
    }
    np.save(tmp_path / "pictures.npy", np.zeros((2, 64, 64, 3), np.uint8))
    options = {"objectives": objectives, "data.aug_repeats": 2}
    out = tmp_path / "show.html"
    shown = show(tmp_path / "pictures.npy", recipe="image/mae_tiny_cpu", overrides=options, out=out, count=1)
    notes = " ".join(shown.parts["image"].notes)
    assert "The objective apart, with weight 0.25. The mean of (z_a . z_b)^2 over all pairs" in notes
    assert "The objective views, with weight 0.03. InfoNCE between the views" in notes
    assert "The objective looks, with weight 1." in notes and "The network is teacher: seed 3." in notes
    assert "elsewhere" not in notes and "reconstruct," not in notes


def test_the_page_says_how_attention_knows_places(tmp_path):
    np.save(tmp_path / "pictures.npy", np.zeros((1, 64, 64, 3), np.uint8))
    arguments = {"recipe": "image/beit_tiny_cpu", "out": tmp_path / "show.html", "count": 1}
    shown = show(tmp_path / "pictures.npy", **arguments, overrides={"encoder.rotary": "pairs"})
    notes = " ".join(shown.parts["image"].notes)
    assert "a learned bias for each offset between two tokens, of all blocks (shared)" in notes
    assert "turns queries and keys by the places of tokens (rotary: pairs)" in notes


def test_it_is_said_whether_steps_are_compiled(data, tmp_path, monkeypatch):
    monkeypatch.setattr("maemm.tasks.show.run._write", lambda shown: None)
    shown = show(data, tmp_path / "x.html", count=1)
    assert "\n  on a GPU steps are compiled, as all batches have one size" in str(shown)
    ratio = {"modalities.toy.masking": {"type": "random", "ratio": [0.1, 0.9]}, "modalities.toy.size": 256}
    assert "not compiled, as batches come in up to" in show(data, tmp_path / "x.html", count=1, overrides=ratio).steps
