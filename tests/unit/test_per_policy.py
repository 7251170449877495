"""A run of several policies, taken apart."""

import dataclasses

import pytest

from parl_cli.actors.process import ProcessActorsConfig
from parl_cli.config import EvalCommand, TrainConfig, parse, parse_train, to_plain
from parl_cli.errors import ConfigError
from parl_cli.per_policy import parts
from tests.helpers.stubs import train_config


def test_an_only_policy_has_the_whole_run():
    config = train_config()
    [part] = parts(config)
    assert part.config is config
    assert (part.policy_id, part.env_ids) == (0, range(4))


def test_every_policy_has_its_envs_and_its_share_of_the_actors():
    config = train_config(num_envs=12, num_policies=3, actors=ProcessActorsConfig(num_actors=6))
    found = parts(config)
    assert [list(part.env_ids) for part in found] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    for part in found:
        assert part.config == dataclasses.replace(
            config, num_policies=1, num_envs=4, actors=ProcessActorsConfig(num_actors=2)
        )
        assert len(parts(part.config)) == 1


def test_a_policy_differs_in_what_is_said_of_it_and_in_nothing_else():
    changes = {"1": {"algo": {"learning_rate": 1, "gamma": 0.5}, "policy": {"hidden_sizes": [4]}}}
    config = train_config(num_policies=2, policies=changes)
    first, second = (part.config for part in parts(config))
    assert first.algo == config.algo
    assert second.algo == dataclasses.replace(config.algo, learning_rate=1.0, gamma=0.5)
    assert type(second.algo.learning_rate) is float
    assert second.policy == dataclasses.replace(config.policy, hidden_sizes=[4])
    assert dataclasses.replace(second, algo=first.algo, policy=first.policy) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_envs": 5}, "num_envs=5: must divide by num_policies=2; try num_envs=6"),
        ({"num_envs": 1}, "num_envs=1: must divide by num_policies=2; try num_envs=2"),
        (
            {"actors": ProcessActorsConfig(num_actors=3), "num_envs": 12},
            "actors.num_actors=3: must divide by num_policies=2; try actors.num_actors=4",
        ),
        (
            {"policies": {"2": {}}},
            "policies.2: there is no such policy; with num_policies=2 the last is policies.1",
        ),
        ({"policies": {"-1": {}}}, "policies.-1: there is no such policy"),
        ({"policies": {"01": {}}}, "policies.01: there is no such policy"),
        ({"policies": {"a": {}}}, "policies.a: there is no such policy"),
        ({"policies": {"1": 3}}, "policies.1=3: must be a mapping"),
        ({"policies": {"1": {"algo": 3}}}, "policies.1.algo=3: must be a mapping"),
        ({"policies": {"1": {"num_envs": 3}}}, "policies.1.num_envs: cannot differ between policies"),
        (
            {"policies": {"1": {"algo": {"num_steps": 3}}}},
            "policies.1.algo.num_steps=3: cannot differ between policies: .*; set algo.num_steps",
        ),
        ({"policies": {"1": {"algo": {"name": "a2c"}}}}, "policies.1.algo.name=a2c: cannot differ between policies"),
        (
            {"policies": {"1": {"algo": {"lerning_rate": 3}}}},
            "unknown key policies.1.algo.lerning_rate; did you mean learning_rate",
        ),
        ({"policies": {"0": {"algo": {"gamma": 3}}}}, "policies.0.algo.gamma=3.0: must be at most 1"),
        ({"policies": {"0": {"policy": {"norm": 3}}}}, "policies.0.policy.norm=3: "),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parts(train_config(**({"num_policies": 2} | changes)))
    assert "\n" not in str(caught.value)


def test_what_is_said_of_an_only_policy_counts_too():
    [part] = parts(train_config(policies={"0": {"algo": {"gamma": 0.5}}}))
    assert part.config.algo.gamma == 0.5
    assert part.config.num_envs == 4


def test_a_policy_named_as_a_number_and_as_text_is_an_error_not_a_surprise():
    values = to_plain(train_config(num_policies=2))
    values["policies"] = {1: {"algo": {"gamma": 0.5}}, "1": {"algo": {"learning_rate": 0.1}}}
    with pytest.raises(ConfigError, match=r"policies\.1: is there as a number and as text; quote it in the YAML file"):
        parse_train(values)
    values["policies"] = {1: {"algo": {"gamma": 0.5}}}
    assert parts(parse_train(values))[1].config.algo.gamma == 0.5


def test_there_is_one_policy_unless_one_says_otherwise():
    assert (TrainConfig("x").num_policies, TrainConfig("x").policies) == (1, {})
    with pytest.raises(ConfigError, match="num_policies=0: must be at least 1"):
        parse(TrainConfig, {"name": "x", "num_policies": 0})
    with pytest.raises(ConfigError, match="policy_id=-1: must be at least 0"):
        parse(EvalCommand, {"checkpoint": "x", "policy_id": -1})
