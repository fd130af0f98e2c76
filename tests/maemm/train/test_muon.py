"""Muon: which parameters it takes, its update, and what it leaves behind where a step is skipped or a run resumed."""

import copy
import shutil
import socket

import pytest
import torch
from torch import nn

import maemm
from maemm import config
from maemm.contract import Phase
from maemm.contract.errors import MaemmError
from maemm.model.matrices import hidden_matrices
from maemm.train.muon import Muon, muon, orthogonalized
from maemm.train.optim import make_optimizer, make_phase_optimizer, parameter_groups, set_lr, step_unless

RECIPE = {
    "modalities": {"image": {"size": 16, "patch": 8, "channels": 3}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 12, "depth": 1, "heads": 2},
}
MATRICES = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 1, "mlp.fc2": 1}


def model_of(**overrides):
    torch.manual_seed(0)
    return maemm.build(config.load(RECIPE, {key.replace("__", "."): value for key, value in overrides.items()}))


def only(shape=(12, 20), stacked=1, **options):
    """A matrix of its own, and its optimiser."""
    torch.manual_seed(0)
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(shape) / 4)
    groups = parameter_groups(net, 0.1)
    return net.weight, muon(groups, {"weight": stacked}, weight_decay=0.1, **options)


def moved(parameter, optimizer, gradients, lr=0.02):
    for gradient in gradients:
        parameter.grad = gradient.clone()
        set_lr(optimizer, lr)
        step_unless(optimizer, torch.tensor(False))
    return parameter.detach().clone()


def gradients_of(shape, count=4, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [scale * torch.randn(shape, generator=generator) for _ in range(count)]


# ------------------------------------------------------------------------------------------ which parameters
def test_hidden_matrices_of_encoder_and_decoder():
    blocks = ["encoder.blocks.0", "encoder.blocks.1", "decoder.blocks.0"]
    expected = {f"{block}.{name}.weight": count for block in blocks for name, count in MATRICES.items()}
    assert hidden_matrices(model_of()) == expected


@pytest.mark.parametrize(
    ("recipe", "inside", "count"),
    [
        ("multimae/base", "decoder.adapters.rgb.attention.kv.weight", 2),  # a cross-attention that is there once
        ("multimae/base", "decoder.adapters.rgb.attention.q.weight", 1),
        ("multimae/base", "decoder.adapters.rgb.mlp.fc2.weight", 1),
        ("cav/cav_mae_base", "encoder.joint.0.attn.qkv.weight", 3),
        ("image/crossmae_base", "decoder.blocks.3.mlp.fc1.weight", 1),
        ("image/beit_base", "encoder.blocks.0.attn.qkv.weight", 3),  # a class of its own
        ("pointcloud/point_mae", "encoder.blocks.0.attn.qkv.weight", 3),
    ],
)
def test_hidden_matrices_of_recipes(recipe, inside, count):
    """And never an embedding, a head, a projection between parts, a table, or what is no matrix."""
    with torch.device("meta"):
        model = maemm.build(config.load(recipe))
    matrices = hidden_matrices(model)
    assert matrices[inside] == count
    outer = ("embedding", "heads", "project", "positions", "token", "prefix", "table", "mix", "norm")
    assert not [name for name in matrices if any(word in name.replace(".proj.", ".").split(".") for word in outer)]
    assert all(model.get_parameter(name).ndim == 2 for name in matrices)
    blocks = [name for name, p in model.named_parameters() if ".mlp.fc" in name and p.ndim == 2]
    assert {name for name in matrices if ".mlp.fc" in name} == set(blocks)


def test_layers_of_torch_are_taken_apart_too():
    net = nn.ModuleDict({"layers": nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 16)]), "head": nn.Linear(8, 2)})
    assert hidden_matrices(net) == {
        "layers.0.self_attn.in_proj_weight": 3,
        "layers.0.self_attn.out_proj.weight": 1,
        "layers.0.linear1.weight": 1,
        "layers.0.linear2.weight": 1,
    }


def test_groups_keep_decay_and_learning_rates():
    train = {"optimizer": {"type": "muon", "adamw_lr_scale": 0.5}, "layer_decay": 0.5, "no_decay": ["*.bias", "*token"]}
    optimizer = make_optimizer(model_of(), train)
    plain = make_optimizer(model_of(), {**train, "optimizer": "adamw"})
    facts = [
        {name: (group["weight_decay"], group["lr_scale"]) for group in o.param_groups for name in group["names"]}
        for o in (optimizer, plain)
    ]
    stacked = {name: group.get("stacked", 0) for group in optimizer.param_groups for name in group["names"]}
    assert {name: count for name, count in stacked.items() if count} == hidden_matrices(model_of())
    assert facts[0].keys() == facts[1].keys()
    for name, (decay, scale) in facts[1].items():
        assert facts[0][name] == (decay, scale if stacked[name] else scale / 2)


