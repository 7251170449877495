import multiprocessing
import os
import sys
from multiprocessing import reduction

import numpy as np
import pytest

from parl_cli.errors import ConfigError
from parl_cli.vectorizers import shared
from parl_cli.vectorizers.shared import SharedMemory


def test_memory_is_writable_and_outlives_its_file():
    memory = SharedMemory(1000)
    memory.close_file()
    array = np.ndarray(1000, np.uint8, memory.buffer)
    array[:] = 7
    assert bytes(memory.buffer) == b"\x07" * 1000


def test_too_much_is_a_config_error_that_says_how_much_and_what_to_do():
    with pytest.raises(ConfigError, match=r"1,073,741,824\.0 MB of shared memory.*lower num_envs"):
        SharedMemory(2**50)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="no /dev/shm on this system")
def test_memory_has_no_name_in_dev_shm():
    before = set(os.listdir("/dev/shm"))
    memory = SharedMemory(4096)
    assert set(os.listdir("/dev/shm")) <= before
    memory.close_file()


@pytest.mark.skipif(sys.platform == "win32", reason="named sections reserve on their own")
def test_a_refused_reservation_leaves_no_descriptor_open():
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for _ in range(3):
        with pytest.raises(ConfigError):
            SharedMemory(2**50)
    after = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    assert after == before


@pytest.mark.skipif(sys.platform == "win32", reason="no file there")
def test_a_folder_that_cannot_be_written_is_a_config_error(monkeypatch, tmp_path):
    monkeypatch.setattr(shared, "_FOLDER", str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match=r"memory for observations: .*gone cannot hold it \(No such file"):
        SharedMemory(4096)


def test_memory_is_sent_among_messages_that_go_both_ways(monkeypatch):
    """As macOS has it, where `reduction` takes the next byte from the other end for an acknowledgement."""
    monkeypatch.setattr(reduction, "ACKNOWLEDGE", True, raising=False)
    memory = SharedMemory(4096)
    ours, theirs = multiprocessing.Pipe()
    with ours, theirs:
        theirs.send("an answer")
        for number in range(2):
            ours.send(number)
            memory.send(ours)
        for number in range(2):
            assert theirs.recv() == number
            with shared.receive(theirs, 4096) as received:
                received[number] = 9
        assert ours.recv() == "an answer"
    memory.close_file()
    assert bytes(memory.buffer[:3]) == b"\x09\x09\x00"
