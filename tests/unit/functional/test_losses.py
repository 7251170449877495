import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from parl_cli.functional.losses import (
    approx_kl,
    backward_of_mean,
    explained_variance,
    kl_adaptive_lr,
    kl_penalty_coef,
    masked_mean,
    normalize_advantage,
    ppo_clip_loss,
    value_loss,
)


def rand(*shape, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)


def some_mask(*shape, seed=1):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    assert mask.any()
    assert not mask.all()
    return mask


# ------------------------------------------------------------------------------------------------ masked mean


@pytest.mark.parametrize("shape", [(5,), (4, 3), (4, 3, 2)])
def test_masked_mean_is_the_mean_of_what_is_selected(shape):
    x, mask = rand(*shape), some_mask(*shape)
    torch.testing.assert_close(masked_mean(x, mask), x[mask].mean())
    torch.testing.assert_close(masked_mean(x, None), x.mean())
    torch.testing.assert_close(masked_mean(x, torch.ones_like(mask)), x.mean())


def test_masked_rows_change_neither_the_mean_nor_its_gradient():
    mask = torch.tensor([True, False, True])
    x = torch.tensor([1.0, torch.nan, 5.0], requires_grad=True)
    mean = masked_mean(x, mask)
    mean.backward()
    assert mean.item() == 3.0
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


@pytest.mark.parametrize("masked", [False, True])
def test_the_backward_pass_of_the_mean_needs_no_mean(masked):
    mask = some_mask(4, 3) if masked else None
    x, y = rand(4, 3, requires_grad=True), rand(4, 3, requires_grad=True)
    masked_mean(x.exp(), mask).backward()
    backward_of_mean(y.exp(), mask)
    torch.testing.assert_close(y.grad, x.grad)


def test_the_backward_pass_imports_no_algebra():
    """Which takes longer than all of a short run's learning."""
    code = (
        "import sys, torch; from parl_cli.functional.losses import backward_of_mean as backward; "
        "backward(torch.ones(3, requires_grad=True) * 2, None); sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_the_mean_of_nothing_moves_nothing():
    x = torch.ones(3, requires_grad=True)
    backward_of_mean(x.exp(), torch.zeros(3, dtype=torch.bool))
    assert not x.grad.any()


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(3), torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_masked_mean_refuses_shapes_that_would_broadcast():
    with pytest.raises(ValueError, match="same shape"):
        masked_mean(torch.ones(3, 1), torch.ones(3, dtype=torch.bool))


# ------------------------------------------------------------------------------------------------ PPO's objective


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside: the plain surrogate
        (1.5, 2.0, -2.4, 0.0),  # far enough up: no more gradient
        (0.5, 2.0, -1.0, -2.0),  # wrong way: the gradient brings it back
        (0.9, -2.0, 1.8, 2.0),
        (0.5, -2.0, 1.6, 0.0),
        (1.5, -2.0, 3.0, 2.0),
    ],
)
def test_clip_loss_by_hand(ratio, advantage, loss, slope):
    r = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    actual = ppo_clip_loss(r, torch.tensor(advantage, dtype=torch.float64), 0.2)
    actual.backward()
    assert actual.item() == pytest.approx(loss)
    assert r.grad.item() == pytest.approx(slope)


def test_clip_loss_gradient_agrees_with_finite_differences():
    log_ratio = (0.4 * rand(40)).requires_grad_()
    assert gradcheck(lambda x: ppo_clip_loss(x.exp(), rand(40, seed=2), 0.2), log_ratio)


def test_value_loss_is_half_the_squared_error():
    loss = value_loss(torch.tensor([3.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    assert loss.tolist() == [2.0]


@pytest.mark.parametrize(
    ("value", "old_value", "returns", "loss"),
    [
        (1.1, 1.0, 2.0, 0.405),  # within the range: unclipped
        (1.5, 1.0, 2.0, 0.32),  # ran ahead: counts as if it stood at 1.2
        (0.5, 1.0, 2.0, 1.125),  # moved away: the larger of the two
    ],
)
def test_clipped_value_loss_by_hand(value, old_value, returns, loss):
    args = [torch.tensor(x, dtype=torch.float64) for x in (value, old_value, returns)]
    assert value_loss(*args, clip_range=0.2).item() == pytest.approx(loss)


@pytest.mark.parametrize("clip_range", [None, 0.3])
def test_value_loss_gradient_agrees_with_finite_differences(clip_range):
    value = rand(40, requires_grad=True)
    assert gradcheck(lambda v: value_loss(v, rand(40, seed=2), rand(40, seed=3), clip_range), value)


def test_clipped_value_loss_stops_pulling_once_the_value_ran_ahead():
    value = torch.tensor(1.5, requires_grad=True)
    value_loss(value, torch.tensor(1.0), torch.tensor(2.0), clip_range=0.2).backward()
    assert value.grad.item() == 0.0


# ------------------------------------------------------------------------------------------------ KL


def test_kl_estimate_is_unbiased_over_the_old_policy():
    old = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    new = torch.tensor([0.4, 0.1, 0.25, 0.25], dtype=torch.float64)
    expectation = (old * approx_kl((new / old).log())).sum()
    torch.testing.assert_close(expectation, (old * (old / new).log()).sum())


@settings(max_examples=50, deadline=None)
@given(st.floats(-20.0, 20.0))
def test_kl_estimate_is_never_negative(log_ratio):
    assert approx_kl(torch.tensor(log_ratio)).item() >= 0.0


def test_kl_estimate_keeps_its_digits_for_small_steps():
    assert approx_kl(torch.tensor(1e-3)).item() == pytest.approx(5e-7, rel=1e-2)


def test_kl_estimate_gradient_agrees_with_finite_differences():
    assert gradcheck(approx_kl, rand(20, requires_grad=True))


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.0151, 2.0), (0.0149, 1.0), (0.01, 1.0), (0.0067, 1.0), (0.0066, 0.5), (0.0, 0.5)]
)
def test_kl_penalty_doubles_above_and_halves_below_its_band(kl, expected):
    assert kl_penalty_coef(1.0, kl, target=0.01) == expected


