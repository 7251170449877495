"""Envs that bring their own batch: one call of a library steps them all, and here it is only brought to the contract.

What an ended episode looks like depends on how the library resets (its `metadata["autoreset_mode"]`):

- SAME_STEP with `infos["final_obs"]`: that is the contract already.
- SAME_STEP without: nobody saw what the last step led to. The observation before it stands in as `final_obs`, so a
  time limit bootstraps from one step earlier; RSL-RL (Rudin et al. 2022, arXiv:2109.11978) does so for simulators
  that reset at once. The run says it in a warning.
- NEXT_STEP: what ended the episode is true, and the step after it, in which the library resets, is a filler row.
- DISABLED: the envs that ended are reset at once, by a mask.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from parl_cli.config import option
from parl_cli.errors import ConfigError, EnvError, ParlError
from parl_cli.types import EnvStep
from parl_cli.vectorizers.plans import ENV_FAULTS, LARGEST_REWARD, EpisodeSeed
from parl_cli.vectorizers.structured import has_nan

WAY_OUT = "use vectorizer=serial"
ARRAY_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_BOOL = np.dtype(np.bool_)
CLOSED = "this vectorizer is closed: make a new one"

log = logging.getLogger(__name__)


class NativeVectorizer(VectorWrapper):
    """A library's vector env, as it is, with the runner's face beside Gymnasium's: `begin`, `send`, `recv`.

    All envs step at once, in this process. A batch is seeded once, so a run is a function of its seed; but no episode
    has a seed of its own, and none can be re-stepped from its beginning. Hence a run resumes with new episodes.

    Args:
        env_fns: one factory per env, of which the first has `make_vec(num_envs, backend)`; or the vector env itself.
        autoreset_mode: taken as all vectorizers take it; but the library's own mode is what counts.
        episode_seed: (env id, episode number) -> reset seed; `begin` takes that of env 0's episode for the batch.
            None: unseeded.
        backend: handed to `make_vec`.

    Attributes:
        episode_numbers: [N] int64, those that `begin` was told; they do not count on, for no later episode has a seed.
        num_agents: None; agents would need masks, which no library's batch gives.

    Raises:
        ConfigError: the envs have no batch, or it is none that the runner can use.
    """

    replayable = False
    has_filler = True  # in libraries that reset on the step after an end: so many rows of a rollout are no steps
    num_agents = None

    @dataclass(frozen=True)
    class Config:
        """`vectorizer=native`."""

        name: str = option("native", "envs that bring their own batch, stepped by one call of their library")
        backend: Literal["gymnasium", "envpool"] = option(
            "gymnasium", "gymnasium: the batch that the env's id registers; envpool: EnvPool's envs of that id"
        )

    def __init__(
        self,
        env_fns: Sequence[Any] | VectorEnv,
        *,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        episode_seed: EpisodeSeed | None = None,
        backend: str = "gymnasium",
    ) -> None:
        batch = env_fns if isinstance(env_fns, VectorEnv) else _make_batch(env_fns, backend)
        super().__init__(batch)
        self.metadata = dict(batch.metadata)  # a copy: AtariVectorEnv's is its class's, which the next one changes
        try:
            _check(batch)
        except ConfigError:
            batch.close()
            raise
        self.autoreset_mode = AutoresetMode(self.metadata["autoreset_mode"])
        self.episode_seed = episode_seed
        n = batch.num_envs
        self.episode_numbers = np.full(n, -1, np.int64)
        self._action_shape = batch.action_space.shape
        self._ids = np.arange(n)
        self._all = np.ones(n, np.bool_)
        self._one = np.ones(n, np.int64)  # added faster than a number
        self._length = np.zeros(n, np.int64)
        self._return = np.zeros(n, np.float64)
        self._resting = self._ids[:0]  # envs that spend the next step on their reset
        self._before: np.ndarray | None = None  # [N, *item]: what stands in for a final observation, where one may lack
        self._warned = False
        self._answer: tuple[Any, ...] | None = None
        self._unready = "call begin() first"
        self._seed: int | None = None
        self._num_steps = 0  # since `begin`
        self._actions = self._ids  # those of the step that is under way, to be told if it fails
        item = batch.single_observation_space
        self._lead, self._shape, self._dtype = (n,), (n, *(item.shape or ())), item.dtype
        self._none_ended = np.zeros((0, *self._shape[1:]), self._dtype), self._return[:0], self._length[:0]

    @classmethod
    def check(cls, options: Config, env_fns: Sequence[Any]) -> None:
        """Make the batch of an actor once, to refuse what cannot work before anything is written.

        Raises:
            ConfigError: see the class.
        """
        cls(env_fns, backend=options.backend).close()

    # ---- the runner's face ----

    def begin(self, episode_numbers: np.ndarray | None = None) -> np.ndarray:
        """Reset every env, as one batch.

        Args:
            episode_numbers: [N] whole numbers; None: all 0. The first decides on the seed.

        Returns:
            obs [N, *item], a view that is valid until the next `send`.
        """
        self.episode_numbers[:] = 0 if episode_numbers is None else episode_numbers
        self._seed, self._num_steps = None, 0
        if self.episode_seed is not None:
            self._seed = self.episode_seed(0, int(self.episode_numbers[0])) >> 1  # 31 bits: what C++ libraries take
        obs = self._reset(seed=self._seed)
        self._length[:] = 0
        self._return[:] = 0.0
        self._resting, self._answer = self._ids[:0], None
        self._before = obs.copy() if self.autoreset_mode is AutoresetMode.SAME_STEP else None
        self._unready = ""
        return obs

    def send(self, actions: np.ndarray, env_ids: None = None) -> None:
        """Step all envs.

        Args:
            actions: [N, *item].
            env_ids: None: a batch has no parts.

        Raises:
            EnvError: the library raised; only `begin` can follow.
        """
        if self._unready:
            raise ParlError(self._unready)
        if env_ids is not None:
            raise ParlError("vectorizer=native steps all envs at once: send(actions) takes no env_ids")
        if self._answer is not None:
            raise ParlError("send to envs that have not answered yet: call recv() first")
        if actions.shape != self._action_shape:
            raise ValueError(f"actions have shape {actions.shape}: must be {self._action_shape}")
        self._actions = actions
        self._num_steps += 1
        try:
            self._answer = self.env.step(actions)
        except ENV_FAULTS as error:
            self._fail("step", error)

    def recv(self, timeout: float | None = None) -> EnvStep:
        """The step that was sent, rows in env_id order; arrays may be views that are valid until the next `send`.

        Raises:
            EnvError: what the library returned is not as its spaces declare, or holds NaN; only `begin` can follow.
        """
        if self._answer is None:
            raise ParlError("recv without send: no env was given an action")
        answer, self._answer = self._answer, None
        try:
            obs, reward, terminated, truncated, infos = answer
            # arrays of another library, JAX for one
            if not type(obs) is type(reward) is type(terminated) is type(truncated) is np.ndarray:
                obs, reward, terminated, truncated = map(np.asarray, (obs, reward, terminated, truncated))
        except ENV_FAULTS as error:
            self._fail("step", error)
        holds_nan = self._check_step(obs, reward, terminated, truncated)
        ended = terminated | truncated
        self._return += reward
        self._length += self._one
        reward = reward.astype(np.float32, copy=False)
        # few rows end or rest in a step: their indices are handled, not masks over all
        mask, over, resting = self._all, ended.nonzero()[0], self._resting
        rows = over
        if len(resting):
            mask = mask.copy()
            mask[resting] = False
            ended[resting] = True
            rows = ended.nonzero()[0]
            self._return[resting] = 0.0
            self._length[resting] = 0
        if not len(rows):
            if self._before is not None:
                self._before[:] = obs
            return EnvStep(self._ids, obs, reward, terminated, truncated, mask, ended, *self._none_ended)
        episode_return, episode_length = self._return[rows], self._length[rows]
        if self.autoreset_mode is AutoresetMode.NEXT_STEP:
            self._resting = over
            final_obs = obs.take(rows, 0)
            if holds_nan:  # that a terminal step led to; the step after it is filler, but acts on it
                obs = obs.copy()
                obs[over] = 0
        else:
            obs, final_obs = self._reset_ended(obs, ended, truncated, infos)
            self._return[rows] = 0.0
            self._length[rows] = 0
        return EnvStep(
            self._ids, obs, reward, terminated, truncated, mask, ended, final_obs, episode_return, episode_length
        )

    def _reset_ended(
        self, obs: np.ndarray, ended: np.ndarray, truncated: np.ndarray, infos: dict[str, Any]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The next episodes' observations, and those that the ended ones led to [K, *item]."""
        if self.autoreset_mode is AutoresetMode.DISABLED:
            final_obs = obs[ended]
            return self._reset(options={"reset_mask": ended}), final_obs
        if self._before is None or "final_obs" in infos:
            self._before = None  # the library tells it, so nothing need stand in
            return obs, self._told(infos["final_obs"], ended, truncated)
        if truncated.any() and not self._warned:
            self._warned = True
            log.warning(
                "vectorizer=native: %s tells no final_obs; at a time limit the one before it stands in",
                self.env,
            )
        stand_in = self._before[ended]
        self._before[:] = obs
        return obs, stand_in

    def _told(self, all_final: Any, ended: np.ndarray, truncated: np.ndarray) -> np.ndarray:
        """The final observations of the envs that ended, of those that the library tells for all."""
        try:
            final = np.asarray(all_final)[ended]
            final = np.stack(final) if final.dtype == object else final  # Gymnasium's own: None in other rows
        except ENV_FAULTS as error:
            self._fail("step", error)
        if final.shape[1:] != self._shape[1:] or final.dtype != self._dtype:
            must_be = f"{self._dtype} {[len(final), *self._shape[1:]]}"
            self._break("step", f"final_obs of those that ended are {_about(final)}; must be {must_be}")
        if has_nan(final) and has_nan(cut_off := final[truncated[ended]]):
            env_id = int(truncated.nonzero()[0][_first_nan(cut_off)])
            self._break("step", f"final_obs of env {env_id} holds NaN", env_id)
        return final

    def _reset(self, **kwargs: Any) -> np.ndarray:
        try:
            obs = np.asarray(self.env.reset(**kwargs)[0])
        except ENV_FAULTS as error:
            self._fail("reset", error)
        if obs.shape != self._shape or obs.dtype != self._dtype:
            self._break("reset", f"observations are {_about(obs)}; must be {self._dtype} {list(self._shape)}")
        if has_nan(obs):
            self._break("reset", f"observation of env {_first_nan(obs)} holds NaN")
        return obs

    def _check_step(self, obs: np.ndarray, reward: np.ndarray, terminated: np.ndarray, truncated: np.ndarray) -> bool:
        """A cheap look at what all envs gave together; EnvError if it is not as declared.

        Returns:
            Whether some observations hold NaN, all of them of terminal steps.
        """
        lead = self._lead
        if obs.shape != self._shape or obs.dtype != self._dtype:
            self._break("step", f"observations are {_about(obs)}; must be {self._dtype} {list(self._shape)}")
        if reward.shape != lead or reward.dtype.kind not in "fiub":
            self._break("step", f"rewards are {_about(reward)}; must be a number per env, {list(lead)}")
        if not (terminated.shape == truncated.shape == lead and terminated.dtype == truncated.dtype == _BOOL):
            about = f"terminated is {_about(terminated)}, truncated {_about(truncated)}"
            self._break("step", f"{about}; must be bool {list(lead)}")
        if not reward.dot(reward) <= LARGEST_REWARD:  # a NaN compares false
            for env_id in (~(np.abs(reward) <= LARGEST_REWARD)).nonzero()[0].tolist():
                self._break("step", f"reward {reward[env_id]} of env {env_id} is not a finite float32", env_id)
        if not has_nan(obs):
            return False
        # a simulation that went wrong may end its episode with NaN, which nobody reads
        is_next = self.autoreset_mode is AutoresetMode.SAME_STEP
        for env_id in self._ids.tolist():
            if (is_next or not terminated[env_id]) and has_nan(obs[env_id : env_id + 1]):
                self._break("step", f"observation of env {env_id} holds NaN", env_id)
        return True

    def _break(self, method: str, what: str, env_id: int | None = None) -> NoReturn:
        """Raise the EnvError that says what was wrong, and when."""
        self._unready = "the last call failed: call begin() first"
        details = f"seed {self._seed}, step {self._num_steps}"
        if env_id is not None:
            details += f", action {' '.join(str(self._actions[env_id]).split())[:200]}"
        raise EnvError(f"{self.env} broke its contract in {method}: {what} ({details} of the batch)")

    def _fail(self, method: str, error: BaseException) -> NoReturn:
        self._unready = "the last call failed: call begin() first"
        raise EnvError(
            f"{self.env} failed in {method}: {type(error).__name__}: {error}\n\n{traceback.format_exc().rstrip()}"
        ) from None

    # ---- Gymnasium's face, beside what the batch does itself ----

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the batch (or read an attribute), which answers for all envs in its own way."""
        attribute = self.get_attr(name)
        return attribute(*args, **kwargs) if callable(attribute) else attribute

    def get_attr(self, name: str) -> Any:
        """An attribute of the batch."""
        return getattr(self.env, name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set an attribute of the batch."""
        setattr(self.env, name, values)

    def close(self, **kwargs: Any) -> None:
        """Close the batch; may be called again."""
        if self._unready != CLOSED:
            self._unready = CLOSED
            super().close(**kwargs)


