"""First-ready batches, groups of envs, and workers that are replaced."""

import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import threading
import time
from functools import partial

import numpy as np
import psutil
import pytest
from gymnasium.vector import AutoresetMode

from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv, counting_seed
from parl_cli.errors import ConfigError, EnvError, WorkerError
from parl_cli.vectorizers import AsyncVectorizer, SubprocessVectorizer, bells
from tests.helpers.processes import nothing_left_behind

SAME_STEP = AutoresetMode.SAME_STEP
pytestmark = pytest.mark.usefixtures(nothing_left_behind.__name__)


def make(cls, env_fns, **options):
    return cls(env_fns, autoreset_mode=SAME_STEP, episode_seed=counting_seed, **options)


@pytest.fixture(params=["bells", "pipe"])
def way(request, monkeypatch):
    """Both ways in which a step is asked for: flags in shared memory, and the portable pipe."""
    monkeypatch.setattr(bells, "AVAILABLE", request.param == "bells")
    return request.param


def drive(vectorizer, env_steps):
    """Act on whoever is ready; each env's steps in the order they came: {env: [(obs, reward, mask, ended)]}."""
    seen = {env: [] for env in range(vectorizer.num_envs)}
    vectorizer.begin()
    vectorizer.send(np.zeros(vectorizer.num_envs, int))
    while min(map(len, seen.values())) < env_steps:
        step = vectorizer.recv()
        for row, env in enumerate(step.env_ids.tolist()):
            seen[env].append(
                (step.obs[row].tolist(), float(step.reward[row]), bool(step.mask[row]), bool(step.ended[row]))
            )
        vectorizer.send(np.zeros(len(step.env_ids), int), step.env_ids)
    vectorizer.close()
    return seen


@pytest.mark.parametrize(("num_workers", "num_groups"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 1)])
def test_every_env_lives_the_life_it_has_in_lock_step(num_workers, num_groups, way):
    alone = drive(make(SubprocessVectorizer, [CountingEnv] * 6, num_workers=1), 11)
    seen = drive(make(AsyncVectorizer, [CountingEnv] * 6, num_workers=num_workers, num_groups=num_groups), 11)
    assert {env: life[:11] for env, life in seen.items()} == {env: life[:11] for env, life in alone.items()}


def test_a_slow_env_keeps_no_other_worker_waiting(way):
    env_fns = [partial(SleepEnv, step_s=0.3), *[CountingEnv] * 3]
    vectorizer = make(AsyncVectorizer, env_fns, num_workers=4, num_groups=1, batch_size=1)
    seen = dict.fromkeys(range(4), 0)
    vectorizer.begin()
    vectorizer.send(np.zeros(4, int))
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        step = vectorizer.recv()
        for env in step.env_ids.tolist():
            seen[env] += 1
        vectorizer.send(np.zeros(len(step.env_ids), int), step.env_ids)
    vectorizer.close()
    assert seen[0] <= 4
    assert min(seen[1], seen[2], seen[3]) > 10 * seen[0]


def test_recv_waits_for_a_batch_of_whole_groups(way):
    vectorizer = make(AsyncVectorizer, [CountingEnv] * 8, num_workers=2, num_groups=2, batch_size=3)
    vectorizer.begin()
    vectorizer.send(np.zeros(8, int))
    got = [vectorizer.recv().env_ids.tolist()]
    while sum(map(len, got)) < 8:
        got.append(vectorizer.recv().env_ids.tolist())
    assert all(len(ids) >= 3 or ids is got[-1] for ids in got)
    assert all(ids == sorted(ids) for ids in got)
    groups = [{0, 1}, {2, 3}, {4, 5}, {6, 7}]
    assert all(group <= set(ids) or not group & set(ids) for ids in got for group in groups)
    assert sorted(env for ids in got for env in ids) == list(range(8))
    vectorizer.close()


def test_an_env_that_raises_is_named_after_the_others_have_answered(way):
    env_fns = [CountingEnv, CountingEnv, CountingEnv, partial(FaultyEnv, raise_at=2)]
    vectorizer = make(AsyncVectorizer, env_fns, num_workers=2, num_groups=2)
    with pytest.raises(EnvError, match=r"env 3 failed in step .*step 3.*: RuntimeError"):
        drive_on(vectorizer)
    assert vectorizer.begin().tolist() == [[env, 0, 0] for env in range(4)]
    vectorizer.close()


