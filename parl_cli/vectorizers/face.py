"""Gymnasium's face of a vectorizer: what `gymnasium.vector.VectorEnv` promises, in each of its autoreset modes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.error import AlreadyPendingCallError, ClosedEnvironmentError, NoAsyncCallError
from gymnasium.vector import VectorEnv

from parl_cli.errors import ParlError
from parl_cli.vectorizers.blocks import Blocks
from parl_cli.vectorizers.calls import WorkerCalls
from parl_cli.vectorizers.plans import RowInfo
from parl_cli.vectorizers.structured import unpack


class PendingCallError(ParlError, AlreadyPendingCallError):
    """A half was asked for whose other one has not come; Gymnasium's error, and one of ours."""


class NothingAskedError(ParlError, NoAsyncCallError):
    """The second half without the first; Gymnasium's error, and one of ours."""


class ClosedError(ParlError, ClosedEnvironmentError):
    """A call after `close`; Gymnasium's error, and one of ours."""


class GymnasiumFace(WorkerCalls, VectorEnv):  # type: ignore[misc]  # Gymnasium lets close take anything
    """Behaves like `gymnasium.vector.SyncVectorEnv`, wherever the envs live.

    `reset`, `step` and `call` come in halves as well, as `AsyncVectorEnv` has them: `…_async` asks, `…_wait` waits.
    """

    copy: bool
    restarts: int
    _blocks: Blocks
    _lost: np.ndarray
    _asked = ""  # the half that waits for its other one: reset, step or call

    def _dispatch(self, actions: Any, env_ids: np.ndarray | None, want_infos: bool = False) -> None:
        """Write the actions into the block and let the envs step."""
        raise NotImplementedError

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all envs, or those in `options["reset_mask"]` (bool [N]).

        Args:
            seed: env i gets seed + i, or its own of a list; None: `episode_seed` decides.
            options: handed to every env, without `reset_mask`.

        Returns:
            (obs [N(, A), *item], infos).
        """
        self.reset_async(seed, options)
        return self.reset_wait()

    def reset_async(
        self, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Begin what `reset` does."""
        self._check_idle("reset_async")
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
        self._lost[mask] = False
        for section, ids in enumerate(self.slices):
            rows = mask[ids.start : ids.stop].nonzero()[0].tolist()
            if rows:
                self._call(section, "reset", rows, [seeds[ids[row]] for row in rows], options)
        self._asked = "reset"

    def reset_wait(self, timeout: float | None = None) -> tuple[Any, dict[str, Any]]:
        """What `reset` gives; TimeoutError after `timeout` seconds, and it may be called again."""
        infos = self._merge_infos(self._answers("reset", timeout))
        self._unready = ""
        return self._obs(), infos

    def step(self, actions: Any) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step all envs once.

        Returns:
            (obs [N(, A), *item], reward float64, terminated, truncated [N(, A)], infos), all copies. In infos each key
            has an array over envs and a mask under `_key`; SAME_STEP adds `final_obs` and `final_info`;
            `lost` (bool [N]) is there when a worker was replaced: those envs begin a new episode.
        """
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Begin what `step` does."""
        self._dispatch(actions, None, want_infos=True)
        self._asked = "step"

    def step_wait(self, timeout: float | None = None) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """What `step` gives; TimeoutError after `timeout` seconds, and it may be called again."""
        infos = self._merge_infos(self._answers("step", timeout))
        self._answered()
        blocks = self._blocks
        obs, reward = self._obs(), blocks.reward.copy()
        terminated, truncated = blocks.terminated.copy(), blocks.truncated.copy()
        if (
            self.restarts and self._lost.any()
        ):  # their workers were replaced: the old episode has no end, only a new one begins
            reward[self._lost], terminated[self._lost], truncated[self._lost] = 0.0, False, True
            infos["lost"] = self._lost.copy()
            self._lost[:] = False
        return obs, reward, terminated, truncated, infos

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call a method of every env (or read an attribute); one result per env."""
        self.call_async(name, *args, **kwargs)
        return self.call_wait()

    def call_async(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Begin what `call` does."""
        self._check_idle("call_async")
        for section in range(len(self.slices)):
            self._call(section, "call", name, args, kwargs)
        self._asked = "call"

    def call_wait(self, timeout: float | None = None) -> tuple[Any, ...]:
        """What `call` gives; TimeoutError after `timeout` seconds, and it may be called again."""
        return tuple(result for results in self._answers("call", timeout) for result in results)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Read an attribute of every env."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of every env: a list or tuple has one value per env, anything else is for all."""
        self._check_idle("set_attr")
        each = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(each) != self.num_envs:
            raise ValueError(f"{len(each)} values for num_envs={self.num_envs}: give one per env, or one for all")
        for section, ids in enumerate(self.slices):
            self._call(section, "set_attr", name, each[ids.start : ids.stop])
        self._asked = "call"
        self._answers("call")

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

    def _answers(self, kind: str, timeout: float | None = None) -> list[Any]:
        """Wait for what was asked, which must be of this kind."""
        self._check_open()
        if self._asked != kind:
            raise NothingAskedError(f"Calling `{kind}_wait` without any prior call to `{kind}_async`.", kind)
        unready, self._asked = self._unready, ""
        try:
            return self._collect(timeout)
        except TimeoutError:
            self._asked = kind
            raise
        except BaseException:
            if kind == "call" and not self.closed:
                self._unready = unready  # an attribute that an env has not is no reason to reset it
            raise

    def _obs(self) -> Any:
        obs = self._blocks.obs
        return unpack(self.single_observation_space, obs, copy=self.copy)

    def _check_idle(self, method: str) -> None:
        """Raise unless `method` may be called: nothing is under way, and nothing was closed."""
        raise NotImplementedError

    def _check_open(self) -> None:
        if self.closed:
            raise ClosedError(self._unready)

    def _check_asked(self, method: str) -> None:
        if self._asked:
            raise PendingCallError(
                f"Calling `{method}` while waiting for a pending call to `{self._asked}` to complete: "
                f"call {self._asked}_wait() first",
                self._asked,
            )

    def _drop_pending(self) -> None:
        """Nobody waits for the other half any more: everything is closed."""
        if self._asked:
            warnings.warn(
                f"Calling `close` while waiting for a pending call to `{self._asked}` to complete.", stacklevel=3
            )
            self._asked = ""

    def _merge_infos(self, results: list[list[RowInfo] | None]) -> dict[str, Any]:
        """Gymnasium's dict of arrays from what each section's envs had to tell."""
        infos: dict[str, Any] = {}
        for ids, rows in zip(self.slices, results, strict=True):
            for row, final_info, info in rows or ():
                env_id = ids[row]
                if final_info is not None:
                    final_obs = unpack(self.single_observation_space, self._blocks.final_obs[env_id], copy=True)
                    final = {"final_obs": final_obs, "final_info": final_info}
                    infos = self._add_info(infos, final, env_id)
                infos = self._add_info(infos, info, env_id)
        return infos


def _checked_mask(mask: Any, num_envs: int) -> np.ndarray:
    """The mask, if it is one; the errors, their order and words are Gymnasium's."""
    name = "`options['reset_mask']`"
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"{name} must be a numpy array, got {type(mask)}")
    if mask.shape != (num_envs,):
        raise ValueError(f"{name} must have shape `({num_envs},)`, got {mask.shape}")
    if mask.dtype != np.bool_:
        raise TypeError(f"{name} must have `dtype=np.bool_`, got {mask.dtype}")
    if not mask.any():
        raise ValueError(f"{name} must contain a boolean array with at least one True value, got reset_mask={mask}")
    return mask
