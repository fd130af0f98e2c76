"""The target ema: what its features are, how its average moves, and what it leaves alone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from maemm import config
from maemm.contract import MaemmError, Preprocessed, Rng
from maemm.model.build import build_model
from maemm.model.targets.losses import feature_baseline, feature_loss
from maemm.train.initialize import initialize_from
from maemm.train.optim import parameter_groups

BASE = {
    "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}, "target": {"type": "ema"}}},
    "encoder": {"type": "vit", "dim": 16, "depth": 3, "heads": 2},
    "decoder": {"type": "predictor", "dim": 8, "depth": 1, "heads": 2},
}


def model(more=None, **target):
    torch.manual_seed(0)
    overrides = {f"modalities.toy.target.{key}": value for key, value in target.items()}
    return build_model(config.load(BASE, {**overrides, **(more or {})}))


def pictures(batch=3, valid=None):
    torch.manual_seed(1)
    return {"toy": Preprocessed(torch.randn(batch, 1, 8, 8), valid)}


def rng(rows=3):
    return Rng((0, 0), range(rows), rows)


def shaken(net):
    """The same model, whose encoder is no longer its average."""
    with torch.no_grad():
        for p in (*net.encoder.parameters(), *net.modalities.parameters()):
            p.add_(torch.randn_like(p), alpha=0.1)
    return net


def blocks_of(net, module):
    """Outputs of a module of each block of the average, from a pass that hides nothing."""
    outputs, target = [], net.targets["toy"]
    hooks = [
        (block.mlp if module == "mlp" else block).register_forward_hook(lambda *a: outputs.append(a[2]))
        for block in target.encoder.blocks
    ]
    computed = net.plan(pictures(), rng())["toy"].computed
    for hook in hooks:
        hook.remove()
    return [output[:, 1:] for output in outputs], computed  # without the class token


# ------------------------------------------------------------------------------------------------------ features
def test_features_are_those_of_the_average_behind_the_norm(toys):
    net = model()
    expected = F.layer_norm(net.embed(pictures(), tokens=True)["toy"].detach(), (16,))
    shaken(net)
    inputs = net.plan(pictures(), rng())
    torch.testing.assert_close(inputs["toy"].computed, expected)
    out = net(inputs)
    plan = out.plans["toy"]
    torch.testing.assert_close(out.target["toy"], expected[torch.arange(3)[:, None], plan.predict])
    assert out.target["toy"].dtype == torch.float32 and not out.target["toy"].requires_grad


def test_blocks_and_their_feed_forward_parts(toys):
    net = model(layers=2, layer_norm=False)
    outputs, computed = blocks_of(net, "block")
    torch.testing.assert_close(computed, (outputs[1] + outputs[2]) / 2)
    net = model(layers=[2, 0], layer_norm=False, features="ffn")
    outputs, computed = blocks_of(net, "mlp")
    torch.testing.assert_close(computed, (outputs[0] + outputs[2]) / 2)
    assert net.encoder.layer_features == "block"  # of the average alone
    net = model(layers=2, features="ffn", instance_norm=True, layer_norm_each=True)
    outputs, computed = blocks_of(net, "mlp")
    each = [F.layer_norm(F.instance_norm(x.mT).mT, (16,)) for x in outputs[1:]]
    torch.testing.assert_close(computed, F.layer_norm(sum(each) / 2, (16,)), rtol=1e-4, atol=1e-5)


def test_more_blocks_than_there_are(toys):
    torch.testing.assert_close(*(blocks_of(model(layers=k), "block")[1] for k in (3, 500)))
    with pytest.raises(MaemmError, match=r"no blocks \[3\] \(target.layers\); they go from 0 to 2"):
        model(layers=[0, 3])
    with pytest.raises(MaemmError, match="features: ffn are those of blocks"):
        model(features="ffn")
    with pytest.raises(MaemmError, match="has no features of feed-forward parts"):
        model(
            {"encoder": {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2}},
            features="ffn",
            layers=1,
        )


def test_padding_is_in_no_norm_and_features_keep_the_order_of_tokens(toys):
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[0, :4, :4] = False  # tokens 0, 1, 4, 5 of 16
    net = model(layers=2, instance_norm=True)
    computed = net.plan(pictures(valid=valid), rng())["toy"].computed
    assert (computed[0, [0, 1, 4, 5]] == 0).all() and (computed[0, [2, 3, 6]] != 0).all()
    torch.testing.assert_close(computed[1:], net.plan(pictures(), rng())["toy"].computed[1:], rtol=1e-4, atol=1e-5)
    other = pictures(valid=valid)
    other["toy"].x[0, :, :4, :4] = 9.0
    torch.testing.assert_close(net.plan(other, rng())["toy"].computed, computed)


def test_one_pass_serves_all_plans_and_modalities(toys):
    spec = {"type": "toy", "target": {"type": "ema"}}
    recipe = {
        **BASE,
        "modalities": {"toy": spec, "other": dict(spec)},
        "masking": {"type": "multi_mask", "masks_per_sample": 3},
    }
    net, calls = build_model(config.load(recipe, {})), []
    target = net.targets["toy"]
    target.encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    both = {name: pictures()["toy"] for name in ("toy", "other")}
    out = net(both, rng=rng())
    assert net.targets["other"] is target and calls == [1] and out.pred["other"].shape == (9, 12, 16)


def test_its_pass_has_the_precision_of_the_forward_pass(toys):
    net, types = model(), []
    net.targets["toy"].encoder.blocks[0].mlp.register_forward_hook(lambda *a: types.append(a[2].dtype))
    exact, close = (net.plan_sets(pictures(), rng(), bf16=bf16)[0]["toy"].computed for bf16 in (False, True))
    assert types == [torch.float32, torch.bfloat16] and exact.dtype == close.dtype == torch.float32
    torch.testing.assert_close(close, exact, rtol=0.1, atol=0.1)
    net.targets["toy"].autocast = False  # as of targets that are no networks
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.plan_sets(pictures(), rng(), bf16=True)[0]["toy"].computed, exact)


def test_it_stays_in_evaluation_mode_and_holds_no_decoder(toys):
    net = model({"encoder.drop_path": 0.5, "modalities.toy.position": "learned"}).train()
    target = net.targets["toy"]
    assert not any(module.training for module in target.modules()) and net.encoder.training
    first, second = (net.plan(pictures(), rng())["toy"].computed for _ in range(2))
    assert torch.equal(first, second)
    names = {name for name, _ in target.named_parameters()}
    assert "modalities.toy.positions.values" in names and not any("decoder" in name for name in names)
    trained = {name for group in parameter_groups(net, 0.1) for name in group["names"]}
    assert not any(name.startswith("targets.") for name in trained)


# ------------------------------------------------------------------------------------------------------ the average
def moved(net, momentum, bad=False):
    """{name: (before, new weights, after)} of one update of the average."""
    target = net.targets["toy"]
    target.momentum = momentum
    before = {name: p.clone() for name, p in target.named_parameters()}
    target.after_step(net, 0, torch.tensor(bad))
    new = {"encoder": net.encoder, "modalities": net.modalities}
    return {
        name: (before[name], new[name.split(".")[0]].get_parameter(name.split(".", 1)[1]), p)
        for name, p in target.named_parameters()
    }


def test_an_update(toys):
    weights = moved(shaken(model()), 0.9)
    assert len(weights) > 40
    for before, new, after in weights.values():
        torch.testing.assert_close(after, 0.9 * before + 0.1 * new.detach(), rtol=1e-5, atol=1e-6)
        assert not torch.equal(after, before)
    assert all(torch.equal(after, before) for before, _, after in moved(shaken(model()), 1.0).values())
    assert all(torch.equal(after, before) for before, _, after in moved(shaken(model()), 0.9, bad=True).values())
    for _, new, after in moved(shaken(model()), 0.0).values():
        torch.testing.assert_close(after, new.detach(), rtol=0, atol=1e-6)


def test_chunks_change_nothing(toys, monkeypatch):
    whole = moved(shaken(model()), 0.9)
    monkeypatch.setattr("maemm.model.averages._CHUNK", 100)
    for name, (_, _, after) in moved(shaken(model()), 0.9).items():
        assert torch.equal(after, whole[name][2])


def test_few_launches(toys):
    from torch.utils._python_dispatch import TorchDispatchMode

    calls = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls.append(str(func))
            return func(*args, **(kwargs or {}))

    net = shaken(model())
    with Record():
        net.targets["toy"].after_step(net, 0, torch.tensor(False))
    assert len([call for call in calls if "detach" not in call]) < 10, calls


def test_momentum_is_a_function_of_the_step(toys):
    def at(*steps, before=100, **options):
        target = model(momentum=0.9, **options).targets["toy"]
        target.before_training(before)
        return [target.momentum_at(step) for step in steps]

    assert at(0, 50) == [0.9, 0.9]
    assert at(0, 50, 100, momentum_end=1.0) == pytest.approx([0.9, 0.95, 1.0])
    assert at(0, 5, 10, 99, momentum_end=1.0, momentum_steps=10) == pytest.approx([0.9, 0.95, 1.0, 1.0])
    anneal = {"momentum_end": 1.0, "momentum_steps": 10, "momentum_schedule": "anneal"}
    assert at(0, 4, 9, 99, **anneal) == pytest.approx([0.91, 0.95, 1.0, 1.0])
    assert at(0, 50, 100, momentum_end=1.0, momentum_schedule="cosine") == pytest.approx([0.9, 0.95, 1.0])
    assert at(25, momentum_end=1.0, momentum_schedule="cosine")[0] < 0.925


def test_it_begins_at_the_weights_of_init(toys):
    old = shaken(build_model(config.load(BASE, {"modalities.toy.target": None, "decoder.dim": 8})))
    net = model()
    old.decoder = None
    initialize_from(net, old)
    for name, value in net.targets["toy"].encoder.named_parameters():
        assert torch.equal(value, old.encoder.get_parameter(name))
    assert torch.equal(net.targets["toy"].modalities["toy"].embedding.weight, old.modalities["toy"].embedding.weight)


def test_modalities_that_share_a_module_move_once(toys):
    spec = {"type": "toy", "target": {"type": "ema", "momentum": 0.5}}
    recipe = {**BASE, "modalities": {"toy": spec, "other": {"same_as": "toy", "target": spec["target"]}}}
    net = shaken(build_model(config.load(recipe, {})))
    target = net.targets["toy"]
    assert target.modalities["toy"] is target.modalities["other"]
    before = target.modalities["toy"].embedding.weight.clone()
    target.after_step(net, 0, torch.tensor(False))
    expected = (before + net.modalities["toy"].embedding.weight.detach()) / 2
    torch.testing.assert_close(target.modalities["toy"].embedding.weight, expected)


# ------------------------------------------------------------------------------------------------------ losses
def test_losses():
    torch.manual_seed(0)
    pred, target = torch.randn(2, 3, 5) * 2, torch.randn(2, 3, 5)
    errors = pred - target
    assert torch.allclose(feature_loss(pred, target, "mse"), errors.square().mean(-1))
    assert torch.allclose(feature_loss(pred, target, "l1"), errors.abs().mean(-1))
    small = torch.where(errors.abs() < 0.5, errors.square(), errors.abs() - 0.25)
    assert torch.allclose(feature_loss(pred, target, "smooth_l1", beta=0.5), small.mean(-1))
    cosine = (pred * target).sum(-1) / pred.norm(dim=-1) / target.norm(dim=-1)
    assert torch.allclose(feature_loss(pred, target, "cosine"), 1 - cosine, atol=1e-6)
    by_root = feature_loss(pred, target, "mse", reduction="sum_by_root")
    assert torch.allclose(by_root, errors.square().sum(-1) / 5**0.5)
    assert feature_loss(pred.bfloat16(), target, "mse").dtype == torch.float32


@pytest.mark.parametrize("kind", ["smooth_l1", "mse", "l1", "cosine"])
@pytest.mark.parametrize("beta", [0.05, 1.0, 20.0])
def test_the_baseline_is_the_best_constant(kind, beta):
    torch.manual_seed(0)
    target, counted = torch.randn(4, 30, 3).exp(), (torch.rand(4, 30) > 0.3).float()
    baseline = feature_baseline(target, counted, kind, beta=beta)

    def mean(losses):
        return float((losses * counted).sum() / counted.sum())

    ours = mean(baseline)
    best = torch.zeros(3).requires_grad_()
    optimizer = torch.optim.Adam([best], lr=0.02)
    for _ in range(800):
        optimizer.zero_grad()
        loss = (feature_loss(best.expand_as(target), target, kind, beta=beta) * counted).sum() / counted.sum()
        loss.backward()
        optimizer.step()
    assert ours <= float(loss.detach()) + 2e-3 and ours >= float(loss.detach()) - 2e-2


# ------------------------------------------------------------------------------------------------------ beside others
def test_with_a_weight_of_0_nothing_changes(toys):
    """The same losses and gradients as beside a modality without a target, bit for bit."""
    plain = {**BASE, "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}}, "other": {"type": "toy"}}}
    plain["objectives"] = {"reconstruct": {"weights": {"other": 0.0}}}
    plain["decoder"] = {"type": "full", "dim": 8, "depth": 1, "heads": 2}
    beside = copy.deepcopy(plain)
    beside["modalities"]["other"]["target"] = {"type": "ema"}
    nets = [build_model(config.load(recipe, {})) for recipe in (plain, beside)]
    same = {name: value for name, value in nets[0].state_dict().items() if "heads.other" not in name}
    nets[1].load_state_dict(same, strict=False)
    outs = [net({name: pictures()["toy"] for name in ("toy", "other")}, rng=rng()) for net in nets]
    assert torch.equal(outs[0].total, outs[1].total) and outs[1].target["other"].shape[-1] == 16
    for out in outs:
        out.total.backward()
    for name in same:
        gradients = [dict(net.named_parameters())[name].grad for net in nets]
        assert torch.equal(gradients[0], gradients[1])
