"""How processes start, without starting any."""

import contextlib
import os
import threading
import types

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
