"""Checkpoints are whole or not there, and damage is found."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parl_cli.errors import CheckpointError, WriteError
from parl_cli.training import checkpoint
from tests.helpers.runs import edit_json, reseal

CONFIG = {"name": "test", "env": {"id": "CartPole-v1", "kwargs": {"a": [1, "x"]}}}
POLICY = {"head.weight": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}
TRAINING = {
    "learner": {"rate": 0.1 + 0.2, "state": {"0": {"avg": torch.randn(4, generator=torch.manual_seed(0))}}},
    "pool": {"actor": {"acted": torch.arange(3), "flags": torch.tensor([True, False])}},
    "eval": None,
    "empty": torch.zeros(0, 2),
}


def save(path, **changes):
    parts = {"env_steps": 640, "config": CONFIG, "policy": POLICY, "training": TRAINING} | changes
    checkpoint.save(path, **parts)
    return path


def equal(left, right):
    """Equality of trees that hold tensors: same keys, types and bits."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(equal(left[k], right[k]) for k in left)
    return type(left) is type(right) and left == right


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path):
    loaded = checkpoint.load(save(tmp_path / "640"))
    assert (loaded.path, loaded.env_steps) == (tmp_path / "640", 640)
    assert equal(loaded.config, CONFIG)
    assert equal(loaded.policy, POLICY)
    assert equal(loaded.training, TRAINING)


def test_it_is_found_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    saved = save(tmp_path / "640")
    assert checkpoint.find("~/640") == saved


def test_an_older_checkpoint_of_that_name_is_replaced(tmp_path):
    save(tmp_path / "best", env_steps=1)
    save(tmp_path / "best", env_steps=2)
    assert checkpoint.load(tmp_path / "best").env_steps == 2
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_keys_that_would_be_ambiguous_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must not contain"):
        save(tmp_path / "640", training={"a/b": 1})


# ---- crashes ----


@pytest.mark.parametrize("at", range(5))
def test_a_full_disk_leaves_no_new_checkpoint_and_the_old_ones(tmp_path, monkeypatch, at):
    save(tmp_path / "best", env_steps=1)
    write, calls = checkpoint._write_synced, []

    def write_until_full(path, data):
        calls.append(path)
        if len(calls) > at:
            path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, data)

    monkeypatch.setattr(checkpoint, "_write_synced", write_until_full)
    for name in ("640", "best"):
        calls.clear()
        with pytest.raises(WriteError, match="No space"):
            save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert checkpoint.load(tmp_path / "best").env_steps == 1


def test_an_old_checkpoint_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    save(tmp_path / "best", env_steps=1)
    rename = type(tmp_path).rename

    def fail(path, target):
        if path.suffix == ".tmp":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "rename", fail)
        with pytest.raises(WriteError, match="Input/output"):
            save(tmp_path / "best", env_steps=2)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert checkpoint.load(tmp_path / "best").env_steps == 1


def test_what_a_killed_save_left_is_not_a_checkpoint_and_is_cleared_up(tmp_path):
    save(tmp_path / "checkpoints/640")
    shutil.copytree(tmp_path / "checkpoints/640", tmp_path / "checkpoints/.704-0badcafe.tmp")
    assert checkpoint.last(tmp_path).name == "640"
    checkpoint.tidy(tmp_path / "checkpoints")
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["640"]


def test_killed_between_two_renames_the_older_best_comes_back(tmp_path):
    save(tmp_path / ".best-0badcafe.old", env_steps=1)
    save(tmp_path / ".best-deadbeef.tmp", env_steps=2)
    checkpoint.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert checkpoint.load(tmp_path / "best").env_steps == 1


def test_killed_after_both_renames_the_newer_best_stays(tmp_path):
    save(tmp_path / ".best-0badcafe.old", env_steps=1)
    save(tmp_path / "best", env_steps=2)
    checkpoint.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert checkpoint.load(tmp_path / "best").env_steps == 2


# ---- damage ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(tmp_path_factory.mktemp("saved") / "640")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from([*checkpoint.FILES, "manifest.json"]), where=st.floats(0, 1), bits=st.integers(1, 255))
def test_a_flipped_byte_is_an_error_or_changes_nothing(saved, tmp_path, name, where, bits):
    content = bytearray((saved / name).read_bytes())
    content[int(where * (len(content) - 1))] ^= bits
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved, folder)
    (folder / name).write_bytes(content)
    try:
        loaded = checkpoint.load(folder)
    except CheckpointError:
        return
    whole = checkpoint.load(saved)
    assert loaded.env_steps == whole.env_steps
    assert all(equal(getattr(loaded, part), getattr(whole, part)) for part in ("config", "policy", "training"))


