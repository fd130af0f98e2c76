"""Targets of the core in training: several with weights, spectra, classes from files and codebooks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import maemm
from maemm import config
from maemm.contract import MaemmError, Preprocessed, Rng
from maemm.model.build import build_model
from maemm.model.targets.codebook import Codebook
from maemm.model.targets.frequency import Frequency
from maemm.tasks._shared.scoring import score_samples
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step

pytestmark = pytest.mark.usefixtures("toys")
BASE = {
    "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}
SEVERAL = {
    "reconstruct": {},
    "spectrum": {"type": "predict", "target": {"type": "frequency", "gamma": 2.0}, "weight": 0.5},
    "words": {"type": "predict", "target": {"type": "codebook", "vocab": 8}, "weight": 0.2},
}


def model(**overrides):
    torch.manual_seed(0)
    return build_model(config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()}))


def batch(rows=4):
    torch.manual_seed(1)
    return {"toy": Preprocessed(torch.randn(rows, 1, 8, 8))}


def rng(rows=4):
    return Rng((0, 0), range(rows), rows)


# --------------------------------------------------------------------------------------------- several targets
def steps_of(toys, count=3, micro_batches=1, **overrides):
    """(state, results) of steps on the toy source's samples."""
    from maemm.data.loader import Batch

    recipe = toys.recipe(train__clip_grad=0.5, **overrides)
    state = make_train_state(recipe, 8, micro_batches, DistContext())
    state.optimizer.param_groups[0]["lr"] = 1e-2
    results = []
    for number in range(count):
        torch.manual_seed(number)
        x, rows = torch.randn(16, 1, 8, 8), list(range(16))
        size = 16 // micro_batches
        batches = [
            Batch(
                {"toy": {"x": x[k : k + size]}}, list(map(str, rows[k : k + size])), None, rows[k : k + size], [], 0, 0
            )
            for k in range(0, 16, size)
        ]
        results.append(take_step(state, plan_micro_batches(state, number, batches), baseline=True))
    return state, results


@pytest.mark.parametrize("objectives", [SEVERAL, dict(reversed(SEVERAL.items()))], ids=["behind", "before"])
def test_weight_zero_is_the_plain_model_bit_for_bit(toys, objectives):
    """Initial weights, losses, norms of the gradient, which is clipped, and weights after some steps."""
    plain, expected = steps_of(toys)
    zero = {name: {**spec, "weight": 0.0} if name != "reconstruct" else spec for name, spec in objectives.items()}
    state, results = steps_of(toys, objectives=zero)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours.terms["reconstruct.toy"], theirs.terms["reconstruct.toy"])
        assert torch.equal(ours.total, theirs.total) and torch.equal(ours.grad_norm, theirs.grad_norm)
        assert {"spectrum.toy", "words.toy"} <= ours.terms.keys()  # they are in the log all the same
    weights = state.model.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in plain.model.state_dict().items())


def test_several_targets_each_have_a_layer_and_a_term(toys):
    state, results = steps_of(toys, objectives=SEVERAL)
    assert state.model.objectives["words"].layers["toy"].out_features == 8
    assert state.model.objectives["spectrum"].layers["toy"].out_features == 4
    first, last = results[0], results[-1]
    weighted = [first.terms[f"{name}.toy"] * weight for name, weight in (("reconstruct", 1), ("spectrum", 0.5))]
    torch.testing.assert_close(first.total, sum(weighted) + 0.2 * first.terms["words.toy"])
    assert not last.without_gradient and last.terms["words.toy"] < first.terms["words.toy"]
    # Every term has a baseline, and the log one of the whole loss.
    assert first.baselines.keys() == {"toy", "spectrum.toy", "words.toy"}
    from maemm.train.run_log import _baselines

    row = _baselines(first, {name: float(value) for name, value in first.baselines.items()})
    parts = row["baselines"]
    assert row["baseline"] == pytest.approx(parts["toy"] + 0.5 * parts["spectrum.toy"] + 0.2 * parts["words.toy"])
    assert parts["words.toy"] <= np.log(8) + 1e-5


