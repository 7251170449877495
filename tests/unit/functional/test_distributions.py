"""Every distribution, asked the same questions: sampling, density, entropy, KL, gradients; then each one's traps."""

import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as reference
from torch.autograd import gradcheck

from parl_cli.errors import ConfigError
from parl_cli.functional.distributions import (
    Bernoulli,
    Categorical,
    Gaussian,
    MultiCategorical,
    SquashedGaussian,
    _choose_in_parallel,
    make_distribution,
    squash,
)

LOW, HIGH = np.array([-1.0, 0.5, -30.0], np.float32), np.array([1.0, 0.7, 10.0], np.float32)
SPACES = {
    "categorical": (spaces.Discrete(5, start=-2), False),
    "multi_categorical": (spaces.MultiDiscrete([2, 5, 3]), False),
    "multi_categorical_square": (spaces.MultiDiscrete([4, 4]), False),
    "bernoulli": (spaces.MultiBinary(4), False),
    "gaussian": (spaces.Box(-np.inf, np.inf, (3,)), False),
    "gaussian_matrix": (spaces.Box(-1.0, 1.0, (2, 3)), False),
    "gaussian_scalar": (spaces.Box(-1.0, 1.0, ()), False),
    "squashed_gaussian": (spaces.Box(LOW, HIGH), True),
    "squashed_gaussian_matrix": (spaces.Box(-2.0, 1.0, (3, 2)), True),
}
DISCRETE = [name for name in SPACES if "gaussian" not in name]
CONTINUOUS = [name for name in SPACES if "gaussian" in name]


def spec_of(name):
    space, squash = SPACES[name]
    return make_distribution(space, squash=squash)


