"""YAML holds values and dataclasses hold types: these tests keep the two equal, whatever is added to conf/."""

import dataclasses
import itertools
import re
import typing

import pytest
from omegaconf import OmegaConf

from parl_cli import registry
from parl_cli.algos.common import check_minibatches
from parl_cli.composition import conf_files
from parl_cli.composition.compose import compose, plain, session
from parl_cli.config import (
    BenchCommand,
    CheckpointConfig,
    DebugConfig,
    EnvConfig,
    EvalCommand,
    EvalConfig,
    LoggerConfig,
    ReportCommand,
    ResumeCommand,
    TrainConfig,
    parse,
    parse_train,
    to_plain,
)
from parl_cli.sweeps.options import SearchConfig
from tests.learning.run import ROWS, read_rows

CONF = conf_files.builtin_conf()
COMPONENTS = ("vectorizer", "policy", "actors", "algo")
PARTS = {
    "env": EnvConfig,
    "checkpoint": CheckpointConfig,
    "eval": EvalConfig,
    "logger": LoggerConfig,
    "debug": DebugConfig,
}


def read(file):
    return OmegaConf.to_container(OmegaConf.load(file))


def read_component(group, name):
    values = read(CONF / group / f"{name}.yaml")
    values.pop("defaults", None)  # an algorithm may choose its actors
    return values


def composed(*overrides):
    with session() as hydra:
        return plain(compose(hydra, "train", overrides))


def all_of(*groups):
    return [pytest.param(group, name, id=f"{group}={name}") for group in groups for name in conf_files.options(group)]


@pytest.mark.parametrize(("group", "name"), all_of(*COMPONENTS))
def test_component_preset_has_every_key_of_its_dataclass_and_no_other(group, name):
    values = read_component(group, name)
    config = registry.load(group, values["name"]).Config
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    assert to_plain(parse(config, values, group)) == values


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in COMPONENTS for name in registry.names(group)])
def test_preset_named_like_its_component_holds_the_defaults(group, name):
    config = registry.load(group, name).Config
    assert parse(config, read_component(group, name), group) == config()


@pytest.mark.parametrize(("group", "name"), [*all_of(*COMPONENTS), ("logger", "default")])
def test_every_key_of_a_preset_has_a_comment(group, name):
    file = CONF / group / f"{name}.yaml"
    assert set(read(file)) - {"defaults"} <= set(conf_files.comments(file))


def words_of(hint):
    """The words that a type allows."""
    if typing.get_origin(hint) is typing.Literal:
        return {word for word in typing.get_args(hint) if isinstance(word, str)}
    return set().union(*map(words_of, typing.get_args(hint)))


@pytest.mark.parametrize(("group", "name"), all_of(*COMPONENTS))
def test_the_words_that_a_key_takes_stand_in_its_comment(group, name):
    config = registry.load(group, read_component(group, name)["name"]).Config
    documented = conf_files.comments(CONF / group / f"{name}.yaml")
    for key, hint in typing.get_type_hints(config).items():
        words = words_of(hint)
        if len(words) > 1 and "of no effect" not in documented[key]:
            assert all(word in documented[key] for word in words), (key, words)


@pytest.mark.parametrize(
    "config", [EvalCommand, ReportCommand, BenchCommand, ResumeCommand, CheckpointConfig, LoggerConfig, SearchConfig]
)
def test_the_words_that_a_field_takes_stand_in_what_it_says(config):
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        words = words_of(hints[field.name])
        assert len(words) < 2 or all(word in field.metadata["doc"] for word in words), (field.name, words)


@pytest.mark.parametrize("algo", registry.names("algo"))
def test_algorithms_that_learn_from_a_lag_act_while_they_learn_unless_told_otherwise(algo):
    lags = "process" in registry.load("algo", algo).supports.get("actors", ())
    assert composed(f"algo={algo}")["actors"]["name"] == ("process" if lags else "inline")
    assert composed(f"algo={algo}", "actors=inline")["actors"]["name"] == "inline"
    assert composed("actors=inline", f"algo={algo}")["actors"]["name"] == "inline"


@pytest.mark.parametrize(("group", "name"), all_of("env"))
def test_env_preset_is_called_like_its_file_and_parses(group, name):
    values = read(CONF / "env" / f"{name}.yaml")
    assert parse(EnvConfig, values, "env").name == name
    assert set(values) == {field.name for field in dataclasses.fields(EnvConfig)}


@pytest.mark.parametrize(("group", "name"), all_of("experiment", "debug", "logger"))
def test_recipe_composes_to_a_valid_config(group, name):
    parse_train(composed(f"{group}={name}"))


@pytest.mark.parametrize("pair", conf_files.options("tuned"))
def test_tuned_preset_is_found_by_its_algorithm_and_env(pair):
    algo, env = pair.split("/")
    tuned = composed(f"algo={algo}", f"env={env}")
    untuned = composed(f"algo={algo}", f"env={env}", "tuned=null")
    parse_train(tuned)
    assert tuned != untuned


