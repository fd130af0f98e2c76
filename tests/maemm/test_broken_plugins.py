"""A broken plugin of each kind: one line that names the plugin, the method and the shape; the rest goes on working."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from maemm.__main__ import main
from maemm.contract import Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.model.checks import tokenized
from maemm.registry.make import describe_owner

MANIFEST = """
    from maemm.registry import Plugin
    plugin = Plugin(name="toy", version="1", contract={contract}, summary="a toy",
                    modalities={{"toy": "parts:Toy"}}, sources={{"toy": "parts:open_toy"}})
"""
PARTS = """
    import torch
    from dataclasses import replace
    from maemm.contract import Modality, Preprocessed, Tokens
    from maemm.data.arrays import open_arrays
    from maemm.contract.grid import GridModality

    class Toy({base}):
        def __init__(self, *, size: {hint} = {default}):
            super().__init__({init})
            self.side = size

{methods}

    def open_toy(root, list=None, *, name: str = "toy"):
        return open_arrays(root, list, name)
"""
RECIPE = """\
modalities: {toy: {masking: {type: random, ratio: 0.5}}}
encoder: {type: vit, dim: 16, depth: 1, heads: 2}
decoder: {type: full, dim: 8, depth: 1, heads: 2}
data: {root: data, workers: 0}
train: {steps: 2, batch: 4, warmup_epochs: 0, log_every: 1}
out: run
"""


def parts(methods: str = "", base: str = "GridModality", **other: str) -> str:
    given = {"hint": "int", "default": "8", "init": "size=8, patch=4"} | other
    return PARTS.format(base=base, methods="\n".join(f"        {line}" for line in methods.splitlines()), **given)


@pytest.fixture
def broken(make_plugin, tmp_path, monkeypatch, capsys):
    """Make the toy plugin with these parts, run it, and return the one line of error."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for index in range(8):
        np.save(f"data/{index}.npy", np.random.default_rng(index).random((1, 8, 8), np.float32))
    Path("r.yaml").write_text(RECIPE)

    def run(code: str, *argv: str, manifest: str = MANIFEST.format(contract=2), status: int = 2) -> str:
        make_plugin("toy", **{"__init__.py": manifest, "parts.py": code})
        assert main(["pretrain", "r.yaml", *argv]) == status
        error = capsys.readouterr().err
        shown = [line for line in error.splitlines() if line.startswith("maemm: error: ")]
        assert len(shown) == (status == 2) and "Traceback" not in error and "internal" not in error, error
        # The rest goes on working.
        assert main(["plugins"]) == 0 and main(["config", "show", "image/mae_tiny_cpu"]) == 0
        assert "image" in capsys.readouterr().out
        return "".join(shown)

    return run


def test_the_plugin_that_the_others_are_made_from_is_sound(broken):
    assert broken(parts(), status=0) == ""
    assert Path("run/report.html").is_file()


def test_import_errors(broken):
    error = broken("import nothing_of_that_name")
    assert "modality 'toy' of plugin 'toy' needs the package 'nothing_of_that_name' at modalities.toy" in error
    assert "; run: pip install nothing_of_that_name" in error


def test_a_manifest_that_cannot_be_imported(broken):
    error = broken("", manifest="import nothing_of_that_name")
    assert "modality 'toy' is missing since its plugin (folder: " in error
    assert "is broken: ModuleNotFoundError: No module named 'nothing_of_that_name'" in error


def test_two_plugins_with_one_name(broken, make_plugin):
    make_plugin("toy", above="elsewhere", **{"__init__.py": MANIFEST.format(contract=2), "parts.py": parts()})
    error = broken(parts())
    assert "modality 'toy' is missing since its plugin" in error and "two plugins are called 'toy' (folder: " in error


def test_an_old_contract(broken):
    error = broken(parts(), manifest=MANIFEST.format(contract=0))
    assert "is broken: plugin 'toy' is made for contract 0, this maemm has 2 at modalities.toy" in error
    assert "; install matching versions" in error


