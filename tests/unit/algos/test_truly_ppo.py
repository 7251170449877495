"""The Truly PPO family through real policies: its losses against numpy, its triggers, its metrics."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from parl_cli import registry
from parl_cli.algos.ppo import PPO
from parl_cli.config import parse_component
from parl_cli.envs.toy import IdentityEnv
from parl_cli.errors import ConfigError
from parl_cli.functional.schedules import schedule
from parl_cli.metrics.catalog import lookup
from parl_cli.types import EnvSpec
from tests.helpers.rollouts import clone, random_rollout, spec_of
from tests.helpers.stubs import inline, make_learner, make_policy, make_vectorizer

FAMILY = ("truly_ppo", "tr_ppo", "tr_ppo_rb", "ppo_rb")
TRUST_REGION = FAMILY[:3]
NVEC = (3, 2)
SPACES = {
    "categorical": spaces.Discrete(3),
    "multi_categorical": spaces.MultiDiscrete(NVEC),
    "gaussian": spaces.Box(-1, 1, (2,), np.float32),
}
DELTA, EPS = 0.03, 0.2


def make(name, action_space, **options):
    cls = registry.load("algo", name)
    return cls(make_policy(spec_of(action_space=action_space)), dataclasses.replace(cls.Config(), **options))


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum())


def log_prob(kind, params, action):
    if kind == "gaussian":
        mean, log_std = np.split(params, 2)
        return sum(-0.5 * ((action - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi))
    if kind == "categorical":
        return log_softmax(params)[action]
    return sum(log_softmax(part)[a] for part, a in zip(np.split(params, [NVEC[0]]), action, strict=True))


def kl_divergence(kind, old, new):
    if kind == "gaussian":
        (m1, s1), (m2, s2) = np.split(old, 2), np.split(new, 2)
        return sum(s2 - s1 + (np.exp(2 * s1) + (m1 - m2) ** 2) / (2 * np.exp(2 * s2)) - 0.5)
    parts = [(old, new)] if kind == "categorical" else zip(*(np.split(x, [NVEC[0]]) for x in (old, new)), strict=True)
    return sum(np.exp(log_softmax(p)) @ (log_softmax(p) - log_softmax(q)) for p, q in parts)


def went_too_far(name, ratio, advantage, kl):
    if name == "ppo_rb":
        return ratio > 1 + EPS if advantage > 0 else ratio < 1 - EPS
    return kl >= DELTA and (ratio > 1 if advantage > 0 else ratio < 1)


def oracle(name, config, kind, new, old, action, advantage, *, frozen):
    """What one sample maximises; `frozen` is the ratio that a stop-gradient holds."""
    ratio = math.exp(log_prob(kind, new, action) - log_prob(kind, old, action))
    kl = kl_divergence(kind, old, new)
    if not went_too_far(name, ratio, advantage, kl):
        return ratio * advantage
    if name == "truly_ppo":
        return config.slope_likelihood * ratio * advantage - config.alpha * kl
    if name == "tr_ppo":
        return frozen * advantage
    held = frozen if name == "tr_ppo_rb" else 1 + math.copysign(EPS, advantage)
    return (config.slope_rollback * ratio + (1 - config.slope_rollback) * held) * advantage


def samples(kind, count=400):
    """(old, new, action, advantage, ratio, KL) away from every edge, small moves and large ones."""
    rng = np.random.default_rng(1)
    size = {"categorical": 3, "multi_categorical": 5, "gaussian": 4}[kind]
    rows = []
    for _ in range(count):
        old = rng.normal(scale=0.5, size=size)
        new = old + rng.normal(scale=rng.choice([0.1, 0.6]), size=size)
        action = {
            "categorical": lambda: rng.integers(3),
            "multi_categorical": lambda: rng.integers(NVEC),
            "gaussian": lambda old=old: old[:2] + np.exp(old[2:]) * rng.normal(size=2),
        }[kind]()
        advantage = rng.choice([-1, 1]) * rng.uniform(0.1, 2)
        ratio = math.exp(log_prob(kind, new, action) - log_prob(kind, old, action))
        kl = kl_divergence(kind, old, new)
        if min(abs(ratio - 1), abs(abs(ratio - 1) - EPS), abs(kl - DELTA)) > 1e-3 and ratio < 10:
            rows.append((old, new, action, advantage, ratio, kl))
    return rows


def assert_matches_oracle(algo, kind):
    """The loss, its gradient in the new parameters, and the metrics equal numpy's, sample by sample."""
    name, config, rows = algo.config.name, algo.config, samples(kind)
    old, new, action, advantage, ratio, kl = (np.array(column) for column in zip(*rows, strict=True))
    branches = {(a > 0, r > 1, abs(r - 1) > EPS, d >= DELTA) for a, r, d in zip(advantage, ratio, kl, strict=True)}
    assert len(branches) == 16
    build = algo.policy.distribution
    parameters = torch.tensor(new, requires_grad=True)
    distribution, behaviour = build(parameters), build(torch.tensor(old))
    action = torch.tensor(action)
    losses, metrics = algo.policy_loss(
        (distribution.log_prob(action) - behaviour.log_prob(action)).exp(),
        torch.tensor(advantage),
        distribution,
        {"dist_params": torch.tensor(old)},
        {"delta": DELTA, "clip_range": EPS, "entropy_coef": 0.0},
    )
    (gradient,) = torch.autograd.grad(losses.sum(), parameters)
    h = 1e-6
    for i, (p, q, a, adv, r, d) in enumerate(rows):

        def objective(q, p=p, a=a, adv=adv, r=r):
            return oracle(name, config, kind, q, p, a, adv, frozen=r)

        assert losses[i].item() == pytest.approx(-objective(q), abs=1e-9)
        slopes = [(objective(q + h * e) - objective(q - h * e)) / (2 * h) for e in np.eye(len(q))]
        assert gradient[i].tolist() == pytest.approx([-s for s in slopes], abs=1e-5)
        assert metrics["policy/kl"][i].item() == pytest.approx(d, abs=1e-9)
        assert metrics["policy/trigger_fraction"][i].item() == went_too_far(name, r, adv, d)


