"""Every registered vectorizer against envs, workers and parents that fail."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode

from parl_cli.envs.toy import (
    CountingEnv,
    FaultyEnv,
    SleepEnv,
)
from parl_cli.errors import ConfigError, EnvError, ParlError, WorkerError
from parl_cli.vectorizers import SubprocessVectorizer
from tests.helpers.processes import gone, nothing_left_behind, shared_files
from tests.helpers.vectorizers import every_vectorizer, make

SAME_STEP = AutoresetMode.SAME_STEP
pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)


# ---- failures, each within seconds ----


@pytest.fixture
def within():
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 20


@every_vectorizer
@pytest.mark.parametrize("unpicklable", [False, True])
def test_an_exception_in_step_names_env_seed_step_and_action(name, unpicklable, within):
    faulty = partial(FaultyEnv, raise_at=1, unpicklable=unpicklable, length=9)
    vectorizer = make(name, [CountingEnv, CountingEnv, faulty, CountingEnv], num_workers=2)
    vectorizer.begin()
    vectorizer.send(np.array([0, 1, 2, 3]))
    vectorizer.recv()
    vectorizer.send(np.array([0, 1, 2, 3]))
    cause = "UnpicklableError" if unpicklable else "RuntimeError"
    words = rf"^env 2 failed in step \(seed 2000, episode 0, step 2, action 2\): \S*{cause}.*\n\nTraceback"
    with pytest.raises(EnvError, match=words):
        vectorizer.recv()
    assert vectorizer.begin().tolist() == [[i, 0, 0] for i in range(4)]
    vectorizer.close()


@every_vectorizer
def test_an_exception_in_reset_names_env_seed_and_episode(name, within):
    vectorizer = make(name, [CountingEnv, partial(FaultyEnv, raise_at=1, where="reset")], num_workers=2)
    vectorizer.begin()
    with pytest.raises(EnvError, match=r"^env 1 failed in reset \(seed 1003, episode 3, step 1\): RuntimeError"):
        vectorizer.begin(np.array([3, 3]))
    vectorizer.close()


@every_vectorizer
def test_an_exception_in_a_constructor_names_the_env(name, within):
    with pytest.raises(EnvError, match=r"^env 2 could not be made: RuntimeError.*\n\nTraceback"):
        make(name, [CountingEnv, CountingEnv, partial(FaultyEnv, raise_at=0, where="init")], num_workers=2)


class WrongShape(CountingEnv):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs[:1], *rest)


class WrongDtype(CountingEnv):
    def step(self, action):
        obs, *rest = super().step(action)
        return (obs.astype(np.complex64), *rest)


@every_vectorizer
@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (WrongShape, r"^env 1 failed in step .*observation has shape \(1,\).*says \(3,\)"),
        (WrongDtype, r"^env 1 failed in step .*observation has dtype complex64.*says float32"),
        (partial(FaultyEnv, nan_at=0), r"^env 1 broke its contract: observation holds NaN \(seed .*step 1, action 0\)"),
    ],
    ids=["shape", "dtype", "nan"],
)
def test_an_observation_that_its_space_does_not_allow_is_an_error_not_a_cast(name, broken, words, within):
    vectorizer = make(name, [CountingEnv, broken], num_workers=2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    with pytest.raises(EnvError, match=words):
        vectorizer.recv()
    vectorizer.close()


class Crashing(CountingEnv):
    def step(self, action):
        os.kill(os.getpid(), signal.SIGSEGV)


def _subprocess(env_fns, **options):
    return make("subprocess", env_fns, **{"num_workers": 2, **options})


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(
    ("dying", "words"),
    [
        (partial(FaultyEnv, kill_at=0), r"worker 1 \(envs 2 to 3\) was killed by SIGKILL"),
        (partial(FaultyEnv, exit_at=0), r"worker 1 \(envs 2 to 3\) exited with code 3"),
        (Crashing, r"worker 1 \(envs 2 to 3\) was killed by SIGSEGV"),
    ],
    ids=["SIGKILL", "exit", "SIGSEGV"],
)
def test_a_worker_that_dies_is_named_with_its_envs_and_the_cause(dying, words, within):
    vectorizer = _subprocess([CountingEnv, CountingEnv, CountingEnv, dying])
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    with pytest.raises(WorkerError, match=words):
        vectorizer.recv()
    assert vectorizer.closed
    with pytest.raises(ParlError, match="closed"):
        vectorizer.begin()
    vectorizer.close()


def test_a_worker_that_dies_in_a_constructor_says_so(within):
    with pytest.raises(WorkerError, match=r"worker 0 \(env 0\) exited with code 3.* before it was ready"):
        _subprocess([partial(FaultyEnv, exit_at=0, where="init")])


def test_a_worker_killed_between_steps_is_noticed(within):
    vectorizer = _subprocess([CountingEnv] * 4)
    vectorizer.begin()
    vectorizer._processes[0].kill()
    vectorizer._processes[0].join(5)
    with pytest.raises(WorkerError, match=r"worker 0 \(envs 0 to 1\) was killed by SIGKILL"):  # noqa: PT012
        vectorizer.send(np.zeros(4, int))
        vectorizer.recv()
    vectorizer.close()


@pytest.mark.parametrize("where", ["step", "reset"])
def test_a_worker_that_hangs_is_killed_at_its_deadline(where, within):
    vectorizer = _subprocess([CountingEnv, partial(FaultyEnv, hang_at=1, where=where)], step_timeout_s=1.5)
    vectorizer.begin()
    with pytest.raises(
        WorkerError, match=r"worker 1 \(env 1\) did not answer within step_timeout_s=1\.5; it was killed"
    ):
        _run(vectorizer, 9)  # the fault comes in one of these
    vectorizer.close()


def _run(vectorizer, steps):
    for _ in range(steps):
        vectorizer.send(np.zeros(vectorizer.num_envs, int))
        vectorizer.recv()


def test_a_constructor_that_hangs_is_killed_at_its_deadline(within):
    with pytest.raises(WorkerError, match=r"worker 1 \(env 1\) did not answer within start_timeout_s=4; it was killed"):
        _subprocess([CountingEnv, partial(FaultyEnv, hang_at=0, where="init")], start_timeout_s=4)


def test_close_in_the_middle_of_a_long_step_is_bounded(within):
    vectorizer = _subprocess([partial(SleepEnv, step_s=600)] * 2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    vectorizer.close()


def test_factories_that_cannot_be_sent_are_refused_before_any_process_starts():
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"envs 0 to 1: the factories .* cannot be sent .* use vectorizer=serial"):
        _subprocess([lambda: lock] * 4)


def _bad_seed(env_id, episode):
    raise LookupError("no seed")


def test_a_fault_outside_the_envs_names_the_worker_and_keeps_its_traceback(within):
    vectorizer = _subprocess([CountingEnv] * 4, episode_seed=_bad_seed)
    words = r"worker 0 \(envs 0 to 1\) failed outside its envs: LookupError\n\nTraceback[\s\S]*LookupError: no seed"
    with pytest.raises(WorkerError, match=words):
        vectorizer.begin()
    vectorizer.close()


class Secretive(CountingEnv):
    def step(self, action):
        *rest, _ = super().step(action)
        return (*rest, {"lock": threading.Lock()})


def test_infos_that_cannot_be_sent_are_an_error_but_only_where_they_are_asked_for(within):
    vectorizer = _subprocess([Secretive] * 2)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1]
    with pytest.raises(EnvError, match=r"what the envs gave for step .* cannot be sent to another process: TypeError"):
        vectorizer.step(np.zeros(2, int))
    vectorizer.close()


# ---- processes ----


class Introspective(CountingEnv):
    def modules(self):
        return sorted(sys.modules)

    def environment(self):
        return os.environ.get("OMP_NUM_THREADS"), os.getpid()


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_run_without_torch_on_one_thread_each(context):
    if context == "forkserver" and sys.platform == "win32":
        pytest.skip("no fork server on Windows")
    before = dict(os.environ)
    vectorizer = _subprocess([Introspective] * 4, context=context)
    assert dict(os.environ) == before
    for modules in vectorizer.call("modules"):
        assert "numpy" in modules
        assert not [module for module in modules if module.split(".")[0] in ("torch", "hydra", "matplotlib", "rich")]
    threads, pids = zip(*vectorizer.call("environment"), strict=True)
    assert set(threads) == {"1"}
    assert pids[0] == pids[1] != pids[2] == pids[3]
    assert os.getpid() not in pids
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1, 1, 1]
    vectorizer.close()
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_default_is_one_worker_per_core_of_the_affinity():
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        vectorizer = SubprocessVectorizer([CountingEnv] * 4)
    finally:
        os.sched_setaffinity(0, cores)
    assert vectorizer.slices == [range(0, 4)]
    vectorizer.close()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_more_workers_than_the_system_starts_are_a_config_error():
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.dup(0) for _ in range(9)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, hard))
    try:
        with pytest.raises(
            ConfigError, match=r"^vectorizer\.num_workers=20: worker \d+ cannot be started \(Too many open"
        ):
            _subprocess([CountingEnv] * 20, num_workers=20)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Locked(CountingEnv):
    def __init__(self):
        super().__init__()
        self.metadata = {"lock": threading.Lock()}


def test_an_env_whose_description_cannot_be_sent_is_an_error_that_says_so(within):
    with pytest.raises(
        EnvError, match=r"^what the envs gave for __init__ .* cannot be sent to another process: TypeErr"
    ):
        _subprocess([Locked] * 2)


class Deaf(CountingEnv):
    def load(self, data):
        time.sleep(600)


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
def test_an_argument_too_large_for_the_pipe_of_a_hanging_worker_does_not_block_for_ever(within):
    vectorizer = make("async", [Deaf] * 2, num_workers=1, num_groups=2, step_timeout_s=1.5)
    with pytest.raises(
        WorkerError, match=r"^worker 0 \(envs 0 to 1\) did not answer within step_timeout_s=1\.5; it was k"
    ):
        vectorizer.call("load", b"x" * 10**6)
    assert vectorizer.closed


_SCRIPT = """
    import ctypes, signal, sys
    from functools import partial
    from threading import Thread
    import numpy as np
    from gymnasium.vector import AutoresetMode
    from parl_cli.envs.toy import CountingEnv, SleepEnv, counting_seed
    from parl_cli.vectorizers import SubprocessVectorizer

    class LockHolder(SleepEnv):
        def step(self, action):
            ctypes.PyDLL(None).sleep(int(self.step_s))

    if __name__ == "__main__":
        env = partial(LockHolder if sys.argv[2] == "hold the lock" else SleepEnv, step_s=float(sys.argv[1]))
        made = []

        def start():
            made.append(SubprocessVectorizer(
                [env] * 4,
                num_workers=2,
                autoreset_mode=AutoresetMode.SAME_STEP,
                episode_seed=counting_seed,
                context=sys.argv[3],
            ))

        if sys.argv[4] == "main":
            start()
        else:
            thread = Thread(target=start)
            thread.start()
            thread.join()
        vectorizer = made.pop()
        vectorizer.begin()
        print(*(process.pid for process in vectorizer._processes), flush=True)
        if sys.argv[2] == "leave":
            sys.exit(0)
        asked = []
        if sys.argv[2] == "finish":
            signal.signal(signal.SIGINT, lambda *_: asked.append("int"))
            signal.signal(signal.SIGTERM, lambda *_: asked.append("term"))
        print("stepping", flush=True)
        steps_left = 100
        while steps_left:
            steps_left -= len(asked) == 2
            vectorizer.send(np.zeros(4, int))
            try:
                vectorizer.recv()
            finally:
                if sys.argv[2] == "close":
                    vectorizer.close()
