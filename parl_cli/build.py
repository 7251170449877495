"""Config → objects: the one file that imports from everywhere."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium.vector import AutoresetMode

from parl_cli import plugins, registry
from parl_cli.actors.base import Actor
from parl_cli.config import EnvConfig, TrainConfig, parse_train
from parl_cli.envs.factory import EVAL_ROLE, TRAIN_ROLE, EnvFactory, EpisodeSeeds, env_spec
from parl_cli.envs.gymnasium_adapter import is_import_id
from parl_cli.errors import CheckpointError, ConfigError
from parl_cli.functional.noise import stream_key
from parl_cli.metrics.tensorboard import TensorBoardSink
from parl_cli.training import checkpoint
from parl_cli.training.device import select_device
from parl_cli.training.evaluate import MAX_PARALLEL, EpisodeSpread
from parl_cli.training.learner import Learner
from parl_cli.training.reward_scaler import RewardScaler
from parl_cli.types import EnvSpec
from parl_cli.vectorizers.calls import available_cores
from parl_cli.vectorizers.serial import SerialVectorizer


def validate(values: Mapping[str, Any]) -> TrainConfig:
    """A whole training config, checked against its env, its algorithm and this machine. Writes nothing.

    Raises:
        ConfigError: whatever does not fit.
    """
    plugins.load(values.get("plugins") or [])
    config = resolve(parse_train(values))
    spec = env_spec(config.env)
    config = name_module(config)
    registry.load("algo", config.algo.name).check(config, spec)
    policy = make_policy(spec, config)
    policy_device(config)
    if config.init_from is not None:
        warm = checkpoint.load(checkpoint.find(config.init_from))
        checkpoint.load_weights(policy, warm.policy, warm.path)
    if config.logger.tensorboard:
        TensorBoardSink("")  # raises where the extra is missing; writes nothing before its first row
    return config


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
        spec = env_spec(config.env)
        with torch.device("meta"):
            outline = make_policy(spec, config)
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
    vectorizer = config.vectorizer
    if getattr(vectorizer, "num_workers", 0) is None:
        vectorizer = dataclasses.replace(vectorizer, num_workers=min(available_cores(), config.num_envs))
    if (getattr(vectorizer, "num_workers", None) or 0) > config.num_envs:
        raise ConfigError(
            f"vectorizer.num_workers={vectorizer.num_workers}: at most one per env, num_envs={config.num_envs}"
        )
    return dataclasses.replace(config, num_threads=num_threads, vectorizer=vectorizer)


def policy_device(config: TrainConfig) -> torch.device:
    """The device that the config asks for."""
    policy = registry.load("policy", config.policy.name)
    return select_device(config.device, prefers_accelerator=getattr(policy, "prefers_accelerator", False))


def make_policy(spec: EnvSpec, config: TrainConfig) -> Any:
    """A freshly initialised policy, its weights a function of the run's seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed63(config.seed, "weights"))
        return registry.load("policy", config.policy.name)(spec, config.policy)


def make_learner(config: TrainConfig, spec: EnvSpec) -> Learner:
    """Policy, algorithm and learner on the config's device."""
    device = policy_device(config)
    policy = make_policy(spec, config).to(device)
    algo = registry.load("algo", config.algo.name)(policy, config.algo, seed=_seed63(config.seed, "minibatches"))
    scaler = None
    if getattr(config.algo, "normalize_reward", False):
        scaler = RewardScaler(config.num_envs, spec.agents, gamma=config.algo.gamma, clip=config.algo.reward_clip)
    return Learner(algo, total_steps=config.total_steps, device=device, reward_scaler=scaler)


def make_pool(config: TrainConfig, policy: Any) -> Any:
    """Envs, vectorizer and actors."""
    actor = Actor(
        make_vectorizer(config),
        policy,
        num_steps=config.algo.num_steps,
        noise_key=stream_key(config.seed, "train", "noise"),
    )
    return registry.load("actors", config.actors.name)(actor)


def make_vectorizer(config: TrainConfig) -> Any:
    """Envs and what steps them, as the runner uses it: same-step autoreset, every episode seeded."""
    options = {f.name: getattr(config.vectorizer, f.name) for f in dataclasses.fields(config.vectorizer)}
    cls = registry.load("vectorizer", options.pop("name"))
    modules = tuple(dict.fromkeys([*plugins.installed(), *config.plugins]))
    return cls(
        [EnvFactory(config.env, plugins=modules) for _ in range(config.num_envs)],
        autoreset_mode=AutoresetMode.SAME_STEP,
        episode_seed=EpisodeSeeds(config.seed, TRAIN_ROLE),
        **options,
    )


def make_eval_vectorizer(
    env: EnvConfig,
    *,
    seed: int,
    episodes: int,
    role: int = EVAL_ROLE,
    num_envs: int | None = None,
    render_mode: str | None = None,
) -> SerialVectorizer:
    """Envs for evaluation, on the seeds of a role that is not training's."""
    n = min(episodes, num_envs or MAX_PARALLEL)
    return SerialVectorizer(
        [EnvFactory(env, render_mode) for _ in range(n)],
        autoreset_mode=AutoresetMode.SAME_STEP,
        episode_seed=EpisodeSpread(EpisodeSeeds(seed, role), n),
    )


def _seed63(seed: int, role: str) -> int:
    return stream_key(seed, role) & (2**63 - 1)
