"""On a CUDA device: runs learn, resume bit for bit, and their checkpoints work without one. Skipped where none is."""

import json
import math
from pathlib import Path

import pytest
import torch

from parl_cli import Experiment
from parl_cli.cli import main
from parl_cli.metrics.jsonl import read_jsonl
from parl_cli.training import checkpoint
from tests.helpers.runs import CLI_TINY, ROLLOUT, policy_hash

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

TINY = ["env=cartpole", f"total_steps={8 * ROLLOUT}", *CLI_TINY, "device=cuda"]


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parameters(experiment):
    return {name: value.cpu() for name, value in experiment.policy.state_dict().items()}


@pytest.mark.parametrize(
    "choice",
    [
        ("algo=ppo", "policy.normalize_obs=false"),
        ("algo=ppo", "env=pendulum", "policy.gsde=true", "tuned=null"),
        ("algo=truly_ppo", "env=pendulum", "tuned=null"),
        ("algo=ppo", "vectorizer=subprocess", "vectorizer.num_workers=2"),
        ("algo=appo", "actors=process", "actors.num_actors=2"),
        ("algo=appo", "actors=thread", "vectorizer=async", "vectorizer.num_workers=2"),
        ("algo=appo", "actors=thread", "actors.device=cpu"),
    ],
    ids=" ".join,
)
def test_it_trains_and_is_finite(choice):
    with Experiment.compose([*TINY, *choice], run_dir="run") as experiment:
        experiment.train(8 * ROLLOUT)
        assert next(experiment.policy.parameters()).is_cuda
        assert math.isfinite(experiment.evaluate(4)["mean_return"])
    rows = list(read_jsonl(Path("run/metrics.jsonl")))
    assert rows[-1]["env_steps"] >= 8 * ROLLOUT
    assert all(math.isfinite(row["loss/policy"]) for row in rows)


def test_the_first_update_is_that_of_the_cpu():
    """Same seeds, same noise, same minibatches: only the arithmetic's rounding differs."""
    found = []
    for device in ("device=cpu", "device=cuda"):
        with Experiment.compose([*TINY, device]) as experiment:
            experiment.train(ROLLOUT)
            found.append(parameters(experiment))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_resume_is_exact():
    whole = ["train", *TINY, "hydra.run.dir=whole"]
    half = [
        *("train", *TINY, "hydra.run.dir=half"),
        f"total_steps={4 * ROLLOUT}",
        "algo.learning_rate_schedule=constant",
    ]
    assert main([*whole, "algo.learning_rate_schedule=constant"]) == 0
    assert main(half) == 0
    assert main(["resume", "run=half", f"total_steps={8 * ROLLOUT}"]) == 0
    assert policy_hash(Path("half")) == policy_hash(Path("whole"))


def test_a_checkpoint_made_on_it_is_evaluated_and_resumed_without_it():
    assert main(["train", *TINY, "hydra.run.dir=run"]) == 0
    assert main(["eval", "checkpoint=run", "episodes=3", "device=cpu", "output=cpu"]) == 0
    assert main(["eval", "checkpoint=run", "episodes=3", "device=cuda", "output=cuda"]) == 0
    on_cpu, on_cuda = (json.loads(Path(name, "eval.json").read_text())["mean_return"] for name in ("cpu", "cuda"))
    assert on_cpu == on_cuda
    weights = checkpoint.load(checkpoint.last(Path("run"))).policy
    assert all(not value.is_cuda for value in weights.values())
