"""The rules of the contract, and a training of a few steps. Needs: pip install -e . and pytest."""

from maemm_plugname import plugin
from maemm_plugname.samples import write

import maemm
from maemm.testing import parametrize_with_checks


@parametrize_with_checks(plugin, expected_failures={})
def test_conformance(check):
    check()


def test_a_few_steps_of_training(tmp_path):
    write(tmp_path / "data")
    data = {"data.root": str(tmp_path / "data"), "data.workers": 0}
    train = {"train.batch": 8, "train.epochs": 1, "train.warmup_epochs": 0}
    run = maemm.pretrain("plugname/tiny", out=str(tmp_path / "run"), **data, **train)
    assert (run / "report.html").is_file() and list((run / "pictures").glob("*.png"))
    assert maemm.load(run).encoder.dim == 96
