"""Masks that the encoder guides: by the scores of its first attention (SMA), by the clusters of its features."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.linalg import eigh

from maemm import MaemmError, Rng, config
from maemm.config.options import check
from maemm.contract import FirstAttention, Preprocessed, Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.masking.attention import Attention, attention_of_queries
from maemm.model.masking.clusters import Clusters, nearer_to
from maemm.model.masking.course import Course, read_course
from maemm.model.masking.cut import fiedler_vector, normalised_cut, similarities
from maemm.model.masking.random import Random
from maemm.registry.make import make

GOLDEN = load_file(Path(__file__).parents[1] / "golden/variants/sma_mask.safetensors")
COUNTS = ["floor_visible", "floor_hidden", "round_visible", "round_hidden"]
GRID = (5, 6)
VALID = torch.tensor(np.random.default_rng(0).random((5, 30)) < [[0.5], [0.9], [0.1], [0.0], [1.0]])
VALID[2], VALID[2, 17] = False, True  # one token


def tokens_of(valid=None, batch=5, grid=GRID):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 1), lattice(grid)[None], grid, valid)


def rng(batch=5, step=0, progress=0.0):
    return Rng((0, step), range(batch), batch, progress)


def guide_of(masking, tokens, seed=0, prefix=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(tokens.batch, *shape, generator=generator)

    if masking.guide == "features":
        return normal(tokens.count, 6)
    return FirstAttention(normal(3, prefix + tokens.count, 4), normal(3, tokens.count, 4), prefix)


def drawn(masking, tokens, rng, guide=None):
    guide = guide_of(masking, tokens) if guide is None else guide
    return masking({"x": tokens}, rng, {"x": guide})["x"].check("x", tokens)


def hidden(plan, count):
    """(B, N) bool."""
    valid = torch.ones_like(plan.predict, dtype=torch.bool) if plan.predict_valid is None else plan.predict_valid
    mask = torch.zeros(len(plan.predict), count, dtype=torch.bool)
    return mask.scatter_reduce(1, plan.predict, valid, "amax")


# ------------------------------------------------------------------------------------------- attention, as published
def golden(case):
    return {key.partition("/")[2]: x for key, x in GOLDEN.items() if key.startswith(f"{case}/")}


def noise_of(case, tensors, received):
    """Noise for which the masking's choices by chance are the stored ones: what it hides has the highest."""
    valid = tensors["attention_mask_in"].bool()
    noise = torch.full(valid.shape, 0.25)
    for row, (sums, of_row) in enumerate(zip(received, valid, strict=True)):
        order = sums.masked_fill(~of_row, -1).argsort(descending=True)
        if case == "varying_noise":
            rest = order[round(0.25 * int(of_row.sum())) : int(of_row.sum())].sort().values
            permutation = tensors[f"perm_random_{row}"]
        elif case == "fixed_noise":
            rest, permutation = order[:12], tensors["perm_subset"][row]
        else:
            continue
        noise[row, rest[permutation]] = 0.9 - 0.01 * torch.arange(len(permutation))
    return noise


@pytest.mark.parametrize("case", ["fixed", "varying", "varying_noise", "fixed_noise"])
def test_masks_of_attention_are_those_of_the_golden_file(case, monkeypatch):
    tensors = golden(case)
    valid, scores, queries = tensors["attention_mask_in"].bool(), tensors["scores"], tensors["queries"]
    chosen = scores.gather(2, queries[:, None, :, None].expand(-1, 3, -1, 16))
    received = attention_of_queries(chosen, valid)
    draws = {"mask/x": noise_of(case, tensors, received), "mask/x/queries": torch.ones(2, 6).scatter_(1, queries, 0.0)}
    monkeypatch.setattr(Rng, "uniform", lambda self, purpose, *shape, device="cpu": draws[purpose])
    masking = Attention(
        ratio=0.5,
        queries="prefix",
        num_per_query=4,
        count="round_hidden",
        noise="subset" if case == "fixed_noise" else "rest",
        share=0.5 if "noise" in case else 1.0,
    )
    tokens = tokens_of(valid if case.startswith("varying") else None, 2, (16,))
    keys = torch.eye(16).expand(2, 3, -1, -1)  # the queries are then the scores
    plan = drawn(masking, tokens, rng(2), FirstAttention(scores, keys, 6))
    assert hidden(plan, 16).tolist() == tensors["loss_mask"].bool().tolist()
    seen = torch.zeros(2, 16, dtype=torch.bool)
    shown = torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
    seen = seen.scatter_reduce(1, plan.visible, shown, "amax")
    assert seen.tolist() == tensors["attention_mask_out"].bool().tolist()


