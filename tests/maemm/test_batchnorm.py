"""Batch normalisation: torch's numbers in one process, one process's numbers in two, padding that is not seen."""

import multiprocessing
import socket

import pytest
import torch
import torch.distributed as dist

from maemm.model.batchnorm import BatchNorm

STATE = ("running_mean", "running_var", "num_batches_tracked")


def pair(channels=5, **options):
    """Ours and torch's with the same parameters."""
    ours, theirs = BatchNorm(channels, **options), torch.nn.BatchNorm1d(channels, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        theirs.weight.copy_(1 + 0.3 * torch.randn(channels, generator=generator))
        theirs.bias.copy_(0.2 * torch.randn(channels, generator=generator))
        theirs.running_mean.copy_(torch.randn(channels, generator=generator))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def signal(*shape, seed=1, dtype=torch.float32):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x * torch.linspace(0.3, 3, shape[-1], dtype=dtype) + torch.linspace(-1, 5, shape[-1], dtype=dtype)


def close(one, other, atol=1e-5):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("general", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_equals_torch(training, general):
    ours, theirs = pair(momentum=0.3, eps=1e-4)
    ours.train(training), theirs.train(training)
    weight = torch.randn(40, 5, generator=torch.Generator().manual_seed(2))
    valid = torch.ones(4, 10, dtype=torch.bool) if general else None  # the way around torch's own kernel
    for seed in (1, 2):
        x, y = (signal(4, 10, 5, seed=seed).requires_grad_() for _ in range(2))
        out, expected = ours(x, valid), theirs(y.flatten(0, 1))
        close(out.flatten(0, 1), expected)
        (out.flatten(0, 1) * weight).sum().backward()
        (expected * weight).sum().backward()
        close(x.grad, y.grad)
    for name, value in theirs.named_parameters():
        close(getattr(ours, name).grad, value.grad, atol=1e-4)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name in STATE:
        close(getattr(ours, name), getattr(theirs, name))
        assert training == (not torch.equal(getattr(ours, name), getattr(pair()[0], name)))


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("keep", [None, [2, 0, 2]])
def test_gradients_are_exact(counted, keep):
    ours = BatchNorm(3).double()
    x = signal(3, 4, 3, dtype=torch.float64).requires_grad_()
    valid = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0], [1, 1, 1, 1]]).bool() if counted else None
    keep = None if keep is None else torch.tensor(keep)
    assert torch.autograd.gradcheck(lambda x, *_: ours(x, valid, keep), (x, ours.weight, ours.bias))


@pytest.mark.parametrize("training", [True, False])
def test_some_rows_with_the_statistics_of_all(training):
    some, every, keep = pair()[0].train(training), pair()[0].train(training), torch.tensor([4, 1])
    x = signal(5, 7, 5)
    close(some(x, keep=keep), every(x)[keep])
    close(some.running_var, every.running_var)


def test_padding_counts_nothing():
    x, valid = signal(3, 8, 5), torch.rand(3, 8, generator=torch.Generator().manual_seed(3)) < 0.6
    whole, part = pair()[0], pair()[0]
    x[~valid] = 1e4
    x.requires_grad_()
    out = whole(x, valid)[valid]
    y = x.detach()[valid].requires_grad_()
    expected = part(y)
    close(out, expected)
    out.square().sum().backward()
    expected.square().sum().backward()
    close(x.grad[valid], y.grad, atol=1e-4)
    assert (x.grad[~valid] == 0).all()
    for name in STATE:
        close(getattr(whole, name), getattr(part, name))
    by_group = pair()[0](x.detach().nan_to_num(0)[:, :, None].expand(-1, -1, 4, -1), valid)  # of the first axes alone
    close(by_group[valid][:, 0], out.detach())


def test_nothing_valid_moves_nothing():
    ours, before = pair()[0], pair()[0]
    out = ours(signal(2, 4, 5), torch.zeros(2, 4, dtype=torch.bool))
    assert out.isfinite().all()
    assert torch.equal(ours.running_mean, before.running_mean) and torch.equal(ours.running_var, before.running_var)


def test_statistics_are_float32_under_autocast():
    ours, theirs = pair()
    x = signal(64, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(x)
    assert out.dtype == torch.bfloat16 and ours.running_mean.dtype == torch.float32
    theirs(x.float())
    close(ours.running_mean, theirs.running_mean, atol=1e-4)
    close(ours.running_var, theirs.running_var, atol=1e-4)


def test_large_means_do_not_hide_small_variances():
    x = 1000 + 0.01 * torch.randn(512, 2, generator=torch.Generator().manual_seed(0))
    ours = BatchNorm(2, momentum=1.0)
    out = ours(x, torch.ones(512, dtype=torch.bool))
    close(ours.running_var, x.double().var(0).float(), atol=0)
    assert out.std(0).sub(1).abs().max() < 0.1  # 1e-4 + 1e-5 under the root


def worker(rank, port, rows, results):
    """Two linear layers with batch normalisation between, on a part of the batch; gradients averaged as DDP does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(rows))
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(4, 6), BatchNorm(6), torch.nn.Linear(6, 1)])
    x, valid = whole_batch()
    loss = run(model, x[rows[rank]], valid[rows[rank]])
    (loss * len(rows)).backward()
    for one in model.parameters():
        dist.all_reduce(one.grad)
        one.grad /= len(rows)
    dist.all_reduce(loss := loss.detach().clone())
    results.put((rank, loss.item(), [one.grad.numpy() for one in model.parameters()], model[1].running_var.numpy()))
    dist.destroy_process_group()


def whole_batch():
    x = signal(6, 7, 4)
    return x, torch.arange(7) < torch.tensor([7, 3, 1, 5, 0, 2])[:, None]


def run(model, x, valid):
    hidden = model[1](model[0](x), valid).relu()
    return (model[2](hidden)[..., 0] * valid).square().sum()


def test_two_processes_equal_one():
    """Also where the processes have different numbers of rows, and rows that are padding."""
    torch.manual_seed(0)
    model = torch.nn.ModuleList([torch.nn.Linear(4, 6), BatchNorm(6), torch.nn.Linear(6, 1)])
    expected = run(model, *whole_batch())
    expected.backward()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    results, rows = context.Queue(), [[0, 1], [2, 3, 4, 5]]
    processes = [context.Process(target=worker, args=(rank, port, rows, results)) for rank in range(2)]
    for one in processes:
        one.start()
    answers = [results.get(timeout=120) for _ in processes]
    for one in processes:
        one.join(60)
        assert one.exitcode == 0
    for _, loss, grads, running_var in answers:
        assert loss == pytest.approx(expected.item(), rel=1e-5)
        for one, parameter in zip(grads, model.parameters(), strict=True):
            close(torch.from_numpy(one), parameter.grad, atol=1e-4)
        close(torch.from_numpy(running_var), model[1].running_var)
