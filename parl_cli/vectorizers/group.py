"""The heart of every vectorizer: some envs in one process, stepped in a plain Python loop.

An `EnvGroup` makes its envs, steps and resets them, and writes what they return into its rows of the `Blocks`. It is
the same code in this process, in a thread and in a worker process, which is why their traces are equal.

The loop does per env what cannot be done for all at once (call the env, check and write the observation); episode
accounting is array maths over the group. That keeps the overhead near half a microsecond per env step.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from parl_cli.errors import EnvError, ParlError
from parl_cli.vectorizers.blocks import Blocks
from parl_cli.vectorizers.description import EnvDescription
from parl_cli.vectorizers.structured import has_nan, to_array, to_item, unpack

EpisodeSeed = Callable[[int, int], int]  # (env id, episode number) -> reset seed
Step = Callable[[Any], Any]  # of an env: action -> (obs, reward, terminated, truncated, info)
RowInfo = tuple[int, dict | None, dict]  # (row, final info where the episode ended and was reset, info)

_ENV_FAULTS = (Exception, SystemExit)  # an env may not end the process, but Ctrl-C may
_ALL: Any = slice(None)
_LARGE_BYTES = 1024
_LARGEST_REWARD = float(np.finfo(np.float32).max)


class EnvGroup:
    """Envs `first_id`, `first_id` + 1, …; `row` below is an env's index within the group.

    Args:
        env_fns: what makes the envs, called at once and in order.
        first_id: id of the first env.
        autoreset_mode: what happens to an env whose episode ended.
        same_observations: whether their observation spaces must be equal; else the description has each.
        episode_seed: gives the seed of every reset that names none; None: such resets are unseeded.

    Raises:
        EnvError: a factory raised.
        ConfigError: envs with different spaces.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        first_id: int,
        autoreset_mode: AutoresetMode,
        episode_seed: EpisodeSeed | None,
        same_observations: bool = True,
    ) -> None:
        self.envs: list[gym.Env] = []
        self._first_id = first_id
        self._mode = autoreset_mode
        self._episode_seed = episode_seed
        try:
            self._make(env_fns, same_observations)
        except ParlError:
            with contextlib.suppress(EnvError):
                self.close()
            raise

    def _make(self, env_fns: Sequence[Callable[[], gym.Env]], same_observations: bool) -> None:
        for row, env_fn in enumerate(env_fns):
            try:
                env = env_fn()
                description = EnvDescription.of(env)
            except _ENV_FAULTS as error:
                raise EnvError(f"env {self._first_id + row} could not be made: {_fault_text(error)}") from None
            self.envs.append(env)
            if row == 0:
                self.description = description
            self.description.check_same(
                self._first_id, description, self._first_id + row, same_observations=same_observations
            )
        if not same_observations:
            each = tuple(env.observation_space for env in self.envs)
            self.description = replace(self.description, each_observation_space=each)

    def attach(self, blocks: Blocks) -> None:
        """Take the rows to write into. Comes before any reset."""
        n, num_agents = len(self.envs), self.description.num_agents
        lead = (n,) if num_agents is None else (n, num_agents)
        self._blocks = blocks
        self._steps: list[Step] = [env.step for env in self.envs]
        self._rows = range(n)
        self._item = blocks.obs.shape[1:]
        self._dtype = blocks.obs.dtype
        # large items are copied once only, and what lies in dicts and tuples makes no array
        self._one_by_one = bool(self._dtype.names) or blocks.obs[0].nbytes >= _LARGE_BYTES
        self._scalar_actions = num_agents is None and isinstance(self.description.action_space, spaces.Discrete)
        self._infos: list[dict] = [{}] * n
        self._seeds: list[int | None] = [None] * n
        self._alive = np.zeros(lead, np.bool_)
        self._over = np.zeros(n, np.bool_)  # the episode ended and nobody has reset the env yet
        self._num_over = 0  # how many of them; with same-step autoreset always none
        self._return = np.zeros(lead, np.float64)
        self._length = np.zeros(n, np.int64)
        blocks.mask[:] = True

    def begin(self) -> None:
        """Reset every env into the episode that its row of `episode_numbers` names."""
        for row in range(len(self.envs)):
            self._reset_row(row, self._seed_of(row))

    def reset(self, rows: list[int], seeds: list[int | None], options: dict | None) -> list[RowInfo]:
        """Reset some envs. A given seed begins the count of episodes anew; without one, it is the next episode."""
        infos: list[RowInfo] = []
        for row, seed in zip(rows, seeds, strict=True):
            if seed is None:
                _, info = self._next_episode(row, options)
            else:
                self._blocks.episode_numbers[row] = 0
                _, info = self._reset_row(row, seed, options)
            if info:
                infos.append((row, None, info))
        return infos

    def step(self, rows: list[int] | None = None, want_infos: bool = False) -> list[RowInfo] | None:
        """Step some envs (None: all) with the actions in their rows.

        Returns:
            Where `want_infos`: one entry per env that had something to tell; None if no env had.

        Raises:
            EnvError: an env raised, or returned what its spaces do not allow.
        """
        stepped: Sequence[int] = self._rows if rows is None else rows
        where: Any = _ALL if rows is None else np.array(rows, np.int64)
        steps = self._steps if rows is None else [self._steps[row] for row in rows]
        begun: list[int] = []
        if self._num_over:
            steps, begun = self._with_resets()
        blocks = self._blocks
        taken = blocks.action[where]
        # scalars as `space.sample()` and SyncVectorEnv give them; else a copy: an env may keep its action, and the
        # block is overwritten by the next send
        actions: Any = list(taken) if self._scalar_actions else taken.copy()
        if taken.dtype.names:
            actions = [unpack(self.description.action_space, row) for row in actions]
        loop = self._step_envs if self.description.num_agents is None else self._step_agents
        loop(stepped, steps, actions)
        ended = self._account(stepped, where, actions)
        if begun:
            self._length[begun] = 0
        finals: dict[int, dict] = {}
        for j in ended.nonzero()[0].tolist():
            self._end_episode(stepped[j], finals)
        if not want_infos or not (finals or any(self._infos)):
            return None
        told = [row for row in sorted(stepped) if self._infos[row] or row in finals]
        return [(row, finals.get(row), self._infos[row]) for row in told]

    def call(self, name: str, args: tuple, kwargs: dict) -> list[Any]:
        """Attribute `name` of every env, called where it can be."""
        results = []
        for row, env in enumerate(self.envs):
            try:
                attribute = env.get_wrapper_attr(name)
                results.append(attribute(*args, **kwargs) if callable(attribute) else attribute)
            except _ENV_FAULTS as error:
                self._fail(row, f"failed in {name}", error)
        return results

    def set_attr(self, name: str, values: list[Any]) -> None:
        """Set attribute `name` of every env, one value each."""
        for row, (env, value) in enumerate(zip(self.envs, values, strict=True)):
            try:
                env.set_wrapper_attr(name, value)
            except _ENV_FAULTS as error:
                self._fail(row, f"could not set {name}", error)

    def close(self) -> None:
        """Close every env, also when one of them raises."""
        faults = []
        for row, env in enumerate(self.envs):
            try:
                env.close()
            except _ENV_FAULTS as error:
                faults.append(f"env {self._first_id + row} failed in close: {_fault_text(error)}")
        self.envs = []
        if faults:
            raise EnvError(faults[0])

    def _step_envs(self, rows: Sequence[int], steps: Sequence[Step], actions: Any) -> None:
        """The hot loop: it does nothing but step; what the envs gave is written for all of them at once."""
        left = iter(steps)
        try:
            results = [step(action) for step, action in zip(left, actions, strict=True)]
        except _ENV_FAULTS as error:
            j = len(steps) - len(list(left)) - 1  # the one that was taken last
            self._fail(rows[j], "failed in step", error, actions[j])
        try:
            self._write_all(rows, results)
        except _ENV_FAULTS:  # one of them broke its contract: say which
            self._write_each(rows, results, actions)

    def _write_all(self, rows: Sequence[int], results: list[tuple]) -> None:
        """Write what envs returned into their rows; any error if one of them is not as declared."""
        obs, rewards, terminated, truncated, infos = zip(*results, strict=True)
        blocks, where = self._blocks, _ALL if rows is self._rows else rows
        if self._one_by_one:
            for row, item in zip(rows, obs, strict=True):
                blocks.obs[row] = self._conform(item)
        else:
            batch = np.array(obs)  # refuses items that differ in shape
            blocks.obs[where] = to_array(batch, (len(results), *self._item), self._dtype, "observations")
        blocks.reward[where] = rewards
        blocks.terminated[where] = terminated
        blocks.truncated[where] = truncated
        if rows is self._rows:
            self._infos = list(infos)
        else:
            for row, info in zip(rows, infos, strict=True):
                self._infos[row] = info

    def _write_each(self, rows: Sequence[int], results: list[tuple], actions: Any) -> None:
        """The same env by env: slower, and an error names its env."""
        blocks = self._blocks
        for row, result, action in zip(rows, results, actions, strict=True):
            try:
                obs, blocks.reward[row], blocks.terminated[row], blocks.truncated[row], self._infos[row] = result
                blocks.obs[row] = self._conform(obs)
            except _ENV_FAULTS as error:
                self._fail(row, "failed in step", error, action)

    def _step_agents(self, rows: Sequence[int], steps: Sequence[Step], actions: Any) -> None:
        """The same for multi-agent envs: every field has an agent axis, and its shape is checked."""
        blocks, agents = self._blocks, self._alive.shape[1:]
        row = -1
        action = None
        try:
            for row, step, action in zip(rows, steps, actions, strict=True):
                obs, *results, self._infos[row] = step(action)
                blocks.obs[row] = self._conform(obs)
                for name, value in zip(("reward", "terminated", "truncated"), results, strict=True):
                    per_agent = np.asarray(value)
                    if per_agent.shape != agents:
                        raise ValueError(f"{name} has shape {per_agent.shape}; one per agent is {agents}")
                    getattr(blocks, name)[row] = per_agent
        except _ENV_FAULTS as error:
            self._fail(row, "failed in step", error, action)

    def _account(self, rows: Sequence[int], where: Any, actions: Any) -> np.ndarray:
        """Count the step into the episodes; which of `rows` ended theirs, bool [len(rows)]."""
        blocks = self._blocks
        if self.description.num_agents is not None:
            alive = self._alive[where]
            blocks.mask[where] = alive
            # what an env says of a dead agent is filler
            blocks.reward[where] = np.where(alive, blocks.reward[where], 0.0)
            blocks.terminated[where] &= alive
            blocks.truncated[where] &= alive
            if not alive.all():
                obs = blocks.obs[where]
                obs[~alive] = 0  # NaN as filler would reach the gradient, through 0 · NaN
                blocks.obs[where] = obs
        rewards = blocks.reward[where]
        flat = rewards.ravel()
        if not flat.dot(flat) <= _LARGEST_REWARD:  # one cheap look at all; a NaN compares false
            self._check_rewards(rows, rewards, actions)
        if has_nan(blocks.obs[where]):
            self._check_observations(rows, actions)
        if where is _ALL:  # in place: half the time
            self._return += rewards
            self._length += 1
        else:
            self._return[where] += rewards
            self._length[where] += 1
        over = blocks.terminated[where] | blocks.truncated[where]
        if self.description.num_agents is not None:
            alive = alive & ~over
            self._alive[where] = alive
            over = ~alive.any(axis=1)
        blocks.ended[where] = over
        return over

    def _check_rewards(self, rows: Sequence[int], rewards: np.ndarray, actions: Any) -> None:
        good = (np.abs(rewards) <= _LARGEST_REWARD).reshape(len(rows), -1).all(axis=1)
        for j in (~good).nonzero()[0].tolist():
            self._fail(rows[j], f"broke its contract: reward {rewards[j]} is not a finite float32", None, actions[j])

    def _check_observations(self, rows: Sequence[int], actions: Any) -> None:
        """A simulation that went wrong may end its episode with NaN, which nobody reads; else it is a fault."""
        blocks = self._blocks
        for j, row in enumerate(rows):
            if not blocks.terminated[row].all() and has_nan(blocks.obs[row : row + 1]):
                self._fail(row, "broke its contract: observation holds NaN", None, actions[j])

    def _end_episode(self, row: int, finals: dict[int, dict]) -> None:
        blocks, info = self._blocks, self._infos[row]
        blocks.final_obs[row] = blocks.obs[row]
        episode = info.get("episode")
        if isinstance(episode, dict) and "r" in episode and "l" in episode:
            # a recorder below the reward wrappers knows the raw return
            blocks.episode_return[row], blocks.episode_length[row] = episode["r"], episode["l"]
        else:
            blocks.episode_return[row], blocks.episode_length[row] = self._return[row], self._length[row]
        if self._mode is AutoresetMode.SAME_STEP:
            finals[row] = info
            _, self._infos[row] = self._next_episode(row)
        else:
            self._over[row] = True
            self._num_over += 1

    def _with_resets(self) -> tuple[list[Step], list[int]]:
        """Every env's step, but a reset for those whose episode ended in an earlier step, which are listed."""
        steps, begun = list(self._steps), self._over.nonzero()[0].tolist()
        if self._mode is AutoresetMode.DISABLED:
            raise ParlError(
                f"env {self._first_id + begun[0]}: its episode is over and autoreset_mode is disabled; "
                'reset it with reset(options={"reset_mask": …}) before the next step'
            )
        agents = self._alive.shape[1:]
        no_step: tuple = (0.0, False, False)
        if agents:
            no_step = tuple(np.zeros(agents, dtype) for dtype in (np.float64, np.bool_, np.bool_))
        for row in begun:
            obs, info = self._next_episode(row)
            steps[row] = partial(_give, (obs, *no_step, info))
        return steps, begun

    def _next_episode(self, row: int, options: dict | None = None) -> tuple[Any, dict]:
        self._blocks.episode_numbers[row] += 1
        return self._reset_row(row, self._seed_of(row), options)

    def _seed_of(self, row: int) -> int | None:
        if self._episode_seed is None:
            return None
        return int(self._episode_seed(self._first_id + row, int(self._blocks.episode_numbers[row])))

    def _reset_row(self, row: int, seed: int | None, options: dict | None = None) -> tuple[Any, dict]:
        self._seeds[row] = seed
        self._alive[row] = True
        if self._over[row]:
            self._over[row] = False
            self._num_over -= 1
        self._return[row] = 0.0
        self._length[row] = 0
        try:
            # options only where there are some: Gymnasium's autoreset passes none, and older envs take none
            env = self.envs[row]
            obs, info = env.reset(seed=seed) if options is None else env.reset(seed=seed, options=options)
            self._blocks.obs[row] = self._conform(obs)
        except _ENV_FAULTS as error:
            self._fail(row, "failed in reset", error)
        if has_nan(self._blocks.obs[row : row + 1]):
            self._fail(row, "broke its contract in reset: observation holds NaN", None)
        return obs, info

    def _conform(self, obs: Any) -> Any:
        """The observation, if it can be written into its row without harm; raises if not."""
        if type(obs) is int and not self._item:
            return obs
        if self._dtype.names:
            return to_item(self.description.observation_space, obs, "observation")
        return to_array(obs, self._item, self._dtype, "observation")

    def _fail(self, row: int, what: str, error: BaseException | None, action: Any = None) -> NoReturn:
        """Raise the EnvError that says which env, when, and on what; `error` is told as text, never kept."""
        details = f"seed {self._seeds[row]}, episode {self._blocks.episode_numbers[row]}, step {self._length[row] + 1}"
        if action is not None:
            details += f", action {' '.join(str(action).split())[:200]}"
        cause = f": {_fault_text(error)}" if error is not None else ""
        raise EnvError(f"env {self._first_id + row} {what} ({details}){cause}") from None


def _give(result: tuple, action: Any) -> tuple:
    return result


def _fault_text(error: BaseException) -> str:
    """`Type: message` on the first line, then the traceback. Text, because not every exception can be pickled."""
    lines = traceback.format_exception_only(type(error), error)
    summary = next(line for line in lines if not line[0].isspace()).splitlines()[0]
    return f"{summary}\n\n{''.join(traceback.format_exception(error)).rstrip()}"
