"""`parl eval` and evaluation during training: what a policy is worth, measured without touching it."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import re
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from parl_cli.cli import main
from parl_cli.config import CheckpointConfig, EvalConfig
from parl_cli.training import checkpoint
from tests.helpers.cli import parl
from tests.helpers.runs import CLI_TINY, ROLLOUT, go_on, normalising_config, policy_hash, steady_rows, train, tree

KEYS = {"mean_return", "std_return", "ci95", "mean_length", "episodes"}
UPDATES = 12
EVAL = EvalConfig(every_steps=3 * ROLLOUT, episodes=5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with evaluations, in the place where the command line puts it."""
    run = tmp_path_factory.mktemp("trained") / "outputs/ppo_cartpole/one"
    config = normalising_config(
        updates=UPDATES, eval=EVAL, checkpoint=CheckpointConfig(every_steps=4 * ROLLOUT, keep=2)
    )
    train(config, run)
    (run.parent / "latest").symlink_to("one")
    return run


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    """A copy of it to work in."""
    shutil.copytree(trained.parents[2], tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def evaluated(*overrides, output):
    assert main(["eval", *overrides, f"output={output}"]) == 0
    return json.loads((Path(output) / "eval.json").read_text())


def test_eval_reports_return_spread_interval_and_length(workplace, capsys):
    assert main(["eval", "checkpoint=latest", "episodes=20"]) == 0
    (file,) = workplace.glob("outputs/ppo_cartpole/one/eval/*/eval.json")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", file.parent.name)
    report = json.loads(file.read_text())
    assert report.keys() >= KEYS
    assert report["episodes"] == len(report["returns"]) == len(report["lengths"]) == 20
    assert report["mean_return"] == pytest.approx(sum(report["returns"]) / 20)
    assert report["mean_length"] == report["mean_return"]  # CartPole pays 1 per step
    low, high = report["ci95"]
    assert min(report["returns"]) <= low < report["mean_return"] < high <= max(report["returns"])
    assert report["std_return"] > 0
    out = capsys.readouterr().out
    assert f"{report['mean_return']:.1f} ± {report['std_return']:.1f}" in out
    assert f"{low:.1f} to {high:.1f}" in out


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("latest", "768"),
        ("outputs/ppo_cartpole/one", "768"),
        ("outputs/ppo_cartpole/latest", "768"),
        ("outputs/ppo_cartpole/one/checkpoints/512", "512"),
        ("outputs/ppo_cartpole/latest/checkpoints/best", "best"),
    ],
)
def test_a_checkpoint_is_named_in_every_way_a_person_would(workplace, place, step):
    report = evaluated(f"checkpoint={place}", "episodes=2", output="out")
    assert Path(report["checkpoint"]).name == step


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_the_report_does_not_depend_on_how_many_envs_play(workplace, deterministic):
    reports = [
        evaluated("checkpoint=latest", "episodes=9", f"deterministic={deterministic}", f"num_envs={n}", output=f"o{n}")
        for n in (1, 7)
    ]
    assert reports[0]["returns"] == reports[1]["returns"]
    assert reports[0]["deterministic"] == (deterministic == "true")


def test_another_seed_is_other_episodes(workplace):
    reports = [evaluated("checkpoint=latest", "episodes=5", f"seed={n}", output=f"o{n}") for n in (1, 2)]
    assert reports[0]["returns"] != reports[1]["returns"]


def test_the_best_checkpoint_is_the_best_row_and_is_tested_on_other_episodes(workplace):
    rows = steady_rows(workplace / "outputs/ppo_cartpole/one")
    evaluations = {row["env_steps"]: row["eval/return_mean"] for row in rows if "eval/return_mean" in row}
    assert len(evaluations) == UPDATES // 3
    best = checkpoint.load(checkpoint.find("outputs/ppo_cartpole/one/checkpoints/best"))
    assert evaluations[best.env_steps] == max(evaluations.values())
    report = evaluated("checkpoint=outputs/ppo_cartpole/one/checkpoints/best", "episodes=5", output="out")
    assert report["env_steps"] == best.env_steps
    # the episodes that chose it would flatter it
    assert report["mean_return"] != pytest.approx(max(evaluations.values()), rel=1e-6)


