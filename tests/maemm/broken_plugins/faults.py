"""Which check must catch which of the faults in plans.py, learners.py, gaps.py, padding.py and
baselines.py.

``FAULTS``: {"check: class": (check, manifest)}; ``KEPT``: what keeps all rules, some of which they are made from.
"""

from __future__ import annotations

from typing import Any

from maemm.registry import Plugin

_FAULTS = [
    ("plan_is_legal", "maskings", "plans:SecondSetOverlaps"),
    ("plan_is_legal", "maskings", "plans:OtherPass"),
    ("plan_is_legal", "maskings", "plans:HalfPass"),
    ("plan_is_repeatable", "maskings", "plans:RowWise"),
    ("shapes_are_as_many_as_said", "maskings", "plans:Unsaid"),
    ("budget_is_kept", "maskings", "plans:BudgetOfEach"),
    ("budget_is_kept", "maskings", "plans:BudgetOfOne"),
    ("predicted_sets_share_a_pass", "encoders", "plans:Curious"),
    ("guides_fit", "encoders", "plans:PrefixGuide"),
    ("guides_fit", "encoders", "plans:BatchGuide"),
    ("forward_fits", "encoders", "plans:LatentPerSample"),
    ("a_bad_step_moves_nothing", "targets", "learners:Restless"),
    ("a_bad_step_moves_nothing", "objectives", "learners:KeepsCounting"),
    ("forward_waits_for_nothing", "targets", "learners:Reading"),
    ("teacher_runs_once", "targets", "learners:EachTime"),
    ("teacher_runs_once", "targets", "learners:Twice"),
    ("several_plans_of_a_sample", "targets", "learners:FirstRows"),
    ("target_fits_the_output", "targets", "learners:Attached"),
    ("target_fits_the_output", "targets", "learners:Narrow"),
    ("baseline_is_a_loss", "targets", "learners:TooLow"),
    ("baseline_is_a_loss", "targets", "learners:TooHigh"),
    ("baseline_is_a_loss", "modalities", "gaps:FlatBaseline"),
    ("baseline_is_the_best_constant", "modalities", "baselines:NoLogarithm"),
    ("baseline_is_the_best_constant", "modalities", "baselines:MeanForMedian"),
    ("baseline_is_the_best_constant", "modalities", "baselines:Unbeatable"),
    ("a_short_row_is_the_row_alone", "encoders", "padding:PaddedViT"),
    ("a_short_row_is_the_row_alone", "decoders", "padding:PaddedDecoder"),
    ("a_short_row_is_the_row_alone", "objectives", "padding:PaddedLoss"),
    ("a_short_row_is_the_row_alone", "objectives", "padding:PaddedSpread"),
    ("a_short_row_is_the_row_alone", "heads", "padding:PaddedPool"),
    ("a_short_row_is_the_row_alone", "targets", "padding:PaddedTarget"),
    ("a_short_row_is_the_row_alone", "modalities", "padding:PaddedSet"),
    ("phases_are_apart", "objectives", "learners:Apart"),
    ("phases_are_apart", "objectives", "learners:Shared"),
    ("phases_are_apart", "objectives", "learners:Foreign"),
    ("micro_batches_are_one_batch", "objectives", "learners:Spread"),
    ("micro_batches_are_one_batch", "objectives", "learners:HalfGradient"),
    ("side_inputs_are_made", "objectives", "learners:AsksRandom"),
    ("side_inputs_are_made", "objectives", "learners:AsksChanging"),
    ("side_inputs_are_made", "objectives", "learners:AsksRagged"),
    ("side_inputs_are_made", "objectives", "learners:AsksUnknown"),
    ("missing_values_change_nothing", "modalities", "gaps:Filled"),
    ("loss_is_per_token", "modalities", "gaps:LossOfAll"),
    ("denormalize_target_is_the_inverse", "modalities", "modalities:Emptied"),
    ("missing_values_change_nothing", "modalities", "gaps:MeanOfAll"),
    ("missing_values_change_nothing", "modalities", "gaps:ShowsFilling"),
    ("tokens_agree", "modalities", "gaps:BadKnown"),
    ("nothing_visible_is_legal", "modalities", "gaps:NeedsVisible"),
    ("a_missing_modality_counts_nothing", "modalities", "gaps:SeesAbsent"),
    ("model_is_built", "modalities", "gaps:Unbuilt"),
    ("embed_fits_the_encoder", "modalities", "gaps:NarrowEmbedding"),
    ("position_fits_its_role", "modalities", "gaps:SinglePosition"),
    ("one_batch_is_learned", "modalities", "gaps:NoPosition"),
    ("one_batch_is_learned", "decoders", "plans:Placeless"),
    ("forward_waits_for_nothing", "modalities", "modalities:Chosen"),
]
_SOUND = [
    ("targets", "learners:Average"),
    ("objectives", "learners:Critic"),
    ("modalities", "gaps:Gappy"),
    ("modalities", "sound:Particles"),
    ("modalities", "sound:Few"),
    ("modalities", "sound:Cosine"),
    ("modalities", "sound:Likelihood"),
    ("modalities", "sound:SoftKinds"),
    ("modalities", "sound:SeenOnly"),
    ("modalities", "baselines:Frequencies"),
]


def _plugin(name: str, role: str, target: str) -> Plugin:
    """A plugin with one part, and where it needs one a modality that makes side inputs, or sets."""
    more: dict[str, Any] = {}
    if ":Asks" in target:
        more = {
            "modalities": {"sides": "learners:Sides"},
            "check_options": {f"objectives.{name}": {"modality": "sides"}},
        }
    elif ":PaddedTarget" in target:
        more = {"modalities": {"particles": "sound:Particles"}}
    return Plugin(name=name, version="1", contract=2, summary=name, **{role: {name: target}}, **more)


def _class(target: str) -> str:
    return target.partition(":")[2]


FAULTS = {
    f"{check}: {_class(target)}": (check, _plugin(f"breaks_{_class(target)}", role, target))
    for check, role, target in _FAULTS
}
KEPT = {_class(target): _plugin(f"keeps_{_class(target)}", role, target) for role, target in _SOUND}
