"""What every vectorizer is: a `gymnasium.vector.VectorEnv` with a second, leaner face for the runner.

The Gymnasium face (`reset`, `step`, `call`, …) behaves like `gymnasium.vector.SyncVectorEnv` in each of its three
autoreset modes. The runner's face (`begin`, `send`, `recv`) is same-step autoreset only: it gives arrays without
infos, each episode has a number, and every reset is seeded by (env id, episode number).

A subclass owns *workers*: places where an `EnvGroup` lives, each with a contiguous range of envs. It says how a call
reaches a group and how the answer comes back (the hooks of `WorkerCalls`); everything else is here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from parl_cli.errors import ConfigError, EnvError, ParlError
from parl_cli.types import EnvStep
from parl_cli.vectorizers.blocks import Blocks, Layout, make_layout
from parl_cli.vectorizers.calls import WorkerCalls, split
from parl_cli.vectorizers.description import EnvDescription
from parl_cli.vectorizers.group import EpisodeSeed, RowInfo

EnvFn = Callable[[], gym.Env]

_ALL: Any = slice(None)


class Vectorizer(WorkerCalls, VectorEnv):
    """Steps N envs, in whatever places the subclass keeps.

    Args:
        env_fns: one factory per env; every env has the same spaces.
        num_workers: how many places the envs are spread over.
        autoreset_mode: Gymnasium's; the runner's face needs SAME_STEP.
        episode_seed: (env id, episode number) -> reset seed, for every reset that is given no seed. Worker processes
            get it by pickling, and import the module that defines it.
        start_timeout_s: how long all envs of a worker may take to be made.
        step_timeout_s: how long a worker may take for any other call.

    Attributes:
        episode_numbers: [N] int64, the episode each env is in.
        num_agents: A, or None for single-agent envs.

    Raises:
        ConfigError: no envs, envs with different spaces, or spaces that are not one array.
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
    ) -> None:
        self.env_fns = list(env_fns)
        self.num_envs = len(self.env_fns)
        if not self.env_fns:
            raise ConfigError("num_envs=0: must be at least 1")
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.episode_seed = episode_seed
        self._pending = np.zeros(self.num_envs, np.bool_)
        self._num_pending = 0
        self._init_calls(split(self.num_envs, num_workers), start_timeout_s, step_timeout_s)
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
            first.check_same(description, ids.start)
        self.num_agents = first.num_agents
        self.metadata = {**first.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = first.render_mode
        self.spec = first.spec
        self.single_observation_space = first.observation_space
        self.single_action_space = first.action_space
        layout = make_layout(first.observation_space, first.action_space, self.num_envs, self.num_agents)
        self.observation_space = self._batched(first.observation_space)
        self.action_space = self._batched(first.action_space)
        self._blocks = self._allocate(layout)
        for worker in range(len(self.slices)):
            self._attach(worker, layout)
            self._expect(worker, self.step_timeout_s)
        self._collect()
        self._ids = np.arange(self.num_envs)

    def _batched(self, space: gym.Space) -> gym.Space:
        one_env = space if self.num_agents is None else batch_space(space, self.num_agents)
        return batch_space(one_env, self.num_envs)

    # ---- hooks of the subclasses, besides those of `WorkerCalls` ----

    def _allocate(self, layout: Layout) -> Blocks:
        """Make the blocks, where all workers can reach them."""
        return Blocks.plain(layout)

    def _attach(self, worker: int, layout: Layout) -> None:
        """Give a worker its rows; it answers when it has them."""
        self._submit(worker, "attach", (self._blocks.rows(self.slices[worker]),))

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
        self._check_idle()
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ParlError("begin, send and recv work with autoreset_mode=AutoresetMode.SAME_STEP only")
        numbers = np.zeros(self.num_envs, np.int64) if episode_numbers is None else np.asarray(episode_numbers)
        if numbers.shape != (self.num_envs,):
            raise ValueError(f"episode_numbers has shape {numbers.shape}: must be one per env, ({self.num_envs},)")
        self._blocks.episode_numbers[:] = numbers
        self._call_all("begin")
        self._unready = ""
        return self._blocks.obs

    def send(self, actions: np.ndarray, env_ids: np.ndarray | None = None) -> None:
        """Give actions to some envs, which start to step; `recv` waits for them.

        Args:
            actions: [B(, A), *item], kept by copy.
            env_ids: [B], the envs they are for, in any order; None: all.
        """
        if self.autoreset_mode is not AutoresetMode.SAME_STEP:
            raise ParlError("begin, send and recv work with autoreset_mode=AutoresetMode.SAME_STEP only")
        self._dispatch(actions, env_ids)

    def recv(self, timeout: float | None = None) -> EnvStep:
        """Wait for every env that was sent an action.

        Args:
            timeout: seconds until TimeoutError, after which `recv` may be called again. None: no limit of the
                caller's; a worker that passes `step_timeout_s` is a WorkerError all the same.

        Returns:
            The step, rows in env_id order; arrays may be views that are valid until the next `send`.

        Raises:
            EnvError: an env raised or broke its contract; only `begin` or `reset` can follow.
            WorkerError: a worker died or hung; the vectorizer is closed.
        """
        if not self._num_pending:
            raise ParlError("recv without send: no env was given an action")
        self._collect(timeout)
        blocks = self._blocks
        if self._num_pending == self.num_envs:
            ids, rows = self._ids, _ALL
        else:
            ids = rows = self._pending.nonzero()[0]
        self._answered()
        ended = blocks.ended[rows]
        over = ids[ended]
        return EnvStep(
            env_ids=ids,
            obs=blocks.obs[rows],
            reward=blocks.reward[rows].astype(np.float32),
            terminated=blocks.terminated[rows],
            truncated=blocks.truncated[rows],
            mask=blocks.mask[rows],
            ended=ended,
            final_obs=blocks.final_obs[over],
            episode_return=blocks.episode_return[over],
            episode_length=blocks.episode_length[over],
        )

    # ---- Gymnasium's face ----

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Reset all envs, or those in `options["reset_mask"]` (bool [N]).

        Args:
            seed: env i gets seed + i, or its own of a list; None: `episode_seed` decides.
            options: handed to every env, without `reset_mask`.

        Returns:
            (obs [N(, A), *item], infos).
        """
        self._check_idle()
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int | np.integer) else seed
        seeds = [None] * self.num_envs if seeds is None else list(seeds)
        if len(seeds) != self.num_envs:
            raise ValueError(f"{len(seeds)} seeds for num_envs={self.num_envs}: give one per env")
        mask = np.ones(self.num_envs, np.bool_)
        if options is not None and "reset_mask" in options:
            mask = _checked_mask(options["reset_mask"], self.num_envs)
            options = {key: value for key, value in options.items() if key != "reset_mask"}
        if self._unready and not mask.all():
            raise ParlError(self._unready)
        for worker, ids in enumerate(self.slices):
            rows = mask[ids.start : ids.stop].nonzero()[0].tolist()
            if rows:
                self._call(worker, "reset", rows, [seeds[ids[row]] for row in rows], options)
        infos = self._merge_infos(self._collect())
        self._unready = ""
        return self._blocks.obs.copy(), infos

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all envs once.

        Returns:
            (obs [N(, A), *item], reward float64, terminated, truncated [N(, A)], infos), all copies. In infos each key
            has an array over envs and a mask under `_key`; SAME_STEP adds `final_obs` and `final_info`.
        """
        self._dispatch(actions, None, want_infos=True)
        infos = self._merge_infos(self._collect())
        self._answered()
        blocks = self._blocks
        return blocks.obs.copy(), blocks.reward.copy(), blocks.terminated.copy(), blocks.truncated.copy(), infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every env (or read an attribute); one result per env."""
        self._check_idle()
        return tuple(result for results in self._call_all("call", name, args, kwargs) for result in results)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Read an attribute of every env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every env: a list or tuple has one value per env, anything else is for all."""
        self._check_idle()
        each = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"{len(each)} values for num_envs={self.num_envs}: give one per env, or one for all")
        for worker, ids in enumerate(self.slices):
            self._call(worker, "set_attr", name, each[ids.start : ids.stop])
        self._collect()

    def render(self) -> tuple[Any, ...]:
        """Every env's frame."""
        return self.call("render")

    @property  # type: ignore[misc]
    def np_random(self) -> Any:
        """Every env's random generator (a copy, where the envs live in other processes)."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> Any:
        """The seed of every env's random generator."""
        return self.get_attr("np_random_seed")

    def close(self, **kwargs: Any) -> None:
        """End all workers within a few seconds; may be called again, and after any error.

        Args:
            **kwargs: ignored; Gymnasium's vector envs take some.

        Raises:
            EnvError: an env raised in its own `close` (everything is released all the same).
        """
        if self.closed:
            return
        self.closed = True
        self._unready = "this vectorizer is closed: make a new one"
        faults = self._stop()
        if faults:
            raise EnvError(faults[0])

    # ---- calls and answers ----

    def _dispatch(self, actions: np.ndarray, env_ids: np.ndarray | None, want_infos: bool = False) -> None:
        """Write the actions into the block and let the envs step."""
        if self._unready:
            raise ParlError(self._unready)
        rows = _ALL if env_ids is None else self._checked_ids(env_ids)
        if self._num_pending and self._pending[rows].any():
            raise ParlError("send to an env that has not answered yet: call recv() first")
        count = self.num_envs if env_ids is None else len(rows)
        self._blocks.action[rows] = self._checked_actions(actions, count)
        self._pending[rows] = True
        self._num_pending += count
        if env_ids is None:
            for worker in range(len(self.slices)):
                self._call(worker, "step", None, want_infos)
            return
        rows = np.sort(rows)
        for worker, mine in enumerate(self.slices):
            low, high = np.searchsorted(rows, (mine.start, mine.stop))
            if low < high:
                self._call(worker, "step", (rows[low:high] - mine.start).tolist(), want_infos)

    def _checked_ids(self, env_ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(env_ids)
        good = ids.ndim == 1 and ids.size > 0 and ids.dtype.kind in "iu"
        if not good or len(np.unique(ids)) != len(ids) or ids.min() < 0 or ids.max() >= self.num_envs:
            raise ValueError(f"env_ids {ids.tolist()}: must be different whole numbers from 0 to {self.num_envs - 1}")
        return ids

    def _checked_actions(self, actions: np.ndarray, count: int) -> np.ndarray:
        actions, block = np.asarray(actions), self._blocks.action
        if actions.shape != (count, *block.shape[1:]):
            raise ValueError(f"actions have shape {actions.shape}: must be {(count, *block.shape[1:])}")
        if actions.dtype != block.dtype and not np.can_cast(actions.dtype, block.dtype, "same_kind"):
            space = self.single_action_space
            raise TypeError(f"actions have dtype {actions.dtype}: action space {space} takes {block.dtype}")
        return actions

    def _answered(self) -> None:
        self._num_pending = 0
        self._pending[:] = False

    def _check_idle(self) -> None:
        if self.closed:
            raise ParlError(self._unready)
        if self._num_pending:
            raise ParlError("envs are still stepping: call recv() first")

    def _merge_infos(self, results: list[list[RowInfo] | None]) -> dict[str, Any]:
        """Gymnasium's dict of arrays from what each worker's envs had to tell."""
        infos: dict[str, Any] = {}
        for ids, rows in zip(self.slices, results, strict=True):
            for row, final_info, info in rows or ():
                env_id = ids[row]
                if final_info is not None:
                    final = {"final_obs": self._blocks.final_obs[env_id].copy(), "final_info": final_info}
                    infos = self._add_info(infos, final, env_id)
                infos = self._add_info(infos, info, env_id)
        return infos


def _checked_mask(mask: Any, num_envs: int) -> np.ndarray:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        raise TypeError(f"options['reset_mask'] is {type(mask).__name__}: must be a numpy array of bool")
    if mask.shape != (num_envs,) or not mask.any():
        raise ValueError(f"options['reset_mask'] has shape {mask.shape}: must be ({num_envs},) with at least one True")
    return mask
