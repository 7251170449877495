"""The Gymnasium adapter: from an `EnvConfig` to an env that is ready for the hot path.

PassiveEnvChecker and OrderEnforcing are left out: they cost more than a CartPole step, and the vectorizers keep the
order anyway. All that can be wrong with a config is found here, as one line with the way out.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import sys
import warnings
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, find_highest_version, get_env_id, load_env_creator, parse_env_id

from parl_cli import plugins
from parl_cli.config import EnvConfig
from parl_cli.envs import maze, toy  # noqa: F401  (they register the parl/ ids)
from parl_cli.envs.wrappers import TimeLimit
from parl_cli.errors import ConfigError, suggest

_EXTRAS = {"box2d": "Box2D", "mujoco": "MuJoCo"}
# what constructors raise over what they are given
_REFUSALS = (
    *(TypeError, ValueError, AssertionError, LookupError, ArithmeticError, AttributeError, OSError),
    gym.error.Error,
)
_PACKAGES = {"ALE/": ("ale-py", "ale_py"), "MiniGrid-": ("minigrid", "minigrid"), "BabyAI-": ("minigrid", "minigrid")}


def make_env(config: EnvConfig, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build the env of `config` with its time limit, which counts the env's own steps; without its wrappers.

    Raises:
        ConfigError: unknown id, wrong arguments, a missing dependency.
    """
    spec = find_spec(config)
    if spec.entry_point is None:
        raise ConfigError(
            f"env.id={config.id}: is registered as a batch only; evaluations play one env, so it needs both"
        )
    limit = config.max_episode_steps or spec.max_episode_steps
    inside = bool(spec.additional_wrappers)  # wrappers of the registration count their steps above the limit
    try:
        creator = load_creator(spec.entry_point)
        _redirect_mujoco_warnings()
        check_kwargs(config, creator)
        _check_render_mode(config, creator, render_mode)
        arguments = dict(config.kwargs) if render_mode is None else {**config.kwargs, "render_mode": render_mode}
        env = gym.make(spec, max_episode_steps=limit if inside and limit else -1, **arguments)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_dependency(config, spec, error) from error
    except _REFUSALS as error:
        if not config.kwargs and "argument" not in str(error):
            raise  # not the user's doing: a bug in the env
        cause = error.__cause__ or error  # gym.make wraps a TypeError in a longer one
        raise ConfigError(f"env.kwargs={config.kwargs}: {spec.id} refuses them: {one_line(cause)}") from error
    if limit and not inside:
        env = TimeLimit(env, TimeLimit.Config(limit))
    return env


def is_import_id(env_id: str | None) -> bool:
    """Whether an id has the form `module:Env-v0`, which imports a module: for the command line, never for files."""
    return env_id is not None and ":" in env_id


def find_spec(config: EnvConfig) -> EnvSpec:
    """A copy of the registered spec without OrderEnforcing and PassiveEnvChecker."""
    if config.id is None:
        raise ConfigError(f"env.id=null: env={config.name} needs a Gymnasium id; add for example env.id=CartPole-v1")
    if is_import_id(config.id):
        _import_module(config)
    name = config.id.rpartition(":")[2]
    if name not in gym.registry:
        raise ConfigError(f"env.id={config.id}: {_other_ids(name)}")
    spec = copy.deepcopy(gym.registry[name])
    spec.order_enforce, spec.disable_env_checker = False, True
    return spec


def _import_module(config: EnvConfig) -> None:
    module = str(config.id).partition(":")[0]
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"env.id={config.id}: {module!r} is not a module's name; write module:Env-v0")
    plugins.search_working_directory()
    try:
        importlib.import_module(module)
    except ImportError as error:
        if config.extra:
            raise missing_dependency(config, None, error) from error
        raise ConfigError(
            f"env.id={config.id}: cannot import {module} ({one_line(error)}); "
            "install it, or add its folder to PYTHONPATH"
        ) from error
    # other people's code may raise anything while it is imported
    except (Exception, SystemExit) as error:
        raise ConfigError(f"env.id={config.id}: {module} cannot be imported ({one_line(error)}); mend it") from error


