"""A2C, A3C and IMPALA: their gradient against finite differences of the paper's loss, with targets by numpy."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch

from parl_cli.algos import a2c as a2c_module
from parl_cli.algos import impala as impala_module
from parl_cli.algos.a2c import A2C, A2CConfig
from parl_cli.algos.a3c import A3C, A3CConfig
from parl_cli.algos.impala import IMPALA, IMPALAConfig
from parl_cli.errors import ConfigError
from parl_cli.functional.advantages import n_step_returns
from parl_cli.metrics.catalog import lookup
from tests.helpers.rollouts import ACTION_SPACES, VECTOR, clone, random_rollout, spec_of
from tests.helpers.saved import as_saved
from tests.helpers.stubs import make_policy, train_config

FAMILY = {"a2c": A2C, "a3c": A3C, "impala": IMPALA}
family = pytest.mark.parametrize("cls", FAMILY.values(), ids=FAMILY.keys())


def make(cls=A2C, action="discrete", *, lag=0.0, policy=None, seed=0, **changes):
    """An algorithm and a rollout of its policy as it was before it moved by `lag`."""
    action_space, squash = ACTION_SPACES[action]
    spec = spec_of(VECTOR, action_space)
    network = make_policy(spec, squash=squash, **({"policy_gain": 1.0} | (policy or {})))
    rollout = random_rollout(network, spec)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in network.parameters():
            parameter += lag * torch.randn(parameter.shape, generator=generator)
    return cls(network, dataclasses.replace(cls.Config(), **changes), seed=seed), rollout


def weights(algo):
    return torch.nn.utils.parameters_to_vector(algo.policy.parameters()).detach().clone()


@torch.no_grad()
def put(policy, vector):
    """Weights in place: the fused network reads the same memory."""
    parameters = list(policy.parameters())
    for parameter, piece in zip(parameters, vector.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(piece.view_as(parameter))


def updated(cls=A2C, rollout=None, progress=0.0, **changes):
    algo, own = make(cls, **changes)
    algo.update(rollout or own, progress)
    return weights(algo)


# ---- the gradient ----


def oracle_targets(algo, rollout, *, corrected):
    """Advantages and value targets of the papers, by walking forward from every step."""
    config = algo.config
    value, next_value = (x.numpy().astype(float) for x in algo.policy.values(rollout))
    with torch.no_grad():
        current = algo.policy.evaluate(rollout.obs)[0].log_prob(rollout.action).numpy()
    ratio = np.exp(current - rollout.extras["log_prob"].numpy()) if corrected else np.ones_like(value)
    rho_bar, c_bar, pg_rho_bar = (config.rho_bar, config.c_bar, config.pg_rho_bar) if corrected else (1.0, 1.0, 1.0)
    ends = (rollout.terminated | rollout.truncated).numpy()
    ends[-1] = True
    after = np.where(rollout.terminated.numpy(), 0.0, next_value)
    vs = value.copy()
    for t0, n in np.ndindex(*value.shape):
        trace, t = 1.0, t0
        while True:
            delta = rollout.reward[t, n].item() + config.gamma * after[t, n] - value[t, n]
            vs[t0, n] += trace * min(rho_bar, ratio[t, n]) * delta
            trace *= config.gamma * config.gae_lambda * min(c_bar, ratio[t, n])
            if ends[t, n]:
                break
            t += 1
    advantage = vs - value
    if corrected:
        future = np.where(ends, after, np.concatenate([vs[1:], vs[:1]]))
        advantage = np.minimum(pg_rho_bar, ratio) * (rollout.reward.numpy() + config.gamma * future - value)
    return torch.tensor(advantage, dtype=torch.float32), torch.tensor(vs, dtype=torch.float32)


def assert_gradient_is_the_oracle_s(cls, action="discrete", lag=0.3, **options):
    """The update's gradient along random directions equals central differences of the loss as the paper writes it."""
    corrected = cls is IMPALA and options.get("vtrace", True)
    plain = {"max_grad_norm": None, "learning_rate": 1e-9, "entropy_coef": 0.1, "value_coef": 0.7}
    algo, rollout = make(cls, action, lag=lag, policy={"hidden_sizes": [4]}, **plain, **options)
    advantage, returns = oracle_targets(algo, rollout, corrected=corrected)
    policy, config = algo.policy, algo.config

    def loss():
        with torch.no_grad():
            distribution, value = policy.evaluate(rollout.obs)
            log_prob, entropy = distribution.log_prob(rollout.action), distribution.entropy()
        terms = -log_prob * advantage + config.value_coef * 0.5 * (returns - value) ** 2 - config.entropy_coef * entropy
        return float(terms.double().mean())

    origin = weights(algo)
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(origin.shape, generator=generator) for _ in range(6)]
    slopes = []
    for direction in directions:
        ends = []
        for sign in (1, -1):
            put(policy, origin + sign * 1e-2 * direction)
            ends.append(loss())
        slopes.append((ends[0] - ends[1]) / 2e-2)
    put(policy, origin)
    algo.update(rollout)
    gradient = torch.cat([p.grad.flatten() for p in algo.policy.parameters()])
    found = [float(gradient @ direction) for direction in directions]
    assert found == pytest.approx(slopes, rel=0.03, abs=0.01)
    assert max(map(abs, slopes)) > 0.1


