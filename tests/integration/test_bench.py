"""`parl bench` as a person uses it."""

import json
import shlex
import signal

import psutil
import pytest
from matplotlib.image import imread

from parl_cli import registry
from tests.helpers.cli import parl
from tests.helpers.runs import Parl

SMALL = ("env=cartpole", "num_envs=4", "seconds=0.05", "algo.num_epochs=1", "algo.num_minibatches=1")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("bench")
    done = parl("bench", "env=cartpole", "seconds=0.05", cwd=cwd)
    assert done.returncode == 0, done.stderr
    [folder] = (cwd / "outputs" / "bench").iterdir()
    return done, folder, json.loads((folder / "bench.json").read_text())


def test_every_vectorizer_is_measured_or_its_refusal_explained(measured):
    _, _, data = measured
    names = set(registry.names("vectorizer")) - {"auto"}
    found = {entry["vectorizer"] for entry in data["vectorizers"]}
    assert {"serial", "thread", "subprocess"} <= found
    assert names == found | {who.partition(",")[0] for who in data["refused"]}
    assert all(data["refused"].values())


def test_the_file_holds_everything(measured):
    _, folder, data = measured
    assert sorted(path.name for path in folder.iterdir()) == ["bench.json", "bench.png"]
    assert data["machine"]["cores"] >= 1
    assert {"python", "torch", "numpy", "gymnasium", "parl", "device", "num_threads"} <= set(data["machine"])
    assert data["argv"] == ["parl", "bench", "env=cartpole", "seconds=0.05"]
    assert data["config"]["env"]["id"] == "CartPole-v1"
    assert data["env_step"]["us"] > 0
    assert data["wake_up_us"] > 0
    [parts] = data["parts"]
    assert parts["act_us"] > 0
    assert parts["learn_us"] > 0
    assert parts["update_steps"] == data["num_envs"] * data["config"]["algo"]["num_steps"]
    for entry in data["vectorizers"]:
        for speed in (entry["env_only"], entry["end_to_end"]):
            assert speed["us_per_step"] == pytest.approx(1e6 / speed["steps_per_s"])
            assert speed["cpu_us_per_step"] > 0
            assert speed["rounds_steps_per_s"]
        shares = entry["end_to_end"]["shares"]
        assert set(shares) >= {"env", "act", "learn", "wait", "other"}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-6)
        assert entry["end_to_end"]["actors"] == {}
    assert data["winner"] in data["vectorizers"]


def test_the_last_line_is_a_command_that_parl_train_takes(measured, tmp_path):
    done, folder, data = measured
    *_, reason, command = done.stdout.splitlines()
    assert reason == data["reason"]
    assert command == data["command"]
    assert command.startswith("parl train env=cartpole vectorizer=")
    shown = parl(*shlex.split(command)[1:], "--cfg", "job", "-p", "vectorizer.name", cwd=tmp_path)
    assert shown.stdout.strip() == data["winner"]["vectorizer"]
    assert str(folder.name) in done.stdout


def test_a_picture_is_drawn(measured):
    _, folder, _ = measured
    assert imread(folder / "bench.png").shape[1] == 1200


def test_progress_is_plain_lines_where_there_is_no_terminal(measured):
    done, _, _ = measured
    stages = [line for line in done.stdout.splitlines() if line.startswith("measuring ")]
    assert len(stages) == 4
    assert "\x1b" not in done.stdout


def test_what_is_compared_and_where_it_is_written_can_be_chosen(tmp_path):
    options = ("vectorizers=[serial,thread]", "output=here [1]", "vectorizer=thread", "vectorizer.num_workers=3")
    done = parl("bench", *SMALL, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "here [1]" / "bench.json").read_text())
    assert {entry["vectorizer"] for entry in data["vectorizers"]} == {"serial", "thread"}
    assert not (tmp_path / "outputs").exists()


def test_tuning_tries_other_numbers_of_envs_and_says_which_fits(tmp_path):
    job = (*SMALL, "seconds=0.01", "algo.num_steps=2", "algo.num_minibatches=16", "vectorizers=[serial]")
    done = parl("bench", *job, "num_envs=16", "tune=true", "output=out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {entry["num_envs"] for entry in data["vectorizers"]} == {16, 32, 64, 128, 256}
    assert "algo.num_minibatches=16" in data["refused"]["num_envs=8"]
    best = data["winner"]["num_envs"]
    assert f"num_envs={best}" in shlex.split(data["command"])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["env=cartpol"], "env=cartpol: no such option; did you mean cartpole?"),
        (["seconds=0"], "seconds=0.0: must be greater than 0"),
        (["secnds=1"], "unknown key secnds; did you mean seconds"),
        (["vectorizers=[serail]"], "vectorizers=[serail]: no such vectorizer; did you mean serial?"),
        (["vectorizers=[auto]"], "vectorizers=[auto]: no such vectorizer"),
        (["vectorizers=serial"], "vectorizers=serial: must be a list"),
        (["tune=maybe"], "tune=maybe: must be true or false"),
        (["num_envs=0"], "num_envs=0: must be at least 1"),
        (["algo.num_minibatches=7"], "algo.num_minibatches=7"),
        (["-m", "seed=1,2"], "-m: parl bench measures one job at a time"),
        (["env=cartpole", "output=/proc/parl/bench"], "cannot write to /proc/parl/bench"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(args, words, tmp_path):
    done = parl("bench", *args, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_an_env_that_raises_ends_it_with_its_own_error_and_no_folder(tmp_path):
    (tmp_path / "broken_plugin.py").write_text(
        "import gymnasium\n"
        "from parl_cli.envs.toy import FaultyEnv\n"
        "gymnasium.register('Broken-v0', lambda: FaultyEnv(raise_at=0), order_enforce=False)\n"
    )
    job = ("plugins=[broken_plugin]", "env=gym", "env.id=Broken-v0", "seconds=0.05")
    done = parl("bench", *job, cwd=tmp_path)
    assert done.returncode == 1
    assert "FaultyEnv raises in step" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_ctrl_c_ends_it_with_130_and_leaves_nothing(tmp_path):
    with Parl("bench", "env=cartpole", "seconds=30", cwd=tmp_path) as child:
        child.wait_for((tmp_path / "outputs" / "bench").is_dir)
        process = psutil.Process(child.process.pid)
        child.wait_for(lambda: len(process.children()) >= 2)  # workers
        below = process.children(recursive=True)
        child.process.send_signal(signal.SIGINT)
        code, _, err = child.end()
    assert code == 130, err
    assert err.splitlines()[-1] == "parl: interrupted"
    assert "Traceback" not in err
    assert not (tmp_path / "outputs").exists()
    assert not psutil.wait_procs(below, timeout=10)[1]
