"""Every parameter that is to be trained gets a gradient, in one process and in two; what gets none is named."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import socket
import sys
from pathlib import Path

import pytest
import torch

from maemm.train.distributed import DistContext

STEPS = Path(__file__).with_name("recipe_steps.py")
script = runpy.run_path(str(STEPS))
RECIPES, two_steps = script["RECIPES"], script["two_steps"]
TUNED = "cav/finetune/cav_mae_tiny_cpu"
OWN_NORMS = 12  # of the passes through the joint blocks that the loss of the joint pass leaves out


@pytest.fixture(autouse=True)
def single_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_all_that_it_says(name):
    answer = two_steps(name, DistContext())
    assert answer["trainable"] and not answer["missing"] and not answer["unused"] and not answer["zero"]
    assert not answer["same"]


def _rank(arguments, environment):
    os.environ.update(environment)
    sys.argv = ["recipe_steps.py", *arguments]
    runpy.run_path(str(STEPS), run_name="__main__")


def in_two_processes(tmp_path, cases, timeout=300):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    arguments = [json.dumps(cases), str(tmp_path / "answers.json")]
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=_rank, args=(arguments, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}))
        for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout)
    ended = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    assert ended == [0, 0]
    return json.loads((tmp_path / "answers.json").read_text())


def check_all(answers):
    assert answers
    assert not {key: answer for key, answer in answers.items() if answer["missing"] or answer["unused"]}


def test_two_processes_train_recipes_of_every_kind(tmp_path):
    names = [name for name in RECIPES if name.startswith("cav/finetune/")]
    names += ["image/probe/mae_base", "audio/finetune/audiomae_tiny_cpu", "cav/cav_mae_tiny_cpu", "signal/tiny_cpu"]
    unused = {
        "a single pass": (TUNED, {"objectives.classify.stream": "audioonly"}),
        "a pass without the other modality": (TUNED, {"objectives.classify.stream": "missingvideoonly"}),
        "all passes": (TUNED, {"objectives.classify.stream": None}),
    }
    check_all(in_two_processes(tmp_path, {**{name: (name, {}) for name in names}, **unused}))


#: parts of a recipe that its loss does not reach, though nothing says so -> names that are reported
UNDECLARED = {
    "a decoder beside a classifier": ("image/finetune/mae_tiny_cpu", {"decoder": {"type": "full"}}, "decoder."),
    "a final norm that the head replaces": (
        "image/finetune/mae_tiny_cpu", {"encoder.final_norm": True}, "encoder.norm.weight",
    ),
    "a head of one modality on several streams": (
        TUNED, {"head": {"type": "linear", "classes": 6}, "objectives.classify.stream": None}, "encoder.trunks.image",
    ),
    "norms of passes that do not chain": (
        "cav/cav_mae_tiny_cpu", {"encoder.chain_streams": False, "encoder.joint_depth": 2}, "encoder.own.audio.0.",
    ),
}  # fmt: skip


def check_undeclared(case, answer):
    expected = UNDECLARED[case][2]
    assert any(name.startswith(expected) for name in answer["unused"]), answer["unused"]
    assert set(answer["missing"]) == set(answer["unused"]) and answer["trainable"] > len(answer["unused"])
    assert not answer["same"]


@pytest.mark.parametrize("case", UNDECLARED)
def test_what_gets_no_gradient_is_named(case):
    name, overrides, _ = UNDECLARED[case]
    check_undeclared(case, two_steps(name, DistContext(), overrides))


def test_what_gets_no_gradient_does_not_end_two_processes(tmp_path):
    answers = in_two_processes(tmp_path, {case: spec[:2] for case, spec in UNDECLARED.items()})
    assert set(answers) == set(UNDECLARED)
    for case, answer in answers.items():
        check_undeclared(case, answer)


@pytest.mark.slow
def test_two_processes_train_every_recipe(tmp_path):
    check_all(in_two_processes(tmp_path, {name: (name, {}) for name in RECIPES}))


@pytest.mark.parametrize(
    "stream", ["multimodal", "audioonly", "videoonly", "missingaudioonly", "missingvideoonly", None]
)
def test_the_head_of_several_passes_knows_what_a_pass_leaves_out(stream, monkeypatch):
    """Exactly the parameters that the loss does not reach, where none is frozen."""
    from maemm.model.build import build_model
    from maemm.train.optim import freeze_unused

    overrides = {"objectives.classify.stream": stream}
    model = build_model(script["shrunk"](TUNED, overrides))
    freeze_unused(model)
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    monkeypatch.setattr("maemm.train.setup.freeze_unused", lambda model: None)
    assert two_steps(TUNED, DistContext(), overrides)["unused"] == frozen
    assert len(frozen) == {"multimodal": OWN_NORMS, None: 0}.get(stream, len(frozen)) and (frozen or stream is None)


def warnings_of(lines):
    return [line for line in lines if line.startswith("warning: ")]


HEAD = {"head": {"type": "linear", "classes": 2}}  # in pre-training, where nothing uses it


def test_a_run_names_what_it_does_not_train(toys):
    toys.train(train__epochs=2)
    assert not warnings_of(toys.lines)
    plain = toys.weights()
    toys.train(toys.recipe(toys.out / "head", train__epochs=2, **HEAD))
    (line,) = warnings_of(toys.lines)
    assert "4 parameters get no gradient and stay untrained (head.norm.weight, head.norm.bias, head.linear" in line
    weights = toys.weights(toys.out / "head")
    assert all(torch.equal(value, weights[key]) for key, value in plain.items())
    toys.train(toys.recipe(toys.out / "head", train__epochs=3, **HEAD))  # continues though they have no moments
    assert "resuming from step 8" in toys.lines


def test_two_processes_name_it_too_and_train_alike(toys):
    toys.train(train__epochs=2, **HEAD)
    first, second = toys.start(toys.recipe(toys.out / "two", train__epochs=2, **HEAD), processes=2)
    assert (first.wait(), second.wait()) == (0, 0), first.said() + second.said()
    assert len(warnings_of(first.said().splitlines())) == 1 and not warnings_of(second.said().splitlines())
    for row, other in zip(toys.metrics(), toys.metrics(toys.out / "two"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