@family
@pytest.mark.parametrize("action", ["discrete", "multi_binary", "box"])
def test_its_gradient_is_that_of_the_papers_loss(cls, action):
    assert_gradient_is_the_oracle_s(cls, action)


@pytest.mark.parametrize(
    "options", [{"vtrace": False}, {"gae_lambda": 0.7}, {"rho_bar": 0.8, "c_bar": 0.6, "pg_rho_bar": 0.7}]
)
def test_impala_s_options_are_those_of_the_equations(options):
    assert_gradient_is_the_oracle_s(IMPALA, **options)


def test_a_minus_sign_in_the_advantage_would_be_found(monkeypatch):
    targets = a2c_module.gae_targets

    def negated(*arguments, **options):
        found = targets(*arguments, **options)
        return found._replace(advantage=-found.advantage)

    monkeypatch.setattr(a2c_module, "gae_targets", negated)
    for cls in (A2C, A3C):
        with pytest.raises(AssertionError):
            assert_gradient_is_the_oracle_s(cls)


def test_a_minus_sign_in_the_entropy_would_be_found(monkeypatch):
    monkeypatch.setattr(a2c_module, "schedule", lambda kind, start, end, progress: -start if start == 0.1 else start)
    with pytest.raises(AssertionError):
        assert_gradient_is_the_oracle_s(A2C)


def test_policies_that_were_swapped_would_be_found(monkeypatch):
    vtrace = impala_module.vtrace
    monkeypatch.setattr(impala_module, "vtrace", lambda mu, pi, *rest, **options: vtrace(pi, mu, *rest, **options))
    with pytest.raises(AssertionError):
        assert_gradient_is_the_oracle_s(IMPALA)


def test_a_correction_that_is_forgotten_would_be_found(monkeypatch):
    monkeypatch.setattr(IMPALA, "targets", A2C.targets)
    with pytest.raises(AssertionError):
        assert_gradient_is_the_oracle_s(IMPALA)


# ---- what equals what ----


def test_a2c_s_returns_are_the_longest_n_step_returns():
    algo, rollout = make(lag=0.3)
    _, next_value = algo.policy.values(rollout)
    expected = n_step_returns(rollout.reward, next_value, rollout.terminated, rollout.truncated, gamma=0.99, n=100)
    torch.testing.assert_close(algo.targets(rollout).returns, expected, atol=1e-5, rtol=0)


def same(**changes):
    """A2C's values, for another class."""
    common = {f.name: f.default for f in dataclasses.fields(A2CConfig) if f.name != "name"}
    return common | changes


@pytest.mark.parametrize("lag", [0.0, 0.3])
def test_a3c_is_a2c_with_other_defaults(lag):
    assert torch.equal(updated(A3C, lag=lag, **same()), updated(A2C, lag=lag))


