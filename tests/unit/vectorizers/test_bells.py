import multiprocessing
import select
import time
from contextlib import closing

import pytest

from parl_cli.vectorizers import bells
from parl_cli.vectorizers.bells import QUIET, RUNG, Bells, Listener, Wire, nudge
from parl_cli.vectorizers.waiting import Waiter

pytestmark = pytest.mark.skipif(not bells.AVAILABLE, reason="no bells on this machine")


def test_of_two_last_workers_one_sees_that_all_have_answered(monkeypatch):
    """Each sets its flag, then looks at the other's: with no fence between, both may see the other still at work."""
    memory = bytearray(Bells.size(2, 2))
    flags = Bells(memory, 0, 2, 2)
    flags[0] = flags[1] = RUNG
    flags.set_asleep(2, True)

    class Fence:
        """What the other core stored before becomes visible here, at the latest."""

        def __enter__(self):
            assert flags[0] == QUIET
            flags[1] = QUIET

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(bells, "_fence", Fence())
    assert _nudged_by_answer(memory, 0, 2)


def test_the_parent_is_woken_when_so_many_have_answered_as_it_waits_for():
    memory = bytearray(Bells.size(3, 3))
    flags = Bells(memory, 0, 3, 3)
    for section in range(3):
        flags[section] = RUNG
    flags.set_bearable(1)  # it can go on with two of the three
    flags.set_asleep(3, True)
    assert [_nudged_by_answer(memory, worker, 3) for worker in range(3)] == [False, True, True]


def _nudged_by_answer(memory, worker, num_workers):
    """Whether a worker, when it has stepped, wakes its parent."""
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, closing(Wire()) as its, closing(Wire()) as parents:
        wires = its.reading, parents.ringing
        Listener(theirs, wires, memory, 1, worker, 1.0, 0, num_workers, num_workers).answer(0)
        return bool(select.select([parents.reading], [], [], 0)[0])


def test_a_wire_that_is_full_holds_nobody_up():
    with closing(Wire()) as wire:
        for _ in range(100_000):  # more than a pipe holds
            nudge(wire.ringing)
        waiter = Waiter([], wire.reading)
        began = time.monotonic()
        while select.select([wire.reading], [], [], 0)[0]:
            assert waiter.wait(60.0) == []
        assert waiter.wait(0.0) == []
        assert time.monotonic() - began < 30


def test_a_wire_wakes_and_is_none_of_the_sources():
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs, closing(Wire()) as wire:
        waiter = Waiter([ours], wire.reading)
        theirs.send("something")
        nudge(wire.ringing)
        assert waiter.wait() == [ours]
        ours.recv()
        assert waiter.wait(0.0) == []
