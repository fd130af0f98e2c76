"""maemm diagnose: figures of known cases, the page, and what happens to models and data that are odd."""

import json
import math

import numpy as np
import pytest
import torch

import maemm
from maemm import MaemmError
from maemm.__main__ import main
from maemm.contract import Preprocessed
from maemm.data.transfer import overlapped
from maemm.model.build import build_model
from maemm.model.measures import spectrum, sphere
from maemm.tasks.diagnose.attention import AttentionStatistics, weights_of
from maemm.tasks.diagnose.clusters import _without_position
from maemm.tasks.diagnose.ratios import with_ratio
from maemm.tasks.diagnose.run import diagnose

RATIOS = (0.25, 0.5)


# ------------------------------------------------------------------------------------------------ figures
def test_effective_rank_counts_directions():
    axes = np.concatenate([np.eye(5), -np.eye(5)])
    assert spectrum(axes).effective_rank == pytest.approx(5)
    line = np.outer(np.arange(12.0), np.ones(7)) + 3
    assert spectrum(line).effective_rank == pytest.approx(1)
    assert spectrum(np.full((9, 4), 2.5, np.float32)).effective_rank == 0
    assert spectrum(axes[:3]).limit == 2
    two = np.array([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    p = np.array([3, 1]) / 4
    assert spectrum(two).effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()))


def test_uniformity_and_alignment_of_known_points():
    points = np.array([[2.0, 0], [0, 3], [-1, 0]])  # distances squared 2, 4, 2
    found = sphere(points, points, 5 * points)
    assert found.uniformity == pytest.approx(math.log((2 * math.exp(-4) + math.exp(-8)) / 3))
    assert found.alignment == pytest.approx(0) and found.sample_distance == pytest.approx(8 / 3)
    assert sphere(points, points[:1], points[1:2]).alignment == pytest.approx(2)
    assert sphere(points, points[:1], points[1:2]).relative_alignment == pytest.approx(3 / 4)
    assert math.isnan(sphere(np.ones((4, 2)), np.ones((4, 2)), np.ones((4, 2))).relative_alignment)
    assert math.isnan(sphere(np.zeros((4, 2)), points, points).uniformity)


def test_weights_are_those_of_the_layer():
    from timm.models.vision_transformer import Block

    torch.manual_seed(0)
    layer = Block(16, 4, qkv_bias=True).attn.eval()
    x = torch.randn(2, 6, 16)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    mask[1, ..., 4:] = False
    weights = weights_of(layer, x, mask)
    values = layer.qkv(x).unflatten(-1, (3, 4, 4))[:, :, 2].transpose(1, 2)
    again = layer.proj((weights @ values).transpose(1, 2).flatten(2))
    assert torch.allclose(again, layer(x, attn_mask=mask), atol=1e-6)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 6)) and not weights[1, ..., 4:].any()


def attention_of(model, preprocessed):
    statistics = AttentionStatistics(model, "marks")
    with torch.no_grad():
        list(overlapped([statistics.add(preprocessed)]))
    return statistics.result()


def test_a_head_that_looks_everywhere_alike_is_on_the_dotted_lines(world):
    model = world.model()
    for block in model.encoder.blocks:
        block.attn.qkv.weight.data.zero_()
    found = attention_of(model, Preprocessed(torch.randn(3, 1, 8, 8)))
    assert found.layers == ["blocks.0.attn", "blocks.1.attn"] and found.distance.shape == (2, 2)
    # 2 x 2 cells: from each one itself, two neighbours, one across.
    assert found.even_distance == pytest.approx((2 + 2**0.5) / 4) and found.even_entropy == pytest.approx(math.log(5))
    assert np.allclose(found.distance, found.even_distance) and np.allclose(found.entropy, found.even_entropy)


