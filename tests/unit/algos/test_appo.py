"""APPO beside PPO: the same without lag, and under lag what the equations say."""

import math

import numpy as np
import pytest
import torch

from parl_cli.algos import appo as module
from parl_cli.algos.appo import APPO, APPOConfig
from parl_cli.algos.ppo import PPO, PPOConfig
from parl_cli.metrics.catalog import lookup
from tests.helpers.rollouts import ACTION_SPACES, VECTOR, clone, random_rollout, spec_of
from tests.helpers.stubs import make_policy

SMALL = {"num_steps": 8, "num_epochs": 3, "num_minibatches": 2, "learning_rate": 0.01}


def make(cls=APPO, action="discrete", *, lag=0.0, **changes):
    """An algorithm and a rollout of its policy as it was before it moved by `lag`."""
    action_space, squash = ACTION_SPACES[action]
    spec = spec_of(VECTOR, action_space)
    policy = make_policy(spec, squash=squash, policy_gain=1.0)
    rollout = random_rollout(policy, spec)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(5)
        for parameter in policy.parameters():
            parameter += lag * torch.randn(parameter.shape, generator=generator)
    return cls(policy, cls.Config(**(SMALL | changes))), rollout


def updated(cls, **changes):
    algo, rollout = make(cls, **changes)
    metrics = algo.update(rollout)
    return torch.nn.utils.parameters_to_vector(algo.policy.parameters()).detach(), metrics


@pytest.mark.parametrize("lag", [0.0, 0.3])
def test_without_vtrace_it_is_ppo_bit_for_bit(lag):
    mine, metrics = updated(APPO, lag=lag, vtrace=False)
    other, expected = updated(PPO, lag=lag)
    assert torch.equal(mine, other)
    assert metrics == expected


@pytest.mark.parametrize("action", ["discrete", "multi_discrete", "multi_binary", "box", "box_squashed"])
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
def test_without_lag_its_update_is_ppo_s(action, lam):
    mine, metrics = updated(APPO, action=action, gae_lambda=lam)
    other, expected = updated(PPO, action=action, gae_lambda=lam)
    torch.testing.assert_close(mine, other, atol=2e-5, rtol=0)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, abs=1e-4), name