def test_eval_writes_nothing_but_its_folder_and_with_output_nothing_into_the_run(workplace):
    run = workplace / "outputs/ppo_cartpole/one"
    before = tree(run)
    evaluated("checkpoint=latest", "episodes=2", output="elsewhere/deep")
    assert tree(run) == before
    assert os.listdir("elsewhere/deep") == ["eval.json"]


def test_two_evaluations_in_one_second_keep_both_reports(workplace, monkeypatch):
    now = time.localtime()
    monkeypatch.setattr(time, "localtime", lambda *args: now)
    strftime = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form, *args: strftime(form, now))
    for episodes in (2, 3):
        assert main(["eval", "checkpoint=latest", f"episodes={episodes}"]) == 0
    reports = workplace.glob("outputs/ppo_cartpole/one/eval/*/eval.json")
    assert sorted(json.loads(file.read_text())["episodes"] for file in reports) == [2, 3]


def test_evaluating_during_training_does_not_disturb_it(trained, tmp_path):
    config = normalising_config(updates=UPDATES, checkpoint=CheckpointConfig(every_steps=4 * ROLLOUT))
    train(config, tmp_path / "without")
    sampled = dataclasses.replace(EVAL, deterministic=False, every_steps=ROLLOUT)
    train(dataclasses.replace(config, eval=sampled), tmp_path / "sampled")
    assert policy_hash(tmp_path / "without") == policy_hash(trained) == policy_hash(tmp_path / "sampled")


def test_a_resumed_run_repeats_its_evaluations_and_its_best(trained, tmp_path):
    config = normalising_config(
        updates=UPDATES, eval=EVAL, checkpoint=CheckpointConfig(every_steps=4 * ROLLOUT, keep=2)
    )
    train(config, tmp_path / "run", stop_at=7)
    go_on(config, tmp_path / "run")
    assert steady_rows(tmp_path / "run") == steady_rows(trained)
    mine, other = (run / "checkpoints/best/policy.safetensors" for run in (tmp_path / "run", trained))
    assert mine.read_bytes() == other.read_bytes()


def test_a_target_return_ends_training_with_a_best_checkpoint(tmp_path):
    config = normalising_config(updates=UPDATES, eval=dataclasses.replace(EVAL, target_return=1.0))
    reason = train(config, tmp_path / "run")
    assert reason.startswith("target: evaluation reached")
    assert checkpoint.load(tmp_path / "run/checkpoints/best").env_steps == 3 * ROLLOUT
    assert checkpoint.last(tmp_path / "run").name == str(3 * ROLLOUT)


def test_a_video_can_be_watched(workplace, monkeypatch):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    report = evaluated("checkpoint=latest", "episodes=2", "video=true", output="out")
    plain = evaluated("checkpoint=latest", "episodes=2", output="plain")
    assert report["returns"] == plain["returns"]  # watching changes nothing
    frames, seconds = imageio_ffmpeg.count_frames_and_secs("out/video.mp4")
    assert frames == report["lengths"][0]
    assert seconds > 0
    reader = imageio_ffmpeg.read_frames("out/video.mp4")
    assert next(reader)["size"] == (600, 400)
    frame = next(reader)
    reader.close()
    assert len(set(frame)) > 2  # a pole on a cart, not a blank


# ---- places that cannot be written ----


def refused(command, capsys):
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["video=true", "num_envs=4"], "num_envs=4: with render or video one env is watched"),
        (["video=true", "render=human"], "render=human video=true: an env draws for one of them"),
        (["-m", "episodes=1,2", "output=out"], "output=out: several jobs would write there"),
    ],
)
def test_what_would_be_ignored_or_written_over_is_refused(words, reason, workplace, capsys):
    assert refused(["eval", "checkpoint=latest", *words], capsys).startswith(f"parl: error: {reason}")
    assert not Path("out").exists()


def test_an_output_that_is_a_file_is_one_line_and_nothing_is_left(workplace, capsys):
    Path("taken").write_text("mine")
    before = tree(workplace)
    for output in ("taken", "taken/deep"):
        assert "output=FOLDER" in refused(["eval", "checkpoint=latest", f"output={output}"], capsys)
    assert tree(workplace) == before


