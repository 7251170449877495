"""The heart of every vectorizer: what is done with some envs, and what must be known of them for it.

An `EnvPlans` makes its envs, steps and resets them, and writes what they return into its rows of the `Blocks`. It calls
no env itself. Each method is a *plan*: a generator that yields the calls it needs, and goes on with what they gave. So
it is the same code, and the same trace, whether they are made in a loop here, in a worker process (both: `carry_out`)
or spread over threads (`ThreadVectorizer`), and everything else is done once for all envs wherever it can be.

Per env there is what cannot be done for all at once (to check and write a first or large observation); the rest,
episode accounting too, is array maths. That keeps the overhead near a microsecond per env step.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, TypeVar

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

ENV_FAULTS = (Exception, SystemExit)  # an env may not end the process, but Ctrl-C may
LARGEST_REWARD = float(np.finfo(np.float32).max)
_ALL: Any = slice(None)
_LARGE_BYTES = 1024


class CallError(Exception):
    """Thrown into a plan: one of the calls that it asked for raised `cause`, the one with this `index`."""

    def __init__(self, index: int, cause: BaseException) -> None:
        super().__init__(index, cause)
        self.index = index
        self.cause = cause


T = TypeVar("T")
# Calls of envs: whose they are (rows in ascending order), functions, and an argument for each. They are independent of
# each other, but an env is always called in the same place, and one thing after the other.
Calls = tuple[Sequence[int], Sequence[Callable[[Any], Any]], Sequence[Any]]
Plan = Generator[Calls, list[Any], T]  # it is sent what the calls gave, in their order, and returns a T


class EnvPlans:
    """Envs `first_id`, `first_id` + 1, …; `row` below is an env's index among them. `make` comes first.

    Args:
        env_fns: what makes the envs.
        first_id: id of the first env.
        autoreset_mode: what happens to an env whose episode ended.
        same_observations: whether their observation spaces must be equal; else the description has each.
        episode_seed: gives the seed of every reset that names none; None: such resets are unseeded.
    """

    description: EnvDescription

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        first_id: int,
        autoreset_mode: AutoresetMode,
        episode_seed: EpisodeSeed | None,
        same_observations: bool = True,
    ) -> None:
        self._env_fns = env_fns
        self._first_id = first_id
        self._mode = autoreset_mode
        self._episode_seed = episode_seed
        self._same_observations = same_observations
        self._rows = range(len(env_fns))
        self._envs: list[Any] = [None] * len(env_fns)  # None: not made yet, or closed

    @property
    def envs(self) -> list[gym.Env]:
        """Those that are made and not closed."""
        return [env for env in self._envs if env is not None]

    def make(self) -> Plan[EnvDescription]:
        """Make the envs; their description.

        Raises:
            EnvError: a factory raised.
            SpaceError: envs with different spaces.
        """
        try:
            descriptions = yield self._rows, [self._make_env] * len(self._rows), self._rows
            self.description = self._common(descriptions)
        except CallError as error:
            yield from self._close_quietly()
            env_id = self._first_id + error.index
            raise EnvError(f"env {env_id} could not be made: {_fault_text(error.cause)}") from None
        except ParlError:
            yield from self._close_quietly()
            raise
        return self.description

    def _make_env(self, row: int) -> EnvDescription:
        env = self._env_fns[row]()
        description = EnvDescription.of(env)
        self._envs[row] = env
        return description

    def _common(self, descriptions: list[EnvDescription]) -> EnvDescription:
        first, same = descriptions[0], self._same_observations
        for row, description in enumerate(descriptions):
            first.check_same(self._first_id, description, self._first_id + row, same_observations=same)
        if same:
            return first
        return replace(first, each_observation_space=tuple(each.observation_space for each in descriptions))

    def _close_quietly(self) -> Plan[None]:
        with contextlib.suppress(EnvError):
            yield from self.close()

    def attach(self, blocks: Blocks) -> Plan[None]:
        """Take the rows to write into. Comes before any reset."""
        n, num_agents = len(self._envs), self.description.num_agents
        lead = (n,) if num_agents is None else (n, num_agents)
        self._blocks = blocks
        self._steps: list[Step] = [env.step for env in self._envs]
        self._item = blocks.obs.shape[1:]
        self._dtype = blocks.obs.dtype
        # large items are copied once only, and what lies in dicts and tuples makes no array
        self._one_by_one = bool(self._dtype.names) or blocks.obs[0].nbytes >= _LARGE_BYTES
        self._scalar_actions = num_agents is None and isinstance(self.description.action_space, spaces.Discrete)
        self._infos: list[dict] = [{}] * n
        self._seeds: list[int | None] = [None] * n
        self._alive = np.ones(lead, np.bool_)  # whoever steps an env without a reset finds it in an episode
        self._over = np.zeros(n, np.bool_)  # the episode ended and nobody has reset the env yet
        self._num_over = 0  # how many of them; with same-step autoreset always none
        self._return = np.zeros(lead, np.float64)
        self._length = np.zeros(n, np.int64)
        blocks.mask[:] = True
        yield (), (), ()

    def begin(self) -> Plan[None]:
        """Reset every env into the episode that its row of `episode_numbers` names."""
        self._seeds = [self._seed_of(row) for row in self._rows]
        yield from self._reset_rows(self._rows)

    def reset(self, rows: list[int], seeds: list[int | None], options: dict | None) -> Plan[list[RowInfo]]:
        """Reset some envs. A given seed begins the count of episodes anew; without one, it is the next episode."""
        numbers = self._blocks.episode_numbers
        for row, seed in zip(rows, seeds, strict=True):
            numbers[row] = numbers[row] + 1 if seed is None else 0
            self._seeds[row] = self._seed_of(row) if seed is None else seed
        yield from self._reset_rows(rows, options)
        return [(row, None, self._infos[row]) for row in rows if self._infos[row]]

    def step(self, rows: list[int] | None = None, want_infos: bool = False) -> Plan[list[RowInfo] | None]:
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
            steps, begun = yield from self._with_resets()
        taken = self._blocks.action[where]
        # scalars as `space.sample()` and SyncVectorEnv give them; else a copy: an env may keep its action, and the
        # block is overwritten by the next send
        actions: Any = list(taken) if self._scalar_actions else taken.copy()
        if taken.dtype.names:
            actions = [unpack(self.description.action_space, row) for row in actions]
        try:
            results = yield stepped, steps, actions
        except CallError as error:
            self._fail(stepped[error.index], "failed in step", error.cause, actions[error.index])
        self._write(stepped, results, actions)
        ended = self._account(stepped, where, actions)
        if begun:
            self._length[begun] = 0
        finals: dict[int, dict] = {}
        over = [stepped[j] for j in ended.nonzero()[0].tolist()]
        for row in over:
            self._end_episode(row)
            if self._mode is AutoresetMode.SAME_STEP:
                finals[row] = dict(self._infos[row])  # an env may use its dict again
            else:
                self._over[row] = True
                self._num_over += 1
        if finals:
            yield from self._next_episodes(over)
        if not want_infos or not (finals or any(self._infos)):
            return None
        told = [row for row in sorted(stepped) if self._infos[row] or row in finals]
        return [(row, finals.get(row), self._infos[row]) for row in told]

    def call(self, name: str, args: tuple, kwargs: dict) -> Plan[list[Any]]:
        """Attribute `name` of every env, called where it can be."""

        def call(env: gym.Env) -> Any:
            attribute = env.get_wrapper_attr(name)
            return attribute(*args, **kwargs) if callable(attribute) else attribute

        try:
            return (yield self._rows, [call] * len(self._rows), self._envs)
        except CallError as error:
            self._fail(error.index, f"failed in {name}", error.cause)

    def set_attr(self, name: str, values: list[Any]) -> Plan[None]:
        """Set attribute `name` of every env, one value each."""

        def set_it(row: int) -> None:
            self._envs[row].set_wrapper_attr(name, values[row])

        try:
            yield self._rows, [set_it] * len(self._rows), self._rows
        except CallError as error:
            self._fail(error.index, f"could not set {name}", error.cause)

    def close(self) -> Plan[None]:
        """Close every env, also when one of them raises."""
        complaints = yield self._rows, [self._close_env] * len(self._rows), self._rows
        for complaint in filter(None, complaints):
            raise EnvError(complaint)

    def _close_env(self, row: int) -> str:
        """Close an env if it is there; what it complained of."""
        env, self._envs[row] = self._envs[row], None
        try:
            if env is not None:
                env.close()
        except ENV_FAULTS as error:
            return f"env {self._first_id + row} failed in close: {_fault_text(error)}"
        return ""

    def _write(self, rows: Sequence[int], results: list[tuple], actions: Any) -> None:
        """Write what the envs' steps gave into their rows: of all at once, and one by one where that fails."""
        write = self._write_agents
        if self.description.num_agents is None:
            try:
                self._write_all(rows, results)
                return
            except ENV_FAULTS:  # one of them broke its contract: which one?
                write = self._write_env
        for row, result, action in zip(rows, results, actions, strict=True):
            try:
                write(row, result)
            except ENV_FAULTS as error:
                self._fail(row, "failed in step", error, action)

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

    def _write_env(self, row: int, result: tuple) -> None:
        blocks = self._blocks
        obs, blocks.reward[row], blocks.terminated[row], blocks.truncated[row], self._infos[row] = result
        blocks.obs[row] = self._conform(obs)

    def _write_agents(self, row: int, result: tuple) -> None:
        """A multi-agent env: every field has an agent axis, and its shape is checked."""
        blocks, agents = self._blocks, self._alive.shape[1:]
        obs, *fields, self._infos[row] = result
        blocks.obs[row] = self._conform(obs)
        for name, value in zip(("reward", "terminated", "truncated"), fields, strict=True):
            per_agent = np.asarray(value)
            if per_agent.shape != agents:
                raise ValueError(f"{name} has shape {per_agent.shape}; one per agent is {agents}")
            getattr(blocks, name)[row] = per_agent

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
                # NaN as filler would reach the gradient, through 0 · NaN; and it must be of the space, to be encoded
                obs[~alive] = getattr(self.description.observation_space, "start", 0)
                blocks.obs[where] = obs
        rewards = blocks.reward[where]
        flat = rewards.ravel()
        if not flat.dot(flat) <= LARGEST_REWARD:  # one cheap look at all; a NaN compares false
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
        good = (np.abs(rewards) <= LARGEST_REWARD).reshape(len(rows), -1).all(axis=1)
        for j in (~good).nonzero()[0].tolist():
            self._fail(rows[j], f"broke its contract: reward {rewards[j]} is not a finite float32", None, actions[j])

    def _check_observations(self, rows: Sequence[int], actions: Any) -> None:
        """A simulation that went wrong may end its episode with NaN, which nobody reads; else it is a fault."""
        blocks = self._blocks
        for j, row in enumerate(rows):
            if not blocks.terminated[row].all() and has_nan(blocks.obs[row : row + 1]):
                self._fail(row, "broke its contract: observation holds NaN", None, actions[j])

    def _end_episode(self, row: int) -> None:
        blocks = self._blocks
        blocks.final_obs[row] = blocks.obs[row]
        episode = self._infos[row].get("episode")
        if isinstance(episode, dict) and "r" in episode and "l" in episode:
            # a recorder below the reward wrappers knows the raw return
            blocks.episode_return[row], blocks.episode_length[row] = episode["r"], episode["l"]
        else:
            blocks.episode_return[row], blocks.episode_length[row] = self._return[row], self._length[row]

    def _with_resets(self) -> Plan[tuple[list[Step], list[int]]]:
        """Every env's step, but what a reset gave for those whose episode ended in an earlier one, which are listed."""
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
        for row, (obs, info) in zip(begun, (yield from self._next_episodes(begun)), strict=True):
            steps[row] = partial(_give, (obs, *no_step, info))
        return steps, begun

    def _next_episodes(self, rows: list[int]) -> Plan[list[tuple[Any, dict]]]:
        """The plan to reset some envs into their next episodes."""
        for row in rows:
            self._blocks.episode_numbers[row] += 1
            self._seeds[row] = self._seed_of(row)
        return self._reset_rows(rows)

    def _seed_of(self, row: int) -> int | None:
        if self._episode_seed is None:
            return None
        return int(self._episode_seed(self._first_id + row, int(self._blocks.episode_numbers[row])))

    def _reset_rows(self, rows: Sequence[int], options: dict | None = None) -> Plan[list[tuple[Any, dict]]]:
        """Reset some envs with their `_seeds`, and write their observations; (obs, info) of each."""
        for row in rows:
            self._alive[row] = True
            self._return[row] = 0.0
            self._length[row] = 0
            if self._over[row]:
                self._over[row] = False
                self._num_over -= 1
        # options only where there are some: Gymnasium's autoreset passes none, and older envs take none
        reset = self._reset_env if options is None else partial(self._reset_env_with, options)
        try:
            results = yield rows, [reset] * len(rows), rows
        except CallError as error:
            self._fail(rows[error.index], "failed in reset", error.cause)
        for row, result in zip(rows, results, strict=True):
            try:
                obs, self._infos[row] = result
                self._blocks.obs[row] = self._conform(obs)
            except ENV_FAULTS as error:
                self._fail(row, "failed in reset", error)
            if has_nan(self._blocks.obs[row : row + 1]):
                self._fail(row, "broke its contract in reset: observation holds NaN", None)
        return results

    def _reset_env(self, row: int) -> tuple[Any, dict]:
        return self._envs[row].reset(seed=self._seeds[row])

    def _reset_env_with(self, options: dict, row: int) -> tuple[Any, dict]:
        return self._envs[row].reset(seed=self._seeds[row], options=options)

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
