import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import maemm
from maemm import config, registry
from maemm.contract.errors import MaemmError
from maemm.train.distributed import DistContext
from maemm.train.ema import Ema
from maemm.train.optim import grad_norm, lars, make_optimizer, parameter_groups, set_lr, step_unless
from maemm.train.schedules import learning_rate
from maemm.train.state import MicroBatches, TrainState
from maemm.train.step import take_step

GOLDEN = Path(__file__).parents[2] / "golden/mae"
MAE = {"optimizer": {"type": "adamw", "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.05}, "no_decay": ["*.bias"]}


# ------------------------------------------------------------------------------------- three published steps
def official(model, values=None):
    """State under the published names; ``values``: something else than the weights, by parameter."""
    model = copy.deepcopy(model)
    for name, parameter in model.named_parameters():
        if values is not None and name in values:
            parameter.data = values[name]
    return registry.find("weights", "mae")().write(model, model.extras)


@pytest.fixture(scope="module")
def three_steps():
    data, facts = load_file(GOLDEN / "mae_adamw3.safetensors"), json.loads((GOLDEN / "mae_adamw3.json").read_text())
    state = {key.removeprefix("state/"): value for key, value in data.items() if key.startswith("state/")}
    model = maemm.load(state, kind="mae", heads=4, decoder_heads=3, norm_pix=True).train()
    optimizer = make_optimizer(model, MAE)
    # Three steps at 0.5, 1 and 1.5 epochs: two steps an epoch, the first of them left out.
    lr = learning_rate({"lr": 2.4e-3, "warmup_epochs": 1, "min_lr": 0.0}, 2, 6)
    train_state = TrainState(model, model, optimizer, DistContext(), seed=0, batch=4, steps=3)
    results, losses = [], []
    for step in range(3):
        inputs = planned(model, data, step)
        with torch.no_grad():
            losses.append(model(inputs).loss["image"])
        set_lr(optimizer, lr(step + 1))
        results.append(
            take_step(train_state, MicroBatches(step, [inputs], model.counts(inputs), [["a", "b", "c", "d"]]))
        )
    return data, facts, model, optimizer, results, losses


def planned(model, data, step):
    plan = maemm.Plan(data["visible"][step], data["predict"][step])
    return model._inputs({"image": data["x"][step]}, {"image": plan}, None)


def test_losses_and_gradient_norms(three_steps):
    data, facts, model, optimizer, results, losses = three_steps
    for step, result in enumerate(results):
        torch.testing.assert_close(losses[step], data["loss"][step], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.total, data["loss_total"][step], atol=1e-5, rtol=0)
        torch.testing.assert_close(result.grad_norm, data["grad_norm"][step], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        after = model(planned(model, data, 0)).total
    torch.testing.assert_close(after, data["loss_total_after"], atol=1e-5, rtol=0)
    lr = learning_rate({"lr": 2.4e-3, "warmup_epochs": 1, "min_lr": 0.0}, 2, 6)
    assert [lr(step) for step in (1, 2, 3)] == pytest.approx(facts["lr"], rel=1e-15)


def test_weights_and_moments_after_three_steps(three_steps):
    data, facts, model, optimizer, *_ = three_steps
    state = official(model)
    compared = [key for key in data if key.startswith("after/")]
    assert len(compared) == 9
    for key in compared:
        torch.testing.assert_close(state[key.removeprefix("after/")], data[key], atol=2e-5, rtol=0, msg=key)
    named = dict(model.named_parameters())
    for moment in ("exp_avg", "exp_avg_sq"):
        values = {name: optimizer.state[one][moment] for name, one in named.items() if one in optimizer.state}
        state = official(model, values)
        compared = [key for key in data if key.startswith(moment + "/")]
        assert len(compared) == 2
        for key in compared:
            torch.testing.assert_close(state[key.removeprefix(moment + "/")], data[key], atol=2e-6, rtol=1e-4)


def test_checksums_of_every_parameter(three_steps):
    _, facts, model, *_ = three_steps
    state, sums = official(model), facts["checksums_after_step3"]
    assert len(sums) == 48
    for name, expected in sums.items():
        value = state[name].double().flatten()
        if name.endswith("qkv.bias"):  # the gradient of the keys' bias is exactly 0
            value = torch.cat(value.chunk(3)[::2])
        assert value.numel() == expected["numel_summed"]
        assert value.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-4), name
        assert value.square().sum().item() == pytest.approx(expected["sq_sum"], rel=1e-4), name


def test_the_published_groups(three_steps):
    _, facts, model, optimizer, *_ = three_steps
    marks = {}
    for group in optimizer.param_groups:
        for name, one in zip(group["names"], group["params"], strict=True):
            marks[name] = torch.full_like(one, group["weight_decay"])
    state = official(model, marks)
    decayed = {name for name in facts["checksums_after_step3"] if state[name].eq(0.05).all()}
    plain = {name for name in facts["checksums_after_step3"] if state[name].eq(0.0).all()}
    assert sorted(decayed) == sorted(facts["groups"]["decay (wd 0.05)"])
    assert sorted(plain) == sorted(facts["groups"]["no_decay (wd 0)"])


# ---------------------------------------------------------------------------------------------------- parts
class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Linear(3, 4), nn.Linear(4, 2), nn.Parameter(torch.ones(1, 2))
        self.fixed = nn.Parameter(torch.ones(2, 2), requires_grad=False)

    def forward(self, x):
        return self.two(self.one(x).tanh()) * self.three


def trained(name, steps=3, bad=(), **options):
    torch.manual_seed(0)
    model = Small()
    optimizer = make_optimizer(model, {"optimizer": {"type": name, **options}})
    set_lr(optimizer, 0.1)
    for step in range(steps):
        model(torch.randn(5, 3)).square().sum().backward()
        if step in bad:
            model.one.weight.grad.fill_(float("nan"))
        step_unless(optimizer, ~torch.isfinite(grad_norm(optimizer, None)))
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_a_bad_step_leaves_no_trace(name):
    model, optimizer = trained(name, steps=2)
    skipped, also = trained(name, steps=3, bad=[2])
    assert not torch.equal(model.one.weight, trained(name, steps=1)[0].one.weight)
    for one, other in zip(model.parameters(), skipped.parameters(), strict=True):
        assert torch.equal(one, other)
    assert str(optimizer.state_dict()) == str(also.state_dict())


def test_groups():
    groups = parameter_groups(Small(), 0.3, ["*.bias", "th*"])
    assert {name: group["weight_decay"] for group in groups for name in group["names"]} == {
        "one.weight": 0.3, "two.weight": 0.3, "one.bias": 0.0, "two.bias": 0.0, "three": 0.0,
    }  # fmt: skip
    with pytest.raises(MaemmError, match="nothing to train"):
        parameter_groups(Small().requires_grad_(False), 0.0)


def test_unknown_names_and_options():
    with pytest.raises(MaemmError, match="unknown optimizer 'adamm'; did you mean 'adam'"):
        make_optimizer(Small(), {"optimizer": "adamm"})
    with pytest.raises(MaemmError, match="beta"):
        make_optimizer(Small(), {"optimizer": {"type": "sgd", "beta": 1}})


def test_lars_is_that_of_the_published_linear_probe():
    """Two steps on a linear head, by hand: trust for the matrix without weight decay, none for the bias."""
    torch.manual_seed(0)
    head, x, y = nn.Linear(6, 3), torch.randn(8, 6), torch.randint(3, (8,))
    weight, bias, moved = head.weight.detach().clone(), head.bias.detach().clone(), [0.0, 0.0]
    optimizer = lars(parameter_groups(head, 0.0))
    for lr in (6.4, 3.2):
        set_lr(optimizer, lr)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(x), y).backward()
        for number, (value, grad) in enumerate(((weight, head.weight.grad), (bias, head.bias.grad))):
            step = grad * (0.001 * value.norm() / grad.norm()) if value.ndim > 1 else grad
            moved[number] = 0.9 * moved[number] + step
            value -= lr * moved[number]
        optimizer.step()
        torch.testing.assert_close(head.weight, weight, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(head.bias, bias, atol=1e-6, rtol=1e-5)


def test_layer_decay_is_that_of_fine_tuning():
    recipe = {
        "modalities": {"image": {"size": 32, "patch": 8, "channels": 3}},
        "encoder": {"type": "vit", "dim": 32, "depth": 12, "heads": 2},
        "decoder": {"type": "full", "dim": 32, "depth": 1, "heads": 2},
    }
    with torch.device("meta"):
        model = maemm.build(config.load(recipe))
    optimizer = make_optimizer(model, {**MAE, "layer_decay": 0.65})
    scale = {name: group["lr_scale"] for group in optimizer.param_groups for name in group["names"]}
    published = json.loads((GOLDEN / "lr_table.json").read_text())["finetune_base"]["lr_scale_by_group_id"]
    for block in range(12):
        assert scale[f"encoder.blocks.{block}.attn.qkv.weight"] == pytest.approx(published[block + 1])
    assert scale["encoder.norm.weight"] == scale["decoder.norm.weight"] == 1.0
    embedding = [name for name in scale if name.startswith("modalities.image.") and ".decoder." not in name]
    assert embedding and all(scale[name] == pytest.approx(published[0]) for name in [*embedding, "encoder.prefix"])
    set_lr(optimizer, 2.0)
    assert all(group["lr"] == 2.0 * group["lr_scale"] for group in optimizer.param_groups)


def test_the_average_waits_where_a_step_was_bad():
    model = Small()
    ema = Ema(model, 0.75)
    before = model.one.weight.detach().clone()
    with torch.no_grad():
        model.one.weight += 1.0
    ema.update(torch.tensor(True), 0)
    assert torch.equal(ema.model.one.weight, before)
    ema.update(torch.tensor(False), 1)
    torch.testing.assert_close(ema.model.one.weight, before + 0.25)
    assert not ema.model.one.weight.requires_grad