def _other_ids(name: str) -> str:
    """Why an id is unknown, and what to type instead."""
    try:
        namespace, bare, version = parse_env_id(name)
    except gym.error.Error:
        return "not an id; they look like CartPole-v1, or package/CartPole-v1"
    same = [s.id for s in gym.registry.values() if (s.namespace, s.name) == (namespace, bare)]
    if same:
        bare = get_env_id(namespace, bare, None)
        missing = f"{bare} needs a version" if version is None else f"there is no version {version} of {bare}"
        return f"{missing}; choose {' or '.join(same)}"
    for prefix, (package, module) in _PACKAGES.items():
        if name.startswith(prefix):
            return f'not registered; pip install {package}, then use env.id="{module}:{name}"'
    hint = suggest(name, gym.registry)
    if hint.startswith("did you mean"):
        return f"no such id; {hint}"
    return f'no such id in Gymnasium\'s registry; if a package registers it, use env.id="package:{name}"'


def load_creator(entry_point: Any) -> Any:
    """The class or function behind an entry point."""
    if not isinstance(entry_point, str):
        return entry_point
    if entry_point.partition(":")[0] in sys.modules:
        return load_env_creator(entry_point)
    with warnings.catch_warnings():
        # Box2D's SWIG code warns while it initialises: where warnings are errors, that kills the interpreter
        warnings.simplefilter("ignore", DeprecationWarning)
        return load_env_creator(entry_point)


def _redirect_mujoco_warnings() -> None:
    """Log MuJoCo's warnings, which it would write to MUJOCO_LOG.TXT in the working directory.

    Nothing happens where no env has imported MuJoCo, or where someone else already handles its warnings.
    """
    mujoco = sys.modules.get("mujoco")
    if mujoco is not None and mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_log_mujoco_warning)


def _log_mujoco_warning(text: str) -> None:
    # Building a HalfCheetah warns of an attribute in Gymnasium's model file: not the user's to mend
    level = logging.DEBUG if "deprecated" in text else logging.WARNING
    logging.getLogger(__name__).log(level, "MuJoCo: %s", text)


def check_kwargs(config: EnvConfig, creator: Any) -> None:
    """Find a mistyped argument before the constructor does, to suggest the right one."""
    if "render_mode" in config.kwargs:
        raise ConfigError(
            f"env.kwargs.render_mode={config.kwargs['render_mode']}: not here; use parl eval render=human"
        )
    try:
        parameters = inspect.signature(creator).parameters
    except ValueError:
        return  # compiled classes may have no signature to read; the constructor will say
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name, value in config.kwargs.items():
        if name not in parameters:
            known = [p for p in parameters if p != "render_mode"]
            raise ConfigError(f"env.kwargs.{name}={value}: {config.id} has no such argument; {suggest(name, known)}")


def _check_render_mode(config: EnvConfig, creator: Any, render_mode: str | None) -> None:
    if not hasattr(creator, "metadata"):  # a function: what it makes may be able to, and gym.make asks it
        return
    modes = list(creator.metadata.get("render_modes") or [])
    drawn_for_it = render_mode == "human" and "rgb_array" in modes  # Gymnasium opens a window for such envs
    if render_mode is not None and render_mode not in modes and not drawn_for_it:
        can = f"choose from {', '.join(modes)}" if modes else "it cannot be drawn; leave rendering and video off"
        raise ConfigError(f"render={render_mode}: {config.id} has no such render mode; {can}")


def missing_dependency(config: EnvConfig, spec: EnvSpec | None, error: BaseException) -> ConfigError:
    """What to install, as an error to raise."""
    label = f"env={config.name}" if config.name != "gym" else f"env.id={config.id}"
    rooms = str(spec.entry_point).split(".") if spec else []
    extra = config.extra or next((known for known in _EXTRAS if known in rooms), None)
    if extra:
        return ConfigError(f'{label} needs {_EXTRAS.get(extra, extra)}: pip install "parl-cli[{extra}]"')
    newest = spec and get_env_id(spec.namespace, spec.name, find_highest_version(spec.namespace, spec.name))
    way_out = "install it" if spec is None or newest == spec.id else f"choose the newest version, {newest}"
    return ConfigError(f"{label} cannot be built, a package is missing ({one_line(error)}); {way_out}")


def one_line(error: BaseException) -> str:
    """An error's type and message without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