def test_without_lag_its_targets_are_gae_s():
    for lam in (0.0, 0.5, 0.95, 1.0):
        mine, rollout = make(gae_lambda=lam)
        other, _ = make(PPO, gae_lambda=lam)
        for found, expected in zip(mine.targets(rollout)[:3], other.targets(rollout)[:3], strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_with_lag_its_update_is_another_than_ppo_s():
    assert (updated(APPO, lag=0.3)[0] - updated(PPO, lag=0.3)[0]).abs().max() > 1e-3


# ---- under lag, against numpy ----


def oracle_targets(algo, rollout):
    """Value targets and advantages by walking forward from every step, as the equations are written."""
    config = algo.config
    value, next_value = (x.numpy().astype(float) for x in algo.policy.values(rollout))
    with torch.no_grad():
        current = algo.policy.evaluate(rollout.obs)[0].log_prob(rollout.action).numpy()
    ratio = np.exp(current - rollout.extras["log_prob"].numpy())
    terminated, truncated = rollout.terminated.numpy(), rollout.truncated.numpy()
    num_steps, num_columns = value.shape
    vs, advantage = value.copy(), np.zeros_like(value)
    for n in range(num_columns):
        for start in range(num_steps):
            trace, step_free, t = 1.0, 0.0, start
            while True:
                delta = rollout.reward[t, n].item() - value[t, n]
                delta += config.gamma * (0.0 if terminated[t, n] else next_value[t, n])
                rho = min(config.rho_bar, ratio[t, n])
                vs[start, n] += trace * rho * delta
                # the step's own ratio is in the surrogate, and c_start stands for it in the trace
                own = min(config.c_bar, ratio[start, n])
                step_free += delta if t == start else trace / own * rho * delta
                trace *= config.gamma * config.gae_lambda * min(config.c_bar, ratio[t, n])
                t += 1
                if terminated[t - 1, n] or truncated[t - 1, n] or t == num_steps:
                    break
            advantage[start, n] = step_free
    return advantage, vs


def assert_targets_are_the_oracle_s(**options):
    algo, rollout = make(lag=0.3, **options)
    targets = algo.targets(rollout)
    advantage, vs = oracle_targets(algo, rollout)
    np.testing.assert_allclose(targets.returns.numpy(), vs, atol=1e-5)
    np.testing.assert_allclose(targets.advantage.numpy(), advantage, atol=1e-5)


OPTIONS = [{}, {"gae_lambda": 1.0}, {"rho_bar": 0.8, "c_bar": 0.6}, {"rho_bar": 2.0, "c_bar": 1.5, "gamma": 0.9}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("action", ["discrete", "box"])
def test_under_lag_targets_are_the_oracle_s(action, options):
    assert_targets_are_the_oracle_s(action=action, **options)


def test_policies_that_were_swapped_would_be_found(monkeypatch):
    vtrace = module.vtrace
    monkeypatch.setattr(module, "vtrace", lambda mu, pi, *rest, **options: vtrace(pi, mu, *rest, **options))
    with pytest.raises(AssertionError):
        assert_targets_are_the_oracle_s()


def test_an_advantage_that_has_the_ratio_twice_would_be_found(monkeypatch):
    vtrace = module.vtrace
    monkeypatch.setattr(module, "surrogate_advantage", lambda vs, *rest, gamma, lam: found.pg_advantage)

    def remembered(*arguments, **options):
        nonlocal found
        found = vtrace(*arguments, **options)
        return found

    found = None
    monkeypatch.setattr(module, "vtrace", remembered)
    with pytest.raises(AssertionError):
        assert_targets_are_the_oracle_s(gae_lambda=1.0)


def test_a_minus_sign_in_the_advantage_would_be_found(monkeypatch):
    surrogate = module.surrogate_advantage
    monkeypatch.setattr(module, "surrogate_advantage", lambda *rest, **options: -surrogate(*rest, **options))
    with pytest.raises(AssertionError):
        assert_targets_are_the_oracle_s()
    with pytest.raises(AssertionError):
        test_without_lag_its_update_is_ppo_s("discrete", 0.8)


@pytest.mark.parametrize("advantage_sign", [1, -1])
def test_the_ratio_is_to_the_policy_that_acted(advantage_sign):
    # all ratios lie beyond the clip range already: there is no gradient where A > 0, and there is one where A < 0
    algo, rollout = make(
        num_epochs=1, num_minibatches=1, normalize_advantage=False, value_coef=0.0, clip_range=0.2, gamma=0.0
    )
    rollout.extras["log_prob"] -= math.log(1.5)
    value, _ = algo.policy.values(rollout)
    rollout.reward = value + advantage_sign
    metrics = algo.update(rollout)
    assert metrics["policy/clip_fraction"] == 1.0
    assert (metrics["optim/grad_norm"] == 0.0) == (advantage_sign > 0)


def test_vtrace_is_computed_once_before_the_epochs(monkeypatch):
    calls = []
    vtrace = module.vtrace
    monkeypatch.setattr(module, "vtrace", lambda *a, **k: calls.append(1) or vtrace(*a, **k))
    algo, rollout = make(num_epochs=4)
    algo.update(rollout)
    assert len(calls) == 1


# ---- metrics, masks ----


def test_metrics_tell_how_far_off_policy_the_rollout_is():
    _, here = updated(APPO)
    _, far = updated(APPO, lag=0.3)
    assert here["policy/ess"] == pytest.approx(1.0)
    assert here["vtrace/rho_mean"] == pytest.approx(1.0)
    assert far["policy/ess"] < 0.95
    assert far["vtrace/rho_mean"] < 0.95
    assert 0.05 < far["vtrace/clipped_share"] < 0.5
    assert here["vtrace/clipped_share"] == pytest.approx(0.0, abs=1e-6)
    assert all(lookup(name) for name in far)


@pytest.mark.parametrize("action", ["discrete", "box", "multi_binary"])
def test_what_masked_rows_hold_changes_nothing(action):
    def trained(spoil):
        algo, rollout = make(action=action, lag=0.1)
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
        return torch.nn.utils.parameters_to_vector(algo.policy.parameters()).tolist(), metrics

    assert trained(spoil=True) == trained(spoil=False)


def test_it_changes_nothing_of_ppo_but_the_targets():
    assert issubclass(APPO, PPO)
    assert issubclass(APPOConfig, PPOConfig)
    own = {key for key in vars(APPO) if not key.startswith("__")}
    assert own == {"Config", "summary", "neighbour", "supports", "targets"}