def by_hand(scores, valid, queries, hidden_count):
    """Of one sample, in double precision and with loops: the tokens with the largest sums."""
    sums = np.zeros(scores.shape[-1])
    for query in queries:
        for head in scores.double().numpy():
            weights = np.exp(head[query]) * valid
            sums += weights / max(weights.sum(), 1e-300) / len(scores)
    return set(np.argsort(-np.where(valid, sums, -1), kind="stable")[:hidden_count])


@pytest.mark.parametrize("queries", ["tokens", "prefix", "all"])
@pytest.mark.parametrize("padded", [False, True])
def test_tokens_of_most_attention_are_hidden(queries, padded):
    tokens, key = tokens_of(VALID if padded else None), rng()
    masking = Attention(ratio=0.6, queries=queries, num_per_query=3)  # 6 queries
    guide = guide_of(masking, tokens)
    mask = hidden(drawn(masking, tokens, key, guide), 30)
    first, last = {"tokens": (2, 32), "prefix": (0, 2), "all": (0, 32)}[queries]
    noise = key.uniform("mask/x/queries", last - first)
    for row, scores in enumerate(guide.scores()):
        valid = VALID[row].numpy() if padded else np.ones(30, bool)
        asks = np.concatenate([np.ones(2, bool), valid])
        asking = [q for q in noise[row].argsort().tolist() if asks[first + q]]
        count = valid.sum() - int(valid.sum() * (1 - 0.6))
        expected = by_hand(scores, valid, [first + q for q in asking[:6]], count)
        assert set(mask[row].nonzero()[:, 0].tolist()) == expected


def test_one_head_of_each_query():
    tokens = tokens_of()
    masking = Attention(ratio=0.6, num_per_query=6, heads="random")
    guide = guide_of(masking, tokens)
    mask = hidden(drawn(masking, tokens, rng(), guide), 30)
    queries = 2 + rng().uniform("mask/x/queries", 30).argsort(1)[:, :3]
    heads = (rng().uniform("mask/x/heads", 3) * 3).long()
    weights = guide.scores().softmax(-1)
    for row in range(5):
        sums = sum(weights[row, h, q] for q, h in zip(queries[row], heads[row], strict=True))
        assert set(mask[row].nonzero()[:, 0].tolist()) == set(sums.topk(18).indices.tolist())
    assert len(heads.unique()) == 3


def test_the_share_of_attention_follows_the_published_schedule():
    course = read_course({"start": 0.0, "end": 1.0, "over": 0.25})
    for done in (0.0, 0.01, 0.125, 0.2, 0.25, 0.7, 1.0):
        scale = 0.5 * (1 + math.cos(math.pi * min(done / 0.25, 1)))  # of the noise
        assert course.at(done) == pytest.approx(1 - scale, abs=1e-12)
    assert course.at(0.0) == 0.0 and course.at(0.25) == course.at(1.0) == 1.0
    assert read_course({"start": 1.0, "end": 0.5, "shape": "linear"}).at(0.5) == 0.75
    tokens = tokens_of()
    plain = hidden(Random(ratio=0.6).plan("x", tokens, rng()), 30)
    for noise in ("rest", "subset"):
        masking = Attention(ratio=0.6, share=course, noise=noise)
        whole = hidden(drawn(masking, tokens, rng(progress=1.0)), 30)
        same = [
            ((hidden(drawn(masking, tokens, rng(progress=done)), 30) & mask).sum(1).tolist())
            for done in (0.0, 0.1, 0.15, 0.25)
            for mask in (whole, plain)
        ]
        assert same[1] == [18] * 5 and same[6] == [18] * 5  # all by chance, all by attention
        assert same[0] < same[2] < same[4] < same[6] and sum(same[5]) < sum(same[3]) < sum(same[1])
        assert masking.guide_of("x", 0.0) is None and masking.guide_of("x", 0.001) == "first_attention"


