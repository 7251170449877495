"""The wheel, installed elsewhere, trains from an empty folder: it brings its configs and its Hydra plug-ins."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


def test_wheel_holds_every_config_and_no_test(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    for config in (ROOT / "conf").rglob("*.yaml"):
        assert f"parl_cli/{config.relative_to(ROOT)}" in names
    assert not [name for name in names if name.startswith(("tests", "outputs"))]


def test_installed_wheel_trains_and_evaluates_from_an_empty_folder(wheel: Path, tmp_path: Path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    env = {**os.environ, "PYTHONPATH": str(site)}

    def python(*arguments: str) -> str:
        # -P: the folder of the tests' own package must not come first
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=empty,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert str(site) in python("-c", "import parl_cli; print(parl_cli.__file__)")
    python("-m", "parl_cli", "train", "algo=ppo", "env=cartpole", "total_steps=4096", "num_envs=32")
    assert (empty / "outputs" / "ppo_cartpole" / "latest" / "learning_curve.png").exists()
    assert "return" in python("-m", "parl_cli", "eval", "checkpoint=latest", "episodes=4")
