"""Rules of plans and of what depends on them: maskings, several sets, budgets, shared passes, guides."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from maemm.contract import Encoder, FirstAttention, MaemmError, ModalityInput, PerModalityMasking, Plan
from maemm.contract.rng import Rng
from maemm.testing.case import OTHER, Case, check, take_rows
from maemm.testing.outcome import NotUsed

STEPS = 12  # in which the shapes of plans are counted
MODEL_PARTS = ("modalities", "encoders", "decoders")


@check("modalities", "maskings", needs=["tokens_agree", "model_is_built"])
def plan_is_legal(case: Case) -> None:
    """A plan is sorted int64 in range; visible and padded tokens are not counted, unless the masking says that visible
    ones are; rows that share a pass of the encoder see the same tokens; random masking partitions."""
    model = case.model()
    for sets in case.planned_sets(model):
        inputs = sets[case.signal]
        _require_legal(case, inputs)
        _require_shared_passes(case, inputs.plan)
        tokens, plan = inputs.tokens, inputs.plan
        if case.role == "modalities" and tokens.valid is None:
            both = torch.cat([plan.visible, plan.predict], 1).sort(1).values
            rule = "random masking shows or hides each token once"
            case.equal(both, tokens.all_indices(), rule, "fix N in tokenize()")
            count = int(tokens.count * 0.5)
            case.require(plan.visible.shape[1] == count, "exact counts", plan.visible.shape[1], count, "fix tokenize()")


def _require_legal(case: Case, inputs: ModalityInput) -> None:
    plan, tokens = inputs.plan, inputs.tokens
    change = "return sorted (R, V) and (R, M) indices; counted 0 where a token is visible or padding"
    try:
        plan.check(case.signal, tokens)
    except MaemmError as error:
        case.require(False, "a plan is legal", error, "sorted indices in range", change)
    shown = torch.ones_like(plan.visible, dtype=torch.bool) if plan.visible_valid is None else plan.visible_valid
    visible = torch.zeros(plan.visible.shape[0], tokens.count, dtype=torch.bool)
    visible = visible.scatter_reduce(1, plan.visible, shown, "amax")
    if not getattr(case.part_class(), "counts_visible", False):
        leaked = int((visible.gather(1, plan.predict) & (plan.counted > 0)).sum())
        case.require(not leaked, "visible tokens are not counted", f"{leaked} counted", 0, change)
    case.require(plan.counted.ge(0).all(), "weights in the loss", "negative ones", "none below 0", change)
    if plan.predict_valid is not None:
        padded = int((~plan.predict_valid & (plan.counted > 0)).sum())
        case.require(not padded, "padding of a plan is not counted", f"{padded} counted", 0, change)
    if tokens.valid is not None:
        valid = tokens.valid if plan.rows is None else tokens.valid[plan.rows]
        invalid = int((shown & ~valid.gather(1, plan.visible)).sum())
        change = "choose among tokens.valid, as plan_from_order and plan_from_hidden do"
        case.require(not invalid, "visible tokens are valid", f"{invalid} that are not", "none", change)
        invalid = int(((plan.counted > 0) & ~valid.gather(1, plan.predict)).sum())
        case.require(not invalid, "counted tokens are valid", f"{invalid} that are not", "none", change)


def _require_shared_passes(case: Case, plan: Plan) -> None:
    if plan.passes is None and plan.first is None:
        return
    change = "give Plan both passes (R,) and first (E,): first[passes] are rows that see the same tokens"
    both = plan.passes is not None and plan.first is not None
    case.require(both, "shared passes", "passes or first alone", "both", change)
    assert plan.passes is not None and plan.first is not None
    rows, count = len(plan.predict), len(plan.first)
    good = tuple(plan.passes.shape) == (rows,) and bool(((plan.passes >= 0) & (plan.passes < count)).all())
    expected = f"({rows},) numbers below {count}"
    case.require(good, "Plan.passes", plan.passes.tolist(), expected, change)
    first = plan.first[plan.passes]
    case.equal(plan.visible[first], plan.visible, "rows that share a pass see the same tokens", change)
    if plan.rows is not None:
        case.equal(plan.rows[first], plan.rows, "rows that share a pass are of one sample", change)


@check("modalities", "maskings", needs=["plan_is_legal"])
def plan_is_repeatable(case: Case) -> None:
    """Equal ``rng`` gives equal plans, a part of a batch gets the plans that it has in the whole batch, and the shapes
    of a masking by modality are the same for all samples of a batch."""
    model, preprocessed = case.model(), case.example()
    change = "take every random number of a masking from its rng, with rng.uniform(purpose, ...)"

    def plans(rows: list[int], rng: Rng) -> list[Plan]:
        sets = model.plan_sets({case.signal: take_rows(preprocessed, rows)}, rng)
        return [inputs[case.signal].plan for inputs in sets]

    everything = list(range(len(preprocessed.x)))
    whole, again = plans(everything, case.rng()), plans(everything, case.rng())
    part = plans([1, 2], replace(case.rng(), rows=(1, 2)))
    case.require(len(whole) == len(again) == len(part), "sets of plans", len(again), len(whole), change)
    for ours, same, own in zip(whole, again, part, strict=True):
        rows = torch.arange(len(ours.visible)) if ours.rows is None else ours.rows
        for role in ("visible", "predict"):
            expected: Tensor = getattr(ours, role)
            case.equal(getattr(same, role), expected, f"equal rng gives equal plans ({role})", change)
            rule = f"a part of a batch gets the batch's plans ({role})"
            case.equal(getattr(own, role), expected[rows > 0], rule, change)
    if case.role == "maskings" and isinstance(model.masking, PerModalityMasking):
        count = len(everything)
        others = replace(case.rng(), rows=range(count, 2 * count), total=2 * count)  # other samples of the same batch
        other = plans(everything, others)
        received, wanted = ([(p.visible.shape, p.predict.shape) for p in some] for some in (other, whole))
        change = "let shapes depend on N, and on numbers of the whole batch (RatioMasking), not on those of a sample"
        case.require(received == wanted, "shapes of plans", received, wanted, change)


@check("maskings", needs=["plan_is_repeatable"])
def shapes_are_as_many_as_said(case: Case) -> None:
    """Plans of several steps have no more shapes than ``shapes()`` says, so that few are compiled."""
    model, preprocessed = case.model(), case.example()
    drawn, tokens = set(), {}
    for step in range(STEPS):
        rng = replace(case.rng(key=step), progress=step / STEPS)
        for inputs in (sets[case.signal] for sets in model.plan_sets({case.signal: preprocessed}, rng)):
            tokens = {case.signal: inputs.tokens}
            drawn.add((inputs.plan.visible.shape, inputs.plan.predict.shape))
    said = model.masking.shapes(tokens)
    change = "let shapes() return how many shapes plans may have in a training, or None where it is any number"
    case.require(said is None or len(drawn) <= said, "shapes of plans in a training", len(drawn), said, change)


@check("maskings", needs=["plan_is_legal"])
def budget_is_kept(case: Case) -> None:
    """Where plans have a budget, every row sees as many tokens in all modalities together, and plans have the same."""
    model = case.model(recipe=case.joint_recipe())
    for sets in model.plan_sets(case.joint_example(), case.rng()):
        budgets = {inputs.plan.budget for inputs in sets.values()}
        if budgets == {None}:
            raise NotUsed("its plans have no budget")
        change = "set Plan.budget in the plans of all modalities, and show as many valid tokens in each row"
        case.require(len(budgets) == 1, "plans of a batch have one budget", budgets, "one number", change)
        (budget,) = budgets
        seen = sum(_visible_counts(inputs.plan) for inputs in sets.values())
        available = sum(_valid_counts(inputs) for inputs in sets.values())
        expected = torch.as_tensor(available).clamp(max=budget)
        case.equal(torch.as_tensor(seen), expected, f"a row sees the budget of {budget} tokens", change)


def _visible_counts(plan: Plan) -> Tensor:
    rows, count = plan.visible.shape
    return torch.full((rows,), count) if plan.visible_valid is None else plan.visible_valid.sum(1)


def _valid_counts(inputs: ModalityInput) -> Tensor:
    tokens, rows = inputs.tokens, len(inputs.plan.visible)
    if tokens.valid is None:
        return torch.full((rows,), tokens.count)
    return (tokens.valid if tokens.rows is None else tokens.valid[tokens.rows]).sum(1)


@check("encoders", needs=["features_are_repeatable"])
def predicted_sets_share_a_pass(case: Case) -> None:
    """What is predicted changes no latent, so that several predicted sets share a pass; or reads_predict says so."""
    model = case.model()
    if model.encoder.reads_predict:
        raise NotUsed("it says that it reads what is predicted (reads_predict)")
    inputs = case.planned(model)[case.signal]
    plan = inputs.plan
    alone = replace(
        inputs, plan=replace(plan, predict=plan.predict[:, :0], predict_valid=None, counted=plan.counted[:, :0])
    )
    expected, received = (
        model.encoder({case.signal: x}, model.modalities).tokens[case.signal] for x in (inputs, alone)
    )
    change = "leave plan.predict out of the encoder, or set reads_predict = True"
    case.equal(received, expected, "latents where nothing is predicted", change, 1e-5)


@check("encoders", needs=["features_are_repeatable"])
def guides_fit(case: Case) -> None:
    """guide() gives (B, N, D) for "features", (B, N) for "attention", queries and keys for "first_attention", in the
    order of tokens, finite."""
    model = case.model()
    if type(model.encoder).guide is Encoder.guide:
        raise NotUsed("it has no guide()")
    inputs = model.with_all_visible({case.signal: case.example()})
    tokens = inputs[case.signal].tokens
    shape = (tokens.batch, tokens.count)
    kinds = {
        "features": (*shape, model.encoder.dim),
        "attention": shape,
        "first_attention": shape,
    }
    for kind, expected in kinds.items():
        try:
            with torch.no_grad():
                guide = _as_tensor(model.encoder.guide(inputs, model.modalities, kind)[case.signal])
                first = take_rows(inputs[case.signal].preprocessed, [0])
                alone = model.encoder.guide(model.with_all_visible({case.signal: first}), model.modalities, kind)
        except MaemmError:
            continue  # it has none of this kind, and says so
        change = "return a row per sample and a value per token from guide(), without those of prefix tokens"
        case.require(tuple(guide.shape) == expected, f"guide {kind!r}", tuple(guide.shape), expected, change)
        case.require(guide.isfinite().all(), f"guide {kind!r} is finite", "NaN or infinity", "finite values", change)
        case.equal(_as_tensor(alone[case.signal]), guide[:1], f"guide {kind!r} of a sample alone", change, 1e-5)


def _as_tensor(guide: Tensor | FirstAttention) -> Tensor:
    """A guide, or of queries and keys the scores of each token, mean over heads and queries (B, N)."""
    return guide.scores().mean((1, 2)) if isinstance(guide, FirstAttention) else guide


@check(*MODEL_PARTS, needs=["features_are_repeatable"])
def nothing_visible_is_legal(case: Case) -> None:
    """A modality of which no token is visible is predicted from another one, with finite loss and gradients."""
    model = case.joint_model().train()
    batch, plans = case.joint_example(), {}
    for name, preprocessed in batch.items():
        tokens = model.modalities[name].tokenize(preprocessed)
        index = tokens.all_indices()
        hidden = Plan(index[:, :0], index, predict_valid=tokens.valid)
        plans[name] = hidden if name == OTHER else Plan.all_visible(tokens)
    out = model(batch, plans=plans)
    change = "make embed(), position() and the blocks accept an index of width 0"
    case.require(out.total.isfinite(), "the loss of a modality that is only predicted", out.total, "finite", change)
    out.total.backward()
    bad = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    case.require(not bad, "gradients are finite", f"NaN or infinity in {', '.join(bad[:3])}", "numbers", change)
