"""What is due when: rows, evaluations, checkpoints; and the wish to stop."""

from __future__ import annotations

import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from parl_cli.metrics.jsonl import JsonlSink, read_jsonl
from parl_cli.metrics.sinks import SinkGroup
from parl_cli.training import checkpoint
from parl_cli.training.evaluate import Evaluation
from parl_cli.training.hooks import CheckpointHook, EvalHook, MetricsHook, StopSignal
from parl_cli.training.loop import StopTraining
from parl_cli.types import Episode

UPDATE = 64


class FakeLearner:
    """Counts updates of 64 steps, each of which finishes an episode."""

    def __init__(self, total_steps=10 * UPDATE):
        self.total_steps = total_steps
        self.env_steps = 0
        self.updates = 0
        self.last_steps = UPDATE
        self.episodes = []

    def update(self, *hooks):
        self.env_steps += UPDATE
        self.updates += 1
        self.episodes = [Episode(0, float(self.updates), 5)]
        for hook in hooks:
            hook.after_update(self, {"loss/value": 1.0 / self.updates})
        return self


@pytest.fixture
def metrics(tmp_path):
    made = []

    def make(every_steps=None):
        shown = []
        hook = MetricsHook(SinkGroup(JsonlSink(tmp_path / "metrics.jsonl")), shown.append, [], every_steps)
        hook.shown = shown
        hook.begin(0)
        made.append(hook)
        return hook

    yield make
    for hook in made:
        hook.sinks.close()


def rows(tmp_path):
    return list(read_jsonl(tmp_path / "metrics.jsonl"))


# ---- rows ----


def test_every_update_is_a_row_for_the_file_and_the_display(metrics, tmp_path):
    hook, learner = metrics(), FakeLearner()
    for _ in range(3):
        learner.update(hook)
    written = rows(tmp_path)
    assert [row["env_steps"] for row in written] == [64, 128, 192]
    assert [row["update"] for row in written] == [1, 2, 3]
    assert [row["episode/return_mean"] for row in written] == [1.0, 1.5, 2.0]
    assert [row["env_steps"] for row in hook.shown] == [64, 128, 192]


def test_rows_may_be_thinned_but_the_last_one_is_written(metrics, tmp_path):
    hook, learner = metrics(every_steps=150), FakeLearner(total_steps=7 * UPDATE)
    for _ in range(7):
        learner.update(hook)
    assert [row["env_steps"] for row in rows(tmp_path)] == [192, 320, 448]
    assert rows(tmp_path)[-1]["episode/count"] == 7  # episodes between the rows count all the same


def test_rows_go_on_where_a_restored_run_stood(metrics, tmp_path):
    hook, learner = metrics(), FakeLearner()
    learner.update(hook).update(hook)
    state = hook.state_dict()
    learner.update(hook)
    heir = metrics()
    heir.load_state_dict(state)
    heir.sinks.load_state_dict(state["sinks"])
    assert len(rows(tmp_path)) == 2
    assert heir.time_s >= state["time_s"]
    learner.update(heir)
    assert rows(tmp_path)[-1]["episode/return_mean"] == pytest.approx((1 + 2 + 4) / 3)


def test_past_the_budget_rows_keep_their_interval(metrics, tmp_path):
    hook, learner = metrics(every_steps=4 * UPDATE), FakeLearner(total_steps=2 * UPDATE)
    for _ in range(7):
        learner.update(hook)
    assert [row["env_steps"] for row in rows(tmp_path)] == [2 * UPDATE, 4 * UPDATE]


def test_the_clock_stands_still_between_end_and_begin(metrics):
    hook = metrics()
    hook.end()
    stopped = hook.time_s
    assert hook.time_s == stopped
    hook.begin(0)
    assert hook.time_s > stopped


# ---- evaluations ----


def eval_hook(metrics, returns, target=None, every_steps=2 * UPDATE):
    found = iter(returns)
    bests = []

    def play():
        return Evaluation(np.full(3, next(found)), np.full(3, 7))

    hook = EvalHook(every_steps, play, metrics(), target, lambda learner: bests.append(learner.env_steps))
    hook.begin(0)
    return hook, bests


def test_it_evaluates_when_due_and_at_the_end(metrics, tmp_path):
    hook, _ = eval_hook(metrics, [1, 2, 3, 4])
    learner = FakeLearner(total_steps=5 * UPDATE)
    for _ in range(5):
        learner.update(hook)
    assert [row["env_steps"] for row in rows(tmp_path)] == [128, 256, 320]
    assert rows(tmp_path)[0]["eval/return_mean"] == 1


def test_only_an_improvement_is_saved_as_best(metrics):
    hook, bests = eval_hook(metrics, [5.0, 4.0, 5.0, 6.0])
    learner = FakeLearner()
    for _ in range(8):
        learner.update(hook)
    assert bests == [128, 512]
    assert (hook.best, hook.last) == (6.0, 6.0)


