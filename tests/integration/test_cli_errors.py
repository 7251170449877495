"""What bad input gets: one line, exit code 2, and nothing is written."""

import subprocess
import sys

import pytest

from parl_cli.cli import COMMANDS
from tests.helpers.cli import environment, parl


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["trian"], "did you mean train?"),
        (["train", "algo=ppoo"], "did you mean ppo"),
        (["train", "sede=1"], "did you mean seed?"),
        (["train", "+sede=1"], "did you mean seed?"),
        (["train", "+algo.gama=1"], "did you mean gamma?"),
        (["train", "num_envs=many"], "num_envs=many: must be a whole number"),
        (["train", "num_envs=0"], "num_envs=0: must be at least 1"),
        (["train", "algo.gamma=nan"], "algo.gamma=nan: must be a finite number"),
        (["train", "algo.num_minibatches=7"], "algo.num_minibatches=7"),
        (["train", "env=gym", "env.id=CartPol-v1"], "env.id=CartPol-v1"),
        (
            ["train", "vectorizer=async", "vectorizer.batch_size=8", "num_envs=8", "algo=appo", "actors.num_actors=2"],
            "vectorizer.batch_size=8: at most num_envs=4; an actor has num_envs=8 / actors.num_actors=2",
        ),
        (["train", "device=cuda:99"], "device=cuda:99"),
        (["train", "name=a[b"], "cannot read 'name=a[b'"),
        (["train", "--config-dir", "nowhere"], "--config-dir=nowhere: no such folder"),
        (["train", "-m", "seed=1,x"], "job 1 (seed=x): seed=x: must be a whole number"),
        (["train", "-m", "seed=range(0,0)"], "no values to sweep over"),
        (["train", "hydra.run.dir=/proc/parl/run"], "hydra.run.dir=/proc/parl/run: cannot be made"),
        (["eval"], "missing key checkpoint"),
        (["eval", "checkpoint=nowhere"], "checkpoint=nowhere"),
        (["eval", "checkpoint=nowhere", "epsodes=1"], "did you mean episodes?"),
        (["resume", "run=nowhere"], "run=nowhere"),
        (["list", "nonsense"], "unknown topic 'nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_with_exit_code_2_and_writes_nothing(args, words, tmp_path):
    done = parl(*args, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("parl: error: ")
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args",
    [["--help"], ["--version"], ["train", "--cfg", "job"], ["eval", "checkpoint=x", "--cfg", "job"]]
    + [["list"], ["list", "envs"], ["list", "tuned"]]
    + [[command, "--help"] for command in COMMANDS],
)
def test_answers_that_need_no_job_import_no_torch(args, tmp_path):
    """Which is what makes them fast: importing torch takes longer than all else together, on any machine."""
    code = f"import sys; from parl_cli.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not list(tmp_path.iterdir())