"""


def _start_script(tmp_path, *args, context="spawn", thread="main"):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, script, *args, context, thread],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    process.stdout.readline()  # "stepping"
    return process, pids


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("step_s", ["0.0001", "600"], ids=["stepping", "hanging"])
def test_a_killed_parent_leaves_no_process_and_no_shared_memory(tmp_path, step_s, context):
    before = shared_files()
    process, pids = _start_script(tmp_path, step_s, "stay", context=context)
    assert len(pids) == 2
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=10)
    assert gone(pids)
    assert shared_files() <= before


@pytest.mark.skipif(sys.platform != "linux", reason="needs F_SETSIG")
@pytest.mark.parametrize("context", ["spawn", "forkserver"])
@pytest.mark.parametrize("thread", ["main", "other"])
def test_a_killed_parent_leaves_no_process_that_holds_the_interpreters_lock(tmp_path, context, thread):
    process, pids = _start_script(tmp_path, "60", "hold the lock", context=context, thread=thread)
    assert len(pids) == 2
    time.sleep(0.3)
    process.kill()
    process.communicate(timeout=10)
    assert gone(pids)


def test_the_end_of_the_thread_that_started_workers_ends_no_worker():
    made = []
    thread = threading.Thread(target=lambda: made.append(_subprocess([CountingEnv] * 2)))
    thread.start()
    thread.join()
    time.sleep(0.2)
    with contextlib.closing(made[0]) as vectorizer:
        vectorizer.begin()
        assert all(process.is_alive() for process in vectorizer._processes)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_a_second_ctrl_c_while_workers_are_asked_to_close_ends_everything(tmp_path):
    process, pids = _start_script(tmp_path, "60", "close")
    for wait_s in (0.3, 1.0):
        time.sleep(wait_s)
        os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=15)
    assert gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_workers_survive_ctrl_c_and_sigterm_so_that_the_parent_can_finish(tmp_path):
    process, pids = _start_script(tmp_path, "0.0001", "finish")
    for signal_number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler does: to all of them
        os.killpg(process.pid, signal_number)
        time.sleep(0.1)
    _, errors = process.communicate(timeout=15)
    assert (process.returncode, errors) == (0, "")
    assert gone(pids)


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("step_s", ["0.0001", "600"], ids=["stepping", "hanging"])
def test_an_unhandled_ctrl_c_ends_everything_with_one_traceback(tmp_path, step_s):
    process, pids = _start_script(tmp_path, step_s, "stay")
    time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=15)
    assert gone(pids)
    assert errors.count("KeyboardInterrupt") == 1
    assert "resource_tracker" not in errors


def test_a_script_that_ends_without_close_ends_at_once_and_quietly(tmp_path):
    process, pids = _start_script(tmp_path, "0.0001", "leave")
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 0
    assert errors == ""
    assert gone(pids)


def test_a_vectorizer_that_is_dropped_ends_its_workers():
    vectorizer = _subprocess([CountingEnv] * 2)
    pids = [process.pid for process in vectorizer._processes]
    del vectorizer
    assert gone(pids)