# ----------------------------------------------------------------------------------------------- what holds for both
GUIDED = [
    {"type": "attention"},
    {"type": "attention", "noise": "subset", "share": 0.4},
    {"type": "attention", "share": 0.3, "heads": "random", "queries": "all"},
    {"type": "clusters", "begin": 0.0},
    {"type": "clusters", "begin": 0.0, "hints": 0.35, "object": "inner"},
]


@pytest.mark.parametrize("spec", GUIDED)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("padded", [False, True])
def test_counts_are_exact(spec, count, padded):
    tokens = tokens_of(VALID if padded else None)
    for ratio in (0.0, 0.37, 0.75, 1.0):
        if spec.get("noise") == "subset" and ratio > 0.9:
            continue
        masking = make("maskings", {**spec, "ratio": ratio, "count": count})
        for bad in (False, True):  # a model that diverged has legal plans
            guide = guide_of(masking, tokens)
            if bad:
                guide = replace(guide, keys=guide.keys * math.nan) if masking.guide != "features" else guide * math.nan
            plan = drawn(masking, tokens, rng(progress=1.0), guide)
            have = VALID.sum(1) if padded else torch.full((5,), 30)
            mask = hidden(plan, 30)
            expected = hidden(Random(ratio=ratio, count=count).plan("x", tokens, rng()), 30).sum(1)
            rounded = spec.get("share") == 0.3 and count == "round_hidden"  # each part by itself
            assert ((mask.sum(1) - expected).abs() <= rounded).all() and (mask.sum(1) <= have).all()
            assert not (mask & ~VALID).any() or not padded


@pytest.mark.parametrize("spec", [*GUIDED[:4], {"type": "clusters", "begin": 0.0, "hints": 0.3}])
def test_a_sample_has_its_mask_in_any_batch(spec):
    masking, tokens = make("maskings", {**spec, "ratio": [0.4, 0.7]}), tokens_of(VALID)
    guide = guide_of(masking, tokens)
    whole = hidden(drawn(masking, tokens, rng(progress=0.5), guide), 30)
    rows = torch.tensor([1, 4])
    part = (
        guide[rows]
        if masking.guide == "features"
        else replace(guide, queries=guide.queries[rows], keys=guide.keys[rows])
    )
    key = Rng((0, 0), [1, 4], 5, 0.5)
    assert torch.equal(hidden(drawn(masking, tokens_of(VALID[rows], 2), key, part), 30), whole[rows])


ZERO = [
    ({"type": "attention", "share": 0.0}, 0.7),
    ({"type": "attention", "share": 0.0, "noise": "subset", "queries": "prefix", "heads": "random"}, 0.7),
    ({"type": "attention", "share": {"start": 0.0, "end": 1.0, "over": 0.25}}, 0.0),
    ({"type": "clusters"}, 0.0624),
    ({"type": "clusters", "begin": 1.0}, 0.999),
    ({"type": "clusters", "begin": 0.0, "hints": 1.0}, 0.5),
]


@pytest.mark.parametrize(("spec", "progress"), ZERO)
@pytest.mark.parametrize("padded", [False, True])
def test_without_a_share_masks_are_those_of_random(spec, progress, padded):
    tokens = {"x": tokens_of(VALID if padded else None)}
    for options in ({"ratio": 0.6}, {"ratio": [0.3, 0.9], "count": "floor_hidden"}, {"count": "round_hidden"}):
        for several in ({}, {"type": "multi_mask"}):
            specs = ({"type": "random", **options}, {**spec, **options})
            pair = [make("maskings", {**several, "masking": each} if several else each) for each in specs]
            assert pair[1].guide_of("x", progress) is None
            for step in range(3):
                plain, ours = (masking(tokens, rng(5, step, progress))["x"] for masking in pair)
                for role in ("visible", "predict", "visible_valid", "predict_valid", "counted"):
                    a, b = getattr(plain, role), getattr(ours, role)
                    assert a is b is None or torch.equal(a, b)


