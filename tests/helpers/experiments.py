"""An `Experiment` as small as it can be, and hooks for it."""

import torch

from parl_cli import Experiment
from parl_cli.training.loop import StopTraining
from tests.helpers.runs import CLI_TINY, ROLLOUT

TINY = ["env=cartpole", f"total_steps={8 * ROLLOUT}", *CLI_TINY]


def compose(*overrides, **options):
    return Experiment.compose([*TINY, *overrides], **options)


def whole_state(experiment):
    """Everything that training depends on, to compare bit for bit."""

    def as_bytes(value):
        if isinstance(value, dict):
            return {name: as_bytes(inner) for name, inner in value.items()}
        return value.numpy().tobytes() if isinstance(value, torch.Tensor) else value

    return as_bytes({"learner": experiment.learner.state_dict(), "pool": experiment.pool.state_dict()})


class Recorder:
    """A hook that remembers what it saw."""

    def __init__(self, stop_at=None, reason="enough"):
        self.seen = []
        self.stop_at = stop_at
        self.reason = reason

    def after_update(self, learner, metrics):
        self.seen.append((learner.env_steps, metrics["loss/value"]))
        if learner.updates == self.stop_at:
            raise StopTraining(self.reason)


class Broken:
    """A hook that raises."""

    def after_update(self, learner, metrics):
        raise RuntimeError("the hook broke")