def drive_on(vectorizer):
    vectorizer.begin()
    vectorizer.send(np.zeros(vectorizer.num_envs, int))
    while True:
        step = vectorizer.recv()
        vectorizer.send(np.zeros(len(step.env_ids), int), step.env_ids)


def test_a_batch_of_more_envs_than_there_are_is_refused():
    with pytest.raises(ConfigError, match=r"vectorizer\.batch_size=5: at most num_envs=4"):
        make(AsyncVectorizer, [CountingEnv] * 4, batch_size=5)


# ---- workers that are replaced ----

FAULTS = {
    "raises": {"raise_at": 4},
    "raises what cannot be pickled": {"raise_at": 4, "unpicklable": True},
    "exits": {"exit_at": 4},
    "is killed": {"kill_at": 4},
    "hangs": {"hang_at": 4},
    "raises in reset": {"raise_at": 1, "where": "reset"},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.parametrize("cls", [SubprocessVectorizer, AsyncVectorizer])
def test_a_failed_worker_is_replaced_and_the_others_keep_their_lives(cls, fault, way, tmp_path):
    marker = str(tmp_path / "failed")
    env_fns = [CountingEnv, CountingEnv, CountingEnv, partial(FaultyEnv, marker=marker, **fault)]
    options = {"num_workers": 2, "step_timeout_s": 2.0}
    healthy = drive(make(SubprocessVectorizer, [CountingEnv] * 4, num_workers=1), 12)
    vectorizer = make(cls, env_fns, max_restarts=1, **options)
    seen = drive(vectorizer, 12)
    assert vectorizer.restarts == 1
    for env in (0, 1):
        assert seen[env][:12] == healthy[env][:12]
    for env in (2, 3):
        fillers = [k for k, (_, reward, mask, ended) in enumerate(seen[env]) if not mask]
        assert len(fillers) == 1
        k = fillers[0]
        assert seen[env][:k] == healthy[env][:k]
        obs, reward, mask, ended = seen[env][k]
        assert (reward, mask, ended) == (0.0, False, True)
        episode = obs[1]
        begun = healthy[env][k - 1][0][1]  # the episode that was cut off
        assert obs == [env, episode, 0]
        assert episode > begun  # never the seeds of an episode that was begun
        assert all(mask for _, _, mask, _ in seen[env][k + 1 :])


def test_a_parent_that_waits_in_lock_step_sleeps(way):
    """The last worker's nudge is read even when the first is waited for, or the pipe would keep the parent awake."""
    env_fns = [partial(SleepEnv, step_s=0.01), partial(SleepEnv, step_s=0.012)]
    vectorizer = make(SubprocessVectorizer, env_fns, num_workers=2)
    vectorizer.begin()
    looks, look = [], vectorizer._replies
    vectorizer._replies = lambda timeout_s: looks.append(timeout_s) or look(timeout_s)
    for _ in range(40):
        vectorizer.send(np.zeros(2, int))
        vectorizer.recv()
    assert len(looks) < 40 * 6
    vectorizer.close()


def test_answers_that_come_with_a_failure_of_another_worker_count(way, tmp_path):
    env_fns = [partial(FaultyEnv, raise_at=1, marker=str(tmp_path / "failed")), CountingEnv]
    vectorizer = make(SubprocessVectorizer, env_fns, num_workers=2, max_restarts=1, step_timeout_s=3)
    vectorizer.reset()
    vectorizer.step(np.zeros(2, int))
    vectorizer.step_async(np.zeros(2, int))
    time.sleep(0.3)  # both answers are there
    obs, *_, infos = vectorizer.step_wait()
    assert obs.tolist() == [[0, 1, 0], [1, 0, 2]]
    assert infos["lost"].tolist() == [True, False]
    vectorizer.close()


def test_a_replacement_that_takes_long_costs_no_healthy_worker(way, tmp_path):
    """The others' answers lie in their pipes while the new worker starts, for longer than a step may take."""
    env_fns = [partial(SlowAgain, str(tmp_path / "made")), CountingEnv]
    vectorizer = make(SubprocessVectorizer, env_fns, num_workers=2, max_restarts=1, step_timeout_s=0.5)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    step = vectorizer.recv()
    assert step.mask.tolist() == [False, True]
    assert vectorizer.restarts == 1
    vectorizer.close()


class SlowAgain(FaultyEnv):
    """Raises in its first step, and is made again only slowly."""

    def __init__(self, marker):
        again = os.path.exists(marker)
        time.sleep(1.5 * again)
        super().__init__(raise_at=None if again else 0, marker=None if again else marker)


def test_a_worker_that_hangs_is_noticed_while_others_always_have_an_answer(way):
    env_fns = [*[partial(SleepEnv, step_s=0.002, length=10**6)] * 4, *[partial(FaultyEnv, hang_at=1)] * 2]
    vectorizer = make(AsyncVectorizer, env_fns, num_workers=3, num_groups=2, batch_size=1, step_timeout_s=1)
    vectorizer.begin()
    vectorizer.send(np.zeros(6, int))
    until = time.monotonic() + 8
    words = r"worker 2 \(envs 4 to 5\) did not answer within step_timeout_s=1; it was killed"
    with pytest.raises(WorkerError, match=words):  # noqa: PT012 — somewhere in these
        while time.monotonic() < until:
            for env in vectorizer.recv().env_ids:
                time.sleep(0.01)
                vectorizer.send(np.zeros(1, int), env[None])


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_run_that_was_suspended_keeps_workers_that_were_about_to_answer(way):
    vectorizer = make(SubprocessVectorizer, [partial(SleepEnv, step_s=0.3)] * 2, num_workers=2, step_timeout_s=1.5)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    workers = [psutil.Process(process.pid) for process in vectorizer._processes]
    for worker in workers:
        worker.suspend()
    time.sleep(2)  # Ctrl-Z stops the parent as well, so it looks at the clock only after this
    threading.Timer(0.3, lambda: [worker.resume() for worker in workers]).start()
    assert vectorizer.recv().obs[:, 2].tolist() == [1, 1]
    vectorizer.close()


def test_time_begins_anew_only_once(way):
    vectorizer = make(SubprocessVectorizer, [partial(SleepEnv, step_s=600)] * 2, num_workers=2, step_timeout_s=0.5)
    vectorizer.begin()
    vectorizer.send(np.zeros(2, int))
    time.sleep(1)
    began = time.monotonic()
    with pytest.raises(WorkerError, match=r"worker 0 \(env 0\) did not answer"):  # noqa: PT012 — as often as it likes
        while time.monotonic() < began + 8:
            with contextlib.suppress(TimeoutError):
                vectorizer.recv(timeout=0.01)
            time.sleep(0.4)  # never looked at in time


def test_why_a_replacement_cannot_make_its_envs_is_said(way, tmp_path):
    env_fns = [CountingEnv, partial(OnlyOnce, str(tmp_path / "made"))]
    vectorizer = make(SubprocessVectorizer, env_fns, num_workers=2, max_restarts=1)
    with pytest.raises(EnvError, match=r"^env 1 could not be made: RuntimeError: the port is in use"):
        drive_on(vectorizer)
    assert vectorizer.closed


class OnlyOnce(FaultyEnv):
    """Kills its worker in its third step, and cannot be made twice."""

    def __init__(self, marker):
        if os.path.exists(marker):
            raise RuntimeError("the port is in use")
        pathlib.Path(marker).touch()
        super().__init__(kill_at=2)


def test_one_failure_more_than_max_restarts_ends_it(way):
    vectorizer = make(SubprocessVectorizer, [CountingEnv, partial(FaultyEnv, kill_at=2)], num_workers=2, max_restarts=2)
    with pytest.raises(WorkerError, match=r"worker 1 \(env 1\) was killed by SIGKILL"):
        drive_on(vectorizer)
    assert vectorizer.restarts == 2
    assert vectorizer.closed


def test_gymnasiums_face_says_which_envs_were_lost(tmp_path, way):
    env_fns = [CountingEnv, partial(FaultyEnv, kill_at=1, marker=str(tmp_path / "failed"))]
    vectorizer = make(SubprocessVectorizer, env_fns, num_workers=2, max_restarts=1)
    vectorizer.reset(seed=0)
    assert "lost" not in vectorizer.step(np.zeros(2, int))[4]
    obs, reward, terminated, truncated, infos = vectorizer.step(np.zeros(2, int))
    assert infos["lost"].tolist() == [False, True]
    assert truncated.tolist() == [False, True]
    assert not terminated.any()
    assert reward[1] == 0.0
    assert obs[1].tolist() == [1, 1, 0]
    assert "lost" not in vectorizer.step(np.zeros(2, int))[4]
    vectorizer.close()


def test_replacing_needs_same_step_mode():
    with pytest.raises(ConfigError, match=r"max_restarts=1: .*SAME_STEP"):
        SubprocessVectorizer([CountingEnv], max_restarts=1)


def test_workers_killed_at_random_lose_nothing_but_their_own_steps(way):
    """Every action sent comes back once, as a transition or as filler; nothing hangs."""
    rng = np.random.default_rng(5)
    sent, real, filler, deaths = 6, 0, 0, 0
    vectorizer = make(AsyncVectorizer, [CountingEnv] * 6, num_workers=3, max_restarts=8)
    lost, replace = [], vectorizer._replace

    def counted(worker, error):
        before = int(vectorizer._lost.sum())
        replaced = replace(worker, error)
        lost.append(int(vectorizer._lost.sum()) - before)
        return replaced

    vectorizer._replace = counted
    with contextlib.closing(vectorizer):
        vectorizer.begin()
        vectorizer.send(np.zeros(6, int))
        last = {}
        while deaths < 8 or real < 3000:
            step = vectorizer.recv()
            real += int(step.mask.sum())
            filler += int((~step.mask).sum())
            for env, obs, ended in zip(step.env_ids.tolist(), step.obs.tolist(), step.ended.tolist(), strict=True):
                if env in last and not ended:  # one transition further, none twice, none missed
                    assert obs == [env, last[env][1], last[env][2] + 1]
                last[env] = obs
            vectorizer.send(np.zeros(len(step.env_ids), int), step.env_ids)
            sent += len(step.env_ids)
            if deaths < 8 and rng.random() < 0.02:
                vectorizer._processes[rng.integers(3)].kill()
                deaths += 1
        assert sent - real - filler == vectorizer._num_pending
        assert 2 <= vectorizer.restarts <= 8
        assert filler + int(vectorizer._lost.sum()) == sum(lost)
        # a worker that is killed again before its lost rows were taken loses none besides
        assert len(lost) == vectorizer.restarts
        assert set(lost) <= {0, 1, 2}
        assert 0 not in lost[:1]
    assert not multiprocessing.active_children()


def test_configs_of_subprocess_and_async_agree_where_they_overlap():
    mine = {f.name: f.default for f in dataclasses.fields(AsyncVectorizer.Config)}
    theirs = {f.name: f.default for f in dataclasses.fields(SubprocessVectorizer.Config)}
    assert {k: mine[k] for k in theirs if k != "name"} == {k: v for k, v in theirs.items() if k != "name"}


@pytest.mark.parametrize("ids", [None, np.arange(4)])
def test_no_group_of_a_worker_found_dead_while_sending_is_stepped(ids, way):
    """Its envs have begun new episodes by then, whose first observation somebody must see before they act."""
    vectorizer = make(AsyncVectorizer, [CountingEnv] * 4, num_workers=2, num_groups=2, batch_size=4, max_restarts=1)
    with contextlib.closing(vectorizer):
        vectorizer.begin()
        vectorizer.send(np.zeros(4, int))
        vectorizer.recv()
        time.sleep(0.3)  # the workers sleep
        vectorizer._processes[0].kill()
        vectorizer._processes[0].join(10)
        vectorizer.send(np.zeros(4, int), ids)
        step = vectorizer.recv()
        assert step.mask.tolist() == [False, False, True, True]
        assert step.obs[:2, 2].tolist() == [0.0, 0.0]  # how many steps the episode has seen