# ---------------------------------------------------------------------------------------------------------- clusters
def test_the_cut_is_that_of_the_eigenvectors():
    torch.manual_seed(0)
    shared = torch.randn(6, 3, 16).repeat_interleave(13, 1)
    weights = similarities(torch.randn(6, 39, 16) * 0.7 + shared * torch.linspace(0, 2, 6)[:, None, None])
    for matrix, ours in zip(weights.double().numpy(), fiedler_vector(weights).double().numpy(), strict=True):
        degrees = np.diag(matrix.sum(1))
        values, vectors = eigh(degrees - matrix, degrees)
        expected = vectors[:, 1] * np.sign(vectors[np.abs(vectors[:, 1]).argmax(), 1])
        assert values[2] - values[1] > 1e-2
        np.testing.assert_allclose(ours / np.linalg.norm(ours), expected / np.linalg.norm(expected), atol=2e-4)


@pytest.mark.parametrize("sizes", [(13, 17), (29, 1), (2, 28), (15, 15)])
def test_orthogonal_blocks_are_cut_apart(sizes):
    side = torch.arange(30) < sizes[0]
    side = side[torch.randperm(30, generator=torch.Generator().manual_seed(1))].expand(3, -1)
    features = torch.stack([side.float() * 2, (~side).float(), torch.zeros(3, 30)], -1)
    valid = torch.rand(3, 30, generator=torch.Generator().manual_seed(2)) < 0.8
    valid[0] = True
    valid[:, [side[0].nonzero()[0, 0], (~side[0]).nonzero()[0, 0]]] = True
    cut = normalised_cut(features, valid)
    assert all(torch.equal(c[v], s[v]) or torch.equal(~c[v], s[v]) for c, s, v in zip(cut, side, valid, strict=True))
    again = normalised_cut(features.flip(1), valid.flip(1)).flip(1)
    assert sizes == (15, 15) or torch.equal(again[valid], cut[valid])  # the sign depends on no order


def two_clusters(side, seed=3):
    """Features of tokens that are on a ``side`` (B, N) or the other, with a little noise."""
    noise = 0.1 * torch.randn(*side.shape, 8, generator=torch.Generator().manual_seed(seed))
    noise[..., 0] += side
    noise[..., 1] += ~side
    return noise


def test_the_object_is_hidden_but_for_hints():
    inside = torch.zeros(GRID, dtype=torch.bool)
    inside[1:4, 1:5] = True  # 12 of 30
    side, tokens = inside.flatten().expand(5, -1), tokens_of()
    guide = two_clusters(side)
    for object_, expected in (("smaller", side), ("inner", side)):
        mask = hidden(drawn(Clusters(ratio=0.4, begin=0.0, hints=0.0, object=object_), tokens, rng(), guide), 30)
        assert torch.equal(mask, expected)
    big = torch.ones(GRID, dtype=torch.bool)
    big[:, 0], big[0, 1] = False, False  # 24 of 30, and less of the border than the others
    big = big.flatten().expand(5, -1)
    mask = hidden(
        drawn(Clusters(ratio=0.79, begin=0.0, hints=0.0, object="inner"), tokens, rng(), two_clusters(big)), 30
    )
    assert torch.equal(mask, big)
    mask = hidden(drawn(Clusters(ratio=0.2, begin=0.0, hints=0.0), tokens, rng(), two_clusters(big)), 30)
    assert torch.equal(mask, ~big)
    closeness = nearer_to(guide, side, ~side)
    whole = hidden(drawn(Clusters(ratio=0.7, begin=0.0, hints=0.0), tokens, rng(), guide), 30)
    assert (whole & side).sum() == side.sum()  # then those of the other side that are nearest
    assert (closeness.masked_fill(~whole, 9).amin(1) >= closeness.masked_fill(whole, -9).amax(1)).all()
    half = hidden(drawn(Clusters(ratio=0.4, begin=0.0, hints=0.5), tokens, rng(), guide), 30)
    shown = (side & ~half).sum(1)
    assert (half.sum(1) == 12).all() and (shown <= 6).all() and shown.sum() > 10
    other = hidden(drawn(Clusters(ratio=0.4, begin=0.0, hints=0.5), tokens, rng(step=1), guide), 30)
    assert not torch.equal(half, other)


def test_hints_fall_from_where_guidance_begins():
    masking = Clusters(begin=0.2, hints={"start": 1.0, "end": 0.0, "over": 0.5, "shape": "linear"})
    tokens, inside = tokens_of(), torch.arange(30) < 12
    guide = two_clusters(inside.expand(5, -1))
    shown = [
        int((inside & ~hidden(drawn(masking, tokens, rng(progress=done), guide), 30)).sum())
        for done in (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0)
    ]
    assert shown[0] == shown[1] and shown == sorted(shown, reverse=True) and shown[5] == shown[6] == 0
    assert [masking.guide_of("x", done) for done in (0.0, 0.19, 0.2, 0.21)] == [None, None, None, "features"]
    assert Clusters(begin=1.0).guide_of("x", 1.0) == "features"


