"""Rules of untokenize, targets, losses and pictures."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import torch

from maemm.contract import Plan
from maemm.contract.errors import MaemmError
from maemm.testing.case import Case, check
from maemm.testing.outcome import NotUsed


@check("modalities", needs=["tokens_agree"])
def untokenize_is_the_inverse(case: Case) -> None:
    """untokenize(tokenize(x)) is x, and of some tokens it is x where they are and NaN elsewhere."""
    modality, preprocessed = case.modality(), case.example()
    tokens = modality.tokenize(preprocessed)
    whole = modality.untokenize(tokens.values, tokens)
    if whole is None:
        raise NotUsed("untokenize() returns None: there is no inverse")
    if tokens.grid is None and whole.shape != preprocessed.x.shape:
        raise NotUsed("tokens are not on a grid, and untokenize() returns another kind of signal")
    change = "fix untokenize(), or return None where there is no inverse"
    case.equal(whole, preprocessed.x, "untokenize(tokenize(x)) is x", change, atol=1e-5)
    if tokens.grid is None:
        return
    index = tokens.all_indices()[:, : max(tokens.count // 2, 1)]
    part = modality.untokenize(tokens.gather(index), tokens, index)
    if part is None:
        case.require(False, "untokenize() of half the tokens", "None", "a signal, as for all tokens", change)
        return
    hidden = part.isnan()
    filled = torch.where(hidden, preprocessed.x, part)
    case.equal(filled, preprocessed.x, "untokenize() puts tokens where they belong", change, atol=1e-5)
    partial = hidden.any() or tokens.count == 1
    case.require(partial, "untokenize() of half the tokens", "a full signal", "NaN where there is no token", change)


@check("modalities", needs=["target_of_some_is_part_of_all"])
def denormalize_target_is_the_inverse(case: Case) -> None:
    """denormalize_target(target) gives the tokens' values, so that pictures show the signal, and NaN for those that are
    in no target."""
    modality, tokens = case.modality(), case.modality().tokenize(case.example())
    index = tokens.all_indices()
    if modality.untokenize(tokens.values, tokens) is None:
        raise NotUsed("untokenize() returns None: there are no pictures of predictions")
    target = modality.target(tokens, index)
    back = modality.denormalize_target(target, tokens, index)
    change = "undo in denormalize_target() what target() does, with the statistics of the token itself"
    rule = "denormalize_target(target) is the tokens' values"
    case.require(back.shape == tokens.values.shape, rule, tuple(back.shape), tuple(tokens.values.shape), change)
    absent = back.isnan() & ~tokens.values.isnan()
    case.equal(back, tokens.values.masked_fill(absent, torch.nan), rule, change, atol=1e-3)
    count, most = int(absent.flatten(2).sum(-1).max()), max(absent[0, 0].numel() - target.shape[-1], 0)
    expected = f"at most {most}, those that are in no target"
    case.require(count <= most, "NaN in a token of denormalize_target(target)", count, expected, change)


@check("modalities", "targets", needs=["target_fits_the_output"])
def target_of_some_is_part_of_all(case: Case) -> None:
    """The target of the predicted tokens is the target of all tokens, gathered."""
    model = case.model()
    inputs = case.planned(model)[case.signal]
    index = inputs.plan.predict
    whole = case.target(model, inputs, inputs.tokens.all_indices())
    gathered = whole.gather(1, index[..., None].expand(-1, -1, whole.shape[-1]))
    rule, change = "target of some tokens is part of the target of all", "make a token's target independent of index"
    case.equal(case.target(model, inputs, index), gathered, rule, change, atol=1e-5)


@check("modalities", "encoders", "decoders", "objectives", "targets", needs=["forward_fits"])
def nothing_predicted_is_legal(case: Case) -> None:
    """A plan that hides nothing gives empty predictions, an empty target and a finite loss."""
    model, preprocessed = case.model(), case.example()
    plan = Plan.all_visible(case.modality_of(model).tokenize(preprocessed))
    out = model({case.signal: preprocessed}, plans={case.signal: plan})
    change = "make target(), loss() and position() accept an index of width 0"
    for field in ("pred", "target", "loss"):
        shape = tuple(getattr(out, field)[case.signal].shape[:2])
        expected = (plan.predict.shape[0], 0)
        case.require(shape == expected, f"{field} of a plan that predicts nothing", shape, expected, change)
    case.require(out.total.isfinite(), "the loss of a plan that predicts nothing", out.total, "a finite one", change)


@check("modalities", needs=["untokenize_is_the_inverse"])
def plot_works_without_a_screen(case: Case) -> None:
    """plot() draws on matplotlib axes, also if half of the signal is hidden."""
    from maemm.ui.figures import drawing

    modality, preprocessed = case.modality(), case.example(1)
    tokens = modality.tokenize(preprocessed)
    index = tokens.all_indices()[:, : max(tokens.count // 2, 1)]
    for values, where in ((tokens.values, None), (tokens.gather(index), index)):
        signal = modality.untokenize(values, tokens, where)
        if signal is None:
            raise NotUsed("untokenize() returns None: there is no signal to draw")
        with drawing() as figure_class:
            figure = figure_class(figsize=(1, 1))
            axes = figure.subplots()
            try:
                modality.plot(axes, signal[0])
            except MaemmError as error:
                case.require(False, "plot() works on axes", error, "a picture", "add plot(axes, signal)")
            figure.savefig(io.BytesIO(), format="png")
        drawn = len(axes.images) + len(axes.lines) + len(axes.collections) + len(axes.patches) + len(axes.texts)
        change = "draw on the axes that are passed in, not with pyplot"
        case.require(drawn, "plot() draws", "empty axes", "something on them", change)


@check("modalities", needs=["forward_fits", "plot_works_without_a_screen", "denormalize_target_is_the_inverse"])
def pictures_are_written(case: Case) -> None:
    """Input, visible tokens and reconstruction of a batch become a picture file."""
    from maemm.ui.pictures import save_pictures

    model, preprocessed = case.model(), case.example(2)
    modality = case.modality_of(model)
    tokens = modality.tokenize(preprocessed)
    if modality.untokenize(tokens.values, tokens) is None:
        raise NotUsed("untokenize() returns None: there is no signal to draw")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pictures.png"
        save_pictures(model, {case.signal: preprocessed}, path, count=2)
        size = path.stat().st_size if path.exists() else 0
    change = "fix denormalize_target(), untokenize() or plot()"
    case.require(size > 1000, "pictures of a batch", f"{size} bytes", "a picture", change)
