import multiprocessing

from parl_cli.vectorizers import bells
from parl_cli.vectorizers.bells import QUIET, RUNG, Bells, Listener


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
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        Listener(theirs, memory, 1, 0, 1.0, 0, 2, 2).answer(0)
        assert ours.poll(0)  # the nudge


def test_the_parent_is_woken_when_so_many_have_answered_as_it_waits_for():
    memory = bytearray(Bells.size(3, 3))
    flags = Bells(memory, 0, 3, 3)
    for section in range(3):
        flags[section] = RUNG
    flags.set_bearable(1)  # it can go on with two of the three
    flags.set_asleep(3, True)
    woken = []
    for worker in range(3):
        ours, theirs = multiprocessing.Pipe()
        with ours, theirs:
            Listener(theirs, memory, 1, worker, 1.0, 0, 3, 3).answer(0)
            woken.append(ours.poll(0))
    assert woken == [False, True, True]