def test_micro_batches_of_several_targets_equal_one_batch(toys):
    (one, whole), (two, parts) = (steps_of(toys, micro_batches=n, objectives=SEVERAL) for n in (1, 4))
    for ours, theirs in zip(whole, parts, strict=True):
        for name, value in ours.terms.items():
            torch.testing.assert_close(theirs.terms[name], value, rtol=1e-5, atol=1e-6)
    for (name, ours), theirs in zip(one.model.named_parameters(), two.model.parameters(), strict=True):
        if "qkv.bias" not in name:  # those of keys have a gradient of rounding errors alone
            torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_two_processes_with_several_targets_equal_one(toys):
    options = {"objectives": SEVERAL, "train__epochs": 2}
    one = toys.train(toys.recipe(toys.out / "one", **options))
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said()
    for a, b in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        assert a["terms"] == pytest.approx(b["terms"], rel=1e-4)


def test_several_plans_share_what_a_target_computed():
    net = model(objectives=SEVERAL, modalities__toy__masking={"type": "multi_mask", "masks_per_sample": 3})
    out = net(batch(), rng=rng())
    assert out.pred["toy"].shape[0] == 12 and len(out.inputs["toy"].computed_by["words"]) == 4
    assert out.total.isfinite()


def test_a_layer_of_its_own_needs_a_decoder_that_gives_its_tokens(toys):
    with pytest.raises(MaemmError, match="'other' is no modality of this recipe"):
        model(objectives={"x": {"type": "predict", "target": "frequency", "modalities": ["other"]}})
    with pytest.raises(MaemmError, match="predictions of 'toy' have 4 values, this target 8"):
        shared = {"type": "predict", "target": {"type": "codebook", "vocab": 8}, "layer": "shared"}
        model(objectives={"reconstruct": {}, "x": shared})(batch(), rng=rng())


# --------------------------------------------------------------------------------------------------- frequency
def frequency(net, **options):
    target = Frequency(["toy"], 16, **options)
    target.prepare(dict(net.modalities))
    return target


def test_spectra_of_gamma_two_are_the_squared_error_and_zero_at_the_target():
    target, torch_target = frequency(model(), gamma=2.0), torch.randn(2, 3, 4)
    pred = torch.randn(2, 3, 4)
    torch.testing.assert_close(target.loss(pred, torch_target), (pred - torch_target).square().mean(-1))
    for gamma in (1.0, 1.5, 3.0):
        same = torch_target.clone().requires_grad_()
        loss = frequency(model(), gamma=gamma).loss(same, torch_target)
        loss.sum().backward()
        assert not loss.any() and not same.grad.any()  # neither is NaN


def test_a_radius_leaves_out_what_is_slow():
    net = model(modalities__toy__patch=4)
    high = frequency(net, radius=0.6)
    x = torch.randn(1, 2, 16)
    assert high.loss(x + 3.0, x).max() < 1e-5  # a shift of the mean is frequency 0
    checker = torch.tensor([1.0, -1.0] * 2 + [-1.0, 1.0] * 2).repeat(2)
    assert high.loss(x + checker, x).min() > 0.1
    assert 0 < high.kept.sum() < 16


def test_only_hidden_tokens_have_a_gradient_of_the_spectrum():
    net = model(modalities__toy__target={"type": "frequency", "gamma": 1.5})
    out = net(batch(), rng=rng())
    (gradient,) = torch.autograd.grad(out.total, out.pred["toy"])
    assert out.pred["toy"].shape[1] == 8 and gradient.abs().sum(-1).min() > 0
    again = {"reconstruct": {}, "x": {"type": "predict", "target": "frequency", "layer": "shared"}}
    net = model(objectives=again)
    assert not any("layers" in name for name, _ in net.named_parameters()) and net(batch(), rng=rng()).total.isfinite()


# ------------------------------------------------------------------------------------------------ classes
def test_classes_are_compared_by_cross_entropy_and_have_the_entropy_as_baseline():
    net = model(modalities__toy__target={"type": "codebook", "vocab": 6})
    out = net(batch(32), rng=rng(32))
    ids = out.target["toy"].long().squeeze(-1)
    expected = torch.nn.functional.cross_entropy(out.pred["toy"].flatten(0, 1), ids.flatten())
    torch.testing.assert_close(out.total, expected)
    share = torch.bincount(ids.flatten(), minlength=6) / ids.numel()
    entropy = -(share * share.clamp(min=1e-12).log()).sum()
    torch.testing.assert_close(net.baseline(out, "toy").mean(), entropy)


