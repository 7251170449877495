"""Under spawn, with every call that only Linux has taken away, in the parent and in its workers."""

import json
import os
import subprocess
import sys
import textwrap

import psutil
import pytest

from parl_cli.vectorizers.processes import cause_of_death
from tests.helpers.cli import TINY, parl

# What is looked for with hasattr, getattr or isdir somewhere in parl, or may fail (F_SETSIG); memfd_create, eventfd and
# pidfd_open are used nowhere, and this shows it. Descriptors that are sent are acknowledged, as on macOS.
_SITE = """
    import ctypes, faulthandler, fcntl, os, select, signal
    from multiprocessing import reduction

    reduction.ACKNOWLEDGE = True
    gone = {
        os: ["sched_getaffinity", "sched_setaffinity", "sched_yield", "posix_fallocate", "memfd_create", "eventfd",
             "pidfd_open"],
        select: ["poll", "epoll"],
        signal: ["pthread_sigmask", "SIGUSR1", "pidfd_send_signal"],
        faulthandler: ["register"],
        fcntl: ["F_SETSIG"],
    }
    for module, names in gone.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    isdir = os.path.isdir
    os.path.isdir = lambda path: path != "/dev/shm" and isdir(path)

    load = ctypes.CDLL.__getattr__

    def without_prctl(self, name):
        if name == "prctl":
            raise AttributeError(name)
        return load(self, name)

    ctypes.CDLL.__getattr__ = without_prctl
"""

_SCRIPT = """
    import hashlib, json, os, select, signal, sys
    from functools import partial
    import numpy as np
    from gymnasium.vector import AutoresetMode
    from parl_cli.envs.toy import CountingEnv, FaultyEnv, counting_seed
    from parl_cli.errors import WorkerError
    from parl_cli.vectorizers import AsyncVectorizer, SerialVectorizer, SubprocessVectorizer, bells
    from parl_cli.vectorizers.calls import available_cores

    class Asked(CountingEnv):
        def has(self):
            return [hasattr(os, "sched_getaffinity"), hasattr(select, "poll"), hasattr(signal, "pthread_sigmask")]

    def make(cls, env_fns, **options):
        return cls(env_fns, autoreset_mode=AutoresetMode.SAME_STEP, episode_seed=counting_seed, **options)

    def trace(vectorizer):
        digest = hashlib.sha256(vectorizer.begin().tobytes())
        rng = np.random.default_rng(0)
        for _ in range(40):
            vectorizer.send(rng.integers(0, 4, 4))
            step = vectorizer.recv()
            for part in (step.obs, step.reward, step.terminated, step.truncated, step.final_obs):
                digest.update(part.tobytes())
        vectorizer.close()
        return digest.hexdigest()

    def main():
        told = {"cores": available_cores(), "traces": [trace(make(SerialVectorizer, [Asked] * 4))]}
        for available in (False, bells.AVAILABLE):
            bells.AVAILABLE = available
            told["traces"].append(trace(make(SubprocessVectorizer, [Asked] * 4, num_workers=2)))
            told["traces"].append(trace(make(AsyncVectorizer, [Asked] * 4, num_workers=2, batch_size=4)))
        vectorizer = make(SubprocessVectorizer, [Asked] * 4, num_workers=2)
        told["has"] = vectorizer.call("has")
        told["pids"] = [process.pid for process in vectorizer._processes]
        vectorizer.close()
        told["replaced"] = []
        for fault in ({"kill_at": 2}, {"exit_at": 2}, {"hang_at": 2}, {"raise_at": 2}):
            faulty = partial(FaultyEnv, marker=f"{sys.argv[1]}/{next(iter(fault))}", **fault)
            vectorizer = make(SubprocessVectorizer, [Asked, faulty], num_workers=2, max_restarts=1, step_timeout_s=3)
            trace_masks = []
            vectorizer.begin()
            for _ in range(5):
                vectorizer.send(np.zeros(2, int))
                trace_masks.append(vectorizer.recv().mask.tolist())
            told["replaced"].append(trace_masks.count([True, False]))
            vectorizer.close()
        print(json.dumps(told), flush=True)
        left = make(SubprocessVectorizer, [Asked] * 2, num_workers=2)
        print(*(process.pid for process in left._processes), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        main()
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A system that has none of it, for every Python process that is started."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(_SITE))
    paths = [str(folder), *filter(None, sys.path)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="it has none of this anyway, nor SIGKILL")
def test_vectorizers_work_without_what_only_linux_has(elsewhere):
    script = elsewhere / "script.py"
    script.write_text(textwrap.dedent(_SCRIPT))
    done = subprocess.run([sys.executable, script, elsewhere], capture_output=True, text=True, timeout=120, check=False)
    assert cause_of_death(done.returncode).startswith("was killed by SIGKILL"), done.stderr
    first, second = done.stdout.splitlines()
    told = json.loads(first)
    assert told["cores"] >= 1
    assert told["has"] == [[False] * 3] * 4
    assert len(told["traces"]) == 5
    assert len(set(told["traces"])) == 1
    assert told["replaced"] == [1] * 4
    assert not [pid for pid in told["pids"] if psutil.pid_exists(pid)]
    psutil.wait_procs([psutil.Process(int(pid)) for pid in second.split() if psutil.pid_exists(int(pid))], timeout=10)
    assert not [pid for pid in second.split() if psutil.pid_exists(int(pid))]


def test_a_run_is_the_same_without_what_only_linux_has(elsewhere):
    done = parl("train", "env=cartpole", "vectorizer=subprocess", *TINY, "hydra.run.dir=run", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
