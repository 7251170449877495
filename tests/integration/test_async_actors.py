"""Actors in processes and threads of their own: what they deliver, how they fail, and that nothing is left behind."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import psutil
import pytest
import torch

from parl_cli.actors.weights import SharedWeights, WeightsReader, WeightsWriter, weights_layout
from parl_cli.envs.toy import CountingEnv, FaultyEnv, SleepEnv
from parl_cli.errors import EnvError, ParlError, WorkerError
from parl_cli.experiment import Experiment
from parl_cli.metrics.catalog import lookup
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.types import Snapshot
from parl_cli.vectorizers.asynchronous import AsyncVectorizer
from parl_cli.vectorizers.shared import SharedMemory, receive
from parl_cli.vectorizers.subprocess import SubprocessVectorizer
from tests.benchmarks import chaos
from tests.helpers.actors import POOLS, learn, pids, pool_of
from tests.helpers.cli import ROOT, environment, parl
from tests.helpers.processes import below, gone, shared_files, workers_of_this_process
from tests.helpers.runs import CLI_TINY, ROLLOUT, Parl
from tests.helpers.stubs import GRUPolicy, make_policy, weights_hash
from tests.integration.test_loop_probes import check_counting, spec_of

POLICY = make_policy(spec_of(CountingEnv()))
TINY = ["algo=appo", "env=cartpole", "seed=3", *CLI_TINY]
every_pool = pytest.mark.parametrize("kind", POOLS)
however_they_start = pytest.mark.usefixtures("forked_actors")


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """No process, no thread of ours, and nothing in /dev/shm outlives a test."""
    shm = shared_files()
    yield
    assert not workers_of_this_process()
    assert not [t.name for t in threading.enumerate() if t.name.startswith("parl-") and "left" not in t.name]
    assert shared_files() <= shm


# ---- what they deliver ----


@every_pool
@pytest.mark.parametrize("policy", [None, GRUPolicy])
@however_they_start
def test_experience_is_kept_in_order(kind, policy):
    weights = POLICY if policy is None else make_policy(spec_of(CountingEnv()), policy)
    with pool_of(kind, num_envs=6, recipe={"policy_class": policy}, max_policy_lag=99) as pool:
        seen: dict[int, tuple[int, int]] = {}
        for rollout in learn(pool, weights, 8):
            assert rollout.obs.shape == (7, 6, 3)
            for n in np.argsort(rollout.env_id.numpy(), kind="stable"):  # an env may have two columns, in order
                check_counting(one_column(rollout, n), seen)
    assert sum(episode for episode, _ in seen.values()) > 6


def one_column(rollout, n):
    columns = {name: getattr(rollout, name)[:, n : n + 1] for name in ("obs", "is_first", "mask", "action", "reward")}
    columns |= {name: getattr(rollout, name)[:, n : n + 1] for name in ("terminated", "truncated", "policy_version")}
    heads = {name: getattr(rollout, name)[n : n + 1] for name in ("env_id", "last_obs", "last_is_first")}
    mine = rollout.final_index[:, 1] == n
    index = rollout.final_index[mine].clone()
    index[:, 1] = 0
    return type(rollout)(**columns, **heads, final_index=index, final_obs=rollout.final_obs[mine])


@pytest.mark.parametrize(
    ("vectorizer", "options"),
    [(SubprocessVectorizer, {"num_workers": 2}), (AsyncVectorizer, {"num_workers": 2, "num_groups": 2})],
)
@every_pool
@however_they_start
def test_actors_may_own_workers(kind, vectorizer, options):
    recipe = {"vectorizer": vectorizer, "options": options}
    with pool_of(kind, num_envs=4, num_actors=1, recipe=recipe) as pool:
        seen: dict[int, tuple[int, int]] = {}
        for rollout in learn(pool, POLICY, 5):
            for n in range(4):
                check_counting(one_column(rollout, n), seen)


@however_they_start
def test_rollouts_of_a_process_stay_what_they_were():
    with pool_of("process", num_actors=1) as pool:
        rollouts = learn(pool, POLICY, 6)
        seen: dict[int, tuple[int, int]] = {}
        for rollout in rollouts:
            for n in range(4):
                check_counting(one_column(rollout, n), seen)


def trained(*overrides, updates=6):
    with Experiment.compose([*TINY, *overrides]) as experiment:
        rows = []
        experiment.metrics.display = rows.append
        experiment.train(updates * ROLLOUT)
        dropped = int(rows[-1]["rollout/dropped_steps"])
        assert experiment.env_steps == experiment.learner.updates * ROLLOUT + dropped >= updates * ROLLOUT
        return weights_hash(experiment.policy), rows


@pytest.mark.parametrize("actors", [("process", 1), ("process", 2), ("thread", 1), ("thread", 2)])
@however_they_start
def test_without_lag_a_run_is_that_of_inline_bit_for_bit(actors):
    kind, number = actors
    weights, rows = trained("algo=ppo", f"actors={kind}", f"actors.num_actors={number}", "actors.max_policy_lag=0")
    assert [row["rollout/policy_lag_max"] for row in rows] == [0.0] * 6
    inline, _ = trained("algo=ppo")
    assert weights == inline


@every_pool
@however_they_start
def test_a_row_says_who_waited_for_whom_and_how_old_the_weights_were(kind):
    _, rows = trained(f"actors={kind}", "actors.num_actors=2", updates=20)
    for row in rows:
        assert not [name for name in row if lookup(name) is None]
        assert 0.0 <= row["rollout/policy_lag_mean"] <= row["rollout/policy_lag_max"] <= 4.0
        assert sum(row[f"time/{part}_share"] for part in ("env", "act", "learn", "wait", "other")) == pytest.approx(1)
        assert row["time/env_share"] == 0.0
    assert max(row["rollout/policy_lag_max"] for row in rows) >= 1.0
    shares = [[row[f"actors/{part}_share"] for part in ("env", "act", "wait", "other")] for row in rows]
    assert [sum(row) for row in shares if sum(row[:3])] == pytest.approx([1.0] * len([r for r in shares if sum(r[:3])]))
    assert any(row["time/wait_share"] > 0 for row in rows)


@however_they_start
def test_actors_stay_warm_between_calls_and_budgets_add_up():
    with Experiment.compose([*TINY, "actors=process", "actors.num_actors=2"]) as experiment:
        experiment.train(2 * ROLLOUT)
        before = pids(experiment.pool)
        for _ in range(3):
            experiment.train(2 * ROLLOUT)
        assert pids(experiment.pool) == before
        assert experiment.env_steps == 8 * ROLLOUT
        assert experiment.learner.updates == 8


@however_they_start
def test_new_parameters_reach_the_actors():
    with pool_of("process", num_actors=1) as pool:
        learn(pool, POLICY, 1)
        constant = make_policy(spec_of(CountingEnv()))
        for parameter in constant.policy_head.parameters():
            parameter.data.zero_()
        constant.policy_head.bias.data[2] = 100.0
        for rollout in learn(pool, constant, 2, first=1):
            assert (rollout.action == 2).all()


def test_a_learner_that_leads_does_not_hold_up_threads_of_maths():
    with pool_of("process", num_actors=1) as pool:
        learn(pool, POLICY, 1)
        environ = psutil.Process(pids(pool)[0]).environ()
    assert {environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}


def write_versions(connection, size):
    layout = weights_layout(state(0))
    writer = WeightsWriter(SharedWeights(receive(connection, size), layout))
    for version in range(1, 3000):
        writer.publish(Snapshot(version, 0, state(version)))
    connection.send(None)


def state(value):
    return {name: torch.full((300, 100), float(value)) for name in "abc"}


def test_nobody_ever_reads_half_of_two_versions():
    layout = weights_layout(state(0))
    memory = SharedMemory(SharedWeights.size(layout))
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=write_versions, args=(theirs, memory.size))
    process.start()
    memory.send(ours)
    reader, versions = WeightsReader(SharedWeights(memory.buffer, layout)), set()

    class Policy:
        def load_state_dict(self, weights):
            values = {float(v) for w in weights.values() for v in (w.min(), w.max())}
            assert len(values) == 1
            versions.add(values.pop())

    while not ours.poll():
        version = reader.load_into(Policy())
        assert version == max(versions, default=-1)
    process.join(10)
    process.close()
    memory.close_file()
    assert len(versions) > 1


# ---- how they fail ----


def faulty(env, at=30, where="step", **faults):
    """FaultyEnv if it is env 3, which belongs to actor 1."""

    def make(marker, env_id):
        if env_id != env:
            return CountingEnv()
        return FaultyEnv(where=where, marker=marker, **dict.fromkeys(faults, at))

    return make


@every_pool
@however_they_start
def test_an_actor_whose_env_raises_is_replaced(kind, tmp_path, caplog):
    make = functools.partial(faulty(3, raise_at=True), str(tmp_path / "failed"))
    with pool_of(kind, recipe={"make_env": make}, max_policy_lag=0, max_restarts=1) as pool:
        rollouts = learn(pool, POLICY, 12)
        assert pool.restarts == 1
        assert [actor.incarnation for actor in pool._actors] == [0, 1]
    assert "actor 1 (envs 2 to 3, incarnation 0, weights of update" in caplog.text
    assert "env 3 failed in step" in caplog.text
    assert "FaultyEnv raises in step, call 30" in caplog.text
    assert no_episode_twice(rollouts)
    assert sum(rollout.dropped_steps for rollout in rollouts) in range(1, 4 * 7 * 2)


@every_pool
@however_they_start
def test_an_episode_that_cannot_begin_is_not_tried_again(kind, caplog):
    """One bad seed costs one restart: the actor that comes next begins behind it."""
    with pool_of(kind, recipe={"make_env": stumbling}, max_policy_lag=0, max_restarts=2) as pool:
        learn(pool, POLICY, 12)
        assert pool.restarts == 1
    assert "env 3 failed in reset" in caplog.text


class Stumbling(CountingEnv):
    """It cannot begin its episode number 2."""

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        if self.episode == 2:
            raise RuntimeError("this one is too hard")
        return result


def stumbling(env_id):
    return Stumbling() if env_id == 3 else CountingEnv()


def no_episode_twice(rollouts):
    """No (env, episode) begins a second time, also behind a restart."""
    begun = [(int(obs[0]), int(obs[1])) for rollout in rollouts for obs in rollout.obs[rollout.is_first]]
    return len(begun) == len(set(begun)) > 0


@every_pool
@however_they_start
def test_beyond_max_restarts_the_error_is_raised_with_its_cause(kind):
    make = functools.partial(faulty(3, raise_at=True), None)
    with (
        pool_of(kind, recipe={"make_env": make}, max_restarts=0) as pool,
        pytest.raises(EnvError, match=r"^actor 1 \(envs 2 to 3, incarnation 0, weights of update \d+\): env 3 failed"),
    ):
        learn(pool, POLICY, 30)


@every_pool
@however_they_start
def test_an_env_that_cannot_be_made_is_an_error_at_once(kind):
    make = functools.partial(faulty(3, at=0, where="init", raise_at=True), None)
    with (
        pool_of(kind, recipe={"make_env": make}, max_restarts=5) as pool,
        pytest.raises(EnvError, match=r"^actor 1 \(envs 2 to 3, incarnation 0\): env 3 could not be made"),
    ):
        learn(pool, POLICY, 1)


@every_pool
def test_an_actor_that_hangs_is_replaced(kind, tmp_path, caplog):
    release = 2.0 if kind == "thread" else 600.0  # a thread that is left behind would outlive the test
    make = functools.partial(hanging, str(tmp_path / "failed"), release)
    with pool_of(kind, recipe={"make_env": make}, step_timeout_s=0.5, max_policy_lag=0, max_restarts=1) as pool:
        assert no_episode_twice(learn(pool, POLICY, 12))
        assert pool.restarts == 1
    assert "did not answer within actors.step_timeout_s=0.5" in caplog.text
    time.sleep(release if kind == "thread" else 0)


def hanging(marker, hang_s, env_id):
    return FaultyEnv(hang_at=30, hang_s=hang_s, marker=marker) if env_id == 3 else CountingEnv()


def test_a_killed_actor_is_replaced(caplog):
    with pool_of("process", max_policy_lag=0, max_restarts=3) as pool:
        rollouts = learn(pool, POLICY, 2)
        for kill in range(3):
            os.kill(pids(pool)[kill % 2], signal.SIGKILL)
            rollouts += learn(pool, POLICY, 4, first=2 + 4 * kill)
        assert pool.restarts == 3
        assert [actor.incarnation for actor in pool._actors] == [2, 1]
    assert caplog.text.count("was killed by SIGKILL") == 3
    assert no_episode_twice(rollouts)


def test_a_killed_actor_is_an_error_beyond_the_budget():
    with pool_of("process", max_restarts=0) as pool:
        learn(pool, POLICY, 1)
        os.kill(pids(pool)[1], signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"^actor 1 \(envs 2 to 3, incarnation 0.*\): was killed by SIGKILL"):
            learn(pool, POLICY, 30, first=1)


def test_a_stopped_process_counts_as_hanging():
    with pool_of("process", step_timeout_s=0.5, max_policy_lag=0, max_restarts=1) as pool:
        learn(pool, POLICY, 1)
        os.kill(pids(pool)[0], signal.SIGSTOP)
        learn(pool, POLICY, 10, first=1)
        assert pool.restarts == 1


@every_pool
def test_an_actor_whose_worker_is_killed_is_replaced(kind, caplog):
    recipe = {"vectorizer": SubprocessVectorizer, "options": {"num_workers": 1}}
    with pool_of(kind, num_envs=2, num_actors=1, recipe=recipe, max_restarts=1) as pool:
        rollouts = learn(pool, POLICY, 1)
        [victim] = below(pids(pool)[0]) if kind == "process" else workers_of_this_process()
        os.kill(victim, signal.SIGKILL)
        rollouts += learn(pool, POLICY, 6, first=1)
        assert pool.restarts == 1
    assert "worker 0" in caplog.text
    assert "was killed by SIGKILL" in caplog.text
    assert no_episode_twice(rollouts)


@every_pool
def test_close_interrupts_a_rollout(kind):
    make = functools.partial(slow, 1.0)
    with pool_of(kind, num_envs=2, num_actors=1, recipe={"make_env": make}) as pool:
        pool.publish(Snapshot(0, 0, POLICY.state_dict()))
        while not pool._actors[0].status.steps[0]:
            pool._take_in(0.01)
        started = time.monotonic()
        pool.close()
        assert time.monotonic() - started < 8  # the whole rollout takes 14


def slow(step_s, env_id):
    return SleepEnv(step_s=step_s)


def test_close_kills_who_hangs():
    with pool_of("process", recipe={"make_env": functools.partial(hanging_at, 3)}) as pool:
        pool.publish(Snapshot(0, 0, POLICY.state_dict()))
        while pool._actors[1].status.steps[0] < 6:
            pool._take_in(0.01)
        found = pids(pool)
        pool.close()
        assert gone(found)


def hanging_at(at, env_id):
    return FaultyEnv(hang_at=at) if env_id == 3 else CountingEnv()


def test_a_learner_that_raises_leaves_nothing_behind():
    class Broken:
        def after_update(self, learner, metrics):
            raise RuntimeError("the hook broke")

    experiment = Experiment.compose([*TINY, "actors=process", "actors.num_actors=2"], hooks=[Broken()])
    with pytest.raises(RuntimeError, match="the hook broke"), experiment:
        experiment.train(ROLLOUT)
    with pytest.raises(ParlError, match="closed"):
        experiment.train(ROLLOUT)


# ---- the command line ----

UPDATES = 60
TRAIN = (
    "train",
    "algo=appo",
    "env=cartpole",
    f"total_steps={UPDATES * ROLLOUT}",
    "hydra.run.dir=run",
    "actors=process",
    "actors.num_actors=2",
    "vectorizer=subprocess",
    "vectorizer.num_workers=1",
    *CLI_TINY,
)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_update_saves_and_the_run_goes_on(tmp_path, number, code):
    with Parl(*TRAIN, cwd=tmp_path) as process:
        process.wait_for_rows(tmp_path / "run", 3)
        found = below(process.process.pid)
        assert len(found) >= 4  # two actors, a worker each
        os.killpg(process.process.pid, number)
        status, out, err = process.end()
    assert (status, "Traceback" in err) == (code, False)
    assert "parl resume run=run" in out
    assert gone(found)
    rows = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    done = parl("resume", "run=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not bit for bit" in done.stdout + done.stderr
    later = list(read_jsonl(tmp_path / "run" / "metrics.jsonl"))
    assert later[: len(rows)] == rows
    assert [row["update"] for row in later] == list(range(1, len(later) + 1))
    assert [row["env_steps"] for row in later] == [
        row["update"] * ROLLOUT + row["rollout/dropped_steps"] for row in later
    ]
    assert (
        UPDATES * ROLLOUT <= later[-1]["env_steps"] < UPDATES * ROLLOUT + ROLLOUT + later[-1]["rollout/dropped_steps"]
    )
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "finished"


def test_a_killed_run_leaves_no_process_and_no_shared_memory(tmp_path):
    before = shared_files()
    with Parl(*TRAIN, cwd=tmp_path) as process:
        process.wait_for_rows(tmp_path / "run", 3)
        found = below(process.process.pid)
        process.process.kill()
        process.end()
    assert len(found) >= 4
    assert gone(found)
    assert shared_files() <= before


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_runs_with_one_process_killed_at_random_all_end_and_leave_nothing():
    endings = chaos.rounds(50, seed=1)
    assert all(ending.well for ending in endings), chaos.table(endings)
    ends = {(*ending.blow, ending.how) for ending in endings if ending.at_s is not None}
    assert ("actor", signal.SIGKILL, "result") in ends  # one was replaced, and the run finished
    assert ("learner", signal.SIGKILL, "killed") in ends
    assert {how for role, _, how in ends if role == "group"} >= {"saved"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("num_envs=4", "actors.num_actors=8"), "actors.num_actors=8: at most one per env, num_envs=4"),
        (("num_envs=4", "actors.num_actors=3"), "num_envs=4: must divide by actors.num_actors=3; try num_envs=6"),
        (("actors.device=cuda",), "actors.device=cuda: actor processes act on the cpu"),
        (
            ("algo=ppo",),
            "actors.max_policy_lag=4: algo=ppo learns only from what its newest weights did; set actors.max",
        ),
        (("actors.max_policy_lag=-1",), "actors.max_policy_lag=-1: must be at least 0"),
        (("actors=thread", "actors.device=gpu"), "actors.device=gpu: must be auto, cpu, cuda"),
        (("actors=proces",), "actors=proces"),
    ],
)
def test_bad_settings_are_one_line(tmp_path, overrides, words):
    done = parl("train", "env=cartpole", "algo=appo", "actors=process", *overrides, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_actors_know_plugins(tmp_path):
    package = str(ROOT / "tests" / "plugin_package")
    done = parl(
        "train",
        "plugins=[parl_example_plugin]",
        "algo=dual_clip_ppo",
        "policy=linear",
        "vectorizer=eager",
        "env=chain",
        "actors=process",
        "actors.max_policy_lag=0",
        "total_steps=128",
        "num_envs=2",
        "algo.num_steps=32",
        "logger=none",
        "device=cpu",
        cwd=tmp_path,
        env={"PYTHONPATH": os.pathsep.join([environment()["PYTHONPATH"], package])},
    )
    assert done.returncode == 0, done.stderr
    assert "1 (process) × 2 envs" in done.stdout


SCRIPT = """
import sys, time
from parl_cli import Experiment

if __name__ == "__main__":
    experiment = Experiment.compose(sys.argv[2:])
    experiment.train(64)
    print(*[actor.process.pid for actor in experiment.pool._actors], flush=True)
    if sys.argv[1] == "raise":
        raise SystemExit("enough")
"""


@pytest.mark.parametrize("ending", ["leave", "raise"])
def test_a_script_that_ends_without_close_ends_at_once(tmp_path, ending):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [sys.executable, script, ending, *TINY, "actors=process", "actors.num_actors=2"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == (1 if ending == "raise" else 0), done.stderr
    assert done.stderr.strip() == ("enough" if ending == "raise" else "")
    assert gone(map(int, done.stdout.split()))
