"""The actor: a policy and a vectorizer that together fill columns, wherever it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import torch

from parl_cli.actors.tails import ActionTails
from parl_cli.buffers.rollouts import ColumnBuffer
from parl_cli.errors import EnvError
from parl_cli.functional.noise import uniform
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import EnvStep, Episode, Rollout

EVERYTHING = slice(None)


class Actor:
    """Steps environments with a policy and puts what happens into columns of T steps.

    The same code serves lock-step vectorizers (every env answers at once: columns = all envs) and asynchronous ones
    (rows come in any order; the first N full columns make a rollout, and an env whose column is full opens the
    next, so nobody waits for the slowest).

    Noise is drawn per (env, step) from a counter-based generator, one block per column: a trace depends neither on
    the vectorizer nor on the order in which rows arrive.

    Args:
        vectorizer: in same-step mode, with episode seeds.
        policy: see `parl_cli.types.Policy`.
        num_steps: T.
        noise_key: 64-bit key of the noise of all actors.
        env_ids: what this actor's envs are called in the whole run; None: 0, 1, 2 …

    Attributes:
        version: of the policy's weights; written into the steps that they choose.
        keep_actions: remember those of unfinished episodes, for `state_dict`; only where they can be re-stepped.
        on_step: called after every answer with the number of envs that stepped; what it raises ends the rollout.
    """

    def __init__(
        self, vectorizer: Any, policy: Any, *, num_steps: int, noise_key: int, env_ids: range | None = None
    ) -> None:
        self.vectorizer = vectorizer
        self.policy = policy
        self.num_steps = num_steps
        self.noise_key = noise_key
        self.env_ids = range(vectorizer.num_envs) if env_ids is None else env_ids
        self._env_ids = np.array(self.env_ids, np.int64)
        self.on_step: Callable[[int], None] | None = None
        self.version = 0
        self.watch = Stopwatch()
        self.num_envs = vectorizer.num_envs
        self._agents = () if vectorizer.num_agents is None else (vectorizer.num_agents,)
        self._columns = ColumnBuffer(num_steps, self.num_envs, self._agents)
        self.keep_actions = self.replayable
        self._tails = ActionTails(self.num_envs)
        self._episodes: list[Episode] = []
        self._dropped = 0  # steps that were lost since the last rollout
        self._full: list[int] = []
        self._ready = np.zeros(0, np.int64)  # envs whose observation waits for an action
        self._t = np.zeros(self.num_envs, np.int64)
        self._column = np.full(self.num_envs, -1, np.int64)
        self._acted = np.zeros(self.num_envs, np.uint64)  # actions ever taken: the noise counter
        self._obs = np.zeros(0)
        self._is_first = np.ones((self.num_envs, *self._agents), bool)
        self._device = torch.device("cpu")
        self._state: np.ndarray | None = None
        self._state_before: np.ndarray | None = None  # the one with which the last observation was read
        if policy.state_size:
            self._state = np.zeros((self.num_envs, *self._agents, policy.state_size), np.float32)
            self._state_before = self._state.copy()

    @property
    def replayable(self) -> bool:
        """Whether unfinished episodes can be re-stepped; where not, `load_state_dict` begins new ones."""
        return getattr(self.vectorizer, "replayable", True)

    @property
    def acted(self) -> np.ndarray:
        """[N] uint64: actions ever taken in each env."""
        return self._acted

    def begin(self, episode_numbers: np.ndarray, acted: np.ndarray) -> None:
        """Begin the given episode in every env, as the actor of a run in which actions were taken before.

        Args:
            episode_numbers: [N] whole numbers.
            acted: [N] uint64, where the noise goes on.
        """
        self._acted = acted.copy()
        self._begin(episode_numbers)

    def collect(self, out: Mapping[str, np.ndarray] | None = None) -> Rollout:
        """The next rollout of `num_envs` columns, in new arrays or in those of `out`; see `ColumnBuffer.take`."""
        if not self._obs.size:
            self._begin(np.zeros(self.num_envs, np.int64))
        self._device = next(self.policy.parameters()).device
        while len(self._full) < self.num_envs:
            if self._ready.size:
                self._act()
            self._receive()
        columns = np.array(self._full[: self.num_envs])
        self._full = self._full[self.num_envs :]
        episodes, self._episodes = self._episodes, []
        rollout = self._columns.take(columns, episodes, out)
        rollout.dropped_steps, self._dropped = self._dropped, 0
        return rollout

    def _begin(self, episode_numbers: np.ndarray) -> None:
        self._obs = np.array(self.vectorizer.begin(episode_numbers))
        self._ready = np.arange(self.num_envs)

    @torch.no_grad()
    def _act(self) -> None:
        started = perf_counter()
        envs = np.sort(self._ready)
        opening = envs[self._t[envs] == 0]
        if opening.size:
            self._open_columns(opening)
        rows = EVERYTHING if len(envs) == self.num_envs else envs
        t, columns = self._place(envs)
        obs, is_first = self._obs[rows], self._is_first[rows]
        state = None if self._state is None else self._state[rows]
        self._columns.write("obs", t, columns, obs)
        self._columns.write("is_first", t, columns, is_first)

        device = self._device
        output = self.policy.act(
            torch.from_numpy(np.ascontiguousarray(obs)).to(device),
            None if state is None else torch.from_numpy(state).to(device),
            torch.from_numpy(np.ascontiguousarray(is_first)).to(device),
            torch.from_numpy(np.ascontiguousarray(self._columns.read("noise", t, columns))).to(device),
        )
        action = output.action.cpu().numpy()
        self._columns.write("action", t, columns, action)
        self._columns.write("policy_version", t, columns, np.full(len(envs), self.version, np.int64))
        for name, value in output.extras.items():
            self._columns.write(name, t, columns, value.cpu().numpy())
        if self._state is not None and self._state_before is not None:
            self._state_before[rows] = state
            self._state[rows] = output.state.cpu().numpy()
        self._acted[rows] += np.uint64(1)
        env_action = self.policy.env_action(action)
        if self.keep_actions:
            self._tails.record(envs, env_action)
        self._ready = envs[:0]
        acted = perf_counter()
        self.watch.add("act", acted - started)
        self.vectorizer.send(env_action, None if rows is EVERYTHING else envs)
        self.watch.add("env", perf_counter() - acted)

    def _open_columns(self, envs: np.ndarray) -> None:
        columns = self._columns.open(len(envs))
        self._column[envs] = columns
        self._columns.write_head("env_id", columns, self._env_ids[envs])
        if self._state is not None:
            self._columns.write_head("state", columns, self._state[envs])
        steps = self._acted[envs] + np.arange(self.num_steps, dtype=np.uint64)[:, None]
        shape = (*self._agents, self.policy.noise_dim)
        draws = steps // np.uint64(self.policy.noise_period)
        first, num_draws = draws[0], int((draws[-1] - draws[0]).max()) + 1
        each = first + np.arange(num_draws, dtype=np.uint64)[:, None]  # steps of one period share a draw
        noise = uniform(self.noise_key, self._env_ids[envs], each, int(np.prod(shape)))
        if num_draws < self.num_steps:
            noise = noise[draws - first, np.arange(len(envs))]
        self._columns.write_whole("noise", columns, noise.reshape(self.num_steps, len(envs), *shape))

    def _place(self, envs: np.ndarray) -> tuple[Any, Any]:
        """Where the rows of `envs` go: plain indices where all envs stand at the same step of columns 0…N−1."""
        t, columns = self._t[envs], self._column[envs]
        if len(envs) == self.num_envs and (t == t[0]).all() and (columns == np.arange(self.num_envs)).all():
            return int(t[0]), slice(0, self.num_envs)
        return t, columns

    def _receive(self) -> None:
        started = perf_counter()
        step: EnvStep = self.vectorizer.recv()
        answered = perf_counter()
        self.watch.add("env", answered - started)
        envs = step.env_ids
        rows = EVERYTHING if len(envs) == self.num_envs and (envs == np.arange(self.num_envs)).all() else envs
        t, columns = self._place(envs)
        write = self._columns.write
        write("reward", t, columns, step.reward)
        write("terminated", t, columns, step.terminated)
        write("truncated", t, columns, step.truncated)
        write("mask", t, columns, step.mask)
        if step.ended.any():
            self._end_episodes(step)
        self._obs[rows] = step.obs
        self._is_first[rows] = step.ended.reshape(-1, *(1,) * len(self._agents))
        self._t[rows] += 1
        full = envs[self._t[envs] == self.num_steps]
        if full.size:
            self._columns.write_head("last_obs", self._column[full], self._obs[full])
            self._columns.write_head("last_is_first", self._column[full], self._is_first[full])
            self._full.extend(self._column[full].tolist())
            self._t[full] = 0
            self._column[full] = -1
        self._ready = np.concatenate([self._ready, envs]) if self._ready.size else envs.copy()
        self.watch.add("act", perf_counter() - answered)
        if self.on_step is not None:
            self.on_step(len(envs) - int(step.filler.sum()))

    def _end_episodes(self, step: EnvStep) -> None:
        filler = step.filler
        for k, row in enumerate(step.ended.nonzero()[0].tolist()):
            env = int(step.env_ids[row])
            self._tails.end_episode(env)
            if filler[row]:
                self._dropped += int(step.truncated[row].any())
                self._cut_before(env)
                continue
            state = None if self._state is None else self._state[env].copy()
            self._columns.add_final(int(self._column[env]), int(self._t[env]), step.final_obs[k].copy(), state)
            episode_return = float(np.mean(step.episode_return[k]))
            self._episodes.append(Episode(self.env_ids[env], episode_return, int(step.episode_length[k])))

    def _cut_before(self, env: int) -> None:
        """Truncate the step before a lost one, unless an episode ended there: it led to what was seen last."""
        t, column = int(self._t[env]), int(self._column[env])
        if t == 0 or self._columns.read("is_first", t, column).all():
            return  # at a column's head, the one before has its last_obs
        alive = self._columns.read("mask", t - 1, column)
        self._columns.write("truncated", t - 1, column, alive & ~self._columns.read("terminated", t - 1, column))
        state = None if self._state_before is None else self._state_before[env].copy()
        self._columns.add_final(column, t - 1, self._columns.read("obs", t, column).copy(), state)

    def state_dict(self) -> dict[str, Any]:
        """Where every env stands. Whole only between rollouts of a lock-step vectorizer.

        An unfinished episode is a function of its reset seed and the actions since: those actions are its state.
        """
        actions, lengths = self._tails.packed()
        state: dict[str, Any] = {
            "episode_numbers": self.vectorizer.episode_numbers.copy(),
            "acted": self._acted.astype(np.int64),
            "obs": self._obs.copy(),
            "is_first": self._is_first.copy(),
            "tail_actions": actions,
            "tail_lengths": lengths,
        }
        if self._state is not None:
            state["recurrent"] = self._state.copy()
        return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}

    def load_state_dict(self, state: dict[str, Any], *, replay: bool = True) -> None:
        """Put every env back to where it stood.

        Args:
            state: from `state_dict`.
            replay: re-step unfinished episodes and compare observations bit for bit; False starts a new episode
                in every env instead, and so does a vectorizer that is not `replayable`.

        Raises:
            EnvError: an env that did not come back to the same observation; counted from 0, as by the vectorizer.
            ValueError: the state is not one of such an actor (it may come from a file).
        """
        arrays = {name: value.numpy() for name, value in state.items()}
        if not arrays["obs"].size:
            return  # saved before the first rollout: nothing has begun
        numbers = arrays["episode_numbers"]
        for name in ("acted", "episode_numbers", "tail_lengths"):
            _check_like(name, arrays[name], np.zeros(self.num_envs, np.int64))
        acted = arrays["acted"].astype(np.uint64)
        if not (replay and self.replayable):
            self.begin(numbers + 1, acted)
            return
        self.begin(numbers, acted)
        _check_like("obs", arrays["obs"], self._obs)
        _check_like("is_first", arrays["is_first"], self._is_first)
        if self._state is not None:
            _check_like("recurrent", arrays["recurrent"], self._state)
        self._check_actions(arrays["tail_actions"], arrays["tail_lengths"])
        self._tails.unpack(arrays["tail_actions"], arrays["tail_lengths"])
        for envs, actions in self._tails.steps():
            self.vectorizer.send(actions, envs)
            step = self.vectorizer.recv()
            if step.ended.any():
                self._refuse_replay(int(step.env_ids[step.ended][0]), "its episode ended early")
            self._obs[step.env_ids] = step.obs
        saved = arrays["obs"]
        for env in range(self.num_envs):
            if self._obs[env].tobytes() != saved[env].tobytes():
                self._refuse_replay(env, "its observation differs")
        self._is_first = arrays["is_first"].copy()
        if self._state is not None:
            self._state = arrays["recurrent"].copy()

    def _check_actions(self, actions: np.ndarray, lengths: np.ndarray) -> None:
        if lengths.max(initial=0) > len(actions) or len(actions) != lengths.sum():  # a sum alone may overflow
            raise ValueError(f"{len(actions)} actions for unfinished episodes of {lengths.tolist()} steps")
        space = self.vectorizer.single_action_space
        each = actions.reshape(-1, *actions.shape[1 + len(self._agents) :]) if actions.size else actions
        wrong = [index for index, action in enumerate(each) if not space.contains(action)]
        if wrong:
            raise ValueError(f"action {each[wrong[0]]} is not in {space}")

    def _refuse_replay(self, env: int, what: str) -> None:
        raise EnvError(
            f"env {env} cannot be resumed exactly: after its reset seed and the same actions {what}, so "
            "it is not reproducible; resume with checkpoint.env=reset to begin new episodes instead"
        )


def _check_like(name: str, array: np.ndarray, like: np.ndarray) -> None:
    if array.shape != like.shape or array.dtype != like.dtype:
        raise ValueError(
            f"{name} is {array.dtype} {list(array.shape)}; these envs need {like.dtype} {list(like.shape)}"
        )
    if array.dtype.kind == "i" and array.size and array.min() < 0:
        raise ValueError(f"{name} is negative")