@pytest.mark.parametrize("kind", SPACES)
@pytest.mark.parametrize("name", FAMILY)
def test_loss_and_its_gradient_in_the_distributions_parameters_are_the_oracles(name, kind):
    assert_matches_oracle(make(name, SPACES[kind]), kind)


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("name", TRUST_REGION)
def test_a_trigger_that_ignores_the_advantages_sign_would_be_found(name, kind, monkeypatch):
    module = registry.load("algo", name).__module__
    monkeypatch.setattr(f"{module}.trust_region_trigger", lambda r, a, kl, delta: (kl >= delta) & (r > 1))
    with pytest.raises(AssertionError):
        assert_matches_oracle(make(name, SPACES[kind]), kind)


@pytest.mark.parametrize("name", TRUST_REGION)
def test_a_kl_in_the_other_direction_would_be_found(name):
    algo = make(name, SPACES["gaussian"])
    build = algo.policy.distribution

    class Reversed:
        def __init__(self, params):
            self.right = build(params)
            self.log_prob = self.right.log_prob

        def kl(self, other):
            return other.right.kl(self.right)

    algo.policy.distribution = Reversed
    with pytest.raises(AssertionError):
        assert_matches_oracle(algo, "gaussian")


@pytest.mark.parametrize("name", TRUST_REGION)
@pytest.mark.parametrize(("moved", "fires"), [([0], False), ([1], False), ([0, 1], True)])
def test_kl_is_joint_over_action_dimensions(name, moved, fires):
    algo = make(name, spaces.MultiDiscrete([2, 2]))
    old, new = torch.zeros(1, 4), torch.zeros(1, 4)
    new[0, [2 * i for i in moved]] = 0.4  # KL = log((1 + e^0.4) / 2) − 0.2 = 0.0199 each
    distribution = algo.policy.distribution(new)
    _, metrics = algo.policy_loss(
        torch.tensor([1.5]), torch.tensor([1.0]), distribution, {"dist_params": old}, {"delta": DELTA}
    )
    one = math.log((1 + math.exp(0.4)) / 2) - 0.2
    assert metrics["policy/kl"].item() == pytest.approx(one * len(moved), abs=1e-6)
    assert metrics["policy/trigger_fraction"].item() is fires


