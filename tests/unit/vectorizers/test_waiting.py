import multiprocessing
import sys
import time

import pytest

from parl_cli.vectorizers.waiting import Waiter, bound_writes


@pytest.mark.parametrize("timeout_s", [1e7, 1e12, float("inf")])
def test_a_very_long_wait_is_none_that_the_system_refuses(timeout_s):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        theirs.send("something")
        assert Waiter([ours]).wait(timeout_s) == [ours]


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("timeout_s", [1e-9, 0.1])
def test_a_write_that_nobody_reads_ends_at_its_limit(timeout_s):
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        bound_writes(ours, timeout_s)
        began = time.monotonic()
        with pytest.raises(BlockingIOError):
            ours.send_bytes(b"x" * 10**7)
        assert time.monotonic() - began < 5
        theirs.send("still open")
        assert ours.recv() == "still open"


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_a_limit_of_any_length_can_be_set():
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        bound_writes(ours, 1e300)
        ours.send("something")
        assert theirs.recv() == "something"
