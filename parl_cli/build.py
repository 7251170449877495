"""Config → objects: the one file that imports from everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from parl_cli import plugins, registry
from parl_cli.actors.base import Actor
from parl_cli.actors.group import PoolGroup
from parl_cli.config import EnvConfig, TrainConfig, parse_train
from parl_cli.envs.factory import EVAL_ROLE, TRAIN_ROLE, EnvFactory, EpisodeSeeds, env_spec
from parl_cli.envs.gymnasium_adapter import is_import_id
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.functional.noise import stream_key
from parl_cli.per_policy import Part, parts
from parl_cli.training import checkpoint
from parl_cli.training.device import select_device
from parl_cli.training.evaluate import LONGEST_EPISODE, MAX_PARALLEL, EpisodeSpread
from parl_cli.training.learner import Learner
from parl_cli.training.learner_group import LearnerGroup
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import EnvSpec
from parl_cli.vectorizers.auto import choose
from parl_cli.vectorizers.calls import available_cores
from parl_cli.vectorizers.serial import SerialVectorizer

MIN_ENVS_PER_ACTOR = 8  # where nobody says how many actors there shall be


def validate(values: Mapping[str, Any]) -> TrainConfig:
    """A whole training config, checked against its env, its algorithm and this machine. Writes nothing.

    Raises:
        ConfigError: whatever does not fit.
    """
    plugins.load(values.get("plugins") or [])
    config = resolve(parse_train(values))
    spec = env_spec(config.env)
    config = name_module(config)
    own = parts(config)
    check_parts(own, spec)
    registry.load("actors", config.actors.name).check(config)
    _check_vectorizer(config)
    lag, actors = config.debug.policy_lag, config.actors.name
    if lag and actors != "inline":
        raise ConfigError(f"debug.policy_lag={lag}: needs actors=inline; actors={actors} lag on their own")
    policies = [make_policy(spec, part.config, part.policy_id) for part in own]
    _check_policies(own, policies)
    policy_device(config)
    actor_device(config)
    if config.init_from is not None:
        warm = checkpoint.load(checkpoint.find(config.init_from, key="init_from"))
        for part, policy in zip(own, policies, strict=True):
            checkpoint.load_weights(policy, warm.weights_of(part.policy_id, len(own)), warm.path)
    for name, options in config.logger.sinks.items():
        registry.load("sink", name).check(options)
    return config


def check_parts(own: Sequence[Part], spec: EnvSpec) -> None:
    """Refuse what an algorithm cannot learn from, with the policy whose it is.

    Raises:
        ConfigError: see the algorithm's `check`, and the action spaces that it `supports`.
    """
    for part in own:
        try:
            algo = registry.load("algo", part.config.algo.name)
            algo.check(part.config, spec)
            _check_actions(part.config.algo.name, getattr(algo, "supports", {}).get("actions"), spec)
        except ConfigError as error:
            raise part.named(error) from None


def _check_policies(own: Sequence[Part], policies: Sequence[Any]) -> None:
    """Refuse what an algorithm cannot do with its policy, where it has a `check_policy`."""
    for part, policy in zip(own, policies, strict=True):
        check = getattr(registry.load("algo", part.config.algo.name), "check_policy", None)
        try:
            if check is not None:
                check(part.config, policy)
        except ConfigError as error:
            raise part.named(error) from None


def _check_actions(algo: str, supported: Sequence[str] | None, spec: EnvSpec) -> None:
    kind = type(spec.action_space).__name__
    if supported is not None and kind not in supported:
        raise ConfigError(
            f"algo={algo}: cannot learn to act in {spec.id}, whose action space is {kind}; it takes "
            f"{', '.join(supported)}"
        )


def _check_vectorizer(config: TrainConfig) -> None:
    """Refuse what cannot step the envs of one actor."""
    check = getattr(registry.load("vectorizer", config.vectorizer.name), "check", None)
    if check is None:
        return
    try:
        check(config.vectorizer, _env_factories(config, envs_of_one_actor(config)))
    except ConfigError as error:
        if (of_one := _envs_of_one(config)) == f"num_envs={config.num_envs}":
            raise
        raise ConfigError(f"{error}; an actor has {of_one}") from None


def check_fits(saved: checkpoint.Checkpoint, values: Mapping[str, Any]) -> TrainConfig:
    """A checkpoint's config, typed, once its weights are known to be those of the network that it describes.

    The network is only outlined for that: a file could ask for one larger than the memory.

    Args:
        saved: the checkpoint.
        values: its config, perhaps with changes of the user's.

    Raises:
        CheckpointError: the config describes no network, or another one.
    """
    try:
        config = parse_train(values)
        if config.num_policies > len(saved.policy):
            raise ConfigError(f"num_policies={config.num_policies}: there are weights of fewer")
        spec = env_spec(config.env)
        with torch.device("meta"):
            outline = make_network(spec, config)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint={saved.path}: its config does not fit: {error}") from None
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint={saved.path}: its config describes no network: {error}") from None
    checkpoint.check_weights(outline, saved.policy, saved.path)
    return config


def name_module(config: TrainConfig) -> TrainConfig:
    """The config with `env.id=module:Env-v0` written as `plugins=[module] env.id=Env-v0`.

    They mean the same. But a checkpoint holds the config, and may not name a module in an env id: evaluation asks the
    user for plug-ins instead.
    """
    if not is_import_id(config.env.id):
        return config
    module, _, env_id = str(config.env.id).partition(":")
    plugins.load([module])
    names = list(dict.fromkeys([*config.plugins, module]))
    return dataclasses.replace(config, plugins=names, env=dataclasses.replace(config.env, id=env_id))


def resolve(config: TrainConfig) -> TrainConfig:
    """The config with what depends on the machine filled in: threads and workers."""
    # a perceptron's minibatch is too small to share: a second thread gains 15 % at best on an idle machine, and
    # costs a factor of ten when another process wants the core that it spins on
    large = getattr(registry.load("policy", config.policy.name), "prefers_accelerator", False)
    num_threads = config.num_threads or (available_cores() if large else 1)
    actors, vectorizer = config.actors, config.vectorizer
    if getattr(actors, "num_actors", 0) is None:
        actors = dataclasses.replace(actors, num_actors=_default_actors(config))
    num_actors, cores = _actors_and_cores(dataclasses.replace(config, actors=actors))
    share = max(1, config.num_envs // num_actors)
    if getattr(vectorizer, "num_workers", 0) is None:
        vectorizer = dataclasses.replace(vectorizer, num_workers=min(cores, share))
    if (getattr(vectorizer, "num_workers", None) or 0) > share:
        of_one = _envs_of_one(dataclasses.replace(config, actors=actors))
        raise ConfigError(f"vectorizer.num_workers={vectorizer.num_workers}: at most one per env, {of_one}")
    return dataclasses.replace(config, num_threads=num_threads, actors=actors, vectorizer=vectorizer)


def _default_actors(config: TrainConfig) -> int:
    """A core for each actor but the learner's; one per policy where it has workers of its own to use them."""
    least = config.num_policies
    if hasattr(config.vectorizer, "num_workers") or config.actors.name != "process":
        return least
    # choosing actions for a few envs costs hardly less than for many
    most = min(available_cores() - 1, config.num_envs // MIN_ENVS_PER_ACTOR)
    return max((n for n in range(least, most + 1, least) if config.num_envs % n == 0), default=least)


def _actors_and_cores(config: TrainConfig) -> tuple[int, int]:
    """Actors in all, and the cores for one that acts; those of `actors=inline`, one per policy, take turns."""
    cores = available_cores()
    num_actors: int | None = getattr(config.actors, "num_actors", None)
    return (config.num_policies, cores) if num_actors is None else (num_actors, max(1, cores // num_actors))


def envs_of_one_actor(config: TrainConfig) -> range:
    """As many envs as one actor steps, which is what a vectorizer is given."""
    return range(config.num_envs // _actors_and_cores(config)[0])


def _envs_of_one(config: TrainConfig) -> str:
    """The same in the words of the config: `num_envs=8`, `num_envs=8 / actors.num_actors=2`."""
    num_actors = _actors_and_cores(config)[0]
    by = "actors.num_actors" if hasattr(config.actors, "num_actors") else "num_policies"
    return f"num_envs={config.num_envs}" + (f" / {by}={num_actors}" if num_actors > 1 else "")


def policy_device(config: TrainConfig) -> torch.device:
    """The device that the config asks for."""
    policy = registry.load("policy", config.policy.name)
    return select_device(config.device, prefers_accelerator=getattr(policy, "prefers_accelerator", False))


def actor_device(config: TrainConfig) -> torch.device | None:
    """The device that the config asks for its actors; None: the learner's."""
    name = getattr(config.actors, "device", None)
    policy = registry.load("policy", config.policy.name)
    prefers = getattr(policy, "prefers_accelerator", False)
    return None if name is None else select_device(name, prefers_accelerator=prefers, key="actors.device")


def make_policy(spec: EnvSpec, config: TrainConfig, policy_id: int = 0) -> Any:
    """A freshly initialised policy, its weights a function of the run's seed and the policy's id alone.

    Args:
        spec: the env's spaces.
        config: of the policy's part, where there are several.
        policy_id: policy 0 begins as it would alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed63(config.seed, "weights", policy_id))
        return registry.load("policy", config.policy.name)(spec, config.policy)


def make_network(spec: EnvSpec, config: TrainConfig) -> Any:
    """All that acts, as checkpoints hold it: the policy, or of several a list of them, by id.

    Raises:
        ConfigError: see `per_policy.parts`.
    """
    policies = [make_policy(spec, part.config, part.policy_id) for part in parts(config)]
    return policies[0] if config.num_policies == 1 else torch.nn.ModuleList(policies)


def make_learner(config: TrainConfig, spec: EnvSpec) -> Any:
    """The learner, on the config's device; of several policies a `LearnerGroup`, which has its interface."""
    learners = [_learner(part, spec) for part in parts(config)]
    return learners[0] if len(learners) == 1 else LearnerGroup(learners)


def _learner(part: Part, spec: EnvSpec) -> Learner:
    config, device = part.config, policy_device(part.config)
    policy = make_policy(spec, config, part.policy_id).to(device)
    seed = _seed63(config.seed, "minibatches", part.policy_id)
    algo = registry.load("algo", config.algo.name)(policy, config.algo, seed=seed)
    scaler = None
    if getattr(config.algo, "normalize_reward", False):
        num_ids = part.env_ids.stop
        scaler = RewardScaler(num_ids, spec.agents, gamma=config.algo.gamma, clip=config.algo.reward_clip)
    return Learner(algo, total_steps=config.total_steps, device=device, reward_scaler=scaler)


@dataclass(frozen=True)
class ActorRecipe:
    """Makes the policies and actors of a policy's part of a run, in whatever process it is unpickled."""

    part: Part
    spec: EnvSpec
    device: torch.device | None = None  # where actors act; None: where the learner's policy is
    plugins: tuple[str, ...] = ()  # the plug-ins' modules: a new process knows no registrations

    @property
    def config(self) -> TrainConfig:
        """Of a run with this policy alone."""
        return self.part.config

    @property
    def env_ids(self) -> range:
        """What its envs are called in the whole run."""
        return self.part.env_ids

    def policy(self) -> Any:
        """A policy on the CPU, with the weights that a new run begins with."""
        plugins.load(self.plugins)
        return make_policy(self.spec, self.config, self.part.policy_id)

    def actor(self, policy: Any, envs: range) -> Actor:
        """An actor that steps these envs of the run with `policy`; they are some of `env_ids`."""
        return Actor(
            make_vectorizer(self.config, envs),
            policy,
            num_steps=self.config.algo.num_steps,
            noise_key=stream_key(self.config.seed, "train", "noise"),
            env_ids=envs,
        )


def choose_vectorizer(config: TrainConfig) -> tuple[TrainConfig, str]:
    """The config with the vectorizer that `vectorizer=auto` comes to on this machine; measured for a second or two.

    Returns:
        (the config, in one line what was chosen and why); any other config as it is, and no words.
    """
    if config.vectorizer.name != "auto":
        return config, ""
    factories = _env_factories(config, envs_of_one_actor(config))
    choice = choose(factories, EpisodeSeeds(config.seed, TRAIN_ROLE), cores=_actors_and_cores(config)[1])
    chosen = registry.load("vectorizer", choice.name).Config(**choice.options)
    return dataclasses.replace(config, vectorizer=chosen), f"vectorizer=auto: {choice.name}; {choice.reason}"


def make_pool(config: TrainConfig, policy: Any, spec: EnvSpec | None = None) -> Any:
    """Envs, vectorizers and actors.

    Args:
        config: from `validate`.
        policy: the learner's; of several policies the list of them.
        spec: the env's spaces; None: ask the env.
    """
    cls, spec = registry.load("actors", config.actors.name), spec or env_spec(config.env)
    device, modules = actor_device(config), _plugin_modules(config)
    recipes = [ActorRecipe(part, spec, device, modules) for part in parts(config)]
    if len(recipes) == 1:
        return cls.make(recipes[0], policy)
    return PoolGroup([partial(cls.make, recipe, own) for recipe, own in zip(recipes, policy, strict=True)])


def make_vectorizer(config: TrainConfig, envs: range | None = None) -> Any:
    """Envs and what steps them, as the runner uses it: same-step autoreset, every episode seeded.

    Args:
        config: from `validate`.
        envs: which envs of the run; None: all.
    """
    envs = range(config.num_envs) if envs is None else envs
    options = {f.name: getattr(config.vectorizer, f.name) for f in dataclasses.fields(config.vectorizer)}
    cls = registry.load("vectorizer", options.pop("name"))
    return cls(
        _env_factories(config, envs),
        autoreset_mode=AutoresetMode.SAME_STEP,
        episode_seed=EpisodeSeeds(config.seed, TRAIN_ROLE, envs.start, envs.step),
        **options,
    )


def make_eval_vectorizer(
    env: EnvConfig,
    *,
    seed: int,
    episodes: int,
    role: int = EVAL_ROLE,
    num_envs: int | None = None,
    max_episode_steps: int | None = None,
    render_mode: str | None = None,
) -> SerialVectorizer:
    """Envs for evaluation, on the seeds of a role that is not training's; their episodes end, if only by a limit."""
    n = min(episodes, num_envs or MAX_PARALLEL)

    def make(limit: int | None) -> SerialVectorizer:
        limited = dataclasses.replace(env, max_episode_steps=limit)
        return SerialVectorizer(
            [EnvFactory(limited, render_mode) for _ in range(n)],
            autoreset_mode=AutoresetMode.SAME_STEP,
            episode_seed=EpisodeSpread(EpisodeSeeds(seed, role), n),
        )

    limit = max_episode_steps or env.max_episode_steps
    vectorizer = make(limit)
    if limit is None and (vectorizer.spec is None or vectorizer.spec.max_episode_steps is None):
        vectorizer.close()
        vectorizer = make(LONGEST_EPISODE)
    return vectorizer


def _env_factories(config: TrainConfig, envs: range) -> list[EnvFactory]:
    return [EnvFactory(config.env, plugins=_plugin_modules(config)) for _ in envs]


def _plugin_modules(config: TrainConfig) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*plugins.installed(), *config.plugins]))


def _seed63(seed: int, role: str, policy_id: int) -> int:
    return stream_key(seed, role, *([policy_id] if policy_id else [])) & (2**63 - 1)