def test_patterns_instead_of_blocks():
    optimizer = make_optimizer(
        model_of(), {"optimizer": {"type": "muon", "hidden": ["*.mlp.fc1.weight", "decoder.project.weight"]}}
    )
    chosen = [name for group in optimizer.param_groups for name in group["names"] if group.get("stacked")]
    assert len(chosen) == 4 and "decoder.project.weight" in chosen
    whole = make_optimizer(model_of(), {"optimizer": {"type": "muon", "split": {"encoder.*.qkv.weight": 1}}})
    stacked = {name: group.get("stacked") for group in whole.param_groups for name in group["names"]}
    assert stacked["encoder.blocks.0.attn.qkv.weight"] == 1 and stacked["decoder.blocks.0.attn.qkv.weight"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ["*.mlp.fc3.*"]}, r"has a name like '\*\.mlp\.fc3\.\*' \(train\.optimizer\.hidden\)"),
        ({"split": {"*.fc9.*": 2}}, r"has a name like '\*\.fc9\.\*' \(train\.optimizer\.split\)"),
        ({"hidden": ["encoder.*"]}, r"is not a matrix \(train\.optimizer\.hidden\)"),
        ({"split": {"*.fc1.weight": 5}}, r"is not 5 equal matrices, one below the other \(train\.optimizer\.split\)"),
        ({"adjust": "mine"}, r"adjust"),
        ({"split": {"*.fc1.weight": 0}}, r"split"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(MaemmError, match=message) as error:
        make_optimizer(model_of(), {"optimizer": {"type": "muon", **options}})
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------- the update
@pytest.mark.parametrize("shape", [(64, 64), (96, 32), (32, 128)])
def test_singular_values_are_about_one(shape):
    torch.manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, *shape), full_matrices=False)
    x = left @ torch.diag_embed(torch.rand(3, 32 if 32 in shape else 64) * 0.95 + 0.05) @ right
    values = torch.linalg.svdvals(orthogonalized(x))
    assert values.min() > 0.65 and values.max() < 1.25
    inner = left.mT @ orthogonalized(x) @ right.mT  # the same singular vectors: diagonal
    assert (inner - torch.diag_embed(inner.diagonal(dim1=1, dim2=2))).abs().max() < 1e-3


@pytest.mark.parametrize("scale", [1e-5, 1e4])
def test_the_scale_of_gradients_has_no_say(scale):
    ends = [moved(*only(), gradients_of((12, 20), scale=s)) for s in (1.0, scale)]
    torch.testing.assert_close(*ends, atol=1e-6, rtol=0)


def test_gradients_of_zero_and_of_rank_one():
    weight, optimizer = only()
    before = weight.detach().clone()
    assert torch.equal(moved(weight, optimizer, [torch.zeros(12, 20)]), before * (1 - 0.02 * 0.1))
    assert moved(weight, optimizer, [torch.ones(12, 20)]).isfinite().all()


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("adjust", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(12, 20), (40, 12)])
def test_it_is_that_of_torch(shape, adjust, nesterov):
    """Whose products are of bfloat16, with 3 digits."""
    assert it_is_near_that_of_torch(shape, adjust, nesterov, "fp32") < 0.02
    assert it_is_near_that_of_torch(shape, adjust, nesterov, "bf16") < 0.01


def it_is_near_that_of_torch(shape, adjust, nesterov, precision):
    weight, optimizer = only(shape, adjust=adjust, nesterov=nesterov, precision=precision)
    start = weight.detach().clone()
    other = nn.Parameter(start.clone())
    theirs = torch.optim.Muon([other], lr=0.02, weight_decay=0.1, adjust_lr_fn=adjust, nesterov=nesterov)
    for gradient in gradients_of(shape):
        other.grad = gradient.clone()
        theirs.step()
    end = moved(weight, optimizer, gradients_of(shape))
    torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], theirs.state[other]["momentum_buffer"])
    return (end - other).norm() / (other - start).norm()