def test_a_run_whose_eval_folder_cannot_be_made_wants_output(workplace, capsys):
    (workplace / "outputs/ppo_cartpole/one/eval").write_text("a file")
    before = tree(workplace)
    assert "output=FOLDER" in refused(["eval", "checkpoint=latest"], capsys)
    assert tree(workplace) == before


def test_a_file_that_cannot_be_replaced_is_named(workplace, capsys):
    (workplace / "out/eval.json").mkdir(parents=True)
    before = tree(workplace)
    error = refused(["eval", "checkpoint=latest", "episodes=1", "output=out"], capsys)
    assert "cannot write to out/eval.json (Is a directory); name another folder with output=FOLDER" in error
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("command", "work"),
    [(["eval", "checkpoint=latest"], "evaluate"), (["bench", "env=cartpole"], "Bench.run")],
    ids=["eval", "bench"],
)
def test_what_breaks_while_measuring_is_no_folder_that_cannot_be_written(command, work, workplace, monkeypatch):
    def out_of_files(*args, **kwargs):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(f"parl_cli.jobs.{work}", out_of_files)
    before = tree(workplace)
    with pytest.raises(OSError, match="Too many open files"):
        main([*command, "output=out"])
    assert tree(workplace) == before


@pytest.fixture
def small_disk(tmp_path):
    """Gives a function that mounts a file system of some KiB."""
    mounted = []

    def mount(kib, *options):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={kib}k", *options]), "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=20, check=False)
        except FileNotFoundError:
            pytest.skip("there is no mount")
        if done.returncode:
            pytest.skip("this user may not mount")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], timeout=20, check=True)


def fill(disk):
    with (disk / "ballast").open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(512)):
            pass


def train_command(folder, *more):
    return ["train", "env=cartpole", *CLI_TINY, f"total_steps={10 * ROLLOUT}", f"hydra.run.dir={folder}", *more]


def test_a_full_disk_ends_train_and_eval_in_one_line_with_nothing_left(workplace, small_disk, capsys):
    disk = small_disk(256)
    fill(disk)
    before = tree(disk)
    assert "No space left" in refused(train_command(disk / "outputs/run"), capsys)
    assert "output=FOLDER" in refused(["eval", "checkpoint=latest", f"output={disk}/out"], capsys)
    assert tree(disk) == before


def test_after_a_job_nothing_is_logged_into_its_folder_any_more(workplace, capsys):
    assert main(train_command(workplace / "run")) == 0
    assert not [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    shutil.rmtree(workplace / "run")
    logging.getLogger("parl_cli.vectorizers").warning("of something else")
    assert not (workplace / "run").exists()


def test_a_read_only_disk_ends_train_eval_and_resume_in_one_line(workplace, small_disk, capsys):
    disk = small_disk(4096)
    train(normalising_config(updates=4), disk / "run", stop_at=2)
    assert main(["eval", f"checkpoint={disk}/run", "episodes=1"]) == 0
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], timeout=20, check=True)
    assert "Read-only" in refused(train_command(disk / "other"), capsys)
    assert "output=FOLDER" in refused(["eval", f"checkpoint={disk}/run"], capsys)
    assert "Read-only" in refused(["resume", f"run={disk}/run"], capsys)
    assert evaluated(f"checkpoint={disk}/run", "episodes=1", output=workplace / "out")["episodes"] == 1


def test_a_disk_that_fills_up_while_training_leaves_a_run_that_goes_on_with_room(tmp_path, small_disk, capsys):
    disk = small_disk(300)
    done = parl(*train_command(disk / "run", "checkpoint.every_steps=64", "checkpoint.keep=1000"), cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "No space left" in done.stderr
    last = checkpoint.last(disk / "run")
    assert checkpoint.load(last).env_steps == int(last.name)
    shutil.copytree(disk / "run", tmp_path / "copy", ignore=shutil.ignore_patterns(".*"))
    assert main(["resume", f"run={tmp_path}/copy"]) == 0
    straight = tmp_path / "straight"
    assert main(train_command(straight)) == 0
    assert policy_hash(tmp_path / "copy") == policy_hash(straight)