TOKENS = "def tokenize(self, prepared):\n    t = super().tokenize(prepared)\n    return "
SHAPES = {
    "values without a token axis": (
        f"{TOKENS}replace(t, values=t.values[..., 0])",
        "plugin 'toy' (Toy): tokenize() gives values (4, 4); expected (4, N, ...), fix tokenize()",
    ),
    "values of another batch": (
        f"{TOKENS}replace(t, values=t.values[:1])",
        "plugin 'toy' (Toy): tokenize() gives values (1, 4, 16); expected (4, N, ...)",
    ),
    "coords of other tokens": (
        f"{TOKENS}replace(t, coords=t.coords[:, :3])",
        "plugin 'toy' (Toy): tokenize() gives coords (1, 3, 2); expected (1 or 4, 4, axes)",
    ),
    "validity of another type": (
        f"{TOKENS}replace(t, valid=torch.ones(t.values.shape[:2]))",
        "plugin 'toy' (Toy): tokenize() gives valid (4, 4) float32; expected (4, 4) bool",
    ),
    "no tokens at all": (
        "def tokenize(self, prepared):\n    return prepared.x",
        "plugin 'toy' (Toy): tokenize() gives Tensor; expected Tokens with values (4, N, ...)",
    ),
    "an error in tokenize": (
        "def tokenize(self, prepared):\n    return prepared.x.reshape(3, 5, 7)",
        "plugin 'toy' (Toy): tokenize() fails with RuntimeError: shape '[3, 5, 7]' is invalid",
    ),
    "whole numbers from prepare": (
        "def preprocess(self, raw, rng):\n    return Preprocessed(raw['x'].long())",
        "plugin 'toy' (Toy): preprocess() gives (4, 1, 8, 8) int64; expected Preprocessed(x), x a float tensor",
    ),
    "another width from embed": (
        "def embed(self, tokens, index):\n    return super().embed(tokens, index)[..., :5]",
        "plugin 'toy' (Toy): embed() gives (4, 2, 5) float32; expected (4, 2, 16), fix embed()",
    ),
    "one position for all": (
        "def position(self, tokens, index, role):\n    return super().position(tokens, index, role)[:, :1]",
        "plugin 'toy' (Toy): position() gives (4, 1, 16) float32; expected (4 or 1, 2, 16) for the encoder",
    ),
    "another output_dim": (
        "def output_dim(self):\n    return 7",
        "plugin 'toy' (Toy): target() gives (4, 2, 16) float32; expected (4, 2, 7) float32, fix target()",
    ),
    "a NaN target": (
        "def target(self, tokens, index):\n    return super().target(tokens, index) * float('nan')",
        "plugin 'toy' (Toy): target() gives NaN or infinity for finite tokens; expected finite values (4, 2, 16)",
    ),
    "one loss per row": (
        "def loss(self, pred, target):\n    return super().loss(pred, target).mean(1, keepdim=True)",
        "plugin 'toy' (Toy): loss() gives (4, 1) float32; expected (4, 2) float32, fix loss()",
    ),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_wrong_shapes_and_values(broken, kind):
    methods, message = SHAPES[kind]
    assert message in broken(parts(methods))
    assert not list(Path("run").glob("checkpoints/*"))


def test_missing_methods(broken):
    error = broken(parts("def tokenize(self, prepared):\n    return None", base="Modality", init=""))
    assert "plugin 'toy' (Toy) lacks connect(): Create the parameters; called once by ``maemm.build``" in error
    assert "embed(): Embed the tokens ``index`` (R, V), and only those -> (R, V, D)." in error
    assert "target(): What predictions of the tokens ``index`` (R, M) are compared with: (R, M, T) float32." in error
    assert "tokenize()" not in error and "(modalities.toy: toy); add it to the class" in error


@pytest.mark.parametrize(
    ("code", "argv", "message"),
    [
        (parts(), "modalities.toy.size=big", "modalities.toy.size must be int, got 'big' (override); the default is 8"),
        (
            parts(hint="'Nothing'"),
            "modalities.toy.size=8",
            "a type hint of maemm_plugins.toy.parts.Toy cannot be resolved",
        ),
        (parts(hint="torch.Tensor"), "modalities.toy.size=8", "cannot be checked"),
    ],
    ids=["in the recipe", "a hint that is no name", "a hint that no recipe can meet"],
)
def test_options_of_a_wrong_type(broken, code, argv, message):
    assert message in broken(code, argv)


def test_nan_in_the_data_is_not_blamed_on_the_plugin(broken):
    """Samples that load() lets through: the loop says which, and no plugin is accused."""
    methods = "def load(self, raw, rng):\n    return {'x': torch.as_tensor(raw) * float('nan')}"
    error = broken(parts(methods), "train.max_nonfinite=1", "train.steps=4")
    assert "plugin" not in error and "finite" in error


def test_a_part_is_told_by_its_class_and_its_plugin():
    class Mine(GridModality):
        def tokenize(self, preprocessed):
            raise torch.OutOfMemoryError("full")

    assert describe_owner(GridModality) == "plugin 'core' (GridModality)"
    with pytest.raises(torch.OutOfMemoryError):  # says what it is, whoever's code asked for it
        tokenized(Mine(size=4, patch=2), Preprocessed(torch.zeros(1, 1, 4, 4)))
    with pytest.raises(MaemmError, match=r"GridModality expects \(B, 1, 4, 4\), got \(1, 2, 4, 4\)"):
        tokenized(GridModality(size=4, patch=2), Preprocessed(torch.zeros(1, 2, 4, 4)))
