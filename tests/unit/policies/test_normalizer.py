import pytest
import torch

from parl_cli.policies.normalizer import RunningNormalizer


def data(rows=1000, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.01, 1.0, 10.0, 300.0])[:size]
    return torch.randn(rows, size, generator=generator) * scale + torch.tensor([5.0, -1.0, 0.0, 700.0])[:size]


def fed(*batches):
    normalizer = RunningNormalizer(4)
    for batch in batches:
        normalizer.update(batch)
    return normalizer


def test_before_any_batch_only_the_clip_acts():
    x = torch.tensor([[0.5, -3.0, 9.0, 50.0]])
    torch.testing.assert_close(RunningNormalizer(4, clip=10.0)(x), torch.tensor([[0.5, -3.0, 9.0, 10.0]]))


def test_first_batch_replaces_the_placeholder():
    x = data()
    normalizer = fed(x)
    torch.testing.assert_close(normalizer.mean, x.mean(dim=0))
    torch.testing.assert_close(normalizer.var, x.var(dim=0, unbiased=False))
    assert float(normalizer.count) == 1000


def test_a_single_row_is_a_batch():
    x = data(1)
    normalizer = fed(x)
    torch.testing.assert_close(normalizer.mean, x[0])
    assert not normalizer.var.any()
    assert torch.isfinite(normalizer(data())).all()


@pytest.mark.parametrize("sizes", [(500, 500), (1, 999), (999, 1), (1,) * 1000, (100, 700, 200)])
def test_merged_batches_are_one_batch(sizes):
    x = data()
    whole, pieces = fed(x), fed(*x.split(list(sizes)))
    torch.testing.assert_close(pieces.mean, whole.mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(pieces.var, whole.var, rtol=1e-3, atol=1e-6)
    assert float(pieces.count) == float(whole.count)


def test_output_is_white():
    x = data()
    white = fed(x)(x)
    torch.testing.assert_close(white.mean(dim=0), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(white.std(dim=0), torch.ones(4), atol=1e-2, rtol=0)


def test_output_is_clipped():
    normalizer = RunningNormalizer(4, clip=2.0)
    normalizer.update(data())
    extreme = normalizer(torch.tensor([[1e9, -1e9, 0.0, 0.0]]))
    assert extreme[0, :2].tolist() == [2.0, -2.0]


def test_constant_dimensions_become_zero():
    x = data()
    x[:, 1] = 3.0
    assert not fed(x, x)(x)[:, 1].any()


def test_a_constant_that_floats_cannot_hold_stays_small():
    x = data()
    x[:, 1] = 1000.1
    assert fed(x, x, x)(x)[:, 1].abs().max() < 1.0


def test_no_rows_change_nothing():
    normalizer = fed(data())
    before = {name: value.clone() for name, value in normalizer.state_dict().items()}
    normalizer.update(torch.zeros(0, 4))
    assert all(torch.equal(value, before[name]) for name, value in normalizer.state_dict().items())


def test_long_runs_keep_counting():
    normalizer = fed(data())
    normalizer.count.fill_(2.0**24)
    normalizer.update(data(1))
    assert float(normalizer.count) > 2.0**24


def test_buffers_are_updated_in_place():
    # whoever shares the weights by reference sees the new statistics
    normalizer = RunningNormalizer(4)
    shared = normalizer.state_dict()
    normalizer.update(data())
    assert torch.equal(shared["mean"], normalizer.mean)
    assert float(shared["count"]) == 1000
