"""torch.compile and activation checkpointing: the same losses, few graphs, and clear words where it cannot be done."""

import copy
import re

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.testing import CompileCounterWithBackend

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.subset import Subset
from maemm.model.build import build_model
from maemm.model.masking.counts import as_sets
from maemm.model.masking.multi_block import MultiBlock
from maemm.model.repeated import repeated_blocks
from maemm.registry.make import make
from maemm.train import compiling
from maemm.train.distributed import DistContext
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from maemm.train.validation import Validator, validate
from tests.pretended_gpu.recipes import RECIPES, Samples, shrunk

QUICK = ["image/mae_tiny_cpu", "pointcloud/point_mae_tiny_cpu"]
FP32 = {"train.precision": "fp32"}


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Samples:
    return Samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(autouse=True)
def fresh_compiler(monkeypatch):
    """Graphs are traced and differentiated, but not compiled to machine code, which takes a minute."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, **options, backend=counter))
    with compiling.compiler_settings():
        yield counter
    torch._dynamo.reset()


def steps(name, samples, count=5, log=print, sizes=None, **train):
    """Losses of ``count`` steps, and the state. ``sizes``: a set to which those of the plans are added."""
    recipe = shrunk(name, FP32 | {f"train.{key}": value for key, value in train.items()})
    state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
    sets = [["image"], ["video"]] if recipe["data"].get("mix") else [None]
    losses = []
    for step in range(count):
        micro_batches = plan_micro_batches(state, step, [samples.batch(recipe, step, sets[step % len(sets)])])
        if not step and state.compiled:
            compiling.start(state, micro_batches, train["compile"], log)
        if sizes is not None:
            sizes |= {sizes_of(inputs) for inputs in micro_batches.inputs}
        losses.append(float(take_step(state, micro_batches).total))
    return losses, state


def sizes_of(inputs):
    """Modalities, and how many of their tokens are visible and predicted."""
    return tuple((name, x.plan.visible.shape, x.plan.predict.shape) for name, x in inputs.items())


def check(name, samples, counter):
    """One graph; of two data sets one for each, and one that makes the second's position table; and one for each size
    of plans, where a masking draws sizes."""
    mixed, sizes = name in ("video/omnimae_base", "video/finetune/omnimae_base"), set()
    expected, _ = steps(name, samples, sizes=sizes)
    losses, state = steps(name, samples, compile=True)
    assert losses == expected and counter.frame_count == len(sizes) + mixed
    maskings = getattr(state.model.masking, "maskings", {}).values()
    assert len(sizes) == 1 + mixed or any(isinstance(masking, MultiBlock) for masking in maskings)


@pytest.mark.parametrize("name", QUICK)
def test_one_graph_for_five_batches(name, samples, fresh_compiler):
    check(name, samples, fresh_compiler)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in QUICK])
def test_one_graph_for_five_batches_of_every_recipe(name, samples, fresh_compiler):
    check(name, samples, fresh_compiler)


def test_every_drawn_size_is_compiled_once(samples, fresh_compiler):
    check_sizes("image/ijepa_tiny_cpu", samples, fresh_compiler)


@pytest.mark.slow
def test_every_drawn_size_of_several_sets_is_compiled_once(samples, fresh_compiler):
    check_sizes("video/vjepa2_tiny_cpu", samples, fresh_compiler)


def check_sizes(name, samples, counter):
    """Steps until all sizes have been drawn compile at most two graphs for each, encoder and predictor, and one for the
    target network, which sees all tokens; further steps none, and nothing is said."""
    recipe, lines = shrunk(name, FP32 | {"train.compile": "blocks"}), []
    state = make_train_state(recipe, 10, 1, DistContext(), steps_per_epoch=5)
    most, sizes, graphs = compiling.sizes_of(recipe).count, {}, []

    def plans(step):
        return plan_micro_batches(state, step, [samples.batch(recipe, 0)])

    for step in range(200):
        if len(sizes) < most:
            sizes |= {sizes_of(inputs): step for inputs in plans(step).inputs if sizes_of(inputs) not in sizes}
    assert 1 < len(sizes) == most <= compiling.MOST_SHAPES
    steps = sorted(set(sizes.values()))
    compiling.start(state, plans(steps[0]), "blocks", lines.append)
    for step in steps * 2:
        take_step(state, plans(step))
        graphs.append(counter.frame_count)
    assert most < graphs[len(steps) - 1] <= 2 * most + 1 and not lines
    assert set(graphs[len(steps) :]) == {graphs[len(steps) - 1]}


def test_equal_blocks_are_compiled_once(samples, fresh_compiler):
    expected, _ = steps("image/mae_tiny_cpu", samples)
    losses, state = steps("image/mae_tiny_cpu", samples, compile="blocks")
    assert losses == expected
    assert len(repeated_blocks(state.model)) == 4 and fresh_compiler.frame_count == 2  # encoder and decoder


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("compile_", [False, "blocks", True])
def test_recomputed_activations_change_nothing(name, compile_, samples):
    expected, _ = steps(name, samples, 3)  # with drop path in the points' encoder
    losses, state = steps(name, samples, 3, compile=compile_, activation_checkpointing=True)
    assert losses == expected
    assert [*state.model.state_dict()] == [*steps(name, samples, 1)[1].model.state_dict()]


def test_a_copy_of_a_changed_block_has_weights_of_its_own(samples):
    _, state = steps("image/mae_tiny_cpu", samples, 1, compile="blocks", activation_checkpointing=True)
    block = repeated_blocks(state.model)[0]
    x, other = torch.randn(2, 3, 48), copy.deepcopy(block)
    before = block(x)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(block(x), before) and not torch.equal(other(x), before)


def test_recomputing_keeps_less(samples):
    def kept(**train):
        recipe = shrunk("image/mae_tiny_cpu", {"encoder.depth": 6} | {f"train.{k}": v for k, v in train.items()})
        state = make_train_state(recipe, 10, 1, DistContext())
        micro_batches = plan_micro_batches(state, 0, [samples.batch(recipe, 0)])
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
            state.model(micro_batches.inputs[0])
        return sum(sizes)

    assert kept(activation_checkpointing=True) < 0.3 * kept()


# ------------------------------------------------------------------------------------------- where it cannot be done
RATIO = "modalities.image.masking.ratio"
RAGGED = {"modalities.audio.pad": "masked", "modalities.audio.bucket": None}


def test_ragged_batches_ask_for_few_sizes():
    def model(**changes):
        recipe = shrunk("audio/audiomae_base", RAGGED | {f"modalities.audio.{k}": v for k, v in changes.items()})
        return make_train_state(recipe, 10, 1, DistContext()).model

    cuda = torch.device("cuda")
    assert not compiling.wanted("auto", model(), cuda)
    with pytest.raises(MaemmError, match=r"come in up to \d+ sizes.*train.compile"):
        compiling.wanted(True, model(), cuda)
    frames = model().modalities["audio"].frames
    assert compiling.wanted("auto", model(bucket=frames // 4), cuda)
    assert compiling.wanted("blocks", model(pad="seen"), cuda)


def test_auto_compiles_on_cuda_alone():
    model = make_train_state(shrunk("image/mae_tiny_cpu"), 10, 1, DistContext()).model
    assert compiling.wanted("auto", model, torch.device("cuda"))
    assert not compiling.wanted("auto", model, torch.device("cpu"))
    assert compiling.wanted(True, model, torch.device("cpu"))
    assert not compiling.wanted(False, model, torch.device("cuda"))

    model = make_train_state(shrunk("image/mae_tiny_cpu", {RATIO: [0.5, 0.9]}), 10, 1, DistContext()).model
    assert not compiling.wanted("auto", model, torch.device("cuda"))
    with pytest.raises(MaemmError, match=r"up to \d+ sizes"):
        compiling.wanted("blocks", model, torch.device("cuda"))


@pytest.mark.parametrize(
    ("masking", "shapes"),
    [
        ({"type": "random", "ratio": 0.75}, 1),
        ({"type": "random", "ratio": [0.5, 0.5]}, 1),
        ({"type": "random", "ratio": [0.4, 0.6]}, 41),
        ({"type": "random", "ratio": {"mean": 0.5, "std": 0.1, "low": 0.4, "high": 0.45}}, 11),
        ({"type": "multi_mask", "masking": "random"}, 1),
        ({"type": "multi_mask", "masking": {"type": "scan", "ratio": [0.4, 0.6]}}, 41),
        ({"type": "multi_block"}, 5),
        ({"type": "multi_block", "count": "official"}, None),
        ({"type": "multi_block", "aspect": [1, 1], "target_scale": [0.2, 0.2], "context_scale": [0.9, 0.9]}, 1),
        ({"type": "multi_block", "generators": [{"aspect": [1.0, 1.0]}]}, 1),
        ({"type": "multi_block", "generators": [{"aspect": [1.0, 1.0]}, {"blocks": 2, "aspect": [1.0, 1.0]}]}, 2),
        ({"type": "multi_block", "generators": [{"aspect": [1.0, 1.0]}], "count": "official"}, None),
    ],
)
def test_how_many_shapes_maskings_give(masking, shapes):
    """On 14 x 14 tokens, and that no more are drawn."""
    values = torch.zeros(2, 196, 3)
    tokens = {"image": Tokens(values, torch.zeros(1, 196, 2), (14, 14))}
    made = make("maskings", masking, where="masking")
    assert made.shapes(tokens) == shapes
    rngs = [Rng((0, step), range(2), 2, step / 40) for step in range(40)]
    drawn = [plans["image"] for rng in rngs for plans in as_sets(made(tokens, rng))]
    assert shapes is None or len({(plan.visible.shape, plan.predict.shape) for plan in drawn}) <= shapes


def test_what_is_said_of_a_recipe():
    def said(name, setting="auto", **changes):
        return compiling.on_gpu(setting, shrunk(name, changes))

    assert said("image/mae_tiny_cpu") == "compiled, as all batches have one size"
    assert said("image/mae_tiny_cpu", False) == "not compiled (train.compile: false)"
    assert said("image/ijepa_tiny_cpu") == "compiled, in 2 sizes"
    assert said("video/vjepa2_tiny_cpu") == "compiled, in 8 sizes"
    drawn = {RATIO: [0.1, 0.9]}
    assert re.fullmatch(r"not compiled, as .* up to \d+ sizes, more than the 16.*", said("image/mae_base", **drawn))
    official = {"modalities.image.masking.count": "official"}
    assert "any number of tokens in a step" in said("image/ijepa_tiny_cpu", **official)


def test_further_sizes_are_not_compiled_and_this_is_said(samples, monkeypatch):
    lines = []
    expected, _ = steps("image/mae_tiny_cpu", samples, 2)
    monkeypatch.setattr(compiling, "MOST_GRAPHS", 1)
    with compiling.compiler_settings():
        losses, _ = steps("image/mae_tiny_cpu", samples, 2, compile="blocks", log=lines.append)  # two sizes of blocks
    assert losses == expected
    assert len(lines) == 1 and "more sizes than torch compiles" in lines[0]


def test_a_compiler_that_fails(samples, monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nmore lines")

    compile_ = torch._dynamo.optimize(broken)
    monkeypatch.setattr(torch, "compile", lambda f, **_: compile_(f))
    lines = []
    expected, _ = steps("image/mae_tiny_cpu", samples, 2, compile=False)
    monkeypatch.setattr(compiling, "wanted", lambda *_: True)
    for setting in ("blocks", True):
        with pytest.raises(MaemmError, match=r"torch.compile failed .*no C\+\+ compiler.*train.compile=false") as error:
            steps("image/mae_tiny_cpu", samples, 2, compile=setting)
        assert "\n" not in str(error.value)
    losses, state = steps("image/mae_tiny_cpu", samples, 2, compile="auto", log=lines.append)
    assert losses == expected and not state.compiled and len(lines) == 1
    assert "nothing is compiled" in lines[0] and BackendCompilerFailed.__name__ not in lines[0]


@pytest.mark.parametrize("setting", ["blocks", True])
def test_validation_compiles_nothing(setting, samples, fresh_compiler, tmp_path):
    """Its batches have sizes of their own, and it runs without gradients: each would be a graph."""
    _, state = steps("image/mae_tiny_cpu", samples, count=2, compile=setting)
    graphs = fresh_compiler.frame_count
    assert graphs
    held_out = Subset(samples.source("image"), range(6))
    validator = Validator(state.model.recipe, held_out, 1, tmp_path, print)
    in_a_run = validator.validate(state, 2)
    assert fresh_compiler.frame_count == graphs
    recipe = {**state.model.recipe, "train": {**state.model.recipe["train"], "compile": False}}
    plain = build_model(recipe)
    plain.load_state_dict(state.model.state_dict())
    assert validate(plain, held_out, recipe) == pytest.approx(in_a_run, rel=1e-5)
    validate(state.model, held_out, state.model.recipe)  # as it was
    assert fresh_compiler.frame_count > graphs
