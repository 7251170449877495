"""What every vectorizer is: a `gymnasium.vector.VectorEnv` with a second, leaner face for the runner.

Gymnasium's face (`reset`, `step`, `call`, …; see `GymnasiumFace`) behaves like `gymnasium.vector.SyncVectorEnv` in
each of its three autoreset modes. The runner's face (`begin`, `send`, `recv`) is same-step autoreset only: it gives
arrays without infos, each episode has a number, and every reset is seeded by (env id, episode number).

A subclass owns *workers*: places where `EnvPlans` live, each with a contiguous range of envs. It says how a call
reaches a group and how the answer comes back (the hooks of `WorkerCalls`); everything else is here.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.types import EnvStep
from parl_cli.vectorizers.blocks import Blocks, Layout, make_layout
from parl_cli.vectorizers.calls import NO_EPISODE, split
from parl_cli.vectorizers.description import (
    EnvDescription,
    ObservationMode,
    batch_each,
    check_alike,
    check_mode,
    one_env,
)
from parl_cli.vectorizers.face import GymnasiumFace
from parl_cli.vectorizers.plans import EpisodeSeed
from parl_cli.vectorizers.structured import write_batch

EnvFn = Callable[[], gym.Env]

log = logging.getLogger(__name__)

_ALL: Any = slice(None)


class Vectorizer(GymnasiumFace):
    """Steps N envs, in whatever places the subclass keeps.

    Args:
        env_fns: one factory per env; every env has the same spaces (but see `observation_mode`).
        num_workers: how many places the envs are spread over.
        autoreset_mode: Gymnasium's; the runner's face needs SAME_STEP.
        episode_seed: (env id, episode number) -> reset seed, for every reset that is given no seed. Worker processes
            get it by pickling, and import the module that defines it.
        start_timeout_s: how long all envs of a worker may take to be made.
        step_timeout_s: how long a worker may take for any other call.
        num_groups: parts that a worker's envs are split into; it steps one part after the other.
        batch_size: envs that `recv` waits for, at most all that step; None: all.
        max_restarts: workers that may be replaced by new ones before one more failure is an error.
        observation_mode: Gymnasium's: `same`; `different`, for spaces that have other bounds; or what to take for the
            spaces of all envs and of one.
        copy: whether `reset` and `step` give observations as copies; else as views, valid until the next call.

    Attributes:
        episode_numbers: [N] int64, the episode each env is in.
        num_agents: A, or None for single-agent envs.
        restarts: workers replaced so far.

    Raises:
        ConfigError: no envs; a SpaceError for envs with different spaces, or spaces that have no array layout.
        EnvError: an env could not be made.
        WorkerError: a worker died or did not answer.
    """

    Config: ClassVar[type]

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        *,
        num_workers: int,
        autoreset_mode: AutoresetMode | str,
        episode_seed: EpisodeSeed | None,
        start_timeout_s: float,
        step_timeout_s: float,
        num_groups: int = 1,
        batch_size: int | None = None,
        max_restarts: int = 0,
        observation_mode: ObservationMode = "same",
        copy: bool = True,
    ) -> None:
        check_mode(observation_mode)
        sizes = {"num_workers": num_workers, "num_groups": num_groups, "batch_size": batch_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1")
        self.env_fns = list(env_fns)
        self.num_envs = len(self.env_fns)
        if not self.env_fns:
            raise ConfigError("num_envs=0: must be at least 1")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.episode_seed = episode_seed
        self.observation_mode = observation_mode
        self.copy = copy
        self.batch_size = batch_size or self.num_envs
        self.max_restarts = max_restarts
        self.restarts = 0
        if max_restarts and self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"max_restarts={max_restarts}: an env that is replaced begins a new episode in the same step; "
                "use it with autoreset_mode=AutoresetMode.SAME_STEP"
            )
        parts = split(self.num_envs, num_workers)
        num_groups = min(num_groups, *map(len, parts))
        sections = [ids[part.start : part.stop] for ids in parts for part in split(len(ids), num_groups)]
        self._ids = np.arange(self.num_envs)
        self._pending = np.zeros(self.num_envs, np.bool_)  # was sent an action, not received yet
        self._num_pending = 0
        self._lost = np.zeros(self.num_envs, np.bool_)  # its worker was replaced, and nobody was told yet
        self._init_calls(sections, num_groups, start_timeout_s, step_timeout_s)
        self._sizes = np.array([len(ids) for ids in self.slices])
        self._edges = np.array([0, *self._sizes.cumsum()])
        try:
            self._adopt(self._start())
        except BaseException:
            with contextlib.suppress(EnvError):  # what an env says while it is closed is not the news
                self.close()
            raise

    def _adopt(self, descriptions: list[EnvDescription]) -> None:
        """Take over what the workers tell of their envs, and give them their rows."""
        first = descriptions[0]
        for ids, description in zip(self.slices, descriptions, strict=True):
            first.check_same(0, description, ids.start, same_observations=self.observation_mode == "same")
        self.num_agents = first.num_agents
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.spec = first.spec
        self._set_observation_spaces(descriptions)
        self.single_action_space = first.action_space
        self.action_space = self._batched(first.action_space)
        self._layout = make_layout(
            self.single_observation_space, self.single_action_space, self.num_envs, self.num_agents
        )
        self._blocks = self._allocate(self._layout)
        self._blocks.episode_numbers[:] = -1
        self._none_ended = (
            self._blocks.final_obs[:0],
            self._blocks.episode_return[:0],
            self._blocks.episode_length[:0],
        )
        for section in range(len(self.slices)):
            self._expect(section, self.step_timeout_s)
            self._attach(section)
        self._collect()

    def _set_observation_spaces(self, descriptions: list[EnvDescription]) -> None:
        mode, self.single_observation_space = self.observation_mode, descriptions[0].observation_space
        if mode == "same":
            self.observation_space = self._batched(self.single_observation_space)
            return
        each = [space for description in descriptions for space in description.each_observation_space]
        if isinstance(mode, tuple):
            self.observation_space, self.single_observation_space = mode
        check_alike(self.single_observation_space, each)
        if mode == "different":
            self.observation_space = batch_each(each, self.num_agents)

    def _batched(self, space: gym.Space) -> gym.Space:
        return batch_space(one_env(space, self.num_agents), self.num_envs)

    def _group_arguments(self, ids: range) -> tuple:
        """What the `EnvPlans` of these envs is made of."""
        env_fns, same = self.env_fns[ids.start : ids.stop], self.observation_mode == "same"
        return env_fns, ids.start, self.autoreset_mode, self.episode_seed, same

    # ---- hooks of the subclasses, besides those of `WorkerCalls` ----

    def _allocate(self, layout: Layout) -> Blocks:
        """Make the blocks, where all workers can reach them."""
        return Blocks.plain(layout)

    def _attach(self, section: int) -> None:
        """Give a section its rows; it answers when it has them."""
        self._submit(section, "attach", (self._blocks.rows(self.slices[section]),))

    def _relaunch(self, worker: int) -> None:
        """End a failed worker, whatever its state, and start a new one, which describes its envs again."""
        raise NotImplementedError

    # ---- the runner's face ----

    @property
    def episode_numbers(self) -> np.ndarray:
        """[N] int64: the episode each env is in; a view, counted up at each autoreset; -1 before the first reset."""
        return self._blocks.episode_numbers

    def begin(self, episode_numbers: np.ndarray | None = None) -> np.ndarray:
        """Reset every env into the given episode.

        Args:
            episode_numbers: [N] whole numbers; None: all 0.

        Returns:
            obs [N(, A), *item], a view that is valid until the next `send`.
        """
        self._check_idle("begin")
        self._check_same_step()
        numbers = np.zeros(self.num_envs, np.int64) if episode_numbers is None else np.asarray(episode_numbers)
        if numbers.shape != (self.num_envs,):
            raise ValueError(f"episode_numbers has shape {numbers.shape}: must be one per env, ({self.num_envs},)")
        self._blocks.episode_numbers[:] = numbers
        self._call_all("begin")
        self._lost[:] = False
        self._unready = ""
        return self._blocks.obs

    def send(self, actions: np.ndarray, env_ids: np.ndarray | None = None) -> None:
        """Give actions to some envs, which start to step; `recv` waits for them.

        Args:
            actions: [B(, A), *item], kept by copy; or a dict or tuple of such arrays, where the space is one.
            env_ids: [B], the envs they are for, in any order; None: all.
        """
        self._check_same_step()
        self._dispatch(actions, env_ids)

    def recv(self, timeout: float | None = None) -> EnvStep:
        """Wait for `batch_size` of the envs that were sent an action (or all of them, where they are fewer).

        Args:
            timeout: seconds until TimeoutError, after which `recv` may be called again. None: no limit of the
                caller's; a worker that passes `step_timeout_s` is a WorkerError all the same.

        Returns:
            The step, rows in env_id order; arrays may be views that are valid until the next `send`. An env whose
            worker was replaced has a filler row: masked, and its episode ended (see `EnvStep`).

        Raises:
            EnvError: an env raised or broke its contract; only `begin` or `reset` can follow.
            WorkerError: a worker died or hung; the vectorizer is closed.
        """
        if not self._num_pending or self._asked:
            raise ParlError("recv without send: no env was given an action")
        if self.batch_size >= self._num_pending:
            self._collect(timeout)
            every = self._num_pending == self.num_envs
            ids = self._ids if every else self._pending.nonzero()[0]
            rows = _ALL if every else ids
            self._answered()
        else:
            ids = rows = self._first_ready(timeout)
            self._pending[ids] = False
            self._num_pending -= len(ids)
        blocks = self._blocks
        ended = blocks.ended[rows]
        last: tuple[np.ndarray, ...] = self._none_ended
        over = ids[ended.nonzero()[0]]
        if len(over):  # `take`: an index array in brackets takes five times as long
            last = blocks.final_obs.take(over, 0), blocks.episode_return.take(over, 0), blocks.episode_length.take(over)
        step = EnvStep(
            ids,
            blocks.obs[rows],
            blocks.reward[rows].astype(np.float32),
            blocks.terminated[rows],
            blocks.truncated[rows],
            blocks.mask[rows],
            ended,
            *last,
        )
        return self._with_filler(step) if self.restarts and self._lost[rows].any() else step

    def _first_ready(self, timeout: float | None) -> np.ndarray:
        """The envs of as many sections as make `batch_size` envs, the first to have answered."""
        limit = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            if self._errors:
                self._collect()  # waits for the others, then raises
            owing = np.array(self._owed, np.bool_).repeat(self._sizes)
            chosen = (self._pending & ~owing).nonzero()[0]
            if len(chosen) >= self.batch_size:
                return chosen
            self._missing = self.batch_size - len(chosen)
            self._receive(limit)

    def _with_filler(self, step: EnvStep) -> EnvStep:
        """The step with the rows of replaced envs made filler: what the block says of them is not of this episode."""
        lost = self._lost[step.env_ids]
        ended = step.ended | lost
        over = step.env_ids[ended]
        self._lost[step.env_ids] = False
        agents = lost.reshape(-1, *(1,) * (step.mask.ndim - 1))
        blocks = self._blocks
        return EnvStep(
            step.env_ids,
            step.obs,
            np.where(agents, np.float32(0.0), step.reward),
            step.terminated & ~agents,
            step.truncated | agents,
            step.mask & ~agents,
            ended,
            blocks.final_obs[over],
            blocks.episode_return[over],
            blocks.episode_length[over],
        )

    def close(self, **kwargs: Any) -> None:
        """End all workers within a few seconds; may be called again, and after any error.

        Args:
            **kwargs: ignored; Gymnasium's vector envs take some.

        Raises:
            EnvError: an env raised in its own `close` (everything is released all the same).
        """
        if self.closed:
            return
        self._drop_pending()
        self.closed = True
        self._unready = "this vectorizer is closed: make a new one"
        faults = self._stop()
        if faults:
            raise EnvError(faults[0])

    # ---- calls and answers ----

    def _dispatch(self, actions: Any, env_ids: np.ndarray | None, want_infos: bool = False) -> None:
        """Write the actions into the block and let the envs step."""
        if self._asked:
            self._check_asked("step_async" if want_infos else "send")
        # in Gymnasium's face it is for an env to say whether it needs a reset first: its factory may have done it
        if self._unready and not (want_infos and self._unready == NO_EPISODE):
            self._check_open()
            raise ParlError(self._unready)
        if env_ids is None:
            if self._num_pending:
                raise ParlError("send to an env that has not answered yet: call recv() first")
            write_batch(self.single_action_space, actions, self._blocks.action, "actions")
            self._num_pending = self.num_envs
            if not (self.restarts and self._lost.any()):
                self._pending[:] = True
                for section in range(len(self.slices)):
                    if not self._was_lost(section):
                        self._call(section, "step", None, want_infos)
                return
            rows = self._ids
        else:
            rows = self._checked_ids(env_ids)
            if self._pending[rows].any():
                raise ParlError("send to an env that has not answered yet: call recv() first")
            given = np.empty_like(self._blocks.action[: len(rows)])
            write_batch(self.single_action_space, actions, given, "actions")
            self._blocks.action[rows] = given
            self._num_pending += len(rows)
        self._pending[rows] = True
        rows = np.sort(rows[~self._lost[rows]])  # a new episode has begun in a lost env: there is nothing to step
        bounds = itertools.pairwise(np.searchsorted(rows, self._edges).tolist())
        for section, (mine, (low, high)) in enumerate(zip(self.slices, bounds, strict=True)):
            if self._was_lost(section):
                continue
            if high - low == len(mine):
                self._call(section, "step", None, want_infos)
            elif low < high:
                self._call(section, "step", (rows[low:high] - mine.start).tolist(), want_infos)

    def _was_lost(self, section: int) -> bool:
        """Whether its worker was replaced, perhaps while another of its sections was called."""
        return self.restarts > 0 and bool(self._lost[self.slices[section].start])

    def _checked_ids(self, env_ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(env_ids)
        good = ids.ndim == 1 and ids.size > 0 and ids.dtype.kind in "iu"
        if good:
            each = np.sort(ids)
            good = each[0] >= 0 and each[-1] < self.num_envs and not (each[1:] == each[:-1]).any()
        if not good:
            raise ValueError(f"env_ids {ids.tolist()}: must be different whole numbers from 0 to {self.num_envs - 1}")
        return ids

    def _replace(self, worker: int, error: Exception) -> bool:
        stepping = self._num_pending > 0
        if self._unready or self.restarts >= self.max_restarts or (not stepping and isinstance(error, EnvError)):
            return False
        self.restarts += 1
        log.warning(
            "%s; the worker is replaced (%d of max_restarts=%d) and its envs begin new episodes",
            str(error).partition("\n")[0],
            self.restarts,
            self.max_restarts,
        )
        self._relaunch(worker)
        envs = self._envs_of(worker)
        self._lost[envs.start : envs.stop] = True
        self._blocks.episode_numbers[envs.start : envs.stop] += 1  # its seeds are used up
        for section in self._sections_of(worker):
            self._errors.pop(section, None)
            self._results[section] = None
            self._owed[section] = 0
            self._expect(section, self.start_timeout_s)  # its description, which nobody asks for twice
        for section in self._sections_of(worker):
            self._expect(section, self.start_timeout_s)
            self._attach(section)
            self._expect(section, self.start_timeout_s)
            self._submit(section, "begin", ())
        if not stepping:  # a step that is lost is told in its rows; nothing tells of another call
            first_line = str(error).partition("\n")[0]
            self._errors[self._sections_of(worker)[0]] = WorkerError(f"{first_line}; it was replaced: call again")
        return True

    def _answered(self) -> None:
        self._num_pending = 0
        self._pending[:] = False

    def _check_idle(self, method: str) -> None:
        self._check_open()
        self._check_asked(method)
        if self._num_pending:
            raise ParlError("envs are still stepping: call recv() first")

    def _check_same_step(self) -> None:
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ParlError("begin, send and recv work with autoreset_mode=AutoresetMode.SAME_STEP only")