def test_padding_is_not_looked_at(world):
    model = world.model(modalities__marks__ragged=True)
    for block in model.encoder.blocks:
        block.attn.qkv.weight.data.zero_()
    x = torch.randn(2, 1, 8, 8)
    found = attention_of(model, model.modalities["marks"].preprocess({"x": x}, None))
    assert found.even_entropy == pytest.approx((math.log(5) + math.log(3)) / 2)  # 4 and 2 tokens, a class token
    assert np.allclose(found.distance, found.even_distance) and np.allclose(found.entropy, found.even_entropy)


def test_hooks_are_gone_and_an_encoder_without_attention_says_so(world):
    model = world.model()
    attention_of(model, Preprocessed(torch.randn(1, 1, 8, 8)))
    assert not any(one._forward_pre_hooks for one in model.modules())
    for block in model.encoder.blocks:
        block.attn = torch.nn.Identity()
        block.forward = lambda x, attn_mask=None: x
    assert "no attention to show" in attention_of(model, Preprocessed(torch.randn(1, 1, 8, 8))).note


def test_what_a_place_explains_is_taken_off():
    place = np.random.default_rng(0).standard_normal((1, 5, 3)).repeat(4, 0)
    rest, fraction = _without_position(list(place))
    assert fraction == pytest.approx(1) and not rest.any()
    noise = np.random.default_rng(1).standard_normal((400, 5, 3))
    assert _without_position(list(noise))[1] < 0.02


def test_ratios_reach_the_masking_inside_another(world):
    recipe = world.recipe()
    assert with_ratio(recipe, 0.3)["modalities"]["marks"]["masking"] == {"type": "random", "ratio": 0.3}
    assert recipe["modalities"]["marks"]["masking"]["ratio"] == 0.5  # its own stays
    recipe["modalities"]["marks"]["masking"] = {"type": "multi_mask", "masks_per_sample": 2}
    inner = with_ratio(recipe, 0.3)["modalities"]["marks"]["masking"]
    assert inner == {"type": "multi_mask", "masks_per_sample": 2, "masking": {"type": "random", "ratio": 0.3}}


def test_a_masking_without_a_ratio_is_named(world, make_plugin):
    manifest = """
        from maemm.registry import Plugin
        plugin = Plugin(name="stripes", version="1", contract=2, maskings={"stripes": "parts:Stripes"})
    """
    parts = """
        class Stripes:
            def __init__(self, *, width: int = 2): pass
    """
    make_plugin("stripes", **{"__init__.py": manifest, "parts.py": parts})
    recipe = world.recipe()
    recipe["modalities"]["marks"]["masking"] = {"type": "stripes"}
    with pytest.raises(MaemmError, match="masking 'stripes' has no option ratio"):
        with_ratio(recipe, 0.3)


# ------------------------------------------------------------------------------------------------ the whole
def look(world, model=None, name="d", **options):
    data = options.pop("data", {})
    settings = {"ratios": RATIOS, "samples": 20, "clusters": 2, **options}
    return diagnose(model or world.model(), world.source(**data), world.folder / f"{name}.html", **settings)


def test_page_and_figures_are_the_same_each_time(world):
    first, again = look(world, name="a"), look(world, name="b")
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first.path.with_suffix(".json").read_bytes() == again.path.with_suffix(".json").read_bytes()
    record = json.loads(first.path.with_suffix(".json").read_text())
    for kind in ("trained", "untrained"):
        one = record["findings"][kind]["marks"]
        assert 1 < one["effective_rank"] < 16 and -4 < one["uniformity"] < 0 and one["alignment"] > 0
        assert np.shape(one["attention"]["distance"]) == (2, 2) and sum(one["cluster_shares"]) == pytest.approx(1)
        assert all(value > 0 for value in record["loss_by_ratio"][kind]["loss"]["marks"])
    page = first.path.read_text()
    for text in ("Which directions are used", "Where heads attend", "Which tokens are alike", "untrained"):
        assert text in page
    assert page.count("data:image/") == 3 and "http" not in page.replace("http://www.w3.org", "")