def test_it_is_that_of_timm():
    timm_muon = pytest.importorskip("timm.optim.muon")
    weight, optimizer = only()
    other = nn.Parameter(weight.detach().clone())
    theirs = timm_muon.Muon(
        [other], lr=0.02, weight_decay=0.1, nesterov=True, ns_coefficients="original", adjust_lr_fn="match_rms_adamw"
    )
    for gradient in gradients_of((12, 20)):
        other.grad = gradient.clone()
        theirs.step()
    assert (moved(weight, optimizer, gradients_of((12, 20))) - other).abs().max() < 2e-3


def test_stacked_matrices_are_trained_one_by_one():
    gradients = gradients_of((36, 16))
    weight, optimizer = only((36, 16), stacked=3)
    start = weight.detach().clone()
    together = moved(weight, optimizer, gradients)
    for number, rows in enumerate(start.chunk(3)):
        part, alone = only((12, 16))
        part.data.copy_(rows)
        of_part = moved(part, alone, [gradient.chunk(3)[number] for gradient in gradients])
        torch.testing.assert_close(together.chunk(3)[number], of_part, atol=1e-6, rtol=0)


def test_equal_shapes_together_are_as_one_by_one(monkeypatch):
    ends = []
    for at_once in (2**26, 1):
        monkeypatch.setattr("maemm.train.muon.AT_ONCE", at_once)
        model = model_of()
        optimizer = make_optimizer(model, {"optimizer": {"type": "muon"}, "layer_decay": 0.7})
        for seed in range(3):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            set_lr(optimizer, 0.01)
            step_unless(optimizer, torch.tensor(False))
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], atol=1e-6, rtol=0)


def test_all_else_is_trained_by_adamw():
    ends = []
    for name in ("muon", "adamw"):
        model = model_of()
        optimizer = make_optimizer(model, {"optimizer": name})
        for seed in range(2):
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            set_lr(optimizer, 0.01)
            step_unless(optimizer, torch.tensor(False))
        ends.append(model.state_dict())
    hidden = hidden_matrices(model_of())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]) == (name not in hidden), name
    # One knob: what moves by Muon moves by about as much as by AdamW.
    start = model_of().state_dict()
    ratios = [(ends[0][n] - start[n]).norm() / (ends[1][n] - start[n]).norm() for n in hidden]
    assert all(0.1 < ratio < 0.5 for ratio in ratios)  # of noise AdamW's first steps are of size 1, later about 0.2


# ------------------------------------------------------------------------------------------- leaving no trace
def test_a_skipped_step_changes_nothing():
    def trained(plan):
        model = model_of()
        optimizer = make_optimizer(model, {"optimizer": "muon"})
        for seed, bad in plan:
            torch.manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter) * (float("nan") if bad else 1.0)
            set_lr(optimizer, 0.01)
            step_unless(optimizer, torch.tensor(bad))
            optimizer.zero_grad(set_to_none=True)
        return model.state_dict(), optimizer.state_dict()["state"]

    good, moments = trained([(1, False), (2, False)])
    skipped, also = trained([(9, True), (1, False), (9, True), (2, False), (8, True)])
    assert all(torch.equal(value, skipped[name]) for name, value in good.items())
    assert moments.keys() == also.keys()
    for key, state in moments.items():
        assert all(torch.equal(value, also[key][name]) for name, value in state.items())


def test_phases_have_it_too():
    model = model_of()
    block = model.decoder.blocks[0]
    phase = Phase("p", list(block.parameters()), {"type": "muon"})
    optimizer = make_phase_optimizer(phase, "here", model)
    stacked = [group.get("stacked", 0) for group in optimizer.param_groups for _ in group["params"]]
    assert isinstance(optimizer, Muon) and sorted(filter(None, stacked)) == [1, 1, 1, 3]
    assert not any(group.get("stacked") for group in make_phase_optimizer(phase, "here").param_groups)