# ------------------------------------------------------------------------------------------------------- in a model
BASE = {
    "modalities": {"toy": {}},
    "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
    "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
}


def model(**overrides):
    torch.manual_seed(0)
    return build_model(config.load(BASE, {key.replace("__", "."): value for key, value in overrides.items()}))


def batch_of(names=("toy",), batch=3, size=16):
    torch.manual_seed(1)
    return {name: Preprocessed(torch.randn(batch, 1, size, size)) for name in names}


@pytest.mark.parametrize(
    "options",
    [
        {"prefix": 3, "prefix_position": "learned"},
        {"prefix": 0, "position_every_block": True, "qkv_bias": False},
        {"block_norm": "post", "input_norm": True, "layer_scale": 0.1},
        {"hidden": "replace"},
        {"rotary": "pairs"},
        {"rotary": "vjepa2", "prefix": 0},
        {"type": "streams"},
    ],
)
def test_the_first_attention_is_that_of_the_encoder(toys, options, monkeypatch):
    net = model(modalities__toy__size=16, encoder={**BASE["encoder"], **options}).eval()
    inputs, seen, attend = net.with_all_visible(batch_of()), [], torch.nn.functional.scaled_dot_product_attention

    def noted(queries, keys, values, **more):
        seen.append((queries, keys))
        return attend(queries, keys, values, **more)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    with torch.no_grad():
        net.encoder(inputs, net.modalities)
        guide = net.encoder.guide(inputs, net.modalities, "first_attention")["toy"]
    queries, keys = seen[0]  # of the first block
    count, length = inputs["toy"].tokens.count, queries.shape[2]
    prefix = 0 if options.get("type") == "streams" else options.get("prefix", 1)
    assert guide.prefix == prefix and guide.keys.shape[2] == count
    assert guide.queries.shape[2] == prefix + count == length
    expected = (queries.double() @ keys.double().transpose(-2, -1) / math.sqrt(8))[..., prefix:]
    torch.testing.assert_close(guide.scores().double(), expected, rtol=1e-5, atol=1e-6)
    index = torch.tensor([[2, 0], [1, 3], [0, length - 1]])
    torch.testing.assert_close(guide.scores(index)[1], guide.scores()[1][:, [1, 3]])


def test_guides_are_in_the_order_of_tokens_where_some_are_not_valid(toys):
    """Valid tokens come first in the encoder, wherever they are."""
    valid = torch.ones(3, 16, 16, dtype=torch.bool)
    valid[1, :4], valid[2, 4:12, 8:] = False, False
    for kind in ("attention", "features"):
        net = model(modalities__toy__size=16, masking={"type": "guided", "guide": kind})
        batch = {"toy": replace(batch_of()["toy"], valid=valid)}
        net.plan(batch, rng(3))
        tokens = net.with_all_visible(batch)["toy"].tokens
        assert tokens.valid is not None and not tokens.valid[1, 0]
        guide, inputs = net.masking.seen["toy"], net.with_all_visible(batch)
        own = net.encoder.eval().guide(inputs, net.modalities, kind)["toy"]
        for row in range(3):
            torch.testing.assert_close(guide[row][tokens.valid[row]], own[row][: int(tokens.valid[row].sum())])
    net = model(
        modalities__toy__size=16, modalities__toy__masking={"type": "attention", "ratio": 0.5, "num_per_query": 32}
    )
    plan = net.plan(batch, rng(3))["toy"].plan
    assert not (hidden(plan, tokens.count) & ~tokens.valid).any()
    first = net.encoder.guide(net.with_all_visible(batch), net.modalities, "first_attention")["toy"]
    count = int(tokens.valid[2].sum())
    places = tokens.valid[2].nonzero()[:, 0]
    query = rng(3).uniform("mask/toy/queries", tokens.count)[2].masked_fill(~tokens.valid[2], 2).argmin()
    ranked = places.tolist().index(int(query))
    sums = first.scores()[2][:, 1 + ranked, :count].softmax(-1).mean(0)
    expected = places[sums.topk(count - int(count * 0.5)).indices]
    assert set(hidden(plan, tokens.count)[2].nonzero()[:, 0].tolist()) == set(expected.tolist())


