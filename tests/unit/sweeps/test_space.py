import optuna
import pytest

from parl_cli.errors import ConfigError
from parl_cli.sweeps.space import Choice, Interval, override, parse_space, with_value

BASE = {
    "seed": 1,
    "env": {"kwargs": {}},
    "policies": {},
    "algo": {"name": "ppo", "gamma": 0.99, "num_epochs": 4, "target_kl": None, "normalize_advantage": True},
    "policy": {"hidden_sizes": [64, 64]},
}


@pytest.mark.parametrize(
    ("key", "text", "dimension"),
    [
        ("algo.gamma", "interval(0.9, 1)", Interval(0.9, 1.0)),
        ("algo.gamma", "tag(log, interval(1e-4, 1e-2))", Interval(1e-4, 1e-2, log=True)),
        ("algo.num_epochs", "interval(2, 20)", Interval(2, 20, whole=True)),
        ("algo.num_epochs", "tag(log, interval(1, 64))", Interval(1, 64, log=True, whole=True)),
        ("algo.target_kl", "interval(0, 1)", Interval(0.0, 1.0)),
        ("algo.target_kl", "int(interval(0, 4))", Interval(0, 4, whole=True)),
        ("algo.num_epochs", "range(2, 9, 3)", Interval(2, 8, 3, whole=True)),
        ("algo.num_epochs", "range(8, 2, -3)", Interval(5, 8, 3, whole=True)),
        ("algo.gamma", "range(0.0, 1.0, 0.25)", Interval(0.0, 0.75, 0.25)),
        ("algo.gamma", "choice(0.9, 0.99)", Choice((0.9, 0.99))),
        ("algo.gamma", "0.9,0.99", Choice((0.9, 0.99))),
        ("algo.normalize_advantage", "true,false", Choice((True, False))),
        ("policy.hidden_sizes", "choice([8], [64, 64])", Choice(([8], [64, 64]))),
        ("env.kwargs.anything", "choice('a b', c)", Choice(("a b", "c"))),
        ("policies.1.algo.gamma", "tag(log, interval(1e-4, 1e-2))", Interval(1e-4, 1e-2, log=True)),
        ("policies.1.algo.num_epochs", "interval(1, 4)", Interval(1, 4, whole=True)),
    ],
)
def test_what_is_typed_is_a_dimension(key, text, dimension):
    assert parse_space({key: text}, BASE) == {key: dimension}
    proposed = optuna.create_study(sampler=optuna.samplers.RandomSampler(1)).ask({key: dimension.distribution()})
    value = dimension.value(proposed.params[key])
    if isinstance(dimension, Interval):
        assert dimension.low <= value <= dimension.high
        assert isinstance(value, int) is dimension.whole
    else:
        assert value in dimension.values


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("algo.gama", "interval(0,1)", "unknown key algo.gama; did you mean algo.gamma?"),
        ("algo", "choice(ppo,a2c)", "algo is a group of keys"),
        ("plugins", "choice(a,b)", "unknown key plugins"),
        ("where.algo.gamma", "choice(1,2)", "unknown key where.algo.gamma"),
        ("policies.1.algo.gama", "choice(1,2)", "unknown key algo.gama; did you mean algo.gamma?"),
        ("algo.gamma.x", "choice(1,2)", "algo.gamma.x: algo.gamma=0.99 is no group of keys"),
        ("algo.gamma", "interval(1,1)", "an empty range, 1.0 is not below 1.0"),
        ("algo.gamma", "interval(1,0)", "an empty range"),
        ("algo.gamma", "tag(log,interval(0,1))", "begins above 0"),
        ("algo.gamma", "tag(cubic,interval(0,1))", "unknown tag cubic"),
        ("algo.num_epochs", "tag(log,range(1,16,2))", "tags are for interval"),
        ("algo.gamma", "tag(foo,choice(0.9,0.99))", "tags are for interval"),
        ("algo.gamma", "0.9", "one value is nothing to search"),
        ("algo.gamma", "range(3,3)", "an empty range"),
        ("algo.gamma", "interval(0", "cannot read"),
        ("algo.num_epochs", "interval(1,2.5)", "whole numbers"),
        ("algo.normalize_advantage", "interval(0,1)", "no number"),
        ("policy.hidden_sizes", "interval(0,1)", "no number"),
    ],
)
def test_what_makes_no_sense_is_one_line(key, text, words):
    with pytest.raises(ConfigError) as caught:
        parse_space({key: text}, BASE)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_space_says_how_to_fill_it():
    with pytest.raises(ConfigError, match="choose a space, like sweep=ppo"):
        parse_space({}, BASE)


def test_a_proposed_number_is_what_would_be_typed():
    assert Interval(0.0, 1.0).value(0.123456789) == 0.123457
    assert Interval(0.9999999, 1.0).value(0.99999991) == 1.0
    assert Interval(0.12345612, 1.0).value(0.12345612) == 0.12345612  # rounded it would be outside


def test_one_value_is_changed_in_a_copy():
    changed = with_value(BASE, "algo.gamma", 0.5)
    assert changed["algo"]["gamma"] == 0.5
    assert BASE["algo"]["gamma"] == 0.99
    assert with_value(BASE, "env.kwargs.new", 1)["env"]["kwargs"] == {"new": 1}
    assert with_value(BASE, "policies.1.algo.gamma", 0.5)["policies"] == {"1": {"algo": {"gamma": 0.5}}}
    assert BASE["policies"] == {}


def test_values_are_shown_as_they_are_typed():
    assert override("a", 1e-5) == "a=1e-05"
    assert override("a", True) == "a=true"
    assert override("a", [64, 8]) == "a=[64, 8]"
    assert override("a", "relu") == "a=relu"