def test_a_run_resumes_bit_for_bit(toys):
    options = {
        "train__optimizer": {"type": "muon", "iterations": 4, "betas": [0.9, 0.99], "eps": 1e-9, "momentum": 0.9},
        "train__ema": 0.9, "train__final_weight_decay": 0.2, "train__clip_grad": 1.0, "train__layer_decay": 0.9,
        "data__source__nan": [5],
    }  # fmt: skip
    whole = toys.train(toys.recipe(toys.out / "whole", train__epochs=4, **options))
    assert sum("skipped: " in line for line in toys.lines) == 4
    toys.train(toys.recipe(toys.out / "parts", train__epochs=4, train__save_every=7, train__keep=9, **options))
    for path in (toys.out / "parts/checkpoints").glob("step-*"):
        if path.name != "step-000007":
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    parts = toys.train(toys.recipe(toys.out / "parts", train__epochs=4, train__save_every=99, **options))
    assert any("resuming from step 7" in line for line in toys.lines)
    assert toys.metrics(whole) == toys.metrics(parts)
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = toys.weights(whole, name), toys.weights(parts, name)
        assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_state_of_another_optimiser_is_refused():
    from maemm.train.restore import Unusable, _optimizer_state

    model = model_of()
    optimizer = make_optimizer(model, {"optimizer": "muon"})
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_lr(optimizer, 0.01)
    optimizer.step()
    saved = optimizer.state_dict()
    assert _optimizer_state(optimizer, copy.deepcopy(saved), "optimizer", [])["state"].keys() == saved["state"].keys()
    broken = copy.deepcopy(saved)
    key = next(key for key, state in broken["state"].items() if "momentum_buffer" in state)
    broken["state"][key]["momentum_buffer"] = torch.zeros(2, 2)
    with pytest.raises(Unusable, match="momentum_buffer is"):
        _optimizer_state(optimizer, broken, "optimizer", [])
    broken["state"][key] = {"exp_avg": torch.zeros(2, 2)}
    with pytest.raises(Unusable, match="has exp_avg, not momentum_buffer"):
        _optimizer_state(optimizer, broken, "optimizer", [])


def test_two_processes_equal_one(toys):
    options = {"train__optimizer": "muon", "train__epochs": 3}
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2)
    toys.train(toys.recipe(toys.out / "one", **options))
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    for row, other in zip(toys.metrics(toys.out / "one"), toys.metrics(toys.out / "two"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-5)
    first, second = toys.weights(toys.out / "one"), toys.weights(toys.out / "two")
    for name, value in first.items():
        if not name.endswith("qkv.bias"):  # the gradient of the keys' bias is 0: Adam amplifies its rounding
            torch.testing.assert_close(value, second[name], atol=2e-4, rtol=0)


def test_shards_move_as_whole_matrices():
    """One rank that is a world of its own, so that everything is a shard."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        mesh, ends = init_device_mesh("cpu", (1,)), []
        for sharded in (False, True):
            torch.manual_seed(0)
            values = torch.randn(12, 20)
            weight = nn.Parameter(distribute_tensor(values, mesh, [Shard(0)]) if sharded else values)
            group = {"params": [weight], "names": ["weight"], "weight_decay": 0.1, "lr_scale": 1.0}
            optimizer = muon([group], {"weight": 3})
            for bad, gradient in zip((False, True, False), gradients_of((12, 20)), strict=False):
                weight.grad = distribute_tensor(gradient, mesh, [Shard(0)]) if sharded else gradient
                set_lr(optimizer, 0.02)
                step_unless(optimizer, torch.tensor(bad))
            ends.append(weight.full_tensor() if sharded else weight)
        assert torch.equal(*ends)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_shards_resume_bit_for_bit_and_one_process_goes_on_from_them(toys):
    """What two ranks have of the momentum is saved whole."""
    options = {"train__optimizer": "muon", "train__epochs": 2, "train__save_every": 4, "train__keep": 9}
    sharded = {**options, "train__parallel": "fsdp"}

    def trained(out, processes, **overrides):
        started = toys.start(toys.recipe(out, **overrides), processes)
        for process in started if processes > 1 else [started]:
            assert process.wait(120) == 0, process.said()
        return toys.weights(out)

    whole = trained(toys.out / "whole", 2, **sharded)
    for name in ("again", "alone"):
        shutil.copytree(toys.out / "whole", toys.out / name)
        shutil.rmtree(toys.out / name / "checkpoints/step-000008")
    again = trained(toys.out / "again", 2, **sharded)
    assert [name for name in whole if not torch.equal(whole[name], again[name])] == []
    alone = trained(toys.out / "alone", 1, **options)
    assert max(float((alone[name] - value).abs().max()) for name, value in whole.items()) < 2e-4


def test_it_runs_on_the_pretended_gpu_without_a_wait():
    from tests.pretended_gpu.device import gpu

    with gpu() as seen:
        model = model_of().to("cuda")
        optimizer = make_optimizer(model, {"optimizer": "muon"})
        bad = torch.tensor(False).to("cuda")
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            set_lr(optimizer, 0.01)
            seen.clear()
            step_unless(optimizer, bad)
        assert [*map(str, seen.waits)] == [] and [*map(str, seen.blocking_copies)] == []
