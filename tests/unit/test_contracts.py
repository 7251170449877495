"""What everything registered must be, so that a new algorithm or vectorizer is tested the day it is added.

That conf/<group>/<name>.yaml equals the dataclass is tests/unit/test_config_presets.py's.
"""

import dataclasses
import inspect
import math
import typing

import pytest
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from parl_cli import build, registry
from parl_cli.config import EnvConfig, parse, to_plain
from parl_cli.errors import ConfigError
from parl_cli.types import ActorPool
from tests.helpers.rollouts import VECTOR, observe, random_rollout, spec_of, uniform_noise
from tests.helpers.saved import as_saved
from tests.helpers.stubs import build_all, train_config, weights_hash
from tests.helpers.vectorizers import constructor_keywords

COMPONENTS = ("algo", "policy", "vectorizer", "actors")
SMALL = {"num_steps": 16, "num_minibatches": 2, "num_epochs": 2, "hidden_sizes": [8]}
SPACES = {"Discrete", "MultiDiscrete", "MultiBinary", "Box"}


def registered(*kinds):
    found = [(kind, name, registry.load(kind, name)) for kind in kinds for name in registry.names(kind)]
    return pytest.mark.parametrize(("name", "cls"), [pytest.param(n, c, id=f"{k}={n}") for k, n, c in found])


def small_config(cls, **changes):
    """The component's defaults, in a size for tests."""
    config = cls.Config()
    fields = {field.name for field in dataclasses.fields(config)}
    return dataclasses.replace(config, **{k: v for k, v in (SMALL | changes).items() if k in fields})


def run_config(kind, cls, **changes):
    return train_config(**({kind: small_config(cls)} | changes))


# ---- configs ----


@registered(*COMPONENTS, "wrapper")
def test_config_is_a_frozen_dataclass_whose_every_field_says_what_it_is(name, cls):
    assert dataclasses.is_dataclass(cls.Config)
    assert cls.Config.__dataclass_params__.frozen
    assert inspect.getdoc(cls.Config)
    hints = typing.get_type_hints(cls.Config)
    for field in dataclasses.fields(cls.Config):
        assert field.metadata.get("doc"), field.name
        assert field.name in hints


@registered(*COMPONENTS)
def test_config_has_defaults_that_its_own_ranges_allow_and_carries_its_name(name, cls):
    config = cls.Config()
    assert config.name == name
    assert parse(cls.Config, to_plain(config)) == config


@registered(*COMPONENTS)
def test_every_range_is_kept(name, cls):
    for field in dataclasses.fields(cls.Config):
        for rule, outside in (("ge", -1), ("gt", 0), ("le", 1), ("lt", 0)):
            bound = field.metadata.get(rule)
            if bound is None:
                continue
            value = bound + outside
            listed = isinstance(getattr(cls.Config(), field.name), list)
            with pytest.raises(ConfigError, match=f"^{field.name}"):
                parse(cls.Config, {field.name: [value] if listed else value})


def test_summaries_tell_components_apart():
    for kind in ("algo", "policy", "actors"):
        summaries = [registry.load(kind, name).summary for name in registry.names(kind)]
        assert all(isinstance(text, str) and text and "\n" not in text for text in summaries)
        assert len(set(summaries)) == len(summaries)


# ---- algorithms ----


@registered("algo")
def test_algorithm_says_what_it_supports(name, cls):
    assert set(cls.supports) == {"actions", "observations", "actors"}
    assert set(cls.supports["actions"]) <= SPACES
    assert set(cls.supports["observations"]) <= SPACES
    assert set(cls.supports["actors"]) <= set(registry.names("actors"))
    assert all(cls.supports.values())
    assert inspect.getmodule(cls).__doc__


@registered("algo")
def test_algorithm_passes_its_own_check_and_trains(name, cls):
    config = run_config("algo", cls)
    spec = build.env_spec(config.env)
    cls.check(config, spec)
    learner, pool = build_all(config)
    algo = learner.algo
    assert type(algo) is cls
    assert algo.num_steps == config.algo.num_steps
    before = weights_hash(algo.policy)
    for _ in range(3):
        metrics = learner.step(pool.get(1))
        assert all(type(value) is float for value in metrics.values())
        assert all(math.isfinite(v) for k, v in metrics.items() if k != "value/explained_variance")
        assert {key.partition("/")[0] for key in metrics} >= {"loss", "optim"}
    assert weights_hash(algo.policy) != before
    pool.close()


