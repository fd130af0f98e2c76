import math

import pytest
import torch

from maemm import MaemmError, Plan, Rng
from maemm.config.options import check
from maemm.contract import Output, Preprocessed
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.model.objectives.contrastive import Contrastive

pytestmark = pytest.mark.usefixtures("toys")


def recipe(encoder=None, **contrastive):
    return {
        "modalities": {"one": {"type": "toy"}, "two": {"type": "toy"}},
        "encoder": {
            "type": "streams",
            "dim": 16,
            "depth": 1,
            "joint_depth": 2,
            "heads": 2,
            "streams": ["one", "two"],
            **(encoder or {}),
        },
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2, "prefix": "none"},
        "objectives": {"reconstruct": {}, "contrastive": {"pair": ["one", "two"], **contrastive}},
    }


def made(seed=0, encoder=None, **contrastive):
    with seeded(seed):
        return build_model(recipe(encoder, **contrastive)).eval()


def batch(rows=3, seed=0):
    values = torch.Generator().manual_seed(seed)
    return {name: torch.randn(rows, 1, 8, 8, generator=values) for name in ("one", "two")}


DRAW = Rng((0,), range(3), 3)


def test_streams_are_passes_of_their_own_and_the_joint_one_feeds_the_decoder():
    model = made()
    inputs = model.plan(batch(), DRAW)
    out = model(inputs)
    assert set(out.streams) == {"one", "two"}
    assert out.streams["one"].shape == out.encoded["one"].shape == (3, 4, 16)
    other = {**inputs, "two": model.plan({"two": batch(seed=1)["two"]}, DRAW)["two"]}
    changed = model(other)
    torch.testing.assert_close(changed.streams["one"], out.streams["one"])  # sees nothing of the other
    assert (changed.encoded["one"] - out.encoded["one"]).abs().max() > 1e-3


def test_two_joint_blocks_really_chain():
    """The published loop restarts in every joint block: the first one's norms get no gradient there."""
    norms = "encoder.own.one.0.norm1.weight"
    for chain, grows in ((True, True), (False, False)):
        model = made(encoder={"chain_streams": chain})
        model(model.plan(batch(), DRAW)).total.backward()
        gradient = dict(model.named_parameters())[norms].grad
        assert (gradient is not None and bool(gradient.abs().max() > 0)) is grows


def test_features_of_streams_chain_whatever_pre_training_did():
    chained, published = made(encoder={"chain_streams": True}), made(encoder={"chain_streams": False})
    for name, value in chained.embed(batch()).items():
        torch.testing.assert_close(published.embed(batch())[name], value)
    inputs, latents = chained.encode(batch())
    assert set(latents.streams) == {"one", "two", "one+two"}
    assert latents.streams["one+two"].shape == (3, 32, 16)


def test_a_modality_alone_embeds_as_it_does_beside_the_other():
    model = made()
    both, alone = model.embed(batch()), model.embed({"one": batch()["one"]})
    torch.testing.assert_close(alone["one"], both["one"])


def test_no_streams_and_no_trunks_is_one_transformer():
    model = made(encoder={"streams": [], "depth": 0})
    model.objectives.pop("contrastive")
    out = model(model.plan(batch(), DRAW))
    assert not out.streams
    out.total.backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)


@pytest.mark.parametrize(
    "encoder, what",
    [
        ({"streams": ["three"]}, "stream 'three' is not made of"),
        ({"streams": ["one+one"]}, "join different modalities"),
        ({"joint_depth": 0}, "encoder.joint_depth must be 1 <= int <= 500"),
        ({"heads": 3}, "multiple of 3 heads"),
    ],
)
def test_impossible_streams_are_refused(encoder, what):
    with pytest.raises(MaemmError, match=what):
        made(encoder=encoder)


def test_every_layer_has_a_number():
    encoder = made().encoder
    found = {name: encoder.layer_of(name) for name, _ in encoder.named_parameters()}
    assert found["vectors.one"] == 0 and found["trunks.two.0.mlp.fc1.weight"] == 1
    assert found["joint.0.norm1.weight"] == found["own.one.0.norm1.weight"] == 2
    assert found["own.two.1.norm2.bias"] == 3 and found["norm.weight"] == found["own_norm.one.bias"] == 4


# ------------------------------------------------------------------------------------------- the contrastive loss
def streams(first, second, plans=None):
    plan = Plan(torch.zeros(len(first), 1, dtype=torch.long), torch.zeros(len(first), 0, dtype=torch.long))
    plans = plans or {"one": plan, "two": plan}
    return Output(plans, {}, {}, {}, {}, {}, {"one": first[:, None], "two": second[:, None]})


