import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from maemm.__main__ import main
from maemm.contract.errors import MaemmError
from maemm.tasks.retrieve.run import compare_pair, ranks

TOY = Path(__file__).parents[2] / "toy_plugin"


def table(seed=0, rows=40, width=8):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def test_the_same_features_find_themselves():
    assert (ranks(table(), table()) == 1).all()


def test_ranks_are_those_of_sorting_by_cosine():
    one, other = table(0), table(1)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (one, other)]
    order = (-(unit[0] @ unit[1].T)).argsort(1)
    expected = [list(row).index(i) + 1 for i, row in enumerate(order)]
    assert ranks(one, other).tolist() == expected
    assert ranks(one, other).tolist() != ranks(other, one).tolist()


def test_features_that_are_all_alike_rank_at_chance():
    """Published code finds the rank by equality of values: a tie gives it more ranks than queries."""
    found = compare_pair("a -> b", np.ones((9, 4)), np.ones((9, 4)))
    assert found.median == 5 and found.recall[1] == 0 and found.recall[10] == 1
    twice = np.concatenate([table(), table()])
    assert (ranks(twice, twice) == 1.5).all()


def test_chance_is_k_of_n():
    assert compare_pair("a -> b", table(), table(1)).chance == {1: 1 / 40, 5: 5 / 40, 10: 10 / 40}


@pytest.mark.parametrize("one, other", [((3, 4), (4, 4)), ((0, 4), (0, 4)), ((3, 4, 2), (3, 4, 2))])
def test_tables_that_do_not_fit_are_refused(one, other):
    with pytest.raises(MaemmError, match="two tables of one shape"):
        ranks(np.ones(one), np.ones(other))


RECIPE = {
    "modalities": {name: {"type": "toy", "masking": {"type": "random", "ratio": 0.25}} for name in ("toy", "other")},
    "encoder": {"type": "streams", "dim": 16, "depth": 1, "heads": 2, "streams": ["toy", "other"]},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2, "prefix": "none"},
    "objectives": {"contrastive": {"pair": ["toy", "other"], "weight": 1.0, "temperature": 0.5, "both": True}},
    "data": {"source": {"type": "toy", "samples": 48}, "workers": 0},
    "train": {
        "epochs": 160,
        "batch": 48,
        "lr": 5e-3,
        "warmup_epochs": 1,
        "picture_every": 1000,
        "save_every": 1000,
        "log_every": 50,
    },
}


def test_a_contrasted_model_retrieves_both_ways(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    plugin = ["--plugin", str(TOY)]
    assert main([*plugin, "pretrain", "recipe.yaml", "out=run"]) == 0
    capsys.readouterr()
    assert main([*plugin, "retrieve", "run", "--baselines", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [one["direction"] for one in rows["trained"]] == ["toy -> other", "other -> toy"]
    for trained, fresh in zip(rows["trained"], rows["untrained"], strict=True):
        assert trained["recall"]["10"] > 2 * trained["chance"]["10"]
        assert trained["median"] < fresh["median"]
    assert main([*plugin, "retrieve", "run"]) == 0
    assert "toy -> other" in capsys.readouterr().out
    assert main([*plugin, "retrieve", "run", "--pair", "toy,nothing"]) == 2
    assert "between two modalities" in capsys.readouterr().err