@pytest.mark.parametrize("space", ["discrete", "box"])
@pytest.mark.parametrize("name", FAMILY)
def test_three_updates_are_finite_and_fire_the_trigger(name, space):
    env = functools.partial(IdentityEnv, space=space)
    probe = env()
    policy = make_policy(EnvSpec("identity", probe.observation_space, probe.action_space))
    cls = registry.load("algo", name)
    tight = {"clip_range": 0.01} if name == "ppo_rb" else {"delta": 1e-4}
    algo = cls(policy, cls.Config(num_steps=8, num_minibatches=2, learning_rate=0.01, **tight))
    learner, pool = make_learner(policy, algo), inline(make_vectorizer([env] * 8), policy, num_steps=8)
    before = {name: p.clone() for name, p in policy.named_parameters()}
    for _ in range(3):
        metrics = learner.step(pool.get(1))
        assert all(math.isfinite(value) for value in metrics.values())
        assert all(lookup(metric) for metric in metrics)
        assert 0 < metrics["policy/trigger_fraction"] < 1
        assert metrics["policy/kl"] > 0
    assert all(not torch.equal(p, before[name]) for name, p in policy.named_parameters())


def test_inside_the_trust_region_all_have_the_same_objective():
    def trained(name, delta):
        algo = make(name, SPACES["categorical"], delta=delta, num_minibatches=2, learning_rate=0.01)
        algo.update(random_rollout(algo.policy, spec_of()))
        return torch.nn.utils.parameters_to_vector(algo.policy.parameters())

    never_left, often_left = ([trained(name, delta) for name in TRUST_REGION] for delta in (1e9, 1e-4))
    assert all(torch.equal(weights, never_left[0]) for weights in never_left)
    assert len({tuple(weights.tolist()) for weights in often_left}) == len(TRUST_REGION)


@pytest.mark.parametrize("name", TRUST_REGION)
@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_delta_follows_its_schedule(name, kind, monkeypatch):
    algo = make(name, SPACES["categorical"], delta=0.5, delta_schedule=kind)
    seen = set()
    module = registry.load("algo", name).__module__

    def never(ratio, advantage, kl, delta):
        seen.add(delta)
        return torch.zeros_like(ratio, dtype=torch.bool)

    monkeypatch.setattr(f"{module}.trust_region_trigger", never)
    metrics = algo.update(random_rollout(algo.policy, spec_of()), 0.25)
    assert seen == {metrics["algo/delta"]} == {schedule(kind, 0.5, 0.0, 0.25)}


@pytest.mark.parametrize("kind", ["categorical", "gaussian"])
@pytest.mark.parametrize("name", FAMILY)
def test_masked_rows_change_nothing(name, kind):
    spec, seen = spec_of(action_space=SPACES[kind]), []
    for garbage in (0.0, 200.0):  # as a log-std: its KL is beyond float32
        algo = make(name, SPACES[kind], num_minibatches=2, num_epochs=2, learning_rate=0.01, normalize_advantage=False)
        rollout = clone(random_rollout(algo.policy, spec))
        rollout.mask[:, 1] = False
        rollout.extras["dist_params"][:, 1, -1] += garbage
        metrics = algo.update(rollout)
        seen.append((metrics, torch.nn.utils.parameters_to_vector(algo.policy.parameters()).tolist()))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", FAMILY)
def test_kl_penalty_is_refused_as_another_algorithms_objective(name):
    with pytest.raises(ConfigError, match=r"algo\.objective=kl_penalty: "):
        parse_component("algo", {"name": name, "objective": "kl_penalty"})


@pytest.mark.parametrize("name", FAMILY)
def test_family_changes_nothing_of_ppo_but_the_policy_loss(name):
    cls = registry.load("algo", name)
    assert issubclass(cls, PPO)
    own = {key for key in vars(cls) if not key.startswith("__")}
    assert own <= {"Config", "summary", "neighbour", "scheduled", "policy_loss"}
