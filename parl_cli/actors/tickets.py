"""Who may fill what: the tickets of actors that act while the learner learns.

Each of A actors owns num_envs / A envs. What it fills at a time, T steps of them, is a *fragment*; a rollout is A
fragments side by side, the oldest A that are finished, whoever finished them, in the order of actors. So a rollout
always has num_envs columns, but a fast actor may have two shares in it and a slow one none.

A fragment needs a ticket. With R rollouts per update, fragment k of all (in the order of tickets) may begin once the
weights' version ≥ ⌊k / (A·R)⌋ − max_policy_lag; it acts with the newest weights there are then. If fragments were
finished in that order, update u would learn from fragments A·R·u to A·R·(u+1) − 1, so none would be older than
max_policy_lag updates. One that comes later than that is dropped, and its steps are counted. Tickets go to whoever
owes fewest rollouts: nobody waits for the slowest. But no actor is more than MAX_AHEAD rollouts ahead of the learner,
so lags are small as long as all are equally fast. With max_policy_lag=0 each update's tickets are handed out when its
weights are published, R to each actor, which makes the run synchronous.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from parl_cli.actors.slots import Status
from parl_cli.types import Episode, Rollout
from parl_cli.vectorizers.calls import span

MAX_AHEAD = 1  # rollouts an actor may be ahead, whatever the lag: the queue is there to smooth, not to fill


@dataclass(eq=False)
class Ticket:
    """The right to fill one fragment, and what became of it."""

    number: int  # k
    actor: Running
    slot: int
    version: int = -1  # of the weights at its beginning
    void: bool = False  # nobody wants it any more
    rollout: Rollout | None = None  # the fragment, from when it is finished until it is used


@dataclass(eq=False)
class Running:
    """One actor that lives, as its pool sees it."""

    index: int
    incarnation: int
    envs: range  # what they are called in the whole run
    status: Status
    free: list[int]  # slots that it may be given a ticket for
    owed: deque[Ticket] = field(default_factory=deque)
    ready: bool = False
    delivered_steps: int = 0
    seen: tuple[int, float] = (0, 0.0)  # its steps, and when they were seen to change

    def __str__(self) -> str:
        version = int(self.status.version[0])
        acting = f", weights of update {version}" if version >= 0 else ""
        return f"actor {self.index} ({span(self.envs)}, incarnation {self.incarnation}{acting})"


class Tickets:
    """All tickets that are not used up: those that actors owe, the finished ones, and those being learned from.

    Args:
        num_actors: A.
        max_policy_lag: updates.

    Attributes:
        num_slots: fragments that an actor may have begun or finished at a time.
        per_update: R.
        queue: the finished ones that the learner has not got.
        dropped_steps: env steps of fragments that were too old.
        dropped_episodes: those that ended in them; they were played all the same.
    """

    def __init__(self, num_actors: int, max_policy_lag: int) -> None:
        self.num_actors = num_actors
        self.max_policy_lag = max_policy_lag
        self.num_slots = min(max_policy_lag, MAX_AHEAD) + 1
        self.per_update = 1
        self.queue: list[Ticket] = []
        self.dropped_steps = 0
        self.dropped_episodes: list[Episode] = []
        self._learning: list[Ticket] = []  # given to the learner since the last weights
        self._count = 0  # handed out ever

    def hand_out(self, actors: Sequence[Running]) -> Iterator[Ticket]:
        """New tickets, for as many fragments as may be under way, waiting, or learned from at this version."""
        allowed = (self.max_policy_lag + 1) * self.num_actors * self.per_update
        while self._num_done() + sum(len(actor.owed) for actor in actors) < allowed:
            able = [actor for actor in actors if actor.free and self._may_go_on(actor)]
            if not able:
                return
            actor = min(able, key=lambda actor: len(actor.owed))
            ticket = Ticket(self._count, actor, actor.free.pop())
            self._count += 1
            actor.owed.append(ticket)
            yield ticket

    def finish(self, actor: Running, version: int, rollout: Rollout) -> None:
        """An actor has filled the first fragment that it owes."""
        ticket = actor.owed.popleft()
        ticket.version, ticket.rollout = version, rollout
        actor.delivered_steps += rollout.num_env_steps + rollout.dropped_steps
        self.queue.append(ticket)

    def take(self, version: int) -> Ticket | None:
        """The oldest finished fragment that is not too old for the update of weights `version`; None: there is none."""
        while self.queue:
            ticket = min(self.queue, key=lambda ticket: ticket.number)
            self.queue.remove(ticket)
            if not ticket.void and ticket.version >= version - self.max_policy_lag:
                self._learning.append(ticket)
                return ticket
            assert ticket.rollout is not None
            self.dropped_steps += ticket.rollout.num_env_steps + ticket.rollout.dropped_steps
            self.dropped_episodes += ticket.rollout.episodes
            self.use_up(ticket)
        return None

    def use_up(self, ticket: Ticket) -> None:
        """Nobody needs what is in its slot any more."""
        ticket.rollout = None
        ticket.actor.free.append(ticket.slot)

    def learned(self) -> None:
        """The learner is done with what it was given."""
        self._learning.clear()

    def void(self, actors: Sequence[Running]) -> None:
        """Drop everything that is under way or finished, once it is looked at."""
        for ticket in [*self.queue, *(ticket for actor in actors for ticket in actor.owed)]:
            ticket.void = True

    def clear(self) -> None:
        """Forget everything; the actors are gone."""
        self.queue.clear()
        self._learning.clear()

    def _num_done(self) -> int:
        return len(self.queue) + len(self._learning)

    def _may_go_on(self, actor: Running) -> bool:
        """Whether an actor is not too far ahead of the learner."""
        done = sum(ticket.actor is actor for ticket in [*self.queue, *self._learning])
        return len(actor.owed) + done < self.num_slots * self.per_update