def test_training_stops_once_the_target_is_reached_after_saving_the_best(metrics):
    hook, bests = eval_hook(metrics, [5.0, 10.0], target=10.0)
    learner = FakeLearner()
    for _ in range(3):
        learner.update(hook)
    with pytest.raises(StopTraining, match=r"target: evaluation reached 10\.0 ≥ eval\.target_return=10\.0"):
        learner.update(hook)
    assert bests[-1] == learner.env_steps


def test_a_restored_hook_knows_the_best_and_repeats_no_evaluation(metrics):
    hook, _ = eval_hook(metrics, [5.0])
    learner = FakeLearner().update(hook).update(hook)
    heir, bests = eval_hook(metrics, [4.0])
    heir.load_state_dict(hook.state_dict())
    heir.begin(learner.env_steps)
    learner.update(heir).update(heir)
    assert (heir.best, heir.last, bests) == (5.0, 4.0, [])


def test_a_best_that_is_no_number_is_refused(metrics):
    with pytest.raises(ValueError, match="could not convert"):
        eval_hook(metrics, [])[0].load_state_dict({"best": "many", "last": None})


# ---- checkpoints ----


def checkpoint_hook(folder, every_steps=2 * UPDATE, keep=2):
    def save(path):
        path.mkdir(parents=True)

    hook = CheckpointHook(folder, save, every_steps, keep)
    hook.begin(0)
    return hook


def steps(folder):
    return [int(path.name) // UPDATE for path in checkpoint.numbered(folder)]


def test_checkpoints_come_when_due_and_the_latest_few_stay(tmp_path):
    hook, learner = checkpoint_hook(tmp_path), FakeLearner()
    hook.write(learner)
    seen = []
    for _ in range(6):
        learner.update(hook)
        seen.append(steps(tmp_path))
    assert seen == [[0], [0, 2], [0, 2], [2, 4], [2, 4], [4, 6]]


def test_the_best_is_kept_besides_the_latest(tmp_path):
    hook, learner = checkpoint_hook(tmp_path, keep=1), FakeLearner()
    learner.update(hook)
    hook.write_best(learner)
    for _ in range(5):
        learner.update(hook)
    assert steps(tmp_path) == [6]
    assert (tmp_path / "best").is_dir()


def test_without_an_interval_only_what_is_asked_for_is_written(tmp_path):
    hook, learner = checkpoint_hook(tmp_path, every_steps=None), FakeLearner()
    for _ in range(3):
        learner.update(hook)
    assert steps(tmp_path) == []
    hook.write(learner)
    hook.write(learner)  # this step has one: not written again
    assert steps(tmp_path) == [3]


def test_a_checkpoint_of_this_step_with_other_weights_is_written_again(tmp_path):
    saved = []
    hook = CheckpointHook(tmp_path, lambda path: (saved.append(path.name), path.mkdir(exist_ok=True)), None, keep=1)
    hook.write(FakeLearner())
    hook.is_outdated = True
    for _ in range(2):
        hook.write(FakeLearner())
    assert saved == ["0", "0"]


def test_an_interval_shorter_than_an_update_is_a_checkpoint_per_update(tmp_path):
    hook, learner = checkpoint_hook(tmp_path, every_steps=1, keep=9), FakeLearner()
    for _ in range(3):
        learner.update(hook)
    assert steps(tmp_path) == [1, 2, 3]


def test_rewinding_drops_later_checkpoints_and_leftovers(tmp_path):
    hook = checkpoint_hook(tmp_path)
    for name in ("64", "128", "192", "best", ".256-0badcafe.tmp"):
        (tmp_path / name).mkdir()
    hook.rewind(128)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["128", "64", "best"]


@pytest.mark.parametrize(("best_of", "stays"), [(64, True), (128, True), (192, False)])
def test_rewinding_drops_a_best_of_later_steps(best_of, stays, tmp_path):
    checkpoint.save(tmp_path / "best", env_steps=best_of, config={}, policy={}, training={})
    assert checkpoint_hook(tmp_path).rewind(128) == stays
    assert (tmp_path / "best").exists() == stays


# ---- the wish to stop ----


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_update_and_handlers_are_put_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        FakeLearner().update(stop)  # nothing came: it goes on
        signal.raise_signal(number)
        with pytest.raises(StopTraining, match=f"interrupted: {number.name}") as found:
            FakeLearner().update(stop)
        assert found.value.signal is number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_does_not_wait():
    with StopSignal():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_sigterm_waits_for_the_update():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_outside_the_main_thread_it_does_nothing():
    found = SimpleNamespace(handler=None)

    def work():
        with StopSignal():
            found.handler = signal.getsignal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found.handler is before