def params_of(name, *lead, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(*lead, spec_of(name).num_params, generator=generator, dtype=dtype)


def noise_of(name, *lead, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.rand(*lead, spec_of(name).noise_dim, generator=generator, dtype=dtype)


def all_actions(name):
    """Every action of a discrete distribution, [num_actions, *event]."""
    if name == "categorical":
        return torch.arange(5)
    sizes = {"multi_categorical": (2, 5, 3), "multi_categorical_square": (4, 4), "bernoulli": (2, 2, 2, 2)}[name]
    return torch.tensor(list(itertools.product(*map(range, sizes))))


def torch_reference(name, params):
    """The same distribution by torch.distributions, with joint log_prob and entropy."""
    if name == "categorical":
        return reference.Categorical(logits=params)
    if name == "bernoulli":
        return reference.Independent(reference.Bernoulli(logits=params), 1)
    mean, log_std = params.chunk(2, -1)
    shape = SPACES[name][0].shape
    mean, log_std = (x.reshape(x.shape[:-1] + shape) for x in (mean, log_std))
    base = reference.Independent(reference.Normal(mean, log_std.exp()), len(shape))
    if not name.startswith("squashed"):
        return base
    low, high = bounds_of(name)
    maps = [reference.TanhTransform(), reference.AffineTransform((high + low) / 2, (high - low) / 2)]
    return reference.TransformedDistribution(base, maps)


def bounds_of(name):
    return (torch.from_numpy(b).double() for b in (SPACES[name][0].low, SPACES[name][0].high))


def squashed(name, u):
    """The env's action, differentiable."""
    low, high = bounds_of(name)
    return (high + low) / 2 + (high - low) / 2 * u.tanh()


# ------------------------------------------------------------------------------------------------ all of them


@pytest.mark.parametrize("lead", [(7,), (4, 3), (4, 3, 2), ()], ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_shapes_and_types_follow_the_shape_law(name, lead):
    spec = spec_of(name)
    distribution = spec(params_of(name, *lead, dtype=torch.float32))
    for action in (distribution.sample(noise_of(name, *lead, dtype=torch.float32)), distribution.mode()):
        assert action.shape == lead + spec.event_shape
        assert action.dtype == spec.dtype
    for number in (distribution.log_prob(action), distribution.entropy(), distribution.kl(distribution)):
        assert number.shape == lead
        assert number.dtype == torch.float32


@pytest.mark.parametrize("name", SPACES)
def test_a_row_does_not_depend_on_the_other_rows(name):
    spec, params, noise = spec_of(name), params_of(name, 4, 3), noise_of(name, 4, 3)
    action = spec(params).sample(noise)
    assert torch.equal(spec(params[2, 1]).sample(noise[2, 1]), action[2, 1])
    torch.testing.assert_close(spec(params[2]).log_prob(action[2]), spec(params).log_prob(action)[2])


@pytest.mark.parametrize("name", SPACES)
def test_gradients_agree_with_finite_differences(name):
    spec, params, other = spec_of(name), params_of(name, 3), params_of(name, 3, seed=1)
    action = spec(params).sample(noise_of(name, 3))
    params.requires_grad_()
    other.requires_grad_()
    assert gradcheck(lambda p: spec(p).log_prob(action), params)
    assert gradcheck(lambda p: spec(p).entropy(), params)
    assert gradcheck(lambda p, q: spec(p).kl(spec(q)), (params, other))


@pytest.mark.parametrize("name", SPACES)
def test_entropy_is_the_mean_of_minus_log_prob(name):
    spec, params = spec_of(name), params_of(name, 2)
    distribution = spec(params)
    many = spec(params.expand(200_000 // 2, 2, -1))
    surprise = -many.log_prob(many.sample(noise_of(name, 200_000 // 2, 2)))
    error = surprise.std(0) / math.sqrt(len(surprise))
    assert ((surprise.mean(0) - distribution.entropy()).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("name", SPACES)
def test_kl_is_the_mean_of_the_log_ratio_under_the_first(name):
    spec = spec_of(name)
    p, q = params_of(name, 2), params_of(name, 2, seed=1)
    many_p, many_q = (spec(x.expand(100_000, 2, -1)) for x in (p, q))
    action = many_p.sample(noise_of(name, 100_000, 2))
    log_ratio = many_p.log_prob(action) - many_q.log_prob(action)
    error = log_ratio.std(0) / math.sqrt(len(log_ratio))
    kl = spec(p).kl(spec(q))
    assert (kl > 10 * error).all()  # else the next line would hold for zero
    assert ((log_ratio.mean(0) - kl).abs() < 5 * error).all()


@pytest.mark.parametrize("name", SPACES)
def test_kl_to_itself_is_zero(name):
    spec, params = spec_of(name), params_of(name, 5)
    torch.testing.assert_close(spec(params).kl(spec(params.clone())), torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in SPACES if not name.startswith("multi")])
def test_log_prob_and_closed_forms_agree_with_torch(name):
    spec, p, q = spec_of(name), params_of(name, 6), params_of(name, 6, seed=1)
    action = spec(p).sample(noise_of(name, 6))
    expected = torch_reference(name, p)
    value = action.double() if action.is_floating_point() or name == "bernoulli" else action
    if name.startswith("squashed"):
        value = squashed(name, value)
    torch.testing.assert_close(spec(p).log_prob(action), expected.log_prob(value))
    torch.testing.assert_close(spec(p).kl(spec(q)), reference.kl_divergence(expected, torch_reference(name, q)))
    if not name.startswith("squashed"):
        torch.testing.assert_close(spec(p).entropy(), expected.entropy())


@pytest.mark.parametrize("name", SPACES)
def test_a_spec_survives_pickling_to_a_worker(name):
    spec, params, noise = spec_of(name), params_of(name, 3), noise_of(name, 3)
    assert torch.equal(pickle.loads(pickle.dumps(spec))(params).sample(noise), spec(params).sample(noise))


# ------------------------------------------------------------------------------------------------ discrete


@pytest.mark.parametrize("name", DISCRETE)
def test_probabilities_sum_to_one(name):
    spec, actions = spec_of(name), all_actions(name)
    distribution = spec(params_of(name).expand(len(actions), -1))
    assert distribution.log_prob(actions).exp().sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("name", DISCRETE)
def test_mode_is_the_most_likely_action(name):
    spec, actions, params = spec_of(name), all_actions(name), params_of(name)
    best = spec(params.expand(len(actions), -1)).log_prob(actions).argmax()
    assert torch.equal(spec(params).mode().long(), actions[best])


def test_multi_categorical_is_independent_categoricals():
    params, other = params_of("multi_categorical", 6), params_of("multi_categorical", 6, seed=1)
    action = torch.tensor([[0, 4, 2], [1, 0, 0]]).repeat(3, 1)
    joint, joint_other = MultiCategorical(params, (2, 5, 3)), MultiCategorical(other, (2, 5, 3))
    parts = [Categorical(x) for x in params.split((2, 5, 3), -1)]
    others = [Categorical(x) for x in other.split((2, 5, 3), -1)]
    torch.testing.assert_close(joint.log_prob(action), sum(part.log_prob(action[:, i]) for i, part in enumerate(parts)))
    torch.testing.assert_close(joint.entropy(), sum(part.entropy() for part in parts))
    torch.testing.assert_close(joint.kl(joint_other), sum(p.kl(q) for p, q in zip(parts, others, strict=True)))


def grid(size):
    return (torch.arange(size, dtype=torch.float32) + 0.5) / size


def test_categorical_frequencies_over_a_noise_grid_are_the_probabilities():
    probs = torch.tensor([0.25, 0.0, 0.5, 0.125, 0.125])
    action = Categorical(probs.log().expand(1000, 5)).sample(grid(1000).unsqueeze(-1))
    assert torch.bincount(action, minlength=5).tolist() == [250, 0, 500, 125, 125]


def test_multi_categorical_frequencies_over_a_noise_grid_are_the_products():
    probs = [torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.0, 0.5])]
    noise = torch.cartesian_prod(grid(20), grid(20))
    action = MultiCategorical(torch.cat(probs).log().expand(400, 5), (2, 3)).sample(noise)
    counts = torch.zeros(2, 3)
    counts.index_put_((action[:, 0], action[:, 1]), torch.ones(400), accumulate=True)
    torch.testing.assert_close(counts / 400, torch.outer(*probs))


def test_bernoulli_frequencies_over_a_noise_grid_are_the_probabilities():
    probs = torch.tensor([0.0, 0.2, 0.75, 1.0])
    action = Bernoulli(probs.logit().expand(1000, 4)).sample(grid(1000).unsqueeze(-1).expand(-1, 4))
    assert action.sum(0, dtype=torch.int64).tolist() == [0, 200, 750, 1000]


EXTREME_NOISE = torch.tensor([0.0, 1e-45, 2.0**-24, 0.5, 1 - 2.0**-24, 1.0]).unsqueeze(-1)


@pytest.mark.parametrize("forbidden", [[0], [4], [0, 4], [1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4]], ids=str)
@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_forbidden_classes_are_never_drawn_even_at_the_edges_of_the_noise(forbidden, scale):
    torch.manual_seed(0)
    logits = scale * torch.randn(500, 1, 5)
    logits[..., forbidden] = -torch.inf
    action = Categorical(logits.expand(-1, 6, -1)).sample(EXTREME_NOISE.expand(500, -1, -1))
    assert not torch.isin(action, torch.tensor(forbidden)).any()
    assert (action < 5).all()


@pytest.mark.parametrize(
    ("probs", "cumulative", "noise", "expected"),
    [
        ([0.5, 0.0, 0.5], [0.5, 0.5 + 2.0**-24, 1.0], 0.5, 2),  # rises over a forbidden class
        ([0.5, 0.5, 0.0], [0.5, 1.0 - 2.0**-23, 1.0], 1.0 - 2.0**-24, 1),  # reaches 1 only in a forbidden class
    ],
)
def test_a_cumulative_sum_rounded_as_on_a_gpu_draws_no_forbidden_class(monkeypatch, probs, cumulative, noise, expected):
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda x, dim: torch.tensor(cumulative))
    assert _choose_in_parallel(torch.tensor(probs), torch.tensor([noise])).item() == expected


@pytest.mark.parametrize("n", [2, 5, 300])
def test_a_cpu_and_an_accelerator_choose_the_same_classes(n):
    generator = torch.Generator().manual_seed(0)
    log_probs = (3 * torch.randn(2000, n, generator=generator)).log_softmax(-1)
    log_probs[:, 0] = -torch.inf
    noise = torch.rand(2000, 1, generator=generator)
    differ = Categorical(log_probs).sample(noise) != _choose_in_parallel(log_probs.exp(), noise)
    assert differ.sum() <= 2  # noise within rounding of a boundary


def test_rounding_in_a_long_cumulative_sum_never_leads_past_the_last_class():
    torch.manual_seed(0)
    for n in (2, 3, 17, 1000, 4097):
        action = Categorical(torch.randn(200, 1, n).expand(-1, 6, -1)).sample(EXTREME_NOISE.expand(200, -1, -1))
        assert action.min() >= 0
        assert action.max() < n


def test_forbidden_classes_leave_entropy_kl_and_gradients_finite():
    logits = torch.tensor([[0.3, -torch.inf, 1.0], [-torch.inf, 0.1, -torch.inf]], requires_grad=True)
    other = torch.tensor([[0.1, -torch.inf, 0.0], [-torch.inf, 2.0, -torch.inf]], requires_grad=True)
    p, q = Categorical(logits), Categorical(other)
    (p.entropy() + p.kl(q) + p.log_prob(torch.tensor([2, 1]))).sum().backward()
    allowed = Categorical(logits[:1, [0, 2]])
    torch.testing.assert_close(p.entropy(), torch.tensor([allowed.entropy().item(), 0.0]))
    torch.testing.assert_close(p.kl(q)[0], allowed.kl(Categorical(other[:1, [0, 2]]))[0])
    assert logits.grad.isfinite().all()
    assert other.grad.isfinite().all()
    assert p.log_prob(torch.tensor([1, 0])).isinf().all()


def test_kl_to_a_policy_that_forbids_more_is_huge_and_not_nan():
    open_policy = Categorical(torch.tensor([0.0, 0.0]))
    assert open_policy.kl(Categorical(torch.tensor([0.0, -torch.inf]))) > 1e30


# ------------------------------------------------------------------------------------------------ continuous


def test_gaussian_density_integrates_to_one():
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    params = torch.tensor([0.4, -0.3], dtype=torch.float64)
    density = Gaussian(params.expand(len(x), 2)).log_prob(x.unsqueeze(-1)).exp()
    assert torch.trapezoid(density, x).item() == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("log_std", [-1.5, -0.5, 0.0])
def test_squashed_density_integrates_to_one_over_asymmetric_bounds_of_its_own_per_dimension(log_std):
    low, high, size = (-1.0, 3.0), (0.25, 30.0), 800
    widths = [(b - a) / size for a, b in zip(low, high, strict=True)]
    centres = [a + width * (torch.arange(size) + 0.5).double() for a, width in zip(low, widths, strict=True)]
    params = torch.tensor([0.3, -0.2, log_std, log_std], dtype=torch.float64)
    points = torch.cartesian_prod(*centres)
    middle, half = (torch.tensor([(b + sign * a) / 2 for a, b in zip(low, high, strict=True)]) for sign in (1, -1))
    u = ((points - middle) / half).atanh()
    density = SquashedGaussian(params.expand(len(points), 4), low, high).log_prob(u).exp()
    assert density.sum().item() * math.prod(widths) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_samples_follow_the_density(name):
    # sample is the inverse of the cumulative distribution: its slope in the noise is one over the density
    spec, noise = spec_of(name), noise_of(name, 50).clamp(0.01, 0.99).requires_grad_()
    distribution = spec(params_of(name, 50))
    action = distribution.sample(noise)
    seen = squashed(name, action) if name.startswith("squashed") else action
    (slope,) = torch.autograd.grad(seen.sum(), noise)
    assert (slope > 0).all()
    torch.testing.assert_close(distribution.log_prob(action), -slope.log().sum(-1))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_mode_is_the_median_sample(name):
    spec, params = spec_of(name), params_of(name, 4)
    half = torch.full((4, spec.noise_dim), 0.5, dtype=torch.float64)
    torch.testing.assert_close(spec(params).mode(), spec(params).sample(half))


def test_gaussian_sample_is_finite_at_the_edges_of_the_noise_in_float32():
    sample = Gaussian(torch.zeros(6, 2)).sample(EXTREME_NOISE)
    assert sample.isfinite().all()
    assert sample.abs().max() < 6
    torch.testing.assert_close(sample[:3], -sample[5].expand(3, 1))  # all clamped to the same number
    assert sample[3].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [-200.0, -9.0, 0.0, 9.0, 200.0])
def test_squashed_log_prob_and_gradient_stay_finite_where_the_action_is_at_the_bounds(mean, dtype):
    params = torch.tensor([mean] * 3 + [0.5] * 3, dtype=dtype, requires_grad=True)
    u = torch.tensor([-300.0, -9.0, 0.0, 9.0, 300.0], dtype=dtype).unsqueeze(-1).expand(5, 3)
    distribution = SquashedGaussian(params.expand(5, -1), tuple(LOW.tolist()), tuple(HIGH.tolist()))
    log_prob = distribution.log_prob(u)
    log_prob.sum().backward()
    assert log_prob.isfinite().all()
    assert params.grad.isfinite().all()
    assert distribution.entropy().isfinite().all()


@pytest.mark.parametrize("mean", [0.0, 7.0, 10.0])
def test_ratios_of_a_saturated_policy_are_those_of_its_gaussian(mean):
    # every action there rounds to the bound, but the policies still differ
    bounds = ((-2.0,), (2.0,))
    old, new = (torch.tensor([mean + shift, -2.3]) for shift in (0.0, -0.1))
    action = SquashedGaussian(old, *bounds).sample(torch.tensor([0.69]))
    log_ratio = SquashedGaussian(new, *bounds).log_prob(action) - SquashedGaussian(old, *bounds).log_prob(action)
    plain = Gaussian(new).log_prob(action) - Gaussian(old).log_prob(action)
    torch.testing.assert_close(log_ratio, plain, atol=1e-4, rtol=1e-4)
    assert abs(log_ratio) < 3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mean", [-200.0, -3.0, 0.0, 3.0, 200.0])
def test_squashed_actions_never_leave_the_bounds(mean, dtype):
    torch.manual_seed(0)
    space = spaces.Box(LOW.astype(dtype), HIGH.astype(dtype), dtype=dtype)
    params = torch.tensor([mean] * 3 + [2.0] * 3)
    u = SquashedGaussian(params, tuple(LOW.tolist()), tuple(HIGH.tolist())).sample(torch.rand(2000, 3))
    action = squash(u.numpy(), space)
    assert action.dtype == dtype
    assert all(map(space.contains, action))
    if mean == 0.0:
        assert (action.mean(axis=0) < HIGH).all()
        assert np.ptp(action, axis=0) == pytest.approx(HIGH - LOW, rel=1e-3)  # they reach as far as it does


def test_squashed_density_is_in_the_units_of_the_env():
    # ten times the range: a tenth of the density, log 10 more entropy
    params, u = torch.tensor([0.3, -0.2]), torch.tensor([0.4])
    unit, wide = SquashedGaussian(params, (-1.0,), (1.0,)), SquashedGaussian(params, (-10.0,), (10.0,))
    torch.testing.assert_close(unit.log_prob(u) - wide.log_prob(u), torch.tensor(math.log(10.0)))
    torch.testing.assert_close(wide.entropy() - unit.entropy(), torch.tensor(math.log(10.0)))


@pytest.mark.parametrize(("std", "tolerance"), [(0.05, 1e-6), (0.5, 1e-6), (1.0, 1e-6), (2.0, 1e-3), (7.0, 0.1)])
def test_squashed_entropy_has_the_documented_accuracy(std, tolerance):
    # minus the integral of p log p over u, on a grid fine enough for the steepest of them
    for mean in (-4.0, -0.7, 0.0, 0.2, 2.0):
        z = torch.linspace(-10, 10, 40_001, dtype=torch.float64)
        base = reference.Normal(mean, std)
        u = mean + std * z
        slope = -2.0 * torch.logaddexp(u, -u) + 2.0 * math.log(2.0)
        exact = torch.trapezoid(base.log_prob(u).exp() * (slope - base.log_prob(u)), u)
        params = torch.tensor([mean, math.log(std)], dtype=torch.float64)
        assert SquashedGaussian(params, (-1.0,), (1.0,)).entropy().item() == pytest.approx(exact.item(), abs=tolerance)


def test_squashed_kl_needs_equal_bounds():
    params = torch.zeros(2)
    with pytest.raises(ValueError, match="same on both sides"):
        SquashedGaussian(params, (-1.0,), (1.0,)).kl(SquashedGaussian(params, (-2.0,), (1.0,)))


@pytest.mark.parametrize("name", ["gaussian", "squashed_gaussian"])
def test_samples_are_differentiable_in_the_parameters(name):
    params, noise = params_of(name, 3), noise_of(name, 3)
    assert gradcheck(lambda p: spec_of(name)(p).sample(noise), params.requires_grad_())


@pytest.mark.parametrize("name", ["multi_categorical", "squashed_gaussian"])
def test_constants_first_made_while_acting_do_not_break_learning(name):
    # bounds and sizes that no other test uses, so that the cache is cold
    space = spaces.MultiDiscrete([2, 7, 11]) if name == "multi_categorical" else spaces.Box(-3.25, 1.75, (2,))
    spec = make_distribution(space, squash=name == "squashed_gaussian")
    with torch.inference_mode():
        action = spec(torch.zeros(3, spec.num_params)).sample(torch.rand(3, spec.noise_dim))
    params = torch.zeros(3, spec.num_params, requires_grad=True)
    distribution = spec(params)
    (distribution.entropy() + distribution.log_prob(action.clone())).sum().backward()
    assert params.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------ the factory


@pytest.mark.parametrize(
    ("name", "kind", "num_params", "noise_dim", "num_means"),
    [
        ("categorical", "categorical", 5, 1, 0),
        ("multi_categorical", "multi_categorical", 10, 3, 0),
        ("bernoulli", "bernoulli", 4, 4, 0),
        ("gaussian_matrix", "gaussian", 12, 6, 6),
        ("squashed_gaussian", "squashed_gaussian", 6, 3, 3),
    ],
)
def test_the_spec_says_what_a_head_needs(name, kind, num_params, noise_dim, num_means):
    spec = spec_of(name)
    assert (spec.kind, spec.num_params, spec.noise_dim, spec.num_means) == (kind, num_params, noise_dim, num_means)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_means_come_first_and_log_stds_follow(name):
    spec = spec_of(name)
    params = torch.cat([torch.full((spec.num_means,), 0.5), torch.full((spec.num_means,), -20.0)])
    action = spec(params).sample(torch.rand(spec.noise_dim))
    torch.testing.assert_close(action, spec(params).mode())  # no spread: the second half is the log std


@pytest.mark.parametrize("name", [name for name in SPACES if name not in ("categorical",)])
def test_samples_are_members_of_the_space(name):
    space = SPACES[name][0]
    if name.startswith("gaussian"):
        space = spaces.Box(-np.inf, np.inf, space.shape)  # clipping is the policy's
    torch.manual_seed(0)
    actions = spec_of(name)(params_of(name, 50, dtype=torch.float32)).sample(torch.rand(50, spec_of(name).noise_dim))
    taken = squash(actions.numpy(), space) if name.startswith("squashed") else actions.numpy()
    assert all(space.contains(np.asarray(action)) for action in taken)


BAD_SPACES = [
    (spaces.Box(0, 255, (2,), np.uint8), False, "must be Discrete"),
    (spaces.MultiDiscrete([[2, 3], [4, 5]]), False, "of one dimension"),
    (spaces.MultiBinary([2, 2]), False, "of one dimension"),
    (spaces.Dict({"a": spaces.Discrete(2)}), False, "wrap the env"),
    (spaces.Box(-1.0, 1.0, (0,)), False, "at least one entry"),
    (spaces.Box(-np.inf, 1.0, (2,)), True, "must be finite; set policy.squash=false"),
    (spaces.Box(-1.0, np.inf, (2,)), True, "must be finite"),
    (spaces.Box(np.array([0.0, 1.0], np.float32), np.array([1.0, 1.0], np.float32)), True, "low must be below high"),
    (spaces.Discrete(3), True, "needs a Box; set policy.squash=false"),
    (spaces.Box(np.full((30, 30), -np.inf, np.float32), 1.0, (30, 30)), True, "must be finite"),
]


@pytest.mark.parametrize(("space", "squash", "message"), BAD_SPACES, ids=[message for *_, message in BAD_SPACES])
def test_a_space_without_a_distribution_is_one_line_with_the_way_out(space, squash, message):
    with pytest.raises(ConfigError, match=message) as caught:
        make_distribution(space, squash=squash)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_params_of_the_wrong_size_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 4\).*must be 5"):
        spec_of("categorical")(torch.zeros(3, 4))
