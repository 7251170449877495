"""How processes start, without starting any."""

import contextlib
import os
import subprocess
import sys
import threading
import types

import pytest

from parl_cli.vectorizers import processes


class Context:
    """Of `multiprocessing`; its processes call `started` instead of starting."""

    def __init__(self, started):
        self.started = started

    def Pipe(self):  # noqa: N802
        return types.SimpleNamespace(), types.SimpleNamespace(close=lambda: None)

    def Process(self, **options):  # noqa: N802
        return types.SimpleNamespace(start=self.started)


def threads_of_maths():
    return {name: os.environ.get(name) for name in processes.THREAD_VARIABLES}


def test_processes_started_by_several_threads_leave_the_environment_as_it_was(monkeypatch):
    monkeypatch.setattr(processes, "_signals_held", contextlib.nullcontext)  # starts a resource tracker
    for name in processes.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before, seen = threads_of_maths(), []
    second_is_in, first_is_out = threading.Event(), threading.Event()

    def first():
        second.start()
        second_is_in.wait(0.2)  # it never is, where they take turns
        seen.append(threads_of_maths())

    def start_second():
        processes.start(Context(second_starts), print, b"", "second")

    def second_starts():
        second_is_in.set()
        first_is_out.wait(10)
        seen.append(threads_of_maths())

    second = threading.Thread(target=start_second)
    processes.start(Context(first), print, b"", "first")
    first_is_out.set()
    second.join(10)
    assert seen == [dict.fromkeys(before, "1")] * 2
    assert threads_of_maths() == before


def test_ctrl_c_while_a_process_starts_leaves_none(monkeypatch):
    monkeypatch.setattr(processes, "_signals_held", contextlib.nullcontext)
    happened = []

    def started():
        process.pid = 7
        raise KeyboardInterrupt

    process = types.SimpleNamespace(start=started, pid=None, kill=lambda: happened.append("killed"))
    context = Context(None)
    context.Pipe = lambda: [types.SimpleNamespace(close=lambda: happened.append("closed")) for _ in range(2)]
    context.Process = lambda **options: process
    with pytest.raises(KeyboardInterrupt):
        processes.start(context, print, b"", "first")
    assert happened == ["killed", "closed", "closed"]


def test_a_script_without_a_main_guard_is_suspected_only_where_a_worker_never_was_ready():
    starting = processes.cause_of_death(1, starting=True)
    assert starting.startswith("exited with code 1 before it was ready; its own output says more. A script ")
    assert processes.cause_of_death(1) == "exited with code 1; its own output says more"
    assert "A script" not in processes.cause_of_death(3, starting=True)


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_the_sign_of_too_little_memory_stands_last():
    text = "was killed by SIGKILL before it was ready, often a sign of too little memory"
    assert processes.cause_of_death(-9, starting=True) == text


def test_a_process_without_standard_error_starts_all_the_same():
    code = (
        "import sys; sys.stderr = None; from parl_cli.vectorizers.processes import settle; settle(); print('settled')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "settled\n"


@pytest.mark.skipif(sys.platform != "linux", reason="no such setting")
def test_a_process_wakes_in_time():
    code = "from parl_cli.vectorizers.processes import settle; settle(); print(open('/proc/self/timerslack_ns').read())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.split() == ["1"]
