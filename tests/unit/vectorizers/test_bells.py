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
        Listener(theirs, memory, 1, 0, 1.0, True, 0, 2, 2).answer(0)
        assert ours.poll(0)  # the nudge