@pytest.mark.parametrize(("kl", "bound"), [(0.0, 1e-6), (1.0, 1e6)])
def test_kl_penalty_comes_back_from_a_long_time_on_one_side(kl, bound):
    coef = 1.0
    for _ in range(2000):
        coef = kl_penalty_coef(coef, kl, target=0.01)
    assert coef == bound
    assert kl_penalty_coef(coef, 1.0 - kl, target=0.01) == bound * (2.0 if kl == 0.0 else 0.5)


@pytest.mark.parametrize("coef", [1e-9, 1e9])
def test_a_kl_penalty_typed_beyond_its_bounds_stays(coef):
    assert kl_penalty_coef(coef, 0.0 if coef < 1 else 1.0, target=0.01) == coef


@pytest.mark.parametrize(
    ("kl", "expected"), [(0.021, 2e-4), (0.019, 3e-4), (0.01, 3e-4), (0.0051, 3e-4), (0.0049, 4.5e-4), (0.0, 3e-4)]
)
def test_adaptive_learning_rate_falls_above_and_rises_below_its_band(kl, expected):
    assert kl_adaptive_lr(3e-4, kl, 0.01, min_lr=1e-5, max_lr=1e-2) == pytest.approx(expected)


def test_adaptive_learning_rate_uses_its_factor_and_stays_within_its_bounds():
    assert kl_adaptive_lr(3e-4, 1.0, 0.01, factor=3.0, min_lr=1e-5, max_lr=1e-2) == pytest.approx(1e-4)
    assert kl_adaptive_lr(1.2e-5, 1.0, 0.01, min_lr=1e-5, max_lr=1e-2) == 1e-5
    assert kl_adaptive_lr(9e-3, 1e-4, 0.01, min_lr=1e-5, max_lr=1e-2) == 1e-2


# ------------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize("shape", [(50,), (10, 6), (5, 4, 3)])
def test_normalized_advantages_have_mean_0_and_deviation_1_over_real_rows(shape):
    advantage, mask = 7.0 + 3.0 * rand(*shape), some_mask(*shape)
    normalized = normalize_advantage(advantage.masked_fill(~mask, torch.nan), mask)
    assert normalized[mask].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert normalized[mask].std(correction=0).item() == pytest.approx(1.0, rel=1e-6)
    assert not normalized[~mask].any()
    torch.testing.assert_close(normalized[mask], normalize_advantage(advantage[mask], None))


@pytest.mark.parametrize("masked", [False, True])
def test_minibatches_side_by_side_are_normalized_apart(masked):
    advantage = rand(3, 8, 2) * torch.tensor([1.0, 10.0, 0.1])[:, None, None] + 5
    mask = some_mask(3, 8, 2) if masked else None
    together = normalize_advantage(advantage, mask, batch_dims=1)
    for k in range(3):
        alone = normalize_advantage(advantage[k], None if mask is None else mask[k])
        torch.testing.assert_close(together[k], alone)
    assert (together - normalize_advantage(advantage, mask)).abs().max() > 0.1


def test_normalizing_one_or_equal_advantages_gives_zeros():
    assert normalize_advantage(torch.tensor([5.0]), None).tolist() == [0.0]
    assert normalize_advantage(torch.tensor([2.0, 2.0, 9.0]), torch.tensor([True, True, False])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("masked", [True, False])
def test_explained_variance_of_known_critics(masked):
    returns, noise = rand(2000), 0.5 * rand(2000, seed=5)
    mask = some_mask(2000) if masked else None
    real = mask if masked else torch.ones(2000, dtype=torch.bool)
    spoil = torch.where(real, 0.0, 100.0)
    assert explained_variance(returns + 3.0, returns, mask).item() == pytest.approx(1.0)
    assert explained_variance(torch.zeros(2000) + spoil, returns, mask).item() == pytest.approx(0.0, abs=1e-12)
    expected = 1 - noise[real].var() / returns[real].var()
    torch.testing.assert_close(explained_variance(returns + noise + spoil, returns, mask), expected)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e4 / 3])
def test_explained_variance_of_constant_returns_is_undefined(constant):
    returns = torch.full((4096,), constant)
    assert math.isnan(explained_variance(torch.randn(4096), returns, None))