@pytest.mark.parametrize("lag", [0.0, 0.3])
def test_impala_without_vtrace_is_a2c(lag):
    assert torch.equal(updated(IMPALA, lag=lag, **same(vtrace=False)), updated(A2C, lag=lag))


@pytest.mark.parametrize("action", ["discrete", "box", "multi_binary"])
def test_impala_without_lag_is_a2c_too(action):
    options = {"optimizer": "adam", "optimizer_eps": 1e-3}  # small gradients amplify rounding where eps is smaller
    mine = updated(IMPALA, action=action, **same(**options))
    torch.testing.assert_close(mine, updated(A2C, action=action, **options), atol=1e-5, rtol=0)
    lagged = updated(IMPALA, action=action, lag=0.3, **same(**options))
    assert (lagged - updated(A2C, action=action, lag=0.3, **options)).abs().max() > 1e-4


# ---- the optimizer, the schedules ----


def gradient_of_first_step(**changes):
    algo, rollout = make(max_grad_norm=None, **changes)
    before = weights(algo)
    algo.update(rollout)
    gradient = torch.cat([p.grad.flatten() for p in algo.policy.parameters()])
    return gradient, weights(algo) - before


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_first_step_is_as_long_as_the_learning_rate(optimizer):
    # RMSProp without the correction would make it 1 / sqrt(1 − 0.99) = 10 times as long
    gradient, step = gradient_of_first_step(optimizer=optimizer, learning_rate=0.01, optimizer_eps=1e-12)
    moved = gradient.abs() > 1e-6
    torch.testing.assert_close(step[moved], -0.01 * gradient[moved].sign(), atol=1e-5, rtol=0)


def test_rmsprop_divides_by_the_root_of_the_mean_square():
    algo, rollout = make(optimizer="rmsprop", rmsprop_decay=0.9, learning_rate=0.01, max_grad_norm=None)
    squares = torch.zeros(len(weights(algo)))
    for update in range(1, 4):
        before = weights(algo)
        algo.update(rollout)
        gradient = torch.cat([p.grad.flatten() for p in algo.policy.parameters()])
        squares = 0.9 * squares + 0.1 * gradient.square()
        expected = -0.01 * gradient / ((squares / (1 - 0.9**update)).sqrt() + 1e-5)
        torch.testing.assert_close(weights(algo) - before, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("optimizer", "moves"), [("rmsprop", False), ("adam", True)])
def test_adam_has_a_momentum(optimizer, moves):
    algo, rollout = make(optimizer=optimizer, entropy_coef=0.0, value_coef=0.0, learning_rate=0.01)
    algo.update(rollout)
    before = weights(algo)
    value, _ = algo.policy.values(rollout)
    over = torch.ones_like(rollout.terminated)
    algo.update(dataclasses.replace(rollout, reward=value, terminated=over))  # as the critic expects: no gradient
    assert bool((weights(algo) - before).abs().max() > 1e-4) == moves


@pytest.mark.parametrize(("kind", "share"), [("constant", 1.0), ("linear", 0.75), ("cosine", 0.75)])
def test_schedules_reach_the_optimizer_and_the_loss(kind, share):
    options = {"learning_rate_schedule": kind, "learning_rate_end": 0.5, "entropy_coef_schedule": kind}
    algo, rollout = make(learning_rate=0.02, entropy_coef=0.4, **options)
    before = weights(algo)
    metrics = algo.update(rollout, 0.5)
    assert metrics["optim/learning_rate"] == pytest.approx(0.02 * share)
    assert metrics["algo/entropy_coef"] == pytest.approx(0.4 * (1.0 if kind == "constant" else 0.5))
    fixed, rollout = make(learning_rate=metrics["optim/learning_rate"], entropy_coef=metrics["algo/entropy_coef"])
    fixed.update(rollout)
    torch.testing.assert_close(weights(algo), weights(fixed), atol=1e-7, rtol=0)
    assert not torch.equal(weights(algo), before)


