"""Presets that are asked for by name, or bring keys that the chosen parts do not have."""

import pytest

from parl_cli.composition.compose import compose, preset_of, presets_named, session
from parl_cli.config import parse_component
from parl_cli.errors import ConfigError, UnknownKeyError


def composed(*overrides, config_dir=None):
    with session(config_dir) as hydra:
        return compose(hydra, "train", overrides)


@pytest.mark.parametrize("chosen", ["ppo/pendulumm", "nope/x"])
def test_a_preset_that_is_not_there_is_refused(chosen):
    with pytest.raises(ConfigError, match=f"^tuned={chosen}: no such preset"):
        composed(f"tuned={chosen}", "env=pendulum")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["env=pendulum"], "ppo/pendulum"),
        (["env=cartpole", "tuned=ppo/pendulum"], "ppo/pendulum"),
        (["algo=truly_ppo", "env=hopper"], "none for truly_ppo/hopper: plain defaults"),
        (["tuned=null"], "none (tuned=null)"),
    ],
)
def test_a_run_says_which_preset_it_has(overrides, words):
    assert preset_of(composed(*overrides)) == words


def test_a_pair_need_not_have_a_preset_and_may_take_that_of_another():
    assert composed("algo=a2c", "env=pendulum").algo.name == "a2c"
    assert composed("tuned=ppo/pendulum", "env=cartpole").env.name == "cartpole"
    assert composed("tuned=null").algo.name == "ppo"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["env=pendulum"],
            r"^tuned=ppo/pendulum sets policy.normalize_obs, which policy=mlp does not have; add tuned=null$",
        ),
        (
            ["experiment=truly_ppo_paper"],
            r"^experiment=truly_ppo_paper sets policy.normalize_obs, which policy=mlp does not have; choose another",
        ),
    ],
)
def test_a_key_that_a_preset_brought_is_not_laid_at_the_users_door(overrides, words):
    config = composed(*overrides)
    with pytest.raises(ConfigError, match=words), presets_named(config):
        raise UnknownKeyError("policy.normalize_obs", "choose from name, scale")


@pytest.mark.parametrize("kind", ["tuned", "experiment"])
def test_nor_is_one_that_a_preset_of_the_users_own_folder_brought(kind, tmp_path):
    name = {"tuned": "ppo/mine", "experiment": "mine"}[kind]
    file = tmp_path / kind / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\npolicy:\n  normalize_obs: true\n")
    config = composed(f"{kind}={name}", config_dir=str(tmp_path))
    words = f"^{kind}={name} sets policy.normalize_obs, which policy=mlp does not have; "
    with pytest.raises(ConfigError, match=words), presets_named(config):
        raise UnknownKeyError("policy.normalize_obs", "choose from name, scale")


@pytest.mark.parametrize(
    ("text", "key", "hint", "words"),
    [
        (
            "eval: {epsiodes: 5}",
            "eval.epsiodes",
            "did you mean episodes?",
            "unknown key eval.epsiodes; did you mean",
        ),
        ("nmu_envs: 5", "nmu_envs", "did you mean num_envs?", "unknown key nmu_envs; did you mean num_envs?"),
        (
            "algo:\n  num_minibatchs: ${num_envs}",
            "algo.num_minibatchs",
            "did you mean num_minibatches?",
            r"sets algo.num_minibatchs, which algo=ppo does not have \(did you mean num_minibatches\?\); choose",
        ),
    ],
)
def test_a_typo_in_ones_own_recipe_is_told_as_one(tmp_path, text, key, hint, words):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}\n")
    config = composed("experiment=mine", config_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=f"^experiment=mine:? {words}"), presets_named(config):
        raise UnknownKeyError(key, hint)


def test_any_other_unknown_key_stays_what_it_is():
    with pytest.raises(ConfigError, match=r"^unknown key policy.typed; "), presets_named(composed("env=pendulum")):
        parse_component("policy", {"name": "mlp", "typed": 1})
