"""What a run makes of its env config: picklable factories, the env's spec, and the seeds of its episodes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv

from parl_cli import plugins, registry
from parl_cli.config import EnvConfig
from parl_cli.envs.batches import make_batch
from parl_cli.envs.gymnasium_adapter import one_line
from parl_cli.envs.wrappers import num_agents
from parl_cli.envs.wrapping import wrap
from parl_cli.errors import ConfigError
from parl_cli.types import EnvSpec

TRAIN_ROLE = 0
EVAL_ROLE = 1  # evaluations while training, which choose the best checkpoint
TEST_ROLE = 2  # parl eval: episodes that chose nothing


@dataclass(frozen=True)
class EnvFactory:
    """Makes one environment when called: what vectorizers receive. Picklable, for workers started by spawn.

    Args:
        config: the environment.
        render_mode: None, `human` or `rgb_array`.
        plugins: the plug-ins' modules, to import first: a new process knows no registrations, and a worker need not
            look for installed ones itself.
    """

    config: EnvConfig
    render_mode: str | None = None
    plugins: tuple[str, ...] = ()

    def __call__(self) -> gym.Env[Any, Any]:
        """Build it; ConfigError if the config does not fit."""
        plugins.load(self.plugins)
        make = registry.load("adapter", self.config.adapter)
        return wrap(make(self.config, self.render_mode), self.config)

    def make_vec(self, num_envs: int, backend: str = "gymnasium") -> VectorEnv:
        """Build a library's own batch of such envs, see `make_batch`; ConfigError if there is none."""
        plugins.load(self.plugins)
        return make_batch(self.config, num_envs, backend)


def env_spec(config: EnvConfig) -> EnvSpec:
    """Build the env once and read what training must know; raises ConfigError if it cannot be built."""
    env = EnvFactory(config)()
    try:
        return EnvSpec(config.id or config.name, env.observation_space, env.action_space, num_agents(env))
    finally:
        env.close()


def check_rendering(config: EnvConfig) -> None:
    """Draw one frame off screen; raises ConfigError where that cannot be done."""
    env = EnvFactory(config, render_mode="rgb_array")()
    try:
        env.reset(seed=0)
        env.render()
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise ConfigError(f'{config.id} cannot be drawn ({one_line(error)}); pip install "parl-cli[video]"') from error
    except Exception as error:  # whatever the drawing library raises: MuJoCo's, for one, where there is no display
        way_out = "MuJoCo needs MUJOCO_GL=egl or osmesa where there is no display"
        raise ConfigError(f"{config.id} cannot be drawn ({one_line(error)}); {way_out}") from error
    finally:
        env.close()


@dataclass(frozen=True)
class EpisodeSeeds:
    """The reset seed of every episode: a pure function of (run seed, role, env id, episode number).

    Nothing depends on which worker steps an env or on how many there are. A seed has 32 bits, because that is what
    every env accepts: among a million episodes about a hundred pairs share one, which does no harm.

    Args:
        run_seed: the seed of the run, not negative.
        role: TRAIN_ROLE, EVAL_ROLE or TEST_ROLE: none of them sees another's seeds on purpose.
        first_env: what an actor's env 0 is called in the whole run.
        env_stride: what comes to that for each of its envs that follow.
    """

    run_seed: int
    role: int = TRAIN_ROLE
    first_env: int = 0
    env_stride: int = 1

    def __call__(self, env_id: int, episode: int) -> int:
        """The seed in [0, 2**32) with which `env_id` begins its episode number `episode`, counted from 0."""
        # SeedSequence(run_seed, spawn_key=(role, env_id, episode)).generate_state(1)[0]. Its arithmetic, written out
        # for that one number, takes an eighth of the time, which is felt where episodes are short
        word, env_xor, env_times, episode_xor, episode_times = self._begun
        hashed = (self.first_env + int(env_id) * self.env_stride ^ env_xor) * env_times & _MASK
        word = word * _MIX_LEFT - (hashed ^ hashed >> 16) * _MIX_RIGHT & _MASK
        hashed = (int(episode) ^ episode_xor) * episode_times & _MASK
        word = (word ^ word >> 16) * _MIX_LEFT - (hashed ^ hashed >> 16) * _MIX_RIGHT & _MASK
        word = (word ^ word >> 16 ^ _OUTPUT_XOR) * _OUTPUT_TIMES & _MASK
        return word ^ word >> 16

    @cached_property
    def _begun(self) -> tuple[int, ...]:
        """The first word of SeedSequence's pool once run seed and role are in it, and the constants that follow."""
        count = max(4, -(-self.run_seed.bit_length() // 32))
        words = [*(self.run_seed >> 32 * i & _MASK for i in range(count)), self.role]
        pool = np.random.SeedSequence(np.array(words, np.uint32)).pool
        # it hashes each word of entropy once for each of the pool's four, the first ones also into each other; its
        # constant is multiplied every time
        used = [4 * (len(words) + place) for place in range(2)]
        consts = [_INITIAL * pow(_MULTIPLIER, power, _MASK + 1) & _MASK for n in used for power in (n, n + 1)]
        return int(pool[0]), *consts


# the constants of numpy.random.SeedSequence, whose numbers numpy promises to keep (NEP 19)
_MASK = 0xFFFFFFFF
_INITIAL, _MULTIPLIER = 0x43B0D7E5, 0x931E8875
_MIX_LEFT, _MIX_RIGHT = 0xCA01F9DD, 0x4973F715
_OUTPUT_XOR = 0x8B51F9DD
_OUTPUT_TIMES = _OUTPUT_XOR * 0x58F38DED & _MASK
