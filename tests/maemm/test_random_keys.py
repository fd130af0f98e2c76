"""Texts in the keys of random numbers are data: another text gives other numbers, and runs no longer resume exactly."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

# What each kind of call is given in maemm/ and plugins/. Add what is new; a text that is here must not change.
KEYS = {
    "derive": """
        feistel group order points set shards substitute turns validation
    """,
    "fold_in": """
        decoder disturb picture several
    """,
    "key": """
        absent conformance decode estimate export item label pictures reconstruct shape show sizes stamp usual
        validation view vote modalities
    """,
    "numpy": """
        regions
    """,
    "seed": """
        points surface
    """,
    "seeded": """
        codebook conformance estimate flops forward griffin-lim mix phase probe randaugment size teacher untrained
        weights
    """,
    "uniform": """
        budget/repair budget/share budget/subset
        crop crop/{} cut drop dropout dropped erase/{} erase/{}/noise example flip frame gain gaps input jitter
        mask/{} mask/{}/blocks mask/{}/cell mask/{}/centre mask/{}/channels mask/{}/contexts mask/{}/exact
        mask/{}/heads mask/{}/places mask/{}/predicted/{} mask/{}/queries mask/{}/ratio mask/{}/repair
        mask/{}/rest mask/{}/size
        mask/{}/start mask/{}/targets mask/{}/ties mask/{}/time mask/{}/{} mixup noise noise/level noise/{}
        noise/{}/values picture radii roll rotate scale segments shift spec_augment/{} time
        {}/accept {}/boost {}/normal
    """,
}


@pytest.fixture(scope="module")
def record():
    """benchmarks/_record_files.py, which reads the keys from the syntax trees."""
    spec = importlib.util.spec_from_file_location("record_of_a_checkout", REPOSITORY / "benchmarks/_record_files.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_texts_of_random_keys_stay(record):
    texts = {kind: set(counts) for kind, counts in record.random_keys(record.modules(REPOSITORY)).items()}
    assert texts == {kind: set(listed.split()) for kind, listed in KEYS.items()}
