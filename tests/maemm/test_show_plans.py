"""maemm show: every set of plans, several predicted sets of a sample, and what maskings say about their plans."""

import pytest
import torch

from maemm import registry
from maemm.contract import Plan
from maemm.tasks.show.plan_pictures import rows_of_samples
from maemm.tasks.show.run import show

CAPTIONS = ("as the model gets it", "every second token")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    registry.find("samples", "image")(folder)
    return folder


@pytest.fixture
def shown(images, tmp_path):
    def run(masking, out="x.html"):
        made = show(
            images,
            tmp_path / out,
            recipe="image/mae_tiny_cpu",
            count=2,
            overrides={"modalities.image.masking": masking},
        )
        return made.parts["image"], made.path.read_text() if out.endswith("html") else ""

    return run


def test_targets_of_one_pass(shown):
    part, html = shown({"type": "multi_block", "min_keep": 4})
    columns = [caption for caption in part.rows.columns if caption not in CAPTIONS]
    percent = next(caption for caption in columns if caption.startswith("visible"))
    assert columns[0] == percent and percent.endswith(", plan 1 of 4")  # one context
    assert columns[1:] == [
        *(f"hidden: to predict, plan {k} of 4" for k in (1, 2, 3, 4)),
        "target of the hidden, plan 1 of 4",
    ]
    assert "in each of 4 plans of a sample" in html and "lost and" in html and "count: exact" in html
    seen = [~part.rows.columns[caption][0].isnan() for caption in columns[:5]]
    assert not any((seen[0] & hidden).any() for hidden in seen[1:])
    assert not torch.equal(seen[1], seen[2])


def test_what_official_counts_lose_is_told(shown):
    _, html = shown({"type": "multi_block", "min_keep": 4, "count": "official"})
    assert "count: official, here for a batch of 2; it changes with the batch and the number of ranks" in html
    assert "before counts were made equal" in html and "lost and 0.0 added on average" in html


def test_every_set_of_plans(shown):
    part, html = shown({"type": "multi_block", "generators": [{"blocks": 2}, {"blocks": 1, "scale": [0.7, 0.7]}]})
    columns = [caption for caption in part.rows.columns if caption not in CAPTIONS]
    assert [caption.rpartition(", ")[2] for caption in columns] == ["set 1"] * 3 + ["set 2"] * 2
    assert len(part.plans) == 2 and "visible to the encoder, set 2 of plans" in html
    assert html.count("Masking: boxes") == 2
    shown({"type": "multi_block", "generators": [{}, {}]}, "x.png")


def test_ratios_of_a_batch_and_several_masks(shown):
    part, html = shown(
        {"type": "multi_mask", "masks_per_sample": 6, "masking": {"type": "random", "ratio": [0.5, 0.9]}}
    )
    assert "drawn for each batch from 0.5 to 0.9" in html and "Of the 6 plans of each sample the first 4" in html
    assert sum("visible" in caption for caption in part.rows.columns) == 4
    part, html = shown({"type": "scan", "order": "spiral"})
    assert [caption for caption in part.rows.columns if caption not in CAPTIONS] == [
        "visible (25 %)", "hidden: to predict", "target of the hidden",
    ]  # fmt: skip
    assert part.notes == [] and "Masking:" not in html


def test_rows_of_samples():
    plan = Plan(
        torch.zeros(5, 1, dtype=torch.long), torch.ones(5, 1, dtype=torch.long), rows=torch.tensor([0, 1, 1, 0, 1])
    )
    assert [rows.tolist() for rows in rows_of_samples(plan, 2)] == [[0, 1], [3, 2]]
    assert [rows.tolist() for rows in rows_of_samples(Plan(plan.visible, plan.predict), 5)] == [[0, 1, 2, 3, 4]]