def test_each_modality_has_its_own_guide(toys):
    both = {
        "toy": {"size": 16, "masking": {"type": "attention", "ratio": 0.5}},
        "other": {"type": "toy", "size": 16, "masking": {"type": "clusters", "ratio": 0.5, "begin": 0.5}},
    }
    net = build_model(config.load({**BASE, "modalities": both}, {})).train()
    asked, guide = [], net.encoder.guide

    def noted(inputs, modalities, kind):
        assert not any(module.training for module in net.encoder.modules())
        assert not any(module.training for module in net.modalities.modules())
        asked.append(kind)
        return guide(inputs, modalities, kind)

    net.encoder.guide = noted
    out = net(batch_of(("toy", "other")), rng=replace(rng(3), progress=0.4))
    assert asked == ["first_attention"] and net.encoder.training and out.total.isfinite()
    net(batch_of(("toy", "other")), rng=replace(rng(3), progress=0.5))
    assert sorted(asked[1:]) == ["features", "first_attention"]
    assert all(module.training for module in net.modalities.modules())
    out.total.backward()


def test_plans_have_one_shape_unless_each_part_is_rounded_while_the_share_changes():
    course, tokens = {"start": 0.0, "end": 1.0}, tokens_of()
    for options, shapes in (
        ({}, 1),
        ({"share": course}, 1),
        ({"share": course, "noise": "subset", "count": "round_hidden"}, 1),
        ({"share": course, "count": "round_hidden", "ratio": 0.45}, 3),
        ({"ratio": [0.2, 0.3]}, 1 + math.ceil(tokens.count * 0.1)),
    ):
        masking = Attention(**options)
        steps = [rng(step=step, progress=step / 20) for step in range(20)]
        widths = {drawn(masking, tokens, each).predict.shape[1] for each in steps}
        assert (
            masking.shapes({"toy": tokens}) == shapes and len(widths) <= shapes and (len(widths) == 1) == (shapes == 1)
        )
    assert Clusters().shapes({"toy": tokens}) == 1 < Clusters(ratio=(0.2, 0.3)).shapes({"toy": tokens})


# ---------------------------------------------------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention", {"share": 1.5}, "share"),
        ("attention", {"share": {"start": 0, "end": 1, "over": 0}}, "over"),
        ("attention", {"share": {"start": 0}}, "end"),
        ("attention", {"num_per_query": 0}, "num_per_query"),
        ("attention", {"queries": "some"}, "queries"),
        ("clusters", {"hints": -0.1}, "hints"),
        ("clusters", {"begin": 2}, "begin"),
        ("clusters", {"object": "largest"}, "object"),
    ],
)
def test_mistakes_in_options_are_named(name, options, message):
    part = {"attention": Attention, "clusters": Clusters}[name]
    with pytest.raises(MaemmError, match=message):
        check(part, options, "masking")


def test_what_cannot_be_guided_says_so():
    tokens = tokens_of()
    with pytest.raises(MaemmError, match="no queries of class tokens"):
        masking = Attention(queries="prefix")
        drawn(masking, tokens, rng(), guide_of(masking, tokens, prefix=0))
    with pytest.raises(MaemmError, match="an encoder guides this masking"):
        Attention().plan("x", tokens, rng())
    with pytest.raises(MaemmError, match="the masking needs 'attention' of Streams, which has no such guide"):
        net = build_model(
            config.load({**BASE, "modalities": {"image": {"size": 16, "patch": 8}}}, {"encoder.type": "streams"})
        )
        net.encoder.guide({}, net.modalities, "attention")
    with pytest.raises(MaemmError, match="has too few for the ratio"):
        Attention(noise="subset", select_initial_ratio=0.5, share=0.5)
    with pytest.raises(MaemmError, match="needs tokens on a grid"):
        masking = Clusters(begin=0.0, object="inner")
        drawn(masking, replace(tokens, grid=None), rng(), guide_of(masking, tokens))
    assert isinstance(Attention(share=Course(start=0, end=1)).share, Course)
