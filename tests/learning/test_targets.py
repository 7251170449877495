"""What the default command reaches; minutes of training, so only with `pytest -m slow`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learning.run import TARGETS, train_and_evaluate


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("task", ["ppo/acrobot", "ppo/pendulum"])
def test_default_command_reaches_its_target_on_average(task: str, tmp_path: Path):
    returns = []
    for seed in range(1, TARGETS[task].seeds + 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        returns.append(train_and_evaluate(task, seed, folder)["return"])
    assert TARGETS[task].reached(returns)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, TARGETS["ppo/cartpole"].seeds + 1))
def test_first_command_solves_cartpole_with_every_seed(seed: int, tmp_path: Path):
    row = train_and_evaluate("ppo/cartpole", seed, tmp_path)
    assert row["steps"] <= 101_000
    assert TARGETS["ppo/cartpole"].reached([row["return"]])
