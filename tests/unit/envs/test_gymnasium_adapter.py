import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from parl_cli import registry
from parl_cli.config import EnvConfig, parse
from parl_cli.envs import gymnasium_adapter, toy, wrappers
from parl_cli.envs.factory import EnvFactory
from parl_cli.envs.gymnasium_adapter import is_import_id
from parl_cli.errors import ConfigError

CONF = Path(__file__).parents[3] / "conf" / "env"
PRESETS = sorted(path.stem for path in CONF.glob("*.yaml"))
NEEDS = {"box2d": "Box2D", "mujoco": "mujoco"}


def preset(name):
    return yaml.safe_load((CONF / f"{name}.yaml").read_text())


def layers(env):
    """Class names from the outside in."""
    names = [type(env).__name__]
    while isinstance(env, gym.Wrapper):
        env = env.env
        names.append(type(env).__name__)
    return names


def make_env(config, render_mode=None):
    """As a run makes it: with its wrappers."""
    return EnvFactory(config, render_mode)()


def error_of(**config):
    """The one line with which a config is refused."""
    with pytest.raises(ConfigError) as caught:
        make_env(parse(EnvConfig, config, "env"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_is_named_after_its_file_documented_and_lists_every_key(name):
    text = (CONF / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    assert list(preset(name)) == list(EnvConfig.__dataclass_fields__)
    assert parse(EnvConfig, preset(name), "env").name == name


# an env with its time limit is what is checked here; presets keep the bounds of their env, as it states them
@pytest.mark.filterwarnings("ignore:.*is different from the unwrapped version")
@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space")
@pytest.mark.filterwarnings("ignore:.*A Box observation space (maximum|minimum) value is (-)?infinity")
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gym"])
def test_preset_makes_an_env_that_keeps_the_gymnasium_contract(name):
    config = parse(EnvConfig, preset(name), "env")
    if config.extra is not None:
        pytest.importorskip(NEEDS[config.extra])
    env = make_env(config)
    # the close check would make the env anew from its spec, which cannot hold what wrappers were told
    check_env(env, skip_render_check=True, skip_close_check=bool(config.own_wrappers))
    env.close()


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gym"])
def test_preset_replays_an_episode_from_its_seed_and_actions_whatever_happened_before(name):
    config = parse(EnvConfig, preset(name), "env")
    if config.extra is not None:
        pytest.importorskip(NEEDS[config.extra])
    old, new = make_env(config), make_env(config)
    old.action_space.seed(0)
    for seed in (5, 6, 7):
        obs, _ = old.reset(seed=seed)
        trace, actions, over = [obs], [], False
        while not over and len(actions) < 60:
            actions.append(old.action_space.sample())
            obs, reward, terminated, truncated, _ = old.step(actions[-1])
            trace += [obs, reward]
            over = terminated or truncated
    replay = [new.reset(seed=7)[0]]
    for action in actions:
        replay += new.step(action)[:2]
    assert all(np.array_equal(a, b) for a, b in zip(trace, replay, strict=True))


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "gym" and not preset(name)["extra"]])
def test_preset_uses_the_newest_version_of_its_env(name):
    spec = gym.registry[preset(name)["id"]]
    versions = [s.version for s in gym.registry.values() if (s.namespace, s.name) == (spec.namespace, spec.name)]
    assert spec.version == max(versions)


def test_a_plain_env_has_nothing_on_its_hot_path_but_the_time_limit():
    assert layers(make_env(EnvConfig(id="CartPole-v1"))) == ["TimeLimit", "CartPoleEnv"]
    assert layers(make_env(EnvConfig(id="parl/Counting-v0"))) == ["CountingEnv"]


def test_the_registered_spec_is_left_as_it_was():
    make_env(EnvConfig(id="CartPole-v1"))
    assert "OrderEnforcing" in layers(gym.make("CartPole-v1"))


@pytest.mark.parametrize(("limit", "steps"), [(None, 200), (5, 5), (300, 300)])
def test_max_episode_steps_overrides_the_time_limit_of_the_env(limit, steps):
    env = make_env(EnvConfig(id="Pendulum-v1", max_episode_steps=limit))
    env.reset(seed=0)
    ends = [env.step(np.zeros(1, np.float32))[3] for _ in range(steps)]
    assert ends == [False] * (steps - 1) + [True]


def test_registered_wrappers_stay_above_the_time_limit():
    extra = gym.envs.registration.WrapperSpec("Repeat", f"{__name__}:repeat_twice", {})
    gym.register("parl/Wrapped-v0", toy.CountingEnv, max_episode_steps=2, additional_wrappers=(extra,))
    try:
        env = make_env(EnvConfig(id="parl/Wrapped-v0"))
        env.reset(seed=0)
        assert env.step(0)[3]  # two steps of the env, one of the wrapper
    finally:
        del gym.registry["parl/Wrapped-v0"]


def repeat_twice(env):
    return wrappers.ActionRepeat(env, wrappers.ActionRepeat.Config(2))


def test_kwargs_reach_the_constructor():
    assert make_env(EnvConfig(id="Pendulum-v1", kwargs={"g": 3.7})).unwrapped.g == 3.7


def test_render_mode_reaches_the_constructor():
    assert make_env(EnvConfig(id="CartPole-v1"), "rgb_array").render_mode == "rgb_array"


def made_by_a_function(render_mode=None):
    return gym.make("CartPole-v1", render_mode=render_mode).unwrapped


@pytest.fixture
def registered():
    """Registers an env for one test."""
    ids = []

    def register(env_id, **options):
        gym.register(env_id, **options)
        ids.append(env_id)

    yield register
    for env_id in ids:
        del gym.registry[env_id]


def test_an_env_that_a_function_makes_can_be_drawn(registered):
    registered("Made-v0", entry_point=made_by_a_function)
    assert make_env(EnvConfig(id="Made-v0"), "rgb_array").render_mode == "rgb_array"


def test_an_id_of_a_batch_only_is_refused(registered):
    registered("Batch-v0", entry_point=None, vector_entry_point=gym.vector.SyncVectorEnv)
    assert error_of(id="Batch-v0").startswith("env.id=Batch-v0: is registered as a batch only")


def test_wrappers_are_put_around_in_order_first_one_innermost():
    config = EnvConfig(id="CartPole-v1", wrappers=["action_repeat", {"frame_stack": {"num": 2}}, {"flatten_obs": None}])
    env = make_env(config)
    inside = ["RawReturn", "TimeLimit", "CartPoleEnv"]
    assert layers(env) == ["ReportRawReturn", "FlattenObs", "FrameStack", "ActionRepeat", *inside]
    assert env.observation_space.shape == (8,)


def test_only_wrappers_that_change_returns_bring_the_recorder():
    assert "RawReturn" not in layers(make_env(EnvConfig(id="CartPole-v1", wrappers=["flatten_obs", "frame_stack"])))
    assert "RawReturn" in layers(make_env(EnvConfig(id="CartPole-v1", wrappers=["reward_clip"])))


def test_raw_return_is_reported_under_a_reward_wrapper():
    env = make_env(EnvConfig(id="CartPole-v1", wrappers=[{"reward_scale": {"scale": 0.1}}], max_episode_steps=4))
    env.reset(seed=0)
    infos = [env.step(t % 2)[4] for t in range(4)]
    assert infos == [{}, {}, {}, {"episode": {"r": 4.0, "l": 4}}]


def test_import_ids_are_recognised():
    assert is_import_id("module:Env-v0")
    assert not is_import_id("ALE/Pong-v5")
    assert not is_import_id(None)


def test_an_import_id_whose_module_breaks_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "broken_env_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "broken_env_module cannot be imported (ZeroDivisionError" in error_of(id="broken_env_module:Env-v0")


def test_wrappers_that_one_types_leave_what_makes_the_env(tmp_path):
    config = parse(EnvConfig, preset("cartpole_no_velocity") | {"wrappers": ["frame_stack"]}, "env")
    env = make_env(config)
    assert env.observation_space.shape == (4, 2)  # stacked, and still without velocities


def test_an_adapter_of_somebody_else_gets_its_wrappers(tmp_path, monkeypatch):
    (tmp_path / "adapter_of_a_test.py").write_text(
        "import gymnasium\ndef make(config, render_mode):\n    return gymnasium.make(config.id)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_TARGETS", {kind: dict(names) for kind, names in registry._TARGETS.items()})
    registry.register("adapter", "mine", "adapter_of_a_test:make")
    env = make_env(EnvConfig(adapter="mine", id="CartPole-v1", wrappers=["frame_stack"]))
    assert env.observation_space.shape == (4, 4)


def test_import_id_imports_its_module(tmp_path, monkeypatch):
    (tmp_path / "parl_test_envs.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'parl_cli.envs.toy:CountingEnv')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert isinstance(make_env(EnvConfig(id="parl_test_envs:Mine-v0")).unwrapped, toy.CountingEnv)
        assert (
            error_of(id="parl_test_envs:Mind-v0") == "env.id=parl_test_envs:Mind-v0: no such id; did you mean Mine-v0?"
        )
    finally:
        gym.registry.pop("Mine-v0", None)
        sys.modules.pop("parl_test_envs", None)


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({}, ["env.id=null", "env=gym needs a Gymnasium id", "env.id=CartPole-v1"]),
        ({"id": "CartPoel-v1"}, ["env.id=CartPoel-v1", "no such id", "did you mean", "CartPole-v1"]),
        ({"id": "CartPole-v9"}, ["env.id=CartPole-v9", "there is no version 9 of CartPole", "CartPole-v1"]),
        ({"id": "CartPole"}, ["env.id=CartPole:", "CartPole needs a version", "choose CartPole-v0 or CartPole-v1"]),
        ({"id": "cart pole"}, ["env.id=cart pole", "not an id; they look like CartPole-v1"]),
        ({"id": "HalfCheetah-v3"}, ["a package is missing", "choose the newest version, HalfCheetah-v5"]),
        ({"id": "CartPole-v1", "kwargs": {"render_mode": "human"}}, ["env.kwargs.render_mode=human", "render=human"]),
        ({"id": "LunarLander-v3", "kwargs": {"gravity": 5}}, ["{'gravity': 5}", "refuses them", "between -12 and 0"]),
        ({"id": "HalfCheetah-v5", "kwargs": {"foo": 5}}, ["{'foo': 5}", "unexpected keyword argument 'foo'"]),
        ({"id": "Zzzzzzz-v0"}, ["env.id=Zzzzzzz-v0", "if a package registers it", 'env.id="package:Zzzzzzz-v0"']),
        ({"id": "ALE/Pong-v5"}, ["env.id=ALE/Pong-v5", "pip install ale-py", 'env.id="ale_py:ALE/Pong-v5"']),
        ({"id": "no_such_module:Env-v0"}, ["cannot import no_such_module", "install it, or add its folder to PYTHONP"]),
        ({"id": ":Env-v0"}, ["env.id=:Env-v0", "module:Env-v0"]),
        ({"id": "..x:Env-v0"}, ["env.id=..x:Env-v0", "module:Env-v0"]),
        ({"id": "Pendulum-v1", "kwargs": {"gg": 1}}, ["env.kwargs.gg=1", "Pendulum-v1 has no such argument", "g"]),
        ({"id": "parl/Identity-v0", "kwargs": {"spaze": "box"}}, ["env.kwargs.spaze=box", "did you mean space"]),
        ({"id": "parl/Identity-v0", "kwargs": {"space": "bax"}}, ["env.kwargs={'space': 'bax'}", "choose from discre"]),
        (
            {"id": "CartPole-v1", "wrappers": ["frame_stak"]},
            ["env.wrappers[0]=frame_stak", "did you mean frame_stack?"],
        ),
        (
            {"id": "CartPole-v1", "wrappers": ["flatten_obs", {"frame_stack": {"nun": 4}}]},
            ["unknown key env.wrappers[1].frame_stack.nun", "did you mean num?"],
        ),
        (
            {"id": "CartPole-v1", "wrappers": [{"frame_stack": {"num": "four"}}]},
            ["env.wrappers[0].frame_stack.num=four", "must be a whole number"],
        ),
        ({"id": "CartPole-v1", "wrappers": [{"frame_stack": 4}]}, ["env.wrappers[0].frame_stack=4", "group of keys"]),
        ({"id": "CartPole-v1", "wrappers": [4]}, ["env.wrappers[0]=4", "{name: {option: value}}"]),
        (
            {"id": "CartPole-v1", "wrappers": [{"frame_stack": {}, "flatten_obs": {}}]},
            ["env.wrappers[0]=", "{name: {option: value}}"],
        ),
        ({"id": "CartPole-v1", "wrappers": ["action_clip"]}, ["action_clip needs a Box action space", "remove it"]),
    ],
)
def test_bad_config_is_one_line_with_value_rule_and_way_out(config, parts):
    for env_id, module in (("LunarLander-v3", "Box2D"), ("HalfCheetah-v5", "mujoco")):
        if config.get("id") == env_id:
            pytest.importorskip(module)
    message = error_of(**config)
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize(
    ("env_id", "mode", "parts"),
    [
        ("CartPole-v1", "ascii", ["render=ascii", "CartPole-v1", "choose from human, rgb_array"]),
        ("parl/Counting-v0", "rgb_array", ["render=rgb_array", "parl/Counting-v0", "cannot be drawn"]),
    ],
)
def test_a_render_mode_that_the_env_lacks_is_refused(env_id, mode, parts):
    with pytest.raises(ConfigError) as caught:
        make_env(EnvConfig(id=env_id), mode)
    assert [part for part in parts if part not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("missing", "config", "message"),
    [
        (
            "Box2D",
            {"name": "lunar_lander", "id": "LunarLander-v3", "extra": "box2d"},
            'env=lunar_lander needs Box2D: pip install "parl-cli[box2d]"',
        ),
        ("Box2D", {"id": "LunarLander-v3"}, 'env.id=LunarLander-v3 needs Box2D: pip install "parl-cli[box2d]"'),
        (
            "mujoco",
            {"name": "half_cheetah", "id": "HalfCheetah-v5", "extra": "mujoco"},
            'env=half_cheetah needs MuJoCo: pip install "parl-cli[mujoco]"',
        ),
        ("mujoco", {"id": "Ant-v5"}, 'env.id=Ant-v5 needs MuJoCo: pip install "parl-cli[mujoco]"'),
    ],
)
def test_missing_dependency_is_one_line_with_the_pip_command(monkeypatch, missing, config, message):
    for module in [m for m in sys.modules if m.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    assert error_of(**config) == message


def test_missing_package_of_an_unknown_env_is_named_by_its_own_error():
    gym.register("parl/Broken-v0", "no_such_package.envs:Env")
    try:
        assert "env.id=parl/Broken-v0" in (message := error_of(id="parl/Broken-v0"))
        assert "No module named 'no_such_package'); install it" in message
    finally:
        del gym.registry["parl/Broken-v0"]


def test_a_bug_in_the_constructor_keeps_its_own_error():
    gym.register("parl/Faulty-v0", entry_point=toy.FaultyEnv)  # not registered for users: a file could ask for it
    config = EnvConfig(id="parl/Faulty-v0", kwargs={"raise_at": 0, "where": "init"})
    try:
        with pytest.raises(RuntimeError, match="FaultyEnv raises in init"):
            make_env(config)
    finally:
        del gym.registry["parl/Faulty-v0"]


def test_an_outdated_version_is_made_without_a_warning():
    assert make_env(EnvConfig(id="CartPole-v0")).unwrapped.spec.id == "CartPole-v0"


@pytest.mark.parametrize(
    ("name", "whole", "indices"),
    [("cartpole_no_velocity", "cartpole", [0, 2]), ("pendulum_no_velocity", "pendulum", [0, 1])],
)
def test_preset_without_velocities_shows_the_positions_of_the_whole_env(name, whole, indices):
    part, full = make_env(parse(EnvConfig, preset(name), "env")), make_env(parse(EnvConfig, preset(whole), "env"))
    obs = [(part.reset(seed=3)[0], full.reset(seed=3)[0])]
    full.action_space.seed(0)
    for _ in range(5):
        action = full.action_space.sample()
        obs.append((part.step(action)[0], full.step(action)[0]))
    for positions, everything in obs:
        np.testing.assert_array_equal(positions, everything[indices])


@pytest.fixture
def mujoco_warnings():
    """MuJoCo's own way of warning, put back afterwards."""
    mujoco = pytest.importorskip("mujoco")
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(None)
    yield mujoco
    mujoco.set_mju_user_warning(before)


def test_mujoco_warnings_are_logged_and_leave_no_file_behind(mujoco_warnings, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("DEBUG"):
        env = make_env(EnvConfig(id="HalfCheetah-v5")).unwrapped  # its model file warns of a deprecated attribute
        env.data.qpos[0] = np.nan
        mujoco_warnings.mj_step(env.model, env.data)
    assert not list(tmp_path.iterdir())
    logged = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == gymnasium_adapter.__name__]
    assert [text for level, text in logged if level == "WARNING" and "MuJoCo: Nan, Inf or huge value in QPOS" in text]
    assert [level for level, text in logged if "deprecated" in text and level != "DEBUG"] == []


def test_a_mujoco_warning_handler_of_somebody_else_is_left_alone(mujoco_warnings):
    heard = []
    mujoco_warnings.set_mju_user_warning(heard.append)
    env = make_env(EnvConfig(id="Hopper-v5")).unwrapped
    env.data.qpos[0] = np.nan
    mujoco_warnings.mj_step(env.model, env.data)
    assert heard
