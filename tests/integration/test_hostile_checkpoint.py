"""Checkpoints and run folders made to do harm: nothing executes, nothing is written, one line, exit code 2."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import sys
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from parl_cli.cli import main
from parl_cli.errors import ParlError
from parl_cli.experiment import Experiment
from parl_cli.training import checkpoint
from parl_cli.training.run_dir import RunDir
from tests.helpers.cli import fresh_parl
from tests.helpers.runs import (
    edit_json,
    normalising_config,
    reseal,
    seal,
    train,
    tree,
)

LIMIT_S = 10  # the promise is 3 s; a loaded machine may take longer
EVIL_MODULE = "parl_evil_plugin"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped half-way: it can be evaluated and resumed."""
    run = tmp_path_factory.mktemp("stopped") / "run"
    train(normalising_config(updates=8), run, stop_at=4)
    return run


@pytest.fixture
def run(stopped, tmp_path, monkeypatch):
    shutil.copytree(stopped, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


@pytest.fixture
def evil_module(tmp_path, monkeypatch):
    """A module that leaves a trace when it is imported; gives a test whether it was."""
    folder = tmp_path / "modules"
    folder.mkdir()
    trace = folder / "trace"
    (folder / f"{EVIL_MODULE}.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield lambda: trace.exists() or EVIL_MODULE in sys.modules
    sys.modules.pop(EVIL_MODULE, None)


class Bomb:
    """What unpickling would run."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def refused(command, run, capsys):
    """Run a command in this process: exit code 2, one line, nothing written; the line."""
    before = tree(run.parent)
    capsys.readouterr()
    started = time.monotonic()
    code = main(command)
    elapsed = time.monotonic() - started
    error = capsys.readouterr().err
    assert code == 2, error
    assert error.startswith("parl: error: ")
    assert error.count("\n") == 1
    assert elapsed < LIMIT_S
    assert tree(run.parent) == before
    return error


def last(run):
    return checkpoint.last(run)


def set_config(run, *keys, value):
    def change(config):
        node = config
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = value

    edit_json(last(run) / "config.json", change)
    reseal(last(run))


def set_training(run, *keys, value):
    def change(values):
        for key in keys[:-1]:
            values = values[key]
        values[keys[-1]] = value

    edit_json(last(run) / "training.json", change)
    reseal(last(run))


def set_tensor(run, name, change, file="training.safetensors"):
    path = last(run) / file
    tensors = load_file(path)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, path)
    reseal(last(run))


def set_tails(run, length):
    """Unfinished episodes of so many steps, without actions."""
    set_tensor(run, "pool/actor/tail_lengths", lambda t: t * 0 + length)
    set_tensor(run, "pool/actor/tail_actions", lambda t: t[:0])


def replace(run, name, data):
    (last(run) / name).write_bytes(data)
    reseal(last(run))


def huge_header(claimed):
    return struct.pack("<Q", claimed) + b"{}" + b" " * 64


def bomb_header(run):
    replace(run, "policy.safetensors", struct.pack("<Q", 17 * 2**20) + b" " * (17 * 2**20))


def truncate(run, name, reseals):
    path = last(run) / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if reseals:
        reseal(last(run))


def flip(run, name):
    path = last(run) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def escape(run):
    """A manifest whose file names lead out of the folder."""
    folder = last(run)
    secret = run.parent / "secret.json"
    secret.write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../../secret.json"] = manifest["files"].pop("config.json")
    seal(folder, manifest)


def set_manifest(run, **changes):
    manifest = json.loads((last(run) / "manifest.json").read_text())
    seal(last(run), manifest | changes)


def pipe(run, name):
    (last(run) / name).unlink()
    os.mkfifo(last(run) / name)


def device_file(run, name):
    (last(run) / name).unlink()
    (last(run) / name).symlink_to("/dev/zero")


def empty(run):
    for file in last(run).iterdir():
        file.unlink()


BOTH = {
    "pickle as weights": lambda run: replace(run, "policy.safetensors", pickle.dumps(Bomb())),
    "pickle as training state": lambda run: replace(run, "training.safetensors", pickle.dumps(Bomb())),
    "pickle behind a header": lambda run: replace(
        run, "policy.safetensors", struct.pack("<Q", 2) + b"{}" + pickle.dumps(Bomb())
    ),
    "torch pickle": lambda run: (torch.save(Bomb(), last(run) / "policy.safetensors"), reseal(last(run))),
    "interpolation in a value": lambda run: set_config(run, "name", value="${oc.env:HOME}"),
    "interpolation in kwargs": lambda run: set_config(run, "env", "kwargs", value={"a": ["${oc.env:HOME}"]}),
    "interpolation in a key": lambda run: set_config(run, "env", "kwargs", value={"${oc.env:HOME}": 1}),
    "env id that imports": lambda run: set_config(run, "env", "id", value=f"{EVIL_MODULE}:CartPole-v1"),
    "target": lambda run: set_config(run, "algo", "_target_", value="os.mkdir"),
    "target in a wrapper": lambda run: set_config(run, "env", "wrappers", value=[{"_target_": "os.mkdir"}]),
    "wrapper that imports": lambda run: set_config(run, "env", "wrappers", value=[f"{EVIL_MODULE}:Wrapper"]),
    "algorithm that imports": lambda run: set_config(run, "algo", "name", value=f"{EVIL_MODULE}:Algo"),
    "adapter that imports": lambda run: set_config(run, "env", "adapter", value=f"{EVIL_MODULE}:make"),
    "plugin": lambda run: set_config(run, "plugins", value=[EVIL_MODULE]),
    "plugins of a wrong type": lambda run: set_config(run, "plugins", value=7),
    "escape sequence": lambda run: set_config(run, "name", value="\x1b]0;gotcha\x07"),
    "half a surrogate pair": lambda run: set_config(run, "env", "name", value="\ud800"),
    "unknown key": lambda run: set_config(run, "surprise", value=1),
    "env that does not exist": lambda run: set_config(run, "env", "id", value="Nothing-v0"),
    "env kwargs it refuses": lambda run: set_config(run, "env", "kwargs", value={"surprise": 1}),
    "other env": lambda run: set_config(run, "env", "id", value="Pendulum-v1"),
    "other network": lambda run: set_config(run, "policy", "hidden_sizes", value=[9]),
    "network without end": lambda run: set_config(run, "policy", "hidden_sizes", value=[10**9, 10**9]),
    "network beyond 64 bits": lambda run: set_config(run, "policy", "hidden_sizes", value=[10**19]),
    "number beyond reason": lambda run: set_config(run, "total_steps", value=10**400),
    "config is a list": lambda run: replace(run, "config.json", b"[]"),
    "config is no text": lambda run: replace(run, "config.json", b"\xff\xfe\x00"),
    "nested JSON": lambda run: replace(run, "config.json", b'{"a":' + b"[" * 100_000),
    "deep but closed JSON": lambda run: replace(run, "config.json", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"),
    "number of a million digits": lambda run: replace(run, "training.json", b'{"a":' + b"9" * 10**6 + b"}"),
    "header larger than the file": lambda run: replace(run, "policy.safetensors", huge_header(2**62)),
    "header of 17 MB": bomb_header,
    "empty tensors file": lambda run: replace(run, "policy.safetensors", b""),
    "lost weight": lambda run: save_without(run, "value_head.bias"),
    "weights of a wrong shape": lambda run: set_tensor(
        run, "value_head.weight", lambda w: w.repeat(3, 1), "policy.safetensors"
    ),
    "NaN weights": lambda run: set_tensor(run, "value_head.bias", lambda b: b * torch.nan, "policy.safetensors"),
    "truncated weights": lambda run: truncate(run, "policy.safetensors", reseals=False),
    "truncated weights, resealed": lambda run: truncate(run, "policy.safetensors", reseals=True),
    "truncated manifest": lambda run: truncate(run, "manifest.json", reseals=False),
    "a byte of the weights": lambda run: flip(run, "policy.safetensors"),
    "a byte of the training state": lambda run: flip(run, "training.safetensors"),
    "a byte of the config": lambda run: flip(run, "config.json"),
    "a byte of the manifest": lambda run: flip(run, "manifest.json"),
    "missing config": lambda run: (last(run) / "config.json").unlink(),
    "missing weights": lambda run: (last(run) / "policy.safetensors").unlink(),
    "missing manifest": lambda run: (last(run) / "manifest.json").unlink(),
    "empty folder": empty,
    "path escape": escape,
    "manifest of another format": lambda run: set_manifest(run, format=99),
    "manifest without files": lambda run: set_manifest(run, files=3),
    "manifest of a step beyond numbers": lambda run: set_manifest(run, env_steps=2**63),
    "manifest with wrong types": lambda run: set_manifest(run, env_steps="many"),
    "pipe as manifest": lambda run: pipe(run, "manifest.json"),
    "pipe as weights": lambda run: pipe(run, "policy.safetensors"),
    "endless device as weights": lambda run: device_file(run, "policy.safetensors"),
    "endless device as manifest": lambda run: device_file(run, "manifest.json"),
}


def save_without(run, name):
    tensors = load_file(last(run) / "policy.safetensors")
    del tensors[name]
    save_file(tensors, last(run) / "policy.safetensors")
    reseal(last(run))


@pytest.mark.parametrize("what", BOTH)
def test_a_hostile_checkpoint_is_refused_by_eval_and_resume(what, run, evil_module, capsys):
    BOTH[what](run)
    files_with_pipes = what.startswith(("pipe", "endless"))
    check = refused_without_reading if files_with_pipes else refused
    check(["eval", "checkpoint=run", "episodes=1"], run, capsys)
    check(["resume", "run=run"], run, capsys)
    assert not evil_module()
    assert os.environ["HOME"] not in capsys.readouterr().err


def refused_without_reading(command, run, capsys):
    """As `refused`, for folders that no test can read either."""
    started = time.monotonic()
    assert main(command) == 2
    assert time.monotonic() - started < LIMIT_S
    error = capsys.readouterr().err
    assert "is not a regular file" in error
    assert error.count("\n") == 1


ADAM = "learner/algo/optimizer/0/"
RESUME = {
    "optimizer state of a wrong shape": lambda run: set_tensor(run, ADAM + "exp_avg", lambda t: t[:1]),
    "optimizer step of a wrong shape": lambda run: set_tensor(run, ADAM + "step", lambda t: t.repeat(9)),
    "optimizer state of a wrong type": lambda run: set_tensor(run, ADAM + "exp_avg_sq", lambda t: t.long()),
    "optimizer state of more parameters": lambda run: set_training(
        run, "learner", "algo", "optimizer", "99", value={"step": 1}
    ),
    "generator state of a wrong size": lambda run: set_tensor(run, "learner/algo/generator", lambda t: t[:100]),
    "generator state of noise": lambda run: set_tensor(run, "learner/algo/generator", lambda t: t * 0 + 255),
    "returns of more envs": lambda run: set_tensor(run, "learner/reward_scaler/accumulated", lambda t: t.repeat(2)),
    "episodes of fewer envs": lambda run: set_tensor(run, "pool/actor/episode_numbers", lambda t: t[:1]),
    "episodes before the first": lambda run: set_tensor(run, "pool/actor/episode_numbers", lambda t: t - 99),
    "observations of another shape": lambda run: set_tensor(run, "pool/actor/obs", lambda t: t[:, :2]),
    "observations of another type": lambda run: set_tensor(run, "pool/actor/obs", lambda t: t.double()),
    "actions of another shape": lambda run: set_tensor(run, "pool/actor/tail_actions", lambda t: t[:, None]),
    "actions of another type": lambda run: set_tensor(run, "pool/actor/tail_actions", lambda t: t.float() + 0.5),
    "actions that do not exist": lambda run: set_tensor(run, "pool/actor/tail_actions", lambda t: t + 7),
    "tails without end": lambda run: set_tensor(run, "pool/actor/tail_lengths", lambda t: t + 2**40),
    "tails whose lengths add up to none, modulo 2**64": lambda run: set_tails(run, 2**62),
    "negative tails": lambda run: set_tensor(run, "pool/actor/tail_lengths", lambda t: t * 0 - 1),
    "first flags of another shape": lambda run: set_tensor(run, "pool/actor/is_first", lambda t: t[:1]),
    "step counts of another shape": lambda run: set_tensor(run, "pool/actor/acted", lambda t: t[:1]),
    "no learner": lambda run: set_training(run, "learner", value=None),
    "text for a number": lambda run: set_training(run, "learner", "env_steps", value="many"),
    "list for a number": lambda run: set_training(run, "learner", "updates", value=[1]),
    "number for a group": lambda run: set_training(run, "pool", value=3),
    "text for a group": lambda run: set_training(run, "learner", "algo", value="ppo"),
    "updates without number": lambda run: set_training(run, "learner", "updates", value=2**63),
    "no reward scaler": lambda run: set_training(run, "learner", "reward_scaler", value=None),
    "window of text": lambda run: set_training(run, "metrics", "window", "returns", value=["a"]),
    "metrics cut in a line": lambda run: set_training(run, "metrics", "sinks", "offset", value=3),
    "metrics cut behind the end": lambda run: set_training(run, "metrics", "sinks", "offset", value=10**9),
    "metrics cut before the start": lambda run: set_training(run, "metrics", "sinks", "offset", value=-1),
    "no metrics": lambda run: set_training(run, "metrics", value=None),
    "counters that disagree": lambda run: set_training(run, "learner", "env_steps", value=-(10**15)),
}


@pytest.mark.parametrize("what", RESUME)
def test_hostile_training_state_is_refused_by_resume(what, run, capsys):
    RESUME[what](run)
    assert refused(["resume", "run=run"], run, capsys)


LINKS = ["metrics.jsonl", "metrics.csv", "learning_curve.png", "checkpoints", "eval", ".run.json.tmp"]


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_folder_cannot_make_resume_write_elsewhere(name, run, capsys):
    target = run.parent / "precious"
    target.mkdir()
    (target / "7").mkdir()
    (target / "7/data").write_text("mine")
    link = run / name
    if link.is_dir():
        shutil.move(str(link), target / "moved")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    assert f"{name} is a link" in refused(["resume", "run=run"], run, capsys)


def test_a_linked_checkpoint_of_a_run_is_not_resumed(run, capsys):
    elsewhere = run.parent / "elsewhere"
    last(run).rename(elsewhere)
    (run / "checkpoints/256").symlink_to(elsewhere)
    assert "is a link" in refused(["resume", "run=run"], run, capsys)


RUN_FILES = {
    "no run.json": ("run.json", None),
    "config of aliases": (
        "config.yaml",
        b"a: &a [1,1,1,1,1,1,1,1,1]\n"
        + b"".join(b"%c: &%c [%s]\n" % (n, n, b",".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 110)),
    ),
    "config that holds itself": ("config.yaml", b"a: &a [*a]\n"),
    "config of brackets": ("config.yaml", b"a: " + b"[" * 100_000),
    "config that builds objects": ("config.yaml", b"a: !!python/object/apply:os.mkdir [executed]\n"),
    "config with an interpolation": ("config.yaml", b"name: ${oc.env:HOME}\n"),
    "config that imports": ("config.yaml", f"env: {{id: '{EVIL_MODULE}:CartPole-v1'}}\n".encode()),
    "config of another language": ("config.yaml", b"\xff\xfe\x00\x01"),
    "config with a date that is none": ("config.yaml", b"a: 2001-99-99\n"),
    "no config": ("config.yaml", None),
}


@pytest.mark.parametrize("what", RUN_FILES)
def test_a_hostile_run_folder_without_checkpoints_is_refused(what, run, evil_module, capsys):
    shutil.rmtree(run / "checkpoints")
    name, data = RUN_FILES[what]
    (run / name).unlink()
    if data is not None:
        (run / name).write_bytes(data)
    refused(["resume", "run=run"], run, capsys)
    assert not evil_module()


@pytest.mark.parametrize("data", [b"[" * 100_000, b"\xff", b"3", b'{"resumed_at": 5}'])
def test_a_damaged_run_json_does_not_keep_a_run_from_going_on(data, run, capsys):
    (run / "run.json").write_bytes(data)
    assert main(["resume", "run=run"]) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize(
    ("command", "text"),
    [
        (["eval", "checkpoint=nowhere"], "no such folder"),
        (["eval", "checkpoint=latest"], "no run with a checkpoint"),
        (["eval", f"checkpoint={'x' * 5000}"], "no such folder"),
        (["eval", "checkpoint=run/run.json"], "no checkpoint in it"),
        (["resume", "run=nowhere"], "not a run folder"),
        (["resume", f"run={'x' * 5000}"], "not a run folder"),
        (["resume", "run=run/run.json"], "not a run folder"),
        (["resume", "run=run", "step=7"], "no such checkpoint"),
    ],
)
def test_a_place_that_holds_no_checkpoint_is_said_in_one_line(command, text, run, capsys):
    assert text in refused(command, run, capsys)


def test_the_real_command_refuses_without_executing_importing_or_tracebacks(run, evil_module):
    """The one case that could hide behind what this process has imported already."""
    set_config(run, "env", "id", value=f"{EVIL_MODULE}:CartPole-v1")
    for command in (["eval", "checkpoint=run"], ["resume", "run=run"]):
        started = time.monotonic()
        done = fresh_parl(*command, cwd=run.parent)
        assert time.monotonic() - started < 3 * LIMIT_S  # a process of its own, which imports all anew
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("parl: error: checkpoint=")
        assert done.stderr.count("\n") == 1
    assert not evil_module()


# ---- at random ----


LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3) | st.just([])
SLOW = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(data=st.data())
def test_random_damage_to_training_json_never_ends_in_a_traceback(data, stopped, tmp_path):
    folder = fresh_copy(stopped, tmp_path)
    path = last(folder) / "training.json"
    values = json.loads(path.read_text())
    nodes = [values]
    while isinstance(nodes[-1], dict) and nodes[-1]:
        key = data.draw(st.sampled_from(sorted(nodes[-1])))
        if data.draw(st.integers(0, 3)) == 0 or not isinstance(nodes[-1][key], dict):
            nodes[-1][key] = data.draw(LEAVES | st.just({}))
            break
        nodes.append(nodes[-1][key])
    path.write_text(json.dumps(values))
    reseal(last(folder))
    survive(folder)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SLOW)
@given(name=st.sampled_from(checkpoint.FILES), where=st.floats(0, 1), bits=st.integers(1, 255))
@example(name="training.safetensors", where=0.0, bits=1)
def test_random_flips_under_a_right_seal_never_end_in_a_traceback(name, where, bits, stopped, tmp_path):
    folder = fresh_copy(stopped, tmp_path)
    path = last(folder) / name
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= bits
    path.write_bytes(content)
    reseal(last(folder))
    survive(folder)


def fresh_copy(stopped, tmp_path):
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(stopped, folder)
    return folder


def survive(folder):
    """Restore and train one update, as resume would: it works, or a ParlError says why not."""
    config = normalising_config(updates=5)
    with Experiment(config, RunDir(folder)) as experiment, suppress(ParlError):
        experiment.restore(checkpoint.load(last(folder)))
        experiment.train()
