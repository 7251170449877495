"""conf/sweep/ holds the values, the dataclasses the types: equal, and every key says what it is."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from parl_cli import registry
from parl_cli.build import validate
from parl_cli.composition import conf_files
from parl_cli.composition.compose import compose, plain, session
from parl_cli.config import parse, to_plain
from parl_cli.sweeps.options import SearchConfig, SweepConfig
from parl_cli.sweeps.search import check_space
from parl_cli.sweeps.space import parse_space

SWEEP = conf_files.builtin_conf() / "sweep"
SPACES = sorted(set(conf_files.options("sweep")) - {"grid", "search"})


def read(name):
    values = OmegaConf.to_container(OmegaConf.load(SWEEP / f"{name}.yaml"))
    del values["defaults"]
    return values


def sweep(*overrides):
    """What such a command line says about the sweep, and its sweeper."""
    with session() as hydra:
        config = compose(hydra, "sweep", overrides, multirun=True)
    return OmegaConf.to_container(config.sweep), config.hydra.runtime.choices["hydra/sweeper"]


def test_the_grid_holds_the_defaults():
    values = read("grid")
    assert parse(SweepConfig, values) == SweepConfig()
    assert set(values) == {field.name for field in dataclasses.fields(SweepConfig)}
    assert sweep() == (values, "grid")


def test_the_search_holds_the_defaults():
    values, sweeper = sweep("sweep=search")
    assert sweeper == "optuna"
    assert parse(SearchConfig, values) == SearchConfig()
    assert set(values) == {field.name for field in dataclasses.fields(SearchConfig)}


@pytest.mark.parametrize("name", ["grid", "search"])
def test_every_key_has_a_comment(name):
    assert set(read(name)) <= set(conf_files.comments(SWEEP / f"{name}.yaml"))


@pytest.mark.parametrize("name", SPACES)
def test_a_space_fits_the_algorithm_it_is_called_after(name):
    assert name in registry.names("algo")
    values, sweeper = sweep(f"sweep={name}")
    assert sweeper == "optuna"
    with session() as hydra:
        config = to_plain(validate(plain(compose(hydra, "train", [f"algo={name}", "env=cartpole", "num_envs=8"]))))
    space = check_space(parse(SearchConfig, values), config)
    assert set(space) == {key for key, text in values["space"].items() if text is not None}


@pytest.mark.parametrize("name", ["ppo_rb", "tr_ppo", "tr_ppo_rb", "truly_ppo"])
def test_a_space_holds_the_tuned_values_of_what_the_algorithm_adds_to_ppo(name):
    own = sweep(f"sweep={name}")[0]["space"].items() - sweep("sweep=ppo")[0]["space"].items()
    pairs = [pair for pair in conf_files.options("tuned") if pair.startswith(f"{name}/")]
    assert pairs
    for pair in pairs:
        with session() as hydra:
            config = plain(compose(hydra, "train", [f"algo={name}", f"env={pair.split('/')[1]}"]))
        for key, dimension in parse_space(dict(own), config).items():
            low, high = dimension.corners()
            assert low <= config["algo"][key.removeprefix("algo.")] <= high, f"{pair}: {key}"


def test_a_key_with_null_is_left_alone():
    values, _ = sweep("sweep=truly_ppo")
    assert values["space"]["algo.clip_range"] is None
    assert "algo.learning_rate" in values["space"]
