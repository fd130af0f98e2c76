"""A whole checkpoint that holds other things than the run wrote is never used: keys, shapes and types of all of it."""

import json
import shutil
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

from maemm.contract.errors import MaemmError
from maemm.train.checkpoint import OPTIMIZER
from maemm.train.distributed import DistContext
from maemm.train.loop import Run
from maemm.train.restore import Unusable, restore
from maemm.train.setup import make_train_state
from maemm.weights.checkpoints import Checkpoint, damage, stamp

PHASED = {"objectives": {"adversary": {}}, "train__ema": 0.9, "data__validation": 0.25, "train__epochs": 3,
          "data__source__samples": 88}  # fmt: skip


def stamp_all(folder):
    """Honest sizes and hashes, as of a file that somebody wrote on purpose."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["files"] = {name: stamp(folder / name) for name in meta["files"]}
    (folder / "meta.json").write_text(json.dumps(meta))


class Instead(tuple):
    """Of one value: what optimizer.pt holds in place of the state."""


def edit(folder, change):
    """``change(state)`` alters what optimizer.pt holds, or returns :class:`Instead`."""
    state = torch.load(folder / OPTIMIZER, weights_only=True)
    changed = change(state)
    torch.save(changed[0] if isinstance(changed, Instead) else state, folder / OPTIMIZER)
    stamp_all(folder)


def edit_weights(folder, name, change):
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name)
    stamp_all(folder)


@pytest.fixture
def trained(toys):
    """A run of 12 steps, stopped after 8: two checkpoints, a phase, an average and validations; and its end."""

    def train(optimizer="adamw", **overrides):
        options = {**PHASED, **overrides, "train__save_every": 4, "train__optimizer": {"type": optimizer}}
        recipe = toys.recipe(**options, train__keep=3)
        toys.train(recipe)
        toys.end_weights = toys.weights()
        shutil.rmtree(toys.out / "checkpoints/step-000012")
        return recipe, toys.out / "checkpoints/step-000008"

    return train


def read(recipe, folder, state=None):
    state = state or make_train_state(recipe, 8, 1, DistContext())
    before = [parameter.detach().clone() for parameter in state.model.parameters()]
    try:
        return state, restore(Checkpoint(folder, {"step": 8}), state)
    except Unusable as error:
        assert all(torch.equal(a, b) for a, b in zip(state.model.parameters(), before, strict=True))
        assert not state.optimizer.state
        raise AssertionError(str(error)) from error


def first(state, part="optimizer"):
    """The state of the first matrix."""
    states = (state[part] if part == "optimizer" else state["phases"][part])["state"]
    return next(entry for entry in states.values() if any(torch.is_tensor(x) and x.ndim == 2 for x in entry.values()))


def moment(entry):
    return next(key for key, value in entry.items() if torch.is_tensor(value) and value.ndim == 2)


def set_moment(value, part="optimizer"):
    def change(state):
        entry = first(state, part)
        entry[moment(entry)] = value(entry[moment(entry)]) if callable(value) else value

    return change


def drop_moment(state):
    entry = first(state)
    del entry[moment(entry)]


def drop_state(state):
    del state["optimizer"]["state"][0]


def swap_names(state):
    names = state["optimizer"]["param_groups"][0]["names"]
    names[0], names[1] = names[1], names[0]


#: what is done to optimizer.pt, whatever the optimiser -> what the message says
EVERY = {
    "other shape": (set_moment(torch.zeros(3, 5)), "(3, 5) float32, not ("),
    "transposed": (set_moment(lambda x: torch.zeros(x.shape[1] + 1, x.shape[0])), "float32, not ("),
    "one value": (set_moment(torch.zeros(1)), "(1,) float32, not ("),
    "no values": (set_moment(torch.zeros(0)), "(0,) float32, not ("),
    "one axis": (set_moment(lambda x: x.flatten()), "float32, not ("),
    "double": (set_moment(lambda x: x.double()), "float64, not ("),
    "half": (set_moment(lambda x: x.half()), "float16, not ("),
    "whole numbers": (set_moment(lambda x: x.long()), "int64, not ("),
    "complex": (set_moment(lambda x: x.to(torch.complex64)), "complex64, not ("),
    "sparse": (set_moment(lambda x: x.to_sparse()), "not ("),
    "a text": (set_moment("zeros"), "is a str, not a tensor"),
    "a number": (set_moment(0.5), "is a float, not a tensor"),
    "a moment is missing": (drop_moment, "optimizer.pt, optimizer"),
    "one too many": (lambda state: first(state).update(more=torch.zeros(2)), "more, not "),
    "a state is missing": (drop_state, "no state of "),
    "no states": (lambda state: state["optimizer"].pop("state"), "not the state of an optimiser"),
    "no groups": (lambda state: state["optimizer"].pop("param_groups"), "not the state of an optimiser"),
    "a group is missing": (lambda state: state["optimizer"]["param_groups"].pop(), "no state of "),
    "groups are empty": (lambda state: state["optimizer"].update(param_groups=[]), "no state of "),
    "without names": (lambda state: state["optimizer"]["param_groups"][0].pop("names"), "name its parameters"),
    "other names": (lambda state: state["optimizer"]["param_groups"][0].update(names=["a"]), "name its parameters"),
    "names of others": (swap_names, "not ("),
    "texts for indices": (
        lambda state: state["optimizer"]["param_groups"][0].update(
            params=list(map(str, state["optimizer"]["param_groups"][0]["params"]))
        ),
        "name its parameters",
    ),
    "the rate is a text": (lambda state: state["optimizer"]["param_groups"][0].update(lr=[1.0]), "lr is [1.0], not"),
    "moments of a phase": (set_moment(torch.zeros(3, 5), "adversary.critic"), "phases.adversary.critic"),
    "a phase is missing": (lambda state: state["phases"].clear(), "phases"),
    "a phase too many": (lambda state: state["phases"].update(other={}), "phases"),
    "no optimiser": (lambda state: state.pop("optimizer"), "no optimizer"),
    "no means": (lambda state: state.pop("means"), "no means"),
    "means of texts": (lambda state: state["means"].update(loss="1"), "metrics"),
    "means of tensors": (lambda state: state["means"].update(loss=torch.zeros(2)), "metrics"),
    "the time is a text": (lambda state: state.update(seconds="1"), "seconds is no float"),
    "the time is not finite": (lambda state: state.update(seconds=float("nan")), "metrics"),
    "skipped steps below 0": (lambda state: state.update(nonfinite_steps=-1), "metrics"),
    "skipped steps are a switch": (lambda state: state.update(nonfinite_steps=True), "nonfinite_steps is no int"),
    "the best is a text": (lambda state: state["validation"].update(best="1"), "metrics"),
    "the patience is a text": (lambda state: state["validation"].update(without_improvement=None), "metrics"),
    "a list": (lambda state: Instead([[1, 2]]), "holds a list"),
    "a tensor": (lambda state: Instead([torch.zeros(3)]), "holds a Tensor"),
    "weights": (lambda state: Instead([OrderedDict(a=torch.zeros(3))]), "no means"),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "lars"])
def test_all_of_the_training_state_is_compared(trained, optimizer):
    recipe, folder = trained(optimizer)
    state, _ = read(recipe, folder)
    assert state.optimizer.state
    state = make_train_state(recipe, 8, 1, DistContext())  # that nothing is read into
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    cases = EVERY if optimizer == "adamw" else dict(list(EVERY.items())[:18])
    for name, (change, message) in cases.items():
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        edit(folder, change)
        assert damage(folder) is None
        with pytest.raises(AssertionError) as caught:
            read(recipe, folder, state)
        text = str(caught.value)
        assert message in text and "\n" not in text, (name, text)


WEIGHTS = {
    "double": (lambda t, key: t.update({key: t[key].double()}), "float64, not "),
    "half": (lambda t, key: t.update({key: t[key].half()}), "float16, not "),
    "int8": (lambda t, key: t.update({key: t[key].to(torch.int8)}), "int8, not "),
    "bool": (lambda t, key: t.update({key: t[key].bool()}), "bool, not "),
    "other shape": (lambda t, key: t.update({key: torch.zeros(3, 5)}), "(3, 5) float32, not "),
    "other axes": (lambda t, key: t.update({key: t[key][None]}), "float32, not "),
    "missing": (lambda t, key: t.pop(key), "lacks 1 keys"),
    "too many": (lambda t, key: t.update(more=torch.zeros(2)), "has unexpected 1 keys (more)"),
}


@pytest.mark.parametrize("name", ["model.safetensors", "model_ema.safetensors"])
def test_weights_and_their_average_are_compared(trained, name):
    recipe, folder = trained()
    name = next(path.name for path in folder.glob("*.safetensors") if ("ema" in path.name) == ("ema" in name))
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    state = make_train_state(recipe, 8, 1, DistContext())
    for change, message in WEIGHTS.values():
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        edit_weights(folder, name, lambda tensors, change=change: change(tensors, "encoder.blocks.0.mlp.fc1.weight"))
        with pytest.raises(AssertionError) as caught:
            read(recipe, folder, state)
        assert message in str(caught.value) and name in str(caught.value)
    (folder / name).write_bytes(b"<html>not weights</html>")
    with pytest.raises(AssertionError, match=f"{name} cannot be read"):
        read(recipe, folder)


@pytest.mark.parametrize("case", ["other shape", "a state is missing", "no means", "a list"])
def test_the_run_falls_back_and_says_so(toys, trained, case):
    recipe, last = trained()
    edit(last, EVERY[case][0])
    toys.train(recipe)
    said = [line for line in toys.lines if "cannot be used" in line]
    assert len(said) == 1 and said[0].startswith(f"{last} cannot be used (optimizer.pt")
    assert said[0].endswith("falling back to the one before it") and "resuming from step 4" in toys.lines
    assert all(torch.equal(value, toys.end_weights[key]) for key, value in toys.weights().items())
    read(recipe, last)  # it has been written again


def test_weights_of_another_type_fall_back_too(toys, trained):
    recipe, last = trained()
    edit_weights(
        last, "model.safetensors", lambda tensors: tensors.update({"encoder.norm.bias": torch.zeros(16).int()})
    )
    toys.train(recipe)
    assert any("encoder.norm.bias is (16,) int32, not (16,) float32" in line for line in toys.lines)
    assert "resuming from step 4" in toys.lines


def test_without_another_checkpoint_it_is_an_error(toys, trained):
    recipe, last = trained()
    shutil.rmtree(last.with_name("step-000004"))
    edit(last, EVERY["other shape"][0])
    with pytest.raises(MaemmError, match=r"^no checkpoint of the run can be used \(.*step-000008: optimizer.pt.*; .*"):
        toys.train(recipe)
    assert last.is_dir()


def test_the_one_that_is_used_outlives_those_that_cannot_be(toys, trained, monkeypatch):
    """With keep=1 the newest, which is of no use, must not push out the one that the run goes on from."""
    recipe, last = trained()
    edit(last, EVERY["a list"][0])
    changed = {**recipe, "train": {**recipe["train"], "keep": 1}}
    names = lambda: sorted(path.name for path in last.parent.iterdir())  # noqa: E731
    begin = Run.train

    def stop_early(self, interrupts):
        assert names() == ["step-000004", "step-000008"]
        begin(self, interrupts)

    monkeypatch.setattr(Run, "train", stop_early)
    toys.train(changed)
    assert names() == ["step-000012"]


def test_states_of_older_versions_are_read(toys, trained):
    """Without what was added later, and with parameters that were in the optimiser but never had a gradient."""
    recipe, last = trained(objectives={"reconstruct": {}})

    def older(state):
        for key in ("phases", "untrained"):
            del state[key]
        state["optimizer"]["param_groups"][0]["names"].append("encoder.own.audio.0.norm1.weight")
        state["optimizer"]["param_groups"][0]["params"].append(999)
        state["optimizer"]["param_groups"][0].pop("decoupled_weight_decay", None)

    edit(last, older)
    state, rest = read(recipe, last)
    assert rest["phases"] == {} and len(state.optimizer.state) == len(list(state.model.parameters()))

    def trained_once(state):
        state["optimizer"]["state"][999] = first(state)

    edit(last, trained_once)
    with pytest.raises(AssertionError, match="unexpected state of encoder.own"):
        read(recipe, last)


def test_optimisers_of_plugins_are_compared_by_what_they_make():
    """Of any make: a state of numbers and factors, numbers in the groups, and one that cannot be tried."""
    from maemm.train.restore import _optimizer_state

    class Factored(torch.optim.Optimizer):
        def __init__(self, params, broken=False):
            super().__init__(params, {"lr": 0.1, "scale": 1.0})
            self.broken = broken

        def step(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    if self.broken and parameter.shape != (3, 5):
                        raise RuntimeError("only the real size")
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    state["rows"] = torch.zeros(len(parameter)) if not self.broken else torch.zeros(3, 5)
                group["scale"] = 2.0

    for broken in (False, True):
        net = torch.nn.Linear(5, 3, bias=False)
        optimizer = Factored([{"params": [net.weight], "names": ["weight"]}], broken)
        net.weight.grad = torch.zeros(3, 5)
        optimizer.step()
        fresh = Factored([{"params": [net.weight], "names": ["weight"]}], broken)
        saved = optimizer.state_dict()
        assert _optimizer_state(fresh, saved, "optimizer", [])["param_groups"][0]["scale"] == 2.0
        saved["state"][0]["count"] = "many"
        with pytest.raises(Unusable, match="count"):
            _optimizer_state(fresh, saved, "optimizer", [])