@registered("algo")
def test_algorithm_trains_on_every_action_space_it_supports(name, cls):
    ids = {
        "Discrete": {"space": "discrete", "start": -1},
        "MultiDiscrete": {"space": "multi_discrete"},
        "MultiBinary": {"space": "multi_binary"},
        "Box": {"space": "box"},
    }
    for kind in cls.supports["actions"]:
        config = run_config("algo", cls, env=EnvConfig(id="parl/Identity-v0", kwargs=ids[kind]))
        learner, pool = build_all(config)
        learner.step(pool.get(1))
        assert learner.updates == 1
        pool.close()


@registered("algo")
def test_algorithm_goes_on_from_a_saved_state_bit_for_bit(name, cls):
    config = run_config("algo", cls)
    learner, pool = build_all(config)
    rollouts = [pool.get(1) for _ in range(3)]
    learner.step(rollouts[0])
    other = dataclasses.replace(config, seed=9)
    heir = build.make_learner(other, build.env_spec(config.env))
    heir.load_state_dict(as_saved(learner.state_dict()))
    for rollout in rollouts[1:]:
        mine, theirs = learner.step(rollout), heir.step(rollout)
        assert str(mine) == str(theirs)  # as text: an undefined metric is NaN on both sides
    assert weights_hash(heir.algo.policy) == weights_hash(learner.algo.policy)
    pool.close()


# ---- policies ----


def make_policy(cls, **changes):
    return cls(spec_of(), small_config(cls, **changes))


@registered("policy")
def test_policy_is_a_module_with_the_contract_s_face(name, cls):
    policy = make_policy(cls)
    assert isinstance(policy, nn.Module)
    for method in ("act", "values", "evaluate", "env_action", "update_normalizer", "distribution"):
        assert callable(getattr(policy, method)), method
    assert policy.noise_dim >= 1
    assert policy.noise_period >= 1
    assert policy.state_size >= 0


@registered("policy")
def test_policy_acts_values_and_evaluates(name, cls):
    policy = make_policy(cls, normalize_obs=True)
    state = torch.zeros(4, policy.state_size) if policy.state_size else None
    is_first = torch.ones(4, dtype=torch.bool)
    obs = observe(VECTOR, 4)
    with torch.no_grad():
        output = policy.act(obs, state, is_first, uniform_noise(policy, 4))
    assert {"log_prob", "dist_params"} <= set(output.extras)
    assert (output.state is None) == (policy.state_size == 0)
    assert all(spec_of().action_space.contains(one) for one in policy.env_action(output.action.numpy()))
    if policy.state_size == 0:
        rollout = random_rollout(policy, spec_of())
        value, following = policy.values(rollout)
        assert value.shape == following.shape == rollout.reward.shape
        distribution, now = policy.evaluate(rollout.obs)
        torch.testing.assert_close(now, value)
        torch.testing.assert_close(distribution.log_prob(rollout.action), rollout.extras["log_prob"])


# ---- vectorizers and actors ----


@registered("vectorizer")
def test_vectorizer_is_a_gymnasium_vector_env(name, cls):
    assert issubclass(cls, VectorEnv)
    for method in ("begin", "send", "recv", "reset", "step", "call", "set_attr", "get_attr", "close"):
        assert callable(getattr(cls, method)), method


@registered("vectorizer")
def test_vectorizer_takes_every_key_of_its_config(name, cls):
    keys = {field.name for field in dataclasses.fields(cls.Config)} - {"name"}
    assert set(constructor_keywords(cls)) >= keys | {"env_fns", "autoreset_mode", "episode_seed"}


@registered("actors")
def test_actors_are_a_pool(name, cls):
    missing = [method for method in dir(ActorPool) if not method.startswith("_") and not hasattr(cls, method)]
    assert not missing
