"""R-MAE: the published values, regions that follow their pictures, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import maemm
from maemm import config
from maemm.contract import MaemmError, NotInstalled, Preprocessed, Rng
from maemm.contract.patches import patchify
from maemm.model.build import build_modality, build_model
from maemm_plugins._images.mirrors import map_mirrored_with
from maemm_plugins.image.regions import NO_REGION, Felzenszwalb, painted, region_maps
from maemm_plugins.image.rmae import Regions

GOLDEN = Path(__file__).parents[2] / "golden" / "variants" / "rmae_tiny.safetensors"
OURS = {  # published names of the parameters -> ours
    r"region_patch_embed\.proj": "embedding",
    r"region_enc_blocks": "encoder",
    r"region_cross_embed": "memory_project",
    r"region_cross_mask_token": "mask_token",
    r"region_cross_blocks": "memory_blocks",
    r"region_proj\.0": "region_norm",
    r"region_proj\.1": "region_project",
    r"region_dec_norm": "memory_norm",
    r"region_dec_blocks\.0\.norm1": "decoder.norm",
    r"region_dec_blocks\.0\.norm3": "decoder.pair_norm",
    r"region_dec_blocks\.0\.attn": "decoder.attention",
    r"region_dec_blocks\.0\.proj": "decoder.memory",
    r"region_dec_blocks\.0\.mlp": "decoder.mlp",
    r"region_pred\.1": "head",
}
SMALL = {
    "modalities": {
        "image": {"size": 32, "patch": 8, "regions": {"scale": 50, "min_size": 20}, "masking": {"type": "random"}}
    },
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    "objectives": {"reconstruct": {}, "regions": {"count": 3, "dim": 16, "heads": 2, "memory_depth": 1}},
}


# --------------------------------------------------------------------------------------------- published values
def renamed(key):
    for pattern, name in OURS.items():
        if re.match(pattern, key):
            return re.sub(pattern, name, key, count=1)
    return None


def published(**options):
    """(the published tiny model, its inputs)."""
    golden = load_file(GOLDEN)
    state = {key.removeprefix("state/"): value for key, value in golden.items() if key.startswith("state/")}
    own = {key: value for key, value in state.items() if not key.startswith("region_")}
    model = maemm.load(own, kind="mae", heads=3, decoder_heads=2, norm_pix=True)
    regions = Regions("regions", count=3, touching=False, dim=16, heads=4, memory_depth=2, **options)
    regions.connect(model)
    weights = {renamed(key): value for key, value in state.items() if renamed(key)}
    weights["embedding.weight"] = weights["embedding.weight"].flatten(1)
    regions.load_state_dict(weights)
    model.objectives["regions"] = regions.eval()
    # A map for each region: its label where it is, no region elsewhere.
    labels = torch.arange(3, dtype=torch.uint8)[None, :, None, None]
    maps = torch.where(golden["input/region"] > 0, labels, torch.tensor(NO_REGION, dtype=torch.uint8))
    batch = {"image": Preprocessed(golden["input/image"], info={"regions": maps})}
    plans = {"image": maemm.Plan(golden["input/visible"], golden["input/predict"])}
    return golden, model, batch, plans


def test_published_losses_and_logits():
    golden, model, batch, plans = published()
    out = model(batch, plans=plans)
    for term, name in (("reconstruct.image", "mae_loss"), ("regions.image", "region_loss")):
        assert out.terms[term].item() == pytest.approx(golden[f"out/{name}"].item(), abs=1e-5)
    assert out.total.item() == pytest.approx(golden["out/loss"].item(), abs=1e-5)
    regions, x = model.objectives["regions"], out.inputs["image"]
    visible, predicted = regions.maps(x)
    memory = regions.memory(out.encoded["image"], out.prefix["image"], x)  # of all tokens, in the order of the lists
    logits = regions.logits(regions.region_vectors(visible, x), memory)
    every = torch.cat([golden["input/visible"], golden["input/predict"]], 1)
    expected = golden["out/pred_region_logits"]
    for row in range(2):
        assert (logits[row] - expected[row][:, every[row]]).abs().max() < 1e-5
    target = patchify(golden["input/region"].flatten(0, 1)[:, None], (8, 8)).unflatten(0, (2, 3))
    for row in range(2):
        assert torch.equal(predicted[row], target[row][:, golden["input/predict"][row]] > 0)


def test_regions_in_another_order_have_the_same_loss():
    _, model, batch, plans = published()
    first = model(batch, plans=plans).terms["regions.image"]
    maps = batch["image"].info["regions"]
    other = torch.where(maps == NO_REGION, maps, 2 - maps)  # labels 2, 1, 0: chosen in the order of labels
    second = model({"image": replace(batch["image"], info={"regions": other})}, plans=plans).terms["regions.image"]
    assert first.item() == pytest.approx(second.item(), abs=1e-6)


def test_background_has_a_factor():
    golden, model, batch, plans = published(background=0.0)
    x = model(batch, plans=plans)
    _, plain, *_ = published()
    assert 0 < x.terms["regions.image"] < plain(batch, plans=plans).terms["regions.image"]


# ------------------------------------------------------------------------------------------------ which regions
def chosen_of(labels, count=3, **options):
    regions = Regions("regions", count=count, dim=8, heads=2, **options)
    regions.register_buffer("labels", torch.arange(NO_REGION + 1, dtype=torch.int16))
    return regions._chosen(torch.tensor(labels)).tolist()


def test_the_first_labels_are_chosen_and_repeated():
    assert chosen_of([[7, 3, 3, 9, 5, NO_REGION]]) == [[3, 5, 7]]
    assert chosen_of([[4, NO_REGION, 2, 2]], count=5) == [[2, 4, 2, 4, 2]]
    assert chosen_of([[NO_REGION, NO_REGION]]) == [[-1, -1, -1]]
    assert chosen_of([[1, 0], [6, 6]]) == [[0, 1, 0], [6, 6, 6]]


def test_only_regions_that_touch_visible_patches_are_taken():
    """Four quarters of a picture, one of them visible: that one alone, three times; otherwise the first three."""
    quarters = torch.arange(4, dtype=torch.uint8).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)
    plan = maemm.Plan(torch.tensor([[10, 11, 14, 15]]), torch.arange(10)[None])
    for touching, labels in ((True, [3, 3, 3]), (False, [0, 1, 2])):
        model = build_model(config.load(SMALL, {"objectives.regions.touching": touching})).eval()
        batch = {"image": Preprocessed(torch.randn(1, 3, 32, 32), info={"regions": quarters[None, None]})}
        x = model(batch, plans={"image": plan}).inputs["image"]
        visible, predicted = model.objectives["regions"].maps(x)
        assert [bool(part.all()) for part in visible[0]] == [label == 3 for label in labels]
        assert predicted.shape == (1, 3, 10, 64)
        assert int(predicted.sum()) == sum(4 * 64 * (label in (0, 1)) + 2 * 64 * (label == 2) for label in labels)


# -------------------------------------------------------------------------------------------- made in the worker
def picture(side=40):
    """Two fields and a disc, with some noise."""
    rows, columns = np.mgrid[:side, :side]
    x = np.where(columns < side // 2, 60, 190)[..., None].repeat(3, 2)
    x[(rows - side // 3) ** 2 + (columns - side // 4) ** 2 < (side // 6) ** 2] = (200, 30, 30)
    return np.clip(x + np.random.default_rng(0).normal(0, 3, x.shape), 0, 255).astype(np.uint8)


def test_regions_are_those_of_the_picture():
    pytest.importorskip("skimage")
    x, how = torch.from_numpy(picture()).permute(2, 0, 1), Felzenszwalb(scale=200, min_size=90)
    labels = region_maps(x, how, None)
    assert labels.shape == (1, 40, 40) and labels.dtype == torch.uint8
    assert labels[0, 0, -1] == 0 and len(labels.unique()) == 3  # the largest first
    assert labels[0, 13, 10] == 2 and labels[0, 39, 0] == 1
    sizes = torch.bincount(labels.flatten().long())
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)
    painted_as = painted(labels[None], x[None].float())
    assert (painted_as[0, :, 0, -1] - x[:, :, 25:].float().mean((1, 2))).abs().max() < 3
    both = region_maps(x, Felzenszwalb(scale=[200, 20], min_size=10), None)
    assert both.shape == (2, 40, 40) and not {*both[0].unique().tolist()} & {*both[1].unique().tolist()}


def test_the_order_is_random_and_repeatable():
    pytest.importorskip("skimage")
    x, how = torch.from_numpy(picture()).permute(2, 0, 1), Felzenszwalb(scale=1, sigma=0.2, min_size=4)
    first, again, other = (region_maps(x, how, Rng(("x", seed))) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique()) > 10


def test_regions_follow_the_crop_and_the_flip():
    """What is made of a sample in training is the segmentation of what the model gets, mirrored with it."""
    pytest.importorskip("skimage")
    modality = build_modality(config.load(SMALL), "image")
    assert modality.side_inputs == ("regions",)
    loaded, sides = [], []
    for row in range(6):
        sample = modality.load(picture(), Rng((0, 0, row, 0)))
        loaded.append(sample)
        sides.append(modality.side_input("regions", sample, None))
    model = build_model(config.load(SMALL))
    rng = Rng((0, 0), range(6), 6)
    sides_of = {"image": {"regions": torch.stack(sides)}}
    batch = model.preprocess({"image": modality.collate(loaded)}, rng, side_inputs=sides_of)
    followed = map_mirrored_with(batch["image"].info["regions"], batch["image"])
    pixels = model.modalities["image"].denormalize_input(batch["image"].x)
    mirrored = 0
    for row in range(6):
        x = (pixels[row] * 255).round().to(torch.uint8)
        # the same regions, found again in what the model gets
        expected, labels = region_maps(x, modality.regions, None), followed[row]
        agree = float(
            (painted(expected[None], pixels[row][None]) - painted(labels[None], pixels[row][None])).abs().mean()
        )
        assert agree < 0.02
        mirrored += not torch.equal(labels, sides[row])
    assert 0 < mirrored < 6
    x, objective = model.plan(batch, rng)["image"], model.objectives["regions"]
    straight = replace(x, preprocessed=Preprocessed(x.preprocessed.x, info={"regions": followed}))
    assert all(torch.equal(a, b) for a, b in zip(objective.maps(x), objective.maps(straight), strict=True))


# --------------------------------------------------------------------------------------------------- in training
def write_pictures(folder, count=8):
    from PIL import Image

    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.roll(picture(), number * 3, 1)).save(folder / f"{number}.png")
    return folder


def trained(tmp_path, out, workers=0, **overrides):
    data = tmp_path / "pictures"
    if not data.exists():
        write_pictures(data)
    settings = {
        "data.root": str(data), "data.workers": workers, "train.epochs": 3, "train.batch": 4, "train.lr": 1e-3,
        "train.warmup_epochs": 1, "train.log_every": 1, "train.save_every": 1, "train.keep": 10,
        "out": str(tmp_path / out),
    }  # fmt: skip
    base = {**SMALL, "train": {"epochs": 3, "batch": 4, "lr": 1e-3}, "data": {}, "out": "unused"}
    maemm.pretrain(config.load(base, {**settings, **overrides}, training=True))
    last = sorted((tmp_path / out / "checkpoints").glob("step-*"))[-1]
    return {key: value.clone() for key, value in load_file(last / "model.safetensors").items()}


def test_a_run_resumes_bit_for_bit_and_workers_change_nothing(tmp_path):
    pytest.importorskip("skimage")
    whole = trained(tmp_path, "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    for folder in (tmp_path / "halves" / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > 3:
            shutil.rmtree(folder)
    assert (tmp_path / "halves" / "checkpoints" / "step-000003").is_dir()
    halves = trained(tmp_path, "halves", workers=1)
    assert whole.keys() == halves.keys() and any("regions" in key for key in whole)
    assert all(torch.equal(value, halves[key]) for key, value in whole.items())


# --------------------------------------------------------------------------------------------------- what is refused
def test_without_scikit_image_a_run_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(NotInstalled, match=r"pip install 'maemm\[regions\]'"):
        trained(tmp_path, "run")
    model = build_model(config.load(SMALL))  # features need none
    assert model.embed({"image": torch.randn(1, 3, 32, 32)})["image"].shape == (1, 16)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"objectives.regions.modality": "clip"}, r"'clip' is no picture.*objectives\.regions\.modality.*image"),
        ({"modalities.image.device_crop": True}, r"device_crop\); set it to false"),
        (
            {"data.source": {"type": "beside", "source": "image", "arrays": {"regions": "x"}}},
            r"modalities\.image\.crop.*center or null",
        ),
    ],
)
def test_what_cannot_work_is_refused(overrides, words):
    with pytest.raises(MaemmError, match=words):
        build_model(config.load(SMALL, overrides))


def test_maps_of_another_size_are_refused():
    model = build_model(config.load(SMALL)).eval()
    for info in ({}, {"regions": torch.zeros(1, 1, 16, 16, dtype=torch.uint8)}, {"regions": torch.zeros(1, 1, 32, 32)}):
        with pytest.raises(MaemmError, match=r"the regions of 'image' are .*\(objectives\.regions\)"):
            model({"image": Preprocessed(torch.randn(1, 3, 32, 32), info=info)}, rng=Rng((0, 0)))


def test_show_draws_the_regions(tmp_path):
    pytest.importorskip("skimage")
    write_pictures(tmp_path / "pictures", 2)
    shown = maemm.show(tmp_path / "pictures", tmp_path / "show.html", recipe=SMALL, count=2)
    columns = shown.parts["image"].rows.columns
    assert columns["regions"].shape == columns["as the model gets it"].shape
    assert len(columns["regions"][0].flatten(1).T.unique(dim=0)) < 30  # a colour for each region
    assert "regions" in (tmp_path / "show.html").read_text()