@pytest.mark.parametrize("name", [*checkpoint.FILES, "manifest.json"])
def test_every_flipped_bit_of_content_is_found(saved, tmp_path, name):
    shutil.copytree(saved, tmp_path / "copy")
    content = bytearray((saved / name).read_bytes())
    content[content.index(b'"') + 1] ^= 1  # within a word, so that it is no white space
    (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} (was changed|is not|says nothing)|not of format"):
        checkpoint.load(tmp_path / "copy")


def test_a_tensor_where_a_value_stands_is_an_error(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    edit_json(tmp_path / "copy/training.json", lambda values: values.update(learner=3))
    reseal(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="stands where a plain value does"):
        checkpoint.load(tmp_path / "copy")


# ---- weights ----


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"weight": torch.zeros(2, 3)}, "it lacks bias"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)}, "the network has no more"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"weight has shape \[3, 2\], the network \[2, 3\]"),
        ({"weight": torch.zeros(2, 3), "bias": torch.tensor([0.0, torch.nan])}, "bias holds NaN"),
        ({"weight": torch.zeros(2, 3), "bias": torch.tensor([0.0, torch.inf])}, "bias holds NaN or infinity"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2, dtype=torch.complex64)}, "bias holds NaN"),
    ],
)
def test_weights_of_another_network_are_refused_and_not_half_loaded(tmp_path, weights, message):
    network = torch.nn.Linear(3, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_weights(network, weights, tmp_path)
    assert equal(dict(network.state_dict()), before)


def test_weights_are_checked_against_an_outline_without_memory(tmp_path):
    with torch.device("meta"):
        outline = torch.nn.Linear(10**9, 10**9)
    with pytest.raises(CheckpointError, match="weight has shape"):
        checkpoint.check_weights(outline, {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path)


# ---- finding ----


def test_a_checkpoint_is_found_by_its_own_folder_its_run_or_latest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "outputs/ppo_cartpole/one"
    for name in ("64", "640", "best"):
        save(run / "checkpoints" / name)
    (run.parent / "latest").symlink_to("one")
    assert checkpoint.find("outputs/ppo_cartpole/one/checkpoints/64").name == "64"
    assert checkpoint.find("outputs/ppo_cartpole/one/checkpoints/best").name == "best"
    assert checkpoint.find("outputs/ppo_cartpole/one").name == "640"
    assert checkpoint.find("outputs/ppo_cartpole/latest").name == "640"
    assert checkpoint.find("latest").resolve() == run / "checkpoints/640"


def test_latest_is_the_run_that_wrote_a_checkpoint_last_sweeps_included(tmp_path):
    old, new, bare = (tmp_path / name for name in ("a/one", "a/sweep-x/0", "b/none"))
    (bare / "checkpoints").mkdir(parents=True)
    for age, run in ((100, old), (50, new), (0, bare)):
        if run is not bare:
            save(run / "checkpoints/64")
        os.utime(run / "checkpoints", (1e9 - age, 1e9 - age))
    assert checkpoint.latest_run(tmp_path) == new
    os.utime(old / "checkpoints", (1e9, 1e9))
    assert checkpoint.latest_run(tmp_path) == old
    for depth in ("mine", "a/b/c/d"):  # hydra.run.dir=outputs/mine, name=a/b in a sweep
        save(tmp_path / depth / "checkpoints/64")
        assert checkpoint.latest_run(tmp_path) == tmp_path / depth


def test_steps_are_ordered_as_numbers(tmp_path):
    for name in ("9", "10", "best", ".11-x.tmp", "²", "٣"):
        (tmp_path / name).mkdir()
    (tmp_path / "12").write_text("a file")
    assert [path.name for path in checkpoint.numbered(tmp_path)] == ["9", "10"]


def test_the_manifest_covers_itself(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    manifest = json.loads((saved / "manifest.json").read_text())
    (tmp_path / "copy/manifest.json").write_text(json.dumps(manifest | {"env_steps": 64}))
    with pytest.raises(CheckpointError, match=r"manifest\.json was changed"):
        checkpoint.load(tmp_path / "copy")