def test_batches_change_nothing(world):
    whole, parts = look(world, name="a", baseline=False), look(world, name="b", batch=5, baseline=False)
    assert list(parts.findings) == ["trained"]
    for one, two in zip(*(found.record()["findings"]["trained"].values() for found in (whole, parts)), strict=True):
        assert two["effective_rank"] == pytest.approx(one["effective_rank"], rel=1e-4)
        assert two["alignment"] == pytest.approx(one["alignment"], rel=1e-3)
    losses = [found.losses["trained"].loss["marks"] for found in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_model_is_left_as_it_was(world):
    model = world.model().train()
    masking, before = model.masking, {key: value.clone() for key, value in model.state_dict().items()}
    look(world, model)
    assert model.training and model.masking is masking
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_samples_that_cannot_be_used_are_counted(world):
    found = look(world, data={"bad": [3], "nan": [7]}, samples=40)
    assert found.samples == 38 and sorted(one.id for one in found.skipped) == ["003", "007"]
    assert "2 samples are left out" in found.path.read_text() and "38 samples, 2 skipped" in str(found)
    with pytest.raises(MaemmError, match=r"0 of 40 samples have finite features \(first: 0.*needs 16 or more"):
        look(world, data={"nan": list(range(40))}, samples=40)
    with pytest.raises(MaemmError, match="10 of 10 samples have finite features; a diagnosis needs 16"):
        look(world, data={"samples": 10})


def test_a_collapsed_encoder_is_called_so(world):
    model = world.model()
    model.encoder.norm.weight.data.zero_()
    model.encoder.norm.bias.data.fill_(0.5)
    found = look(world, model, baseline=False)
    assert any("all samples have the same features" in note for note in found.notes)
    assert "no clusters: all token features are equal" in found.path.read_text()
    record = json.loads(found.path.with_suffix(".json").read_text())["findings"]["trained"]["marks"]
    assert record["effective_rank"] == 0 and record["uniformity"] == pytest.approx(0, abs=1e-6)


def test_encoders_alone_and_ragged_samples(world):
    found = look(world, world.model(decoder=None))
    assert "no loss by mask ratio: these weights hold an encoder only" in found.path.read_text()
    found = look(world, world.model(modalities__marks__ragged=True), name="ragged")
    assert found.findings["trained"]["marks"].clusters.fractions and not found.skipped


def test_a_ratio_that_hides_everything_leaves_a_gap(world):
    found = look(world, ratios=(0.1, 0.5, 0.9), baseline=False)  # 4 tokens: 0.9 leaves none, 0.1 hides one
    losses = found.losses["trained"].loss["marks"]
    assert math.isfinite(losses[0]) and math.isfinite(losses[1]) and math.isnan(losses[2])


@pytest.mark.parametrize(
    "arguments, text",
    [
        (["--samples", "5"], "5 samples are too few (--samples); give 16 or more"),
        (["--clusters", "1"], "give 2 or more"),
        (["--ratios", "0.5,2"], "mask ratios 2.0 (--ratios); give ratios between 0 and 1"),
        (["--ratios", "half"], "--ratios is 'half'"),
        (["-o", "figures.pdf"], "diagnose writes a page, not 'figures.pdf' (-o)"),
        (["--batch", "0"], "--batch is 0; give 1 or more"),
    ],
)
def test_mistakes(world, capsys, arguments, text):
    assert main(["diagnose", world.run(), world.data(), *arguments]) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_verb_writes_into_the_run(world, capsys):
    run = world.run()
    assert (
        main(["diagnose", run, world.data(), "--samples", "16", "--clusters", "2", "--alone", "--ratios", "0.5"]) == 0
    )
    said = capsys.readouterr().out
    assert "effective rank" in said and (world.folder / "run/diagnose.html").is_file()
    assert (
        main(
            [
                "diagnose",
                run,
                world.data(),
                "--samples",
                "16",
                "--clusters",
                "2",
                "--alone",
                "--ratios",
                "0.5",
                "--json",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["samples"] == 16


def test_the_package_keeps_its_function(world):
    model = build_model(world.recipe())
    found = maemm.diagnose(
        model, world.source(), world.folder / "d.html", samples=16, clusters=2, ratios=(0.5,), baseline=False
    )
    assert found.samples == 16