def loss(out, **options):
    terms = Contrastive("contrastive", pair=("one", "two"), **options)(out, None)
    return {name: term.mean for name, term in terms.items()}


def test_each_second_picks_its_first():
    first, second = torch.eye(3), torch.eye(3)
    found = loss(streams(first, second), temperature=1.0)
    expected = math.log(math.e + 2) - 1  # cosine 1 for the partner, 0 for the two others
    assert found["contrastive"] == pytest.approx(expected, abs=1e-6)
    assert found["contrastive_accuracy"] == 1
    assert loss(streams(first, second[[1, 2, 0]]), temperature=1.0)["contrastive_accuracy"] == 0


def test_directions_differ_and_both_is_their_mean():
    values = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 8, generator=values)
    one, other = loss(streams(first, second)), loss(streams(second, first))
    both = loss(streams(first, second), both=True)
    assert one["contrastive"] != other["contrastive"]
    assert both["contrastive"] == pytest.approx(((one["contrastive"] + other["contrastive"]) / 2).item())


def test_absent_samples_change_nothing_and_get_no_gradient():
    values = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 4, 8, generator=values)
    there = torch.tensor([[True], [False], [True], [True]])
    index = torch.zeros(4, 1, dtype=torch.long)
    plans = {"one": Plan(index, index[:, :0], visible_valid=there), "two": Plan(index, index[:, :0])}
    first.requires_grad_()
    found = loss(streams(first, second, plans))
    whole = loss(streams(first[[0, 2, 3]], second[[0, 2, 3]]))
    assert found["contrastive"].item() == pytest.approx(whole["contrastive"].item(), abs=1e-6)
    found["contrastive"].backward()
    assert torch.isfinite(first.grad).all() and not first.grad[1].any()


def test_plans_of_one_sample_do_not_compete():
    values = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 2, 8, generator=values)
    rows = torch.tensor([0, 0, 1, 1])
    index = torch.zeros(4, 1, dtype=torch.long)
    plans = {name: Plan(index, index[:, :0], rows=rows) for name in ("one", "two")}
    found = loss(streams(first[rows], second[rows], plans))
    cosine = torch.nn.functional.cosine_similarity(second[:, None], first[None], dim=-1) / 0.05
    # The partner against both plans of the other sample, and not against the second plan of its own.
    expected = [torch.logsumexp(cosine[i, [i, 1 - i, 1 - i]], 0) - cosine[i, i] for i in (0, 1)]
    assert found["contrastive"].item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_a_temperature_can_be_learned():
    objective = Contrastive("contrastive", pair=("one", "two"), learned_temperature=True, temperature=0.1)
    values = torch.Generator().manual_seed(0)
    out = streams(*torch.randn(2, 4, 8, generator=values))
    term = objective(out, None)["contrastive"]
    assert term.mean.item() == pytest.approx(loss(out, temperature=0.1)["contrastive"].item(), rel=1e-5)
    term.mean.backward()
    assert objective.log_scale.grad.abs() > 0


@pytest.mark.parametrize("options", [{"pair": ["one"]}, {"pair": ["one", "one"]}, {"temperature": 0.0}])
def test_impossible_losses_are_refused(options):
    with pytest.raises(MaemmError, match="objectives.contrastive"):
        given = {"pair": ["one", "two"], **options}
        Contrastive("contrastive", **check(Contrastive, given, "objectives.contrastive"))


def test_an_encoder_without_the_stream_is_told():
    model = made(encoder={"streams": ["one"]})
    with pytest.raises(MaemmError, match="gives no stream 'two'.*encoder.streams"):
        model(model.plan(batch(), DRAW))


def test_a_step_without_one_of_the_pair_has_no_term():
    model = made()
    inputs = model.plan({"one": batch()["one"]}, DRAW)
    assert set(model(inputs).parts) == set(model.counts(inputs)) == {"reconstruct.one"}


def test_padding_is_left_out_of_streams():
    model = made()
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[0, 4:] = False
    values = batch()
    with_padding = {**values, "one": Preprocessed(values["one"], valid)}
    noisy = values["one"].clone()
    noisy[0, :, 4:] = 9.0
    other = {**values, "one": Preprocessed(noisy, valid)}
    first, second = (model(model.plan(one, DRAW)) for one in (with_padding, other))
    torch.testing.assert_close(first.terms["contrastive"], second.terms["contrastive"])
