"""What pools share whose actors act while the learner learns: giving work, hearing of it, failures, and figures.

Rollouts are made of fragments, which need tickets: see `parl_cli.actors.tickets`.

An actor that fails is reported and replaced, max_restarts times in all. The new one, its next *incarnation*, begins
new episodes: seeds are not used twice.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from parl_cli import errors, registry
from parl_cli.actors.slots import Status
from parl_cli.actors.tickets import Running, Ticket, Tickets
from parl_cli.actors.worker import Failed, Filled, Ready
from parl_cli.buffers.rollouts import concatenate
from parl_cli.config import TrainConfig, option
from parl_cli.errors import ConfigError, EnvError, ParlError
from parl_cli.metrics.timing import Stopwatch
from parl_cli.types import Metrics, Rollout, Snapshot
from parl_cli.vectorizers.calls import split

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AsyncActorsConfig:
    """What such pools have in common."""

    num_actors: int | None = option(
        None, "actors; null: a core each but the learner's, and 8 envs at least; 1 if they have workers", ge=1
    )
    max_policy_lag: int = option(4, "updates that acting weights may be old when they are learned from", ge=0)
    max_restarts: int = option(3, "actors that may fail and be replaced, in all, before it is an error", ge=0)
    start_timeout_s: float = option(120.0, "seconds an actor may take to start and to make and reset its envs", gt=0)
    step_timeout_s: float = option(120.0, "seconds an actor may take for one step of its envs", gt=0)


class AsyncActors:
    """An actor pool whose subclass says how an actor is started, given a ticket, heard and ended.

    Args:
        config: an `AsyncActorsConfig`, with its `num_actors` filled in.
        env_ids: what the N envs of all actors are called in the whole run.

    Attributes:
        watch: the learner's waiting.
        restarts: actors that were replaced.
    """

    replayable: ClassVar[bool] = False  # an actor may be anywhere in a rollout when the run is saved

    def __init__(self, config: Any, env_ids: range) -> None:
        self.num_actors: int = config.num_actors
        self.max_restarts: int = config.max_restarts
        self.start_timeout_s: float = config.start_timeout_s
        self.step_timeout_s: float = config.step_timeout_s
        self.tickets = Tickets(config.num_actors, config.max_policy_lag)
        self.watch = Stopwatch()
        self.restarts = 0
        num_envs = len(env_ids)
        self._env_ids = env_ids
        self._shares = [slice(part.start, part.stop) for part in split(num_envs, self.num_actors)]
        self._episode_numbers = np.full(num_envs, -1, np.int64)  # where actors begin that are not started yet
        self._acted = np.zeros(num_envs, np.uint64)
        self._actors: list[Any] = []  # `Running`s; none before the first weights
        self._closed = False
        self._version = -1
        self._lost_steps = 0  # of actors that failed, since the last rollout
        self._looked = time.monotonic()  # when anyone last looked for actors that hang
        self._depths: list[int] = []  # fragments that were waiting whenever the learner asked
        self._seconds = Stopwatch()  # of all actors
        self._wall_s = 0.0  # of all actors

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Refuse what cannot work before anything is written.

        Raises:
            ConfigError: envs that cannot be shared out evenly; a lag where the algorithm must not have any.
        """
        num_envs, num_actors, lag = config.num_envs, config.actors.num_actors, config.actors.max_policy_lag
        if num_actors > num_envs:
            raise ConfigError(f"actors.num_actors={num_actors}: at most one per env, num_envs={num_envs}")
        if num_envs % num_actors:
            more = -(-num_envs // num_actors) * num_actors
            raise ConfigError(
                f"num_envs={num_envs}: must divide by actors.num_actors={num_actors}; try num_envs={more}"
            )
        algo, actors = config.algo.name, config.actors.name
        learns_from = getattr(registry.load("algo", algo), "supports", {}).get("actors", (actors,))
        if lag and actors not in learns_from:
            raise ConfigError(
                f"actors.max_policy_lag={lag}: algo={algo} learns only from what its newest weights did; set "
                "actors.max_policy_lag=0, or use algo=appo"
            )

    # ---- hooks of the subclasses ----

    def _start(self, index: int, incarnation: int, envs: range, begin: Callable[[Any], Status]) -> Any:
        """Start the actor of these envs of the run; `begin(buffer)` puts its status at the beginning of a buffer."""
        raise NotImplementedError

    def _tell(self, actor: Any, ticket: int) -> None:
        """Give it a ticket; nothing happens if it is dead."""
        raise NotImplementedError

    def _hear(self, timeout_s: float) -> list[tuple[Any, Any]]:
        """What actors have to say, waiting for the first of it; empty when the time is up."""
        raise NotImplementedError

    def _abandon(self, actor: Any) -> str:
        """Give up on one that hangs; returns what became of it."""
        raise NotImplementedError

    def _bury(self, actor: Any) -> None:
        """Release what one held that failed or was given up on; what it delivered stays valid."""
        raise NotImplementedError

    def _end(self) -> list[str]:
        """End all actors in bounded time; returns the faults of envs in `close`."""
        raise NotImplementedError

    def _publish(self, snapshot: Snapshot) -> None:
        """Put new weights where actors find them."""
        raise NotImplementedError

    def _newest(self) -> dict[str, Tensor]:
        """The weights that were published last."""
        raise NotImplementedError

    def _rollout(self, actor: Any, filled: Filled) -> Rollout:
        """The rollout that was filled; it may be a view, valid until the slot's next ticket."""
        raise NotImplementedError

    def _own(self, rollout: Rollout) -> Rollout:
        """The rollout for good."""
        raise NotImplementedError

    # ---- the pool ----

    def publish(self, snapshot: Snapshot) -> None:
        """Give actors new weights, and tickets for what may be acted with them; the first ones start them."""
        if self._actors and snapshot.version == self._version and not self._is_newest(snapshot):
            self.tickets.void(self._actors)  # set by hand: as if nobody had acted with the old ones
        self._publish(snapshot)
        self._version = snapshot.version
        self.tickets.learned()
        if not self._actors:
            self._start_all()
        self._hand_out()

    def get(self, n: int) -> list[Rollout]:
        """The next n rollouts.

        Raises:
            ParlError: of the class that an actor failed with, once `max_restarts` is used up.
        """
        self._check_open()
        self.tickets.per_update = n
        self._hand_out()
        self._take_in(0.0)
        self._look_for_hangs()  # a learner that never waits must learn of it too
        self._depths.append(len(self.tickets.queue))
        return [self._next() for _ in range(n)]

    def metrics(self) -> Metrics:
        """What actors did since the last call."""
        whole = max(self._wall_s, sum(self._seconds.seconds.values()), 1e-9)
        shares = {part: self._seconds.seconds[part] / whole for part in ("env", "act", "wait")}
        depth = sum(self._depths) / max(len(self._depths), 1) / self.num_actors
        self._seconds.take()
        self._wall_s, self._depths = 0.0, []
        return {
            **{f"actors/{part}_share": share for part, share in shares.items()},
            "actors/other_share": max(0.0, 1.0 - sum(shares.values())),
            "actors/queue_depth": depth,
            "actors/restarts": self.restarts,
        }

    def state_dict(self) -> dict[str, Any]:
        """Which episode each env is in. What was acted and not learned from yet is not saved."""
        self._note_progress()
        return {
            "episode_numbers": torch.from_numpy(self._episode_numbers.copy()),
            "acted": torch.from_numpy(self._acted.astype(np.int64)),
        }

    def load_state_dict(self, state: dict[str, Any], *, replay: bool = True) -> None:
        """Go on with new episodes, in every env, after those that had begun.

        Args:
            state: from `state_dict`.
            replay: makes no difference: which actions unfinished episodes were made of is not known.

        Raises:
            ValueError: the state is not one of such a pool (it may come from a file).
        """
        arrays = {name: state[name].numpy() for name in ("episode_numbers", "acted")}
        n = len(self._acted)
        for name, least in (("episode_numbers", -1), ("acted", 0)):
            array = arrays[name]
            if array.shape != (n,) or array.dtype != np.int64 or array.min() < least:
                raise ValueError(f"{name} of {array.dtype} {list(array.shape)}: these envs need {n} counts")
        self._stop_all()
        self._episode_numbers, self._acted = arrays["episode_numbers"].copy(), arrays["acted"].astype(np.uint64)
        log.warning("actors act on their own: every env begins a new episode, so the run goes on, but not bit for bit")

    def close(self) -> None:
        """End all actors within a few seconds; may be called again, and after any error.

        Raises:
            EnvError: an env raised in its own `close` (everything is released all the same).
        """
        self._closed = True
        faults = self._stop_all()
        if faults:
            raise EnvError(faults[0])

    # ---- giving work, and hearing of it ----

    def _hand_out(self) -> None:
        if not all(actor.ready or actor.incarnation for actor in self._actors):
            return  # or the first updates would see only the envs of those who started fastest
        for ticket in self.tickets.hand_out(self._actors):
            actor = ticket.actor
            if len(actor.owed) == 1:
                actor.seen = (int(actor.status.steps[0]), time.monotonic())
            self._tell(actor, ticket.slot)

    def _next(self) -> Rollout:
        """The next rollout, of as many fragments as there are actors."""
        chosen: list[Ticket] = []
        while len(chosen) < self.num_actors:
            ticket = self.tickets.take(self._version)
            if ticket is not None:
                chosen.append(ticket)
            else:
                self._hand_out()  # for what was dropped
                self._wait()
        chosen.sort(key=lambda ticket: ticket.actor.index)
        parts = [ticket.rollout for ticket in chosen if ticket.rollout is not None]
        rollout = self._own(parts[0]) if len(parts) == 1 else concatenate(parts)
        for ticket in chosen:
            self.tickets.use_up(ticket)
        self._hand_out()  # an update may want more rollouts than there are slots
        rollout.dropped_steps += self._lost_steps + self.tickets.dropped_steps
        rollout.episodes = self.tickets.dropped_episodes + rollout.episodes
        self._lost_steps, self.tickets.dropped_steps, self.tickets.dropped_episodes = 0, 0, []
        return rollout

    def _is_newest(self, snapshot: Snapshot) -> bool:
        return all(torch.equal(snapshot.weights[name].to(w.device), w) for name, w in self._newest().items())

    def _wait(self) -> None:
        """Wait for some actor, for as long as every one of them may still be working."""
        busy = [actor for actor in self._actors if actor.owed or not actor.ready]
        if not busy:
            lag = self.tickets.max_policy_lag
            raise ParlError(
                f"get without publish: max_policy_lag={lag} allows no more acting before there are new weights"
            )
        started = perf_counter()
        until = min(actor.seen[1] + self._patience_s(actor) for actor in busy)
        self._take_in(max(0.0, until - time.monotonic()))
        self._look_for_hangs()
        self.watch.add("wait", perf_counter() - started)

    def _take_in(self, timeout_s: float) -> None:
        for actor, said in self._hear(timeout_s):
            if self._actors[actor.index] is not actor:
                continue  # it was replaced
            if isinstance(said, Filled):
                self._take_in_fragment(actor, said)
            elif isinstance(said, Ready):
                actor.ready = True
                actor.seen = (0, time.monotonic())
                self._hand_out()
            else:
                self._replace(actor, said)

    def _take_in_fragment(self, actor: Running, said: Filled) -> None:
        rollout = self._rollout(actor, said)
        rollout.dropped_steps = said.dropped_steps
        self.tickets.finish(actor, said.version, rollout)
        self._seconds.merge(said.seconds)
        self._wall_s += said.wall_s

    # ---- starting, failing, ending ----

    def _start_all(self) -> None:
        self._check_open()
        try:
            for index in range(self.num_actors):
                self._actors.append(self._started(index, 0))
        except BaseException:
            self._stop_all()
            raise

    def _check_open(self) -> None:
        if self._closed:
            raise ParlError("this actor pool is closed: make a new one")

    def _started(self, index: int, incarnation: int) -> Any:
        share = self._shares[index]
        numbers, acted = self._episode_numbers[share], self._acted[share]
        envs = self._env_ids[share]
        actor = self._start(index, incarnation, envs, lambda buffer: Status.begin(buffer, numbers, acted))
        actor.seen = (0, time.monotonic())
        return actor

    def _patience_s(self, actor: Running) -> float:
        return self.step_timeout_s if actor.ready else self.start_timeout_s

    def _look_for_hangs(self) -> None:
        now = time.monotonic()
        away = now - self._looked > 2 * max(self.step_timeout_s, self.start_timeout_s)
        self._looked = now
        if away:  # evaluating, or suspended, and perhaps the actors too: their time begins anew
            for actor in self._actors:
                actor.seen = (int(actor.status.steps[0]), now)
            return
        for actor in [actor for actor in self._actors if actor.owed or not actor.ready]:
            steps, since = actor.seen
            if actor.status.steps[0] != steps:
                actor.seen = (int(actor.status.steps[0]), now)
            elif now - since >= self._patience_s(actor):
                key = "step_timeout_s" if actor.ready else "start_timeout_s"
                limit = f"actors.{key}={self._patience_s(actor):g}"
                self._replace(actor, Failed("WorkerError", f"did not answer within {limit}; {self._abandon(actor)}"))

    def _replace(self, actor: Running, failed: Failed) -> None:
        """Put a new actor in a failed one's place, or raise what it failed with."""
        error = getattr(errors, failed.error)(f"{actor}: {failed.text}")
        self._bury(actor)
        self._note_progress()
        # it may have failed in a reset, which must not come again
        self._episode_numbers[self._shares[actor.index]] += 1
        self._lost_steps += max(0, int(actor.status.steps[0]) - actor.delivered_steps)
        hopeless = isinstance(error, ConfigError) or not (actor.ready or actor.incarnation)
        if hopeless or self.restarts >= self.max_restarts:
            with contextlib.suppress(EnvError):  # what an env says while it is closed is not the news
                self.close()
            raise error
        self.restarts += 1
        log.warning("%s\nreplaced, %d of actors.max_restarts=%d", error, self.restarts, self.max_restarts)
        self._actors[actor.index] = self._started(actor.index, actor.incarnation + 1)
        self._hand_out()

    def _note_progress(self) -> None:
        for actor in self._actors:
            share = self._shares[actor.index]
            self._episode_numbers[share] = actor.status.episode_numbers
            self._acted[share] = actor.status.acted

    def _stop_all(self) -> list[str]:
        self._note_progress()
        faults = self._end()
        self._actors.clear()
        self.tickets.clear()
        return faults