def test_gradients_are_clipped_and_reported_as_they_were():
    algo, rollout = make(max_grad_norm=0.01)
    assert algo.update(rollout)["optim/grad_norm"] > 0.02
    assert torch.cat([p.grad.flatten() for p in algo.policy.parameters()]).norm() == pytest.approx(0.01, rel=1e-3)


def test_minibatches_are_gradient_steps():
    algo, rollout = make(num_minibatches=4)
    algo.update(rollout)
    assert {int(entry["step"]) for entry in algo.state_dict()["optimizer"].values()} == {4}
    assert not torch.equal(updated(num_minibatches=4, seed=1), updated(num_minibatches=4, seed=2))


def test_normalized_advantages_have_no_scale():
    options = {"normalize_advantage": True, "value_coef": 0.0, "gamma": 0.0, "entropy_coef": 0.0, "max_grad_norm": None}
    algo, rollout = make(**options)
    value, _ = algo.policy.values(rollout)
    louder = dataclasses.replace(rollout, reward=value + 50 * (rollout.reward - value) + 3)
    torch.testing.assert_close(
        updated(rollout=louder, **options), updated(rollout=rollout, **options), atol=1e-4, rtol=0
    )


# ---- metrics, masks, state ----


@family
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_metrics_are_finite_and_documented(cls, action):
    algo, rollout = make(cls, action, lag=0.3)
    metrics = algo.update(rollout)
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(lookup(name) for name in metrics)
    assert metrics["policy/ess"] < 0.95
    assert ("policy/std_mean" in metrics) == (action == "box")
    assert ("vtrace/rho_mean" in metrics) == (cls is IMPALA)
    assert metrics["policy/approx_kl"] > 0.01


def test_effective_sample_size_is_one_without_lag():
    for cls in FAMILY.values():
        algo, rollout = make(cls)
        assert algo.update(rollout)["policy/ess"] == pytest.approx(1.0)


@family
@pytest.mark.parametrize("action", ["discrete", "box", "multi_binary"])
def test_what_masked_rows_hold_changes_nothing(cls, action):
    def trained(spoil):
        algo, rollout = make(cls, action, lag=0.1, num_minibatches=2)
        rollout = clone(rollout)
        rollout.terminated[3, 1] = True  # so that nobody bootstraps from the masked row that follows
        for t, n in ((4, 1), (5, 1), (7, 2)):
            rollout.mask[t, n] = False
        if spoil:
            rollout.obs[4, 1] = 100.0
            rollout.action[~rollout.mask] = 1 if action != "box" else 1e3
            rollout.reward[~rollout.mask] = 1e6
            rollout.extras["log_prob"][~rollout.mask] = -1e6
            rollout.extras["dist_params"][~rollout.mask] = 5.0
        metrics = algo.update(rollout)
        return weights(algo).tolist(), metrics

    assert trained(spoil=True) == trained(spoil=False)


@family
@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_a_saved_state_goes_on_bit_for_bit(cls, optimizer):
    build = functools.partial(make, cls, num_minibatches=2, optimizer=optimizer)
    algo, _ = build()
    rollouts = [random_rollout(algo.policy, spec_of(), seed=seed) for seed in range(4)]
    for k, rollout in enumerate(rollouts[:2]):
        algo.update(rollout, k / 4)
    heir, _ = build(seed=99, policy={"hidden_gain": 3.0})
    heir.load_state_dict(as_saved(algo.state_dict()))
    for k, rollout in enumerate(rollouts[2:], 2):
        assert algo.update(rollout, k / 4) == heir.update(rollout, k / 4)
    assert torch.equal(weights(heir), weights(algo))


@family
def test_minibatches_that_do_not_divide_are_refused(cls):
    config = train_config(num_envs=4, algo=dataclasses.replace(cls.Config(), num_steps=5, num_minibatches=3))
    with pytest.raises(ConfigError, match=r"^algo\.num_minibatches=3: must divide .* try algo\.num_minibatches=2$"):
        cls.check(config, spec_of())


def test_configs_extend_a2c_s():
    assert issubclass(A3CConfig, A2CConfig)
    assert issubclass(IMPALAConfig, A2CConfig)
