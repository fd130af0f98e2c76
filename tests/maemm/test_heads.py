"""Heads of the core: the published linear probe in the training loop, dropout of the classifier."""

import pytest
import torch

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.model.batchnorm import BatchNorm
from maemm.model.heads import Linear, Probe
from maemm.tasks.probe.trained import PublishedLinear


def test_the_probe_is_that_on_tables(monkeypatch):
    torch.manual_seed(0)
    head, published = Probe(6, classes=3), PublishedLinear(6, 3)
    published.linear.load_state_dict(head.linear.state_dict())
    assert not [name for name, _ in head.named_parameters() if "norm" in name]
    monkeypatch.setattr(head, "features", lambda model, batch: batch)
    for _ in range(3):
        x = torch.randn(8, 6) * 3 + 1
        torch.testing.assert_close(head(None, x), published(x))
    head.eval(), published.eval()
    x = torch.randn(4, 6)
    torch.testing.assert_close(head(None, x), published(x))
    assert set(head.state_dict()) == {
        "norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "linear.weight", "linear.bias"
    }  # fmt: skip


def test_batch_normalisation_without_parameters_has_the_same_gradient():
    own, torchs = BatchNorm(5, affine=False), torch.nn.BatchNorm1d(5, affine=False)
    x, y = (torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    own(x).pow(3).sum().backward(), torchs(y).pow(3).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)


def test_dropout_stands_in_front_of_the_last_layer(monkeypatch):
    head = Linear(8, classes=2, dropout=0.5)
    torch.nn.init.ones_(head.linear.weight)
    monkeypatch.setattr(head, "features", lambda model, batch: batch)
    x = torch.ones(64, 8)
    assert head.train()(None, x).std() > 0 and head.eval()(None, x).std() == 0
    with pytest.raises(MaemmError, match="head.dropout must be 0 <= float < 1"):
        check(Linear, {"classes": 2, "dropout": 1.0}, "head")