def _make_batch(env_fns: Sequence[Any], backend: str) -> VectorEnv:
    if not env_fns:
        raise ConfigError("num_envs=0: must be at least 1")
    make_vec = getattr(env_fns[0], "make_vec", None)
    if make_vec is None:
        raise ConfigError(f"vectorizer=native: {env_fns[0]} has no make_vec(num_envs, backend); {WAY_OUT}")
    return make_vec(len(env_fns), backend)


def _about(array: np.ndarray) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _first_nan(items: np.ndarray) -> int:
    """The first of the items that holds a NaN."""
    return int(np.isnan(items).reshape(len(items), -1).any(axis=1).argmax())


def _check(batch: VectorEnv) -> None:
    """Raise ConfigError where the runner cannot take what the batch gives."""
    if "autoreset_mode" not in batch.metadata:
        raise ConfigError(
            f"vectorizer=native: {batch} does not say how it resets (autoreset_mode in its metadata); {WAY_OUT}"
        )
    for kind, space in (("observation", batch.single_observation_space), ("action", batch.single_action_space)):
        if not isinstance(space, ARRAY_SPACES):
            raise ConfigError(
                f"vectorizer=native: {kind} space {space}: must be Box, Discrete, MultiDiscrete or MultiBinary; "
                f"{WAY_OUT}"
            )
