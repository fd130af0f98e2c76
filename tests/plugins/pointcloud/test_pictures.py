"""Pictures of clouds, and the piece of the page that turns them."""

import base64
import json
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import maemm
from maemm import Rng
from maemm.tasks._shared.run_page import write_page
from maemm.ui.pictures import INPUT, OUTRIGHT, make_rows, save_pictures
from maemm_plugins.pointcloud.modality import PointCloud
from maemm_plugins.pointcloud.pictures import fitted, plot, seen_from, upright
from maemm_plugins.pointcloud.view import interactive

RECIPE = {
    "modalities": {"pointcloud": {"groups": 8, "group_size": 6, "points": 48, "width": 16}},
    "encoder": {"type": "vit", "dim": 12, "depth": 1, "heads": 2, "prefix": 0},
    "decoder": {"type": "full", "dim": 12, "depth": 1, "heads": 2, "prefix": "none"},
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return maemm.build(RECIPE)


def batch(rows=3):
    return {"pointcloud": torch.rand(rows, 48, 3, generator=torch.Generator().manual_seed(1)) - 0.5}


def drawn(signal, **options):
    axes = Figure(figsize=(2, 2), dpi=60).subplots()
    plot(axes, signal, **options)
    return axes


def test_hidden_points_are_left_out_and_far_ones_come_first():
    cloud = torch.rand(30, 3) - 0.5
    cloud[4:9] = float("nan")
    dots = drawn(cloud).collections[0]
    assert len(dots.get_offsets()) == 25
    depth = np.sort(seen_from(cloud[~cloud.isnan().any(1)].numpy(), -0.56, 0.38)[2])
    sizes = dots.get_sizes()
    assert (np.diff(sizes) >= 0).all() and sizes[-1] > sizes[0] and depth[-1] > depth[0]
    pale = dots.get_facecolors()[:, :3].min(1)
    assert pale[:5].mean() > pale[-5:].mean()
    assert not drawn(torch.full((5, 3), float("nan"))).collections


def test_features_are_no_coordinates_and_up_is_up():
    cloud = torch.tensor([[0.0, 0, 0.9, 55], [0, 0, -0.9, 55]])
    high, low = drawn(cloud, up="z").collections[0].get_offsets()[np.argsort([0, 1])]
    assert abs(high[1] - low[1]) > 1.2 and abs(high[0] - low[0]) < 0.1
    assert upright(np.array([[1.0, 2, 3]]), "z").tolist() == [[2, 3, 1]]


def test_views_are_rotations_and_large_clouds_are_fitted():
    points = np.random.default_rng(0).normal(size=(50, 3)) * 0.3
    seen = np.stack(seen_from(points, 0.7, -0.3), 1)
    assert np.allclose(seen @ seen.T, points @ points.T)
    assert fitted(points) is points
    moved = fitted(points * 40 + 1000)
    assert 0.5 < np.linalg.norm(moved, axis=1).max() <= 1
    wild = np.concatenate([points, [[9.0, 0, 0]]])
    assert fitted(wild) is wild and np.allclose(fitted(wild * 40, points * 40)[:50], fitted(points * 40))


def test_columns_of_a_model(model, tmp_path):
    rows = make_rows(model, batch())["pointcloud"].columns
    assert [*rows][0] == INPUT and [*rows][-1] == OUTRIGHT and len(rows) == 3
    given, seen, made = rows.values()
    assert given.shape == (3, 48, 3) and given.isfinite().all()
    hidden = seen.isnan().any(-1)
    assert hidden.any() and torch.equal(seen[~hidden], given[~hidden]) and torch.equal(made[~hidden], given[~hidden])
    assert save_pictures(model, batch(), tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "a.html").exists()


def unpacked(piece):
    data = json.loads(re.search(r"all = (\[.*?\]\]),", piece)[1])
    return [[np.frombuffer(base64.b64decode(one), "<i2").reshape(-1, 3) / 2**14 for one in row] for row in data]


def test_the_piece_holds_each_point_once(model):
    rows = make_rows(model, batch())["pointcloud"].columns
    piece = model.modalities["pointcloud"].interactive(rows)
    clouds = unpacked(piece)
    assert len(clouds) == 3
    for (visible, hidden, guess), x, made in zip(clouds, batch()["pointcloud"].numpy(), rows[OUTRIGHT], strict=True):
        both = np.concatenate([visible, hidden])
        assert len(np.unique(both, axis=0)) == len(both) <= 48 and len(visible) and len(hidden)
        nearest = np.abs(both[:, None] - x[None]).max(-1).min(1)
        assert nearest.max() < 1e-3
        nearest = np.abs(guess[:, None] - made.numpy()[None]).max(-1).min(1)
        assert len(guess) % 6 == 0 and nearest[np.abs(guess).max(1) < 1.99].max() < 1e-3  # others are cut off


def test_the_piece_needs_no_network_and_stands_alone(model):
    piece = model.modalities["pointcloud"].interactive(make_rows(model, batch())["pointcloud"].columns)
    assert "http" not in piece and "src=" not in piece and "import" not in piece
    assert piece.count("<script>") == piece.count("</script>") == 1 and piece.count("<canvas>") == 3
    assert "id=" not in piece  # two of them may stand on one page
    assert not re.search(r"\b(TURN|TILT|SCALE|DATA)\b", piece)


def test_nothing_to_turn_without_a_reconstruction():
    signal = torch.rand(1, 5, 3)
    assert interactive({"input": signal, "visible": signal}) is None


def test_hostile_captions_and_empty_parts():
    given, seen, made = torch.rand(1, 12, 3), torch.full((1, 12, 3), float("nan")), torch.rand(1, 12, 3)
    piece = interactive({"<b>": given, "y": seen, "z": made})
    assert "&lt;b&gt;" in piece and "<b>:" not in piece
    visible, hidden, guess = unpacked(piece)[0]
    assert (len(visible), len(hidden), len(guess)) == (0, 12, 12)
    piece = interactive({"x": given, "y": given, "z": given})
    assert [len(part) for part in unpacked(piece)[0]] == [12, 0, 0]


def test_the_page_takes_the_piece_in(model, tmp_path):
    (tmp_path / "pictures").mkdir()
    save_pictures(model, batch(), tmp_path / "pictures" / "step-000001.png", interactive=True)
    assert (tmp_path / "pictures" / "step-000001.html").is_file()
    page = write_page(tmp_path).read_text()
    assert page.count("cloud-view") > 1 and "drag to turn" in page and "http" not in page.replace("http-equiv", "")


def test_the_modality_draws_itself():
    modality = PointCloud(groups=4, group_size=4, points=16, up="z")
    preprocessed = modality.example(2, Rng((0,), range(2), 2))
    tokens = modality.tokenize(preprocessed)
    axes = Figure().subplots()
    modality.plot(axes, modality.untokenize(tokens.values, tokens)[0])
    assert len(axes.collections[0].get_offsets()) == 16