@pytest.mark.parametrize("pair", conf_files.options("tuned"))
def test_rollouts_of_a_tuned_preset_divide_into_its_minibatches_with_32_envs_too(pair):
    algo, env = pair.split("/")
    config = parse_train(composed(f"algo={algo}", f"env={env}", "num_envs=32"))
    check_minibatches(config)


@pytest.mark.parametrize("pair", sorted({row["task"] for row in read_rows(ROWS)} & {*conf_files.options("tuned")}))
def test_tuned_preset_that_has_a_result_is_not_said_to_be_unrun(pair):
    assert not re.search(r"not run( over seeds)? yet", header(conf_files.options("tuned")[pair]), re.IGNORECASE)


@pytest.mark.parametrize("name", conf_files.options("experiment"))
def test_header_of_an_experiment_names_commit_and_seeds_of_its_run(name):
    said = header(conf_files.options("experiment")[name])
    assert re.search(r"Run at [0-9a-f]{7}\b", said)
    assert "seed" in said


def header(file):
    """The comment that a config file begins with, as one line."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def test_train_yaml_holds_the_defaults_of_its_dataclass():
    values = read(CONF / "train.yaml")
    defaults = {f.name: f for f in dataclasses.fields(TrainConfig)}
    for key, value in values.items():
        if key in ("defaults", "hydra", "name"):
            continue
        if key == "env":  # as any option of it is called
            assert value["name"] == "${hydra:runtime.choices.env}"
            value["name"] = EnvConfig().name
        if key in PARTS:
            assert parse(PARTS[key], value) == PARTS[key]()
            assert set(value) == {field.name for field in dataclasses.fields(PARTS[key])}
        else:
            default = defaults[key]
            assert value == (default.default_factory() if default.default is dataclasses.MISSING else default.default)


def test_a_composed_config_has_exactly_the_keys_of_train_config():
    assert set(composed()) == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize("name", [name for name in registry.names("sink") if name in conf_files.options("logger")])
def test_logger_preset_of_a_sink_has_every_option_with_its_default_and_a_comment(name):
    file = CONF / "logger" / f"{name}.yaml"
    options = read(file)["sinks"][name]
    assert options == to_plain(registry.load("sink", name).Config())
    assert {f"sinks.{name}.{option}" for option in options} <= set(conf_files.comments(file))


def test_several_presets_of_sinks_add_up():
    sinks = composed("logger=[tensorboard,wandb,mlflow]", "logger.sinks.wandb.project=mine")["logger"]["sinks"]
    assert list(sinks) == ["csv", "tensorboard", "wandb", "mlflow"]
    assert sinks["wandb"]["project"] == "mine"


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        (["logger.sinks.mlflow={}"], ["csv", "mlflow"]),
        (["logger.sinks.wandb=true"], ["csv", "wandb"]),
        (["logger.sinks.wandb.mode=offline"], ["csv", "wandb"]),
        (["logger.sinks.csv=null"], []),
        (["logger=tensorboard", "logger.sinks.csv=false"], ["tensorboard"]),
        (["logger=none"], []),
    ],
)
def test_sinks_are_added_and_taken_away_by_name(typed, names):
    assert list(parse_train(composed(*typed)).logger.sinks) == names


def test_default_logger_holds_the_defaults_of_its_dataclass():
    assert parse(LoggerConfig, read(CONF / "logger" / "default.yaml")) == LoggerConfig()


@pytest.mark.parametrize(
    ("name", "cls", "key"),
    [("eval", EvalCommand, "checkpoint"), ("resume", ResumeCommand, "run"), ("report", ReportCommand, "runs")],
)
def test_command_yaml_holds_the_defaults_of_its_dataclass(name, cls, key):
    values = read(CONF / f"{name}.yaml")
    del values["defaults"]
    assert set(values) == {field.name for field in dataclasses.fields(cls)}
    assert values[key] == "???"
    assert parse(cls, values | {key: "x"}) == cls(**{key: "x"})


def test_bench_yaml_holds_the_defaults_of_its_dataclass_and_takes_whatever_train_takes():
    values = read(CONF / "bench.yaml")
    assert values.pop("defaults") == ["train", "_self_"]
    assert parse(BenchCommand, values) == BenchCommand()
    assert set(values) == {field.name for field in dataclasses.fields(BenchCommand)}
    with session() as hydra:
        job = plain(compose(hydra, "bench", ["env=acrobot", "num_envs=4"]))
    assert {k: v for k, v in job.items() if k not in values} == composed("env=acrobot", "num_envs=4")


@pytest.mark.parametrize("name", ["train", "eval", "resume", "bench", "report"])
def test_every_key_of_a_command_has_a_comment(name):
    documented = conf_files.comments(CONF / f"{name}.yaml")
    for key, value in read(CONF / f"{name}.yaml").items():
        if key in ("defaults", "hydra"):
            continue
        for path in [f"{key}.{part}" for part in value] if isinstance(value, dict) else [key]:
            assert path in documented
