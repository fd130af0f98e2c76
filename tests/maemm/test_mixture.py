"""Several data sets in one run: which set a step takes, and what belongs to it."""

from collections import Counter

import numpy as np
import pytest

from maemm import MaemmError, Rng, config
from maemm.data.mixture import Mixture, MixtureBatches, Part, parts_of
from maemm.data.open import open_parts, open_set, open_source
from maemm.data.order import ShuffledBatches
from maemm.model.build import build_modalities
from maemm.train.distributed import DistContext
from maemm.train.setup import make_loader, make_order

pytestmark = pytest.mark.usefixtures("toys")


def recipe(mix=None, **overrides):
    base = {
        "modalities": {"toy": {}, "other": {"same_as": "toy"}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
        "data": {"workers": 0, "mix": mix or MIX},
        "train": {"batch": 8, "epochs": 2},
        "out": "runs/x",
    }
    return config.load(base, {key.replace("__", "."): value for key, value in overrides.items()}, training=True)


MIX = {
    "one": {"modalities": ["toy"], "source": {"type": "toy", "samples": 40}},
    "two": {"modalities": ["other"], "source": {"type": "toy", "samples": 16, "salt": 1}, "passes": 2},
    "both": {"source": {"type": "toy", "samples": 24, "salt": 2}, "aug_repeats": 2},
}


def order(rank=0, world=1, **rest):
    made = recipe(**rest)
    return make_order(made, open_source(made), DistContext(rank=rank, world_size=world))


def requests(one, step):
    return [request for micro in one.micro_batches(step) for request in micro]


def test_an_epoch_passes_over_each_set_as_often_as_it_says():
    one = order()
    assert one.steps == [5, 4, 6] and one.steps_per_epoch == 15 and one.samples == 80
    turns = Counter(one.set_of(step)[0] for step in range(15))
    assert turns == {0: 5, 1: 4, 2: 6}
    read = Counter(request.index for step in range(15) for request in requests(one, step))
    assert [read[i] for i in range(40)] == [1] * 40  # one pass
    assert [read[i] for i in range(40, 56)] == [2] * 16  # two passes
    assert [read[i] for i in range(56, 80)] == [2] * 24  # one pass with two rows each
    assert [one.set_of(step)[0] for step in range(15)] != [one.set_of(step)[0] for step in range(15, 30)]


def test_a_step_takes_one_set_and_follows_from_its_number_alone():
    one, again = order(), order()
    steps = [requests(one, step) for step in range(40)]
    for step in (39, 7, 0, 23):  # any step can be the first one that is asked for
        assert requests(again, step) == steps[step]
    source = open_source(recipe())
    for step in steps:
        assert len({source.locate(request.index)[0] for request in step}) == 1 and len(step) == 8
    other = order(train__seed=1)
    assert [requests(other, step) for step in range(15)] != steps[:15]


def test_processes_and_micro_batches_share_out_the_same_rows():
    whole = order()
    halves = [order(rank, 2, train__micro_batch=2) for rank in range(2)]
    for step in range(20):
        assert [row for half in halves for row in requests(half, step)] == requests(whole, step)
        assert [len(micro) for micro in halves[0].micro_batches(step)] == [2, 2]


def test_passes_need_not_be_whole():
    sets = {"a": Part(open_source(recipe({"a": MIX["one"]})), ("toy",), 0.5), "b": Part(None, ("toy",), 0.01)}
    sets["b"] = Part(sets["a"].source, ("toy",), 0.01)
    turns = MixtureBatches(Mixture(sets), [ShuffledBatches(40, 8, 0), ShuffledBatches(40, 8, 1)], 0)
    assert turns.steps == [2, 1]  # every set has a turn
    first = [turns.set_of(step) for step in range(30)]
    for number, count in ((0, 20), (1, 10)):
        assert [before for one, before in first if one == number] == list(range(count))  # goes on from turn to turn


# ------------------------------------------------------------------------------------------------- the source
def test_samples_keep_their_set():
    source = open_source(recipe())
    assert len(source) == 80 and source.locate(55) == ("two", 15) and source.locate(56) == ("both", 0)
    assert source.name(41) == "two/toy-1" and source.read(41, Rng((0,))).id == "two/toy-1"
    assert [*source.read(0, Rng((0,))).raw] == ["toy"] and [*source.read(79, Rng((0,))).raw] == ["toy", "other"]
    assert [names for _, names in parts_of(source)] == [("toy",), ("other",), ("toy", "other")]
    other = {**MIX, "one": {**MIX["one"], "source": {"type": "toy", "samples": 40, "salt": 9}}}
    assert source.fingerprint() == open_source(recipe()).fingerprint() != open_source(recipe(other)).fingerprint()


def test_batches_hold_the_modalities_of_their_set_and_bad_samples_are_replaced_within_it():
    mix = {**MIX, "two": {**MIX["two"], "source": {"type": "toy", "samples": 16, "bad": [1, 2]}}}
    made = recipe(mix)
    source = open_source(made)
    found = Counter()
    for batch in make_loader(made, source, make_order(made, source, DistContext())).batches(0, 15):
        (name,) = {id.split("/")[0] for id in batch.ids}
        assert (*batch.raw,) == source.parts[name].modalities
        found.update(bad.id for bad in batch.bad)
    assert set(found) == {"two/toy-1", "two/toy-2"}


def test_samples_of_several_sets_do_not_meet():
    from maemm.data.single_pass import each

    made = recipe()
    with pytest.raises(MaemmError, match="several data sets cannot be in one batch"):
        list(each(open_source(made), build_modalities(made), batch=64))
    assert len(open_set(made, "two")) == 16
    with pytest.raises(MaemmError, match="no data set 'three' .*one, two, both"):
        open_set(made, "three")


def test_a_share_of_each_set_is_held_out():
    source, held = open_parts(recipe(data__validation=0.25))
    assert [len(one.source) for one in source.parts.values()] == [30, 12, 18]
    assert [len(one.source) for one in held.parts.values()] == [10, 4, 6]
    ids = [{one.name(i) for i in range(len(one))} for one in (source, held)]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 80
    with pytest.raises(MaemmError, match="data.validation is other data"):
        open_parts(recipe(data__validation="elsewhere"))


# ------------------------------------------------------------------------------------------------- the recipe
@pytest.mark.parametrize(
    "mix, says",
    [
        ({"one": {"modality": ["toy"]}}, "data.mix.one.modality.*did you mean 'data.mix.one.modalities'"),
        ({"one": {"modalities": ["toys"]}}, "data.mix.one.modalities names 'toys'.*did you mean 'toy'"),
        ({"one": {"passes": 0}}, "data.mix.one.passes must be float > 0"),
        (
            {"one": {"source": {"type": "toy", "sample": 3}}},
            "data.mix.one.source.sample.*'data.mix.one.source.samples'",
        ),
        ({"one": {"source": "toi"}}, "unknown source 'toi' at data.mix.one.source"),
    ],
)
def test_mistakes_are_named(mix, says):
    with pytest.raises(MaemmError, match=says):
        recipe(mix)


def test_what_does_not_go_together_is_refused():
    for key, value in (("root", "x"), ("source", "toy"), ("balance", True), ("epoch", 8)):
        with pytest.raises(MaemmError, match=f"data.{key} cannot be set beside data.mix"):
            recipe(**{f"data__{key}": value})
    with pytest.raises(MaemmError, match="data.mix.one: no source is given for toy, other together"):
        open_source(recipe({"one": {"root": "x"}}))
    with pytest.raises(MaemmError, match="train.batch .* larger than the 4 samples"):
        order(mix={"one": {**MIX["one"], "source": {"type": "toy", "samples": 4}}})


def test_a_set_can_be_taken_out():
    made = recipe(data__mix__two=None)
    assert [*made["data"]["mix"]] == ["one", "both"]
    assert np.prod([len(one.source) for one in open_source(made).parts.values()]) == 40 * 24
