"""What an actor does all its life, in a thread or in a process: take a ticket, fill a rollout, say so.

A ticket is the number of the slot to fill; None ends it. What an actor says is `Ready` once, then `Filled` for each
ticket, or `Failed`.

Imports of torch stand inside functions, behind the thread counts of the process.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
from typing import TYPE_CHECKING, Any

from parl_cli import errors
from parl_cli.errors import ParlError
from parl_cli.vectorizers.calls import span
from parl_cli.vectorizers.processes import settle

if TYPE_CHECKING:
    from parl_cli.actors.base import Actor
    from parl_cli.actors.slots import SlotPlan, Status
    from parl_cli.types import Episode, Rollout
    from parl_cli.vectorizers.blocks import Layout


@dataclass(frozen=True)
class Ready:
    """The envs are made and reset."""


@dataclass(frozen=True)
class Filled:
    """A ticket's rollout is there: in its slot, or here where the reader is in the same process."""

    slot: int
    version: int  # of the weights at its beginning
    num_finals: int
    episodes: list[Episode]
    dropped_steps: int
    seconds: dict[str, float]  # env, act and wait since the last one
    wall_s: float  # since the last one
    rollout: Rollout | None = None


@dataclass(frozen=True)
class Failed:
    """It ends, because of this: the name of a class in `errors`, and the message."""

    error: str
    text: str

    @classmethod
    def because(cls, error: BaseException, env_ids: range) -> Failed:
        """Text, because not every exception can be pickled. What nobody foresaw keeps its traceback.

        Args:
            error: what was raised.
            env_ids: what the actor's envs are called in the whole run: a vectorizer counts its own from 0.
        """
        name = type(error).__name__
        if isinstance(error, ParlError) and hasattr(errors, name):
            return cls(name, as_in_run(str(error), env_ids))
        text = "".join(traceback.format_exception(error)).rstrip()
        return cls("WorkerError", f"failed with {name}: {error}\n\n{text}")


_ENV_IDS = re.compile(r"\benvs? (\d+)(?: to (\d+))?")


def as_in_run(text: str, env_ids: range) -> str:
    """A message of a vectorizer's, which counts its envs from 0, with the envs called as in the whole run.

    A traceback, from the second line on, stays as it is.
    """

    def renamed(found: re.Match[str]) -> str:
        first, last = (env_ids.start + env_ids.step * int(number) for number in (found[1], found[2] or found[1]))
        return span(range(first, last + 1, env_ids.step))

    summary, *trace = text.split("\n", 1)
    return "\n".join([_ENV_IDS.sub(renamed, summary), *trace])


@contextlib.contextmanager
def envs_as_in_run(env_ids: range) -> Iterator[None]:
    """What is raised inside names envs as in the whole run."""
    try:
        yield
    except ParlError as error:
        error.args = (as_in_run(str(error), env_ids), *error.args[1:])
        raise


class _Stopped(Exception):  # noqa: N818  # like StopIteration: not an error
    """Raised inside a rollout that nobody wants any more."""


def live(
    make: Callable[[], Actor],
    status: Status,
    tickets: Callable[[], int | None],
    say: Callable[[Any], None],
    load_weights: Callable[[Any], int],
    slots: list[Any],
    env_ids: range,
) -> None:
    """Make an actor, let it act for as long as there are tickets, and close its envs.

    Args:
        make: makes the actor.
        status: where it begins, and where it writes how far it is.
        tickets: waits for the next.
        say: takes what it has to say.
        load_weights: gives its policy the newest weights; returns their version.
        slots: the arrays to fill for each ticket, or None for new ones.
        env_ids: what its envs are called in the whole run.
    """
    actor = None
    try:
        actor = make()
        _act(actor, status, tickets, say, load_weights, slots)
    except _Stopped:
        pass
    except (EOFError, ConnectionError):
        raise  # nobody is there to listen
    except BaseException as error:
        say(Failed.because(error, env_ids))
    finally:
        if actor is not None:
            try:
                actor.vectorizer.close()
            except BaseException as error:
                say(Failed.because(error, env_ids))


def _act(
    actor: Actor,
    status: Status,
    tickets: Callable[[], int | None],
    say: Callable[[Any], None],
    load_weights: Callable[[Any], int],
    slots: list[Any],
) -> None:
    actor.on_step = _reporter(actor, status)
    actor.keep_actions = False  # nobody asks for its state
    actor.begin(status.episode_numbers + 1, status.acted)
    actor.on_step(0)
    actor.watch.take()
    say(Ready())
    last = perf_counter()
    while True:
        asked = perf_counter()
        slot = tickets()
        if slot is None:
            return
        actor.watch.add("wait", perf_counter() - asked)
        version = actor.version = load_weights(actor.policy)
        status.version[0] = version
        rollout = actor.collect(slots[slot])
        now = perf_counter()
        say(
            Filled(
                slot,
                version,
                len(rollout.final_index),
                rollout.episodes,
                rollout.dropped_steps,
                actor.watch.take(),
                now - last,
                None if slots[slot] is not None else rollout,
            )
        )
        last = now


def _reporter(actor: Actor, status: Status) -> Callable[[int], None]:
    def report(rows: int) -> None:
        status.steps[0] += rows
        status.episode_numbers[:] = actor.vectorizer.episode_numbers
        status.acted[:] = actor.acted
        if status.stop[0]:
            raise _Stopped

    return report


@dataclass(frozen=True)
class Share:
    """What an actor process is given: by pickling, before the memory that it names."""

    recipe: bytes  # pickled apart: what it imports may fail, and then there must be somebody to tell
    env_ids: range
    plan: SlotPlan
    weights: Layout


def main(connection: Connection, payload: bytes) -> None:
    """The life of an actor process.

    Args:
        connection: this end of the pipe.
        payload: a pickled `Share`.
    """
    settle()
    try:
        _serve(connection, payload)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone; do not let an env's clean-up hold this process


def _serve(connection: Connection, payload: bytes) -> None:
    from parl_cli.actors.slots import Status
    from parl_cli.actors.weights import SharedWeights, WeightsReader
    from parl_cli.vectorizers.shared import receive

    share: Share = pickle.loads(payload)
    plan = share.plan
    own = receive(connection, plan.size)
    weights = receive(connection, SharedWeights.size(share.weights))

    def make() -> Actor:
        recipe = pickle.loads(share.recipe)
        return recipe.actor(recipe.policy(), share.env_ids)

    live(
        make,
        Status.over(own, plan.num_envs),
        connection.recv,
        connection.send,
        WeightsReader(SharedWeights(weights, share.weights)).load_into,
        plan.slots(own),
        share.env_ids,
    )