def test_a_codebook_of_a_file_takes_the_nearest_entry_and_is_saved(tmp_path):
    entries = torch.randn(5, 4)
    save_file({"codebook": entries}, tmp_path / "words.safetensors")
    spec = {"type": "codebook", "file": str(tmp_path / "words.safetensors")}
    net = model(modalities__toy__target=spec)
    out = net(batch(), rng=rng())
    own = net.modalities["toy"].target(out.inputs["toy"].tokens, out.plans["toy"].predict)
    expected = torch.cdist(own, entries.expand(4, -1, -1)).argmin(-1)
    assert torch.equal(out.target["toy"].squeeze(-1).long(), expected) and out.pred["toy"].shape[-1] == 5

    maemm.save(net, tmp_path / "model.safetensors")
    (tmp_path / "words.safetensors").unlink()
    again = maemm.load(tmp_path / "model.safetensors")  # without the file
    assert torch.equal(again.eval()(batch(), rng=rng()).total, net.eval()(batch(), rng=rng()).total)
    with pytest.raises(MaemmError, match="the codebook is not there"):
        model(modalities__toy__target=spec)(batch(), rng=rng())


def test_a_codebook_groups_the_values_of_another_target():
    spec = {"type": "codebook", "vocab": 4, "features": {"type": "teacher", "seed": 3}}
    net = model(modalities__toy__target=spec)
    assert net(batch(), rng=rng()).target["toy"].max() < 4
    random = Codebook(["toy"], 16, vocab=3)
    random.prepare(dict(net.modalities))
    torch.testing.assert_close(random.codebook.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [({"codebook": torch.zeros(3, 5)}, "does not fit tokens of 4 values"), (None, "cannot be read")],
)
def test_a_wrong_codebook_is_refused(tensors, message, tmp_path):
    file = tmp_path / "words.safetensors"
    save_file(tensors, file) if tensors else file.write_bytes(b"no")
    with pytest.raises(MaemmError, match=message):
        model(modalities__toy__target={"type": "codebook", "file": str(file)})


CODES = {"modalities__toy__target": {"type": "codes", "vocab": 16}, "train__epochs": 6}


def beside(toys, arrays):
    return toys.recipe(data__source={"type": "beside", "source": "toy", "arrays": {"codes": str(arrays)}}, **CODES)


def write_codes(folder, kind, samples=64):
    ids = np.random.default_rng(0).integers(0, 16, (samples, 16)).astype(np.uint16)
    if kind == "array":
        np.save(folder / "codes.npy", ids)
        return folder / "codes.npy"
    if kind == "folder":
        (folder / "codes").mkdir()
        for number, row in enumerate(ids):
            np.save(folder / "codes" / f"toy-{number}.npy", row.reshape(4, 4))
        return folder / "codes"
    rows = [f"toy-{number}.png,{' '.join(map(str, row))}" for number, row in enumerate(ids)]
    (folder / "codes.csv").write_text("\n".join(["path,codes", *rows]))
    return folder / "codes.csv"


@pytest.mark.parametrize("kind", ["array", "folder", "table"])
def test_codes_come_from_files_beside_the_samples(kind, toys, tmp_path):
    run = toys.train(beside(toys, write_codes(tmp_path, kind)))
    rows = toys.metrics(run)
    assert rows[-1]["loss"] < rows[0]["loss"] < 3.5 and rows[0]["baseline"] < 2.78
    if kind == "array":  # what else reads a model's losses has the codes too
        from maemm.data.open import open_source

        recipe = beside(toys, tmp_path / "codes.npy")
        assert len(score_samples(maemm.load(run), open_source(recipe), plans=1).samples) == 64


def test_codes_that_do_not_fit_are_refused(toys, tmp_path):
    np.save(tmp_path / "short.npy", np.zeros((3, 16), int))
    with pytest.raises(MaemmError, match=r"shape \(3, 16\) for .* samples .*store a row for each sample"):
        toys.train(beside(toys, tmp_path / "short.npy"))
    file = write_codes(tmp_path, "array")
    np.save(file, np.load(file)[:, :9])
    with pytest.raises(MaemmError, match=r"are \(9,\) int64 for 16 tokens"):
        toys.train(beside(toys, file))
    with pytest.raises(MaemmError, match="makes no side input 'codes'; read it beside"):
        toys.train(toys.recipe(**CODES))
    np.save(file, np.full((64, 16), 16))
    with pytest.raises(MaemmError, match="NaN or infinity for finite tokens"):
        toys.train(beside(toys, file))
