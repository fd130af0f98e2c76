"""Frozen teachers: what they see, what is stored of them, and which runs may continue with which."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity, interpolate, layer_norm

import maemm
from maemm import config
from maemm.contract import MaemmError, Preprocessed, Rng
from maemm.model.build import build_model
from maemm.weights import load
from maemm.weights.checkpoints import find_checkpoint

pytestmark = pytest.mark.usefixtures("toys")
NETS = {
    "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}


def model(modalities, seed=0, **overrides):
    torch.manual_seed(seed)
    return build_model(config.load({"modalities": modalities, **NETS}, overrides)).eval()


def image(target=None, size=32, **options):
    return {"image": {"size": size, "patch": 8, "target": target, **options}}


def rng(rows=2):
    return Rng((0, 0), range(rows), rows)


@pytest.fixture
def ours(tmp_path):
    """(a model of pictures of 48 pixels with its own normalisation, the file that it is saved in)."""
    net = model(image(size=48, mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 4.0]), seed=5)
    maemm.save(net, tmp_path / "teacher.safetensors")
    return net, str(tmp_path / "teacher.safetensors")


def teacher_spec(file, **options):
    return {"type": "teacher", "model": file, **options}


# ---------------------------------------------------------------------------------------------- what it sees
def test_ours_sees_the_whole_sample_in_its_own_size_and_normalisation(ours):
    teacher, file = ours
    net = model(image(teacher_spec(file)))
    torch.manual_seed(1)
    x = torch.randn(2, 3, 32, 32)
    out = net(x, rng=rng())
    pixels = net.modalities["image"].denormalize_input(x)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    theirs = interpolate((pixels - mean) / std, (48, 48), mode="bicubic", antialias=True)
    features = teacher.embed({"image": theirs}, tokens=True)["image"]  # 6 x 6 of them, for 4 x 4
    maps = interpolate(features.unflatten(1, (6, 6)).permute(0, 3, 1, 2), (4, 4), mode="bicubic")
    expected = layer_norm(maps.flatten(2).transpose(1, 2), (16,))
    index = out.plans["image"].predict[..., None].expand(-1, -1, 16)
    torch.testing.assert_close(out.target["image"], expected.gather(1, index), rtol=1e-4, atol=1e-5)


def test_the_losses_are_what_their_names_say(ours):
    x = torch.randn(2, 3, 32, 32)
    for name, expected in (
        ("mse", lambda a, b: (a - b).square().mean(-1)),
        ("cosine", lambda a, b: 1 - cosine_similarity(a, b, dim=-1)),
        ("smooth_l1", lambda a, b: torch.where((a - b).abs() < 1, 0.5 * (a - b) ** 2, (a - b).abs() - 0.5).mean(-1)),
    ):
        net = model(image(teacher_spec(ours[1], loss=name)))
        out = net(x, rng=rng())
        torch.testing.assert_close(out.loss["image"], expected(out.pred["image"], out.target["image"]))
        assert 0 < net.baseline(out, "image").mean() < out.loss["image"].mean()


def test_one_pass_serves_all_plans_and_modalities(tmp_path, monkeypatch):
    both = {"toy": {}, "other": {"type": "toy"}}
    maemm.save(model(both, seed=3), tmp_path / "both.safetensors")
    target = teacher_spec(str(tmp_path / "both.safetensors"))
    learners = {name: {**spec, "target": target} for name, spec in both.items()}
    net = model(learners, masking={"type": "multi_mask", "masks_per_sample": 3})
    batch = {name: Preprocessed(torch.randn(2, 1, 8, 8)) for name in both}
    net.plan(batch, rng())  # opens it
    calls = []
    teacher = net.targets["toy"].held.network.model
    teacher.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    out = net(batch, rng=rng())
    assert calls == [1] and out.pred["toy"].shape[0] == 6
    features = teacher.embed(batch, tokens=True)["other"].repeat(3, 1, 1)
    expected = layer_norm(features.gather(1, out.plans["other"].predict[..., None].expand(-1, -1, 16)), (16,))
    torch.testing.assert_close(out.target["other"], expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_teacher_is_the_same_for_equal_seeds():
    x = torch.randn(2, 3, 32, 32)
    targets = [
        model(image({"type": "teacher", "seed": n}), seed=k)(x, rng=rng()).target["image"]
        for k, n in ((0, 7), (1, 7), (0, 8))
    ]
    assert torch.equal(targets[0], targets[1]) and not torch.equal(targets[0], targets[2])


def test_a_teacher_that_is_not_there_is_refused_in_one_line():
    with pytest.raises(MaemmError, match="no such weights") as refused:
        model(image(teacher_spec("nowhere.safetensors")))
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------- what is stored, and trained
def test_it_is_in_no_checkpoint_average_or_optimiser(ours, toys, tmp_path):
    net = model(image(teacher_spec(ours[1])))
    net(torch.randn(2, 3, 32, 32), rng=rng())
    assert [key for key in net.state_dict() if key.startswith("targets.")] == ["targets.image.fingerprint"]
    assert not [name for name, _ in net.named_parameters() if name.startswith("targets.")]
    network = net.targets["image"].held.network
    assert not network.training and not any(p.requires_grad for p in network.parameters())
    net.train().double()
    assert not network.training and next(network.parameters()).dtype == torch.float64  # it follows the model
    net(torch.randn(2, 3, 32, 32).double(), rng=rng())


def run_with(toys, tmp_path, out, seed, **overrides):
    """A run of toys whose teacher is made of ``seed``, in the same place for all."""
    maemm.save(model({"toy": {}}, seed=seed), tmp_path / "teacher.safetensors")
    target = teacher_spec(str(tmp_path / "teacher.safetensors"))
    options = {"modalities__toy__target": target, "train__save_every": 3, "train__ema": 0.9, **overrides}
    return toys.recipe(out, **options)


def test_a_run_resumes_exactly_with_its_teacher_and_with_no_other(toys, tmp_path):
    whole = toys.train(run_with(toys, tmp_path, toys.out / "whole", 3, train__epochs=2))
    part = toys.out / "part"
    toys.train(run_with(toys, tmp_path, part, 3, train__epochs=1, train__warmup_epochs=0))
    recipe = run_with(toys, tmp_path, part, 3, train__epochs=2, train__warmup_epochs=0)
    before = toys.weights(part)
    run_with(toys, tmp_path, part, 4)  # overwrites the teacher
    with pytest.raises(MaemmError, match="is another teacher than that of the checkpoint") as refused:
        toys.train(recipe)
    assert "\n" not in str(refused.value) and "out=" in str(refused.value)
    run_with(toys, tmp_path, part, 3)
    toys.train(recipe)
    after = toys.weights(part)
    assert torch.equal(before["targets.toy.fingerprint"], after["targets.toy.fingerprint"])
    assert set(toys.weights(whole)) == set(after) and not torch.equal(
        before["encoder.norm.weight"], after["encoder.norm.weight"]
    )


@pytest.mark.slow
def test_a_kill_in_a_run_with_a_teacher_changes_nothing(toys, tmp_path):
    whole = toys.train(run_with(toys, tmp_path, toys.out / "whole", 3, train__epochs=4))
    broken = run_with(toys, tmp_path, toys.out / "broken", 3, train__epochs=4, data__source__delay=0.002)
    other = toys.start(broken)
    other.until("step 8 ")
    other.kill()
    again = toys.start(broken)
    assert again.wait() == 0, again.said()
    ours, theirs = toys.weights(whole), toys.weights(toys.out / "broken")
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_a_run_opens_without_its_teacher(toys, tmp_path):
    run = toys.train(run_with(toys, tmp_path, toys.out, 3, train__epochs=1))
    (tmp_path / "teacher.safetensors").unlink()
    net = load(find_checkpoint(run))
    assert net.embed(torch.randn(2, 1, 8, 8))["toy"].shape == (2, 16)
    assert net.targets["toy"].fingerprint.any()
    with pytest.raises(MaemmError, match="no such weights"):
        net(torch.randn(2, 1, 8, 8), rng=rng())
