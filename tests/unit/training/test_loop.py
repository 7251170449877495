"""The one loop: act, learn, publish, look, until the budget is used."""

from __future__ import annotations

import signal
from types import SimpleNamespace

import pytest

from parl_cli.training.loop import StopTraining, train

STEPS = 10  # env steps of a rollout


class Log:
    """A learner, a pool and a hook in one, which write down what is asked of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple] = []
        self.env_steps = 0
        self.updates = 0
        self.stop_at = stop_at

    def snapshot(self):
        return SimpleNamespace(version=self.updates)

    def step(self, rollouts):
        self.calls.append(("step", len(rollouts)))
        self.env_steps += STEPS * len(rollouts)
        self.updates += 1
        return {"loss/value": float(self.updates)}

    def publish(self, snapshot):
        self.calls.append(("publish", snapshot.version))

    def get(self, n):
        self.calls.append(("get", n))
        return [object()] * n

    def after_update(self, learner, metrics):
        assert learner is self
        self.calls.append(("hook", metrics["loss/value"]))
        if self.updates == self.stop_at:
            raise StopTraining("enough")


def run(total_steps, **options):
    log = Log(options.pop("stop_at", None))
    return train(log, log, [log], total_steps, **options), log


def test_weights_are_published_before_the_first_rollout_and_after_every_update():
    ended, log = run(2 * STEPS)
    update = [("get", 1), ("step", 1)]
    assert log.calls == [
        *(("publish", 0), *update, ("publish", 1), ("hook", 1.0)),
        *(*update, ("publish", 2), ("hook", 2.0)),
    ]
    assert ended == ("budget", None)


@pytest.mark.parametrize(("total", "done"), [(1, 10), (10, 10), (11, 20), (29, 30)])
def test_the_budget_is_rounded_up_to_whole_updates(total, done):
    assert run(total)[1].env_steps == done


def test_an_update_may_take_several_rollouts():
    log = run(60, rollouts_per_update=3)[1]
    assert (log.updates, log.env_steps) == (2, 60)
    assert ("get", 3) in log.calls


def test_a_hook_ends_training_after_its_update_and_says_why():
    ended, log = run(1000, stop_at=3)
    assert (ended, log.updates) == (("enough", None), 3)
    assert log.calls[-2:] == [("publish", 3), ("hook", 3.0)]


def test_a_budget_that_is_used_already_trains_nothing():
    log = Log()
    log.env_steps = 50
    assert train(log, log, [log], 50).reason == "budget"
    assert log.calls == [("publish", 0)]


def looking(order, name, stop=False, by=None):
    def after_update(learner, metrics):
        order.append(name)
        if stop:
            raise StopTraining(name, by)

    return SimpleNamespace(after_update=after_update)


def test_hooks_look_in_the_order_given_also_after_one_that_stops():
    log, order = Log(), []
    hooks = [looking(order, "first"), looking(order, "second", stop=True), looking(order, "third", stop=True)]
    assert train(log, log, hooks, 100) == ("second", None)
    assert order == ["first", "second", "third"]


def test_a_signal_goes_before_another_reason_to_stop():
    log = Log()
    hooks = [looking([], "target", stop=True), looking([], "SIGTERM", stop=True, by=signal.SIGTERM)]
    assert train(log, log, hooks, 100) == ("SIGTERM", signal.SIGTERM)
