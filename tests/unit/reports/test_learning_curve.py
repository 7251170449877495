import json
import math
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from parl_cli.metrics.jsonl import JsonlSink
from parl_cli.reports.learning_curve import plot_learning_curve


def train_row(steps, mean=1.0, std=0.5):
    row = {"env_steps": steps, "time_s": steps / 1000, "episode/return_mean": mean, "episode/return_std": std}
    return row | {"episode/return_min": mean - 2 * std, "episode/return_max": mean + 2 * std}


def eval_row(steps, mean=2.0):
    return {"env_steps": steps, "eval/return_mean": mean, "eval/return_ci95": 0.2}


def draw(tmp_path, rows, **more):
    folder = tmp_path / "cartpole" / "run-1"
    folder.mkdir(parents=True, exist_ok=True)
    sink = JsonlSink(folder / "metrics.jsonl")
    sink.truncate(0)
    for row in rows:
        sink.write(row)
    sink.close()
    plot_learning_curve(folder / "metrics.jsonl", folder / "curve.png", **more)
    assert sorted(entry.name for entry in folder.iterdir()) == ["curve.png", "metrics.jsonl"]
    return imread(folder / "curve.png")[..., :3]


def pixels(image, colour):
    """How many pixels have (nearly) this colour."""
    wanted = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return int((np.abs(image - wanted).max(axis=2) < 0.02).sum())


def rc_params():
    """All but the backend: to read that one is to look for one, which imports pyplot."""
    return {name: mpl.rcParams[name] for name in mpl.rcParams if name != "backend"}


TRAIN, EVAL = "#2a6fb0", "#d9622b"


@pytest.mark.parametrize(
    ("rows", "train", "evals"),
    [
        ([], False, False),
        ([{"env_steps": 5.0, "update": 1.0}], False, False),
        ([train_row(100)], True, False),
        ([train_row(100), train_row(200, 3.0)], True, False),
        ([eval_row(100)], False, True),
        ([train_row(100), train_row(200) | eval_row(200)], True, True),
        ([train_row(100), train_row(200, math.nan, math.nan), train_row(300, std=math.nan)], True, False),
        ([{"env_steps": 1.0, "episode/return_mean": 2.0}, {"env_steps": 2.0, "eval/return_mean": 2.0}], True, True),
    ],
    ids=["empty", "no episode", "one", "two", "eval only", "both", "nan", "means only"],
)
def test_what_is_there_is_drawn_and_nothing_else(tmp_path, rows, train, evals):
    image = draw(tmp_path, rows)
    assert image.shape == (675, 1200, 3)
    assert (pixels(image, TRAIN) > 20) == train
    assert (pixels(image, EVAL) > 20) == evals


def test_better_returns_are_drawn_higher(tmp_path):
    image = draw(tmp_path, [train_row(steps, steps / 100, 0.0) for steps in range(0, 10_001, 100)])
    blue = np.abs(image - np.array([0x2A, 0x6F, 0xB0]) / 255).max(axis=2) < 0.02
    rows, columns = np.nonzero(blue[:, 300:])  # left of it stands the legend
    early, late = (rows[columns == columns[order]].mean() for order in (columns.argmin(), columns.argmax()))
    assert late < early - 100


def test_run_name_with_signs_and_scripts_is_no_error(tmp_path):
    draw(tmp_path, [train_row(1)], title="a_$b^{$ 訓練 " + "x" * 200)


def test_torn_last_line_is_no_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(train_row(100)) + "\n" + '{"env_st')
    plot_learning_curve(path, tmp_path / "curve.png")
    assert pixels(imread(tmp_path / "curve.png")[..., :3], TRAIN) > 20


def test_many_rows_take_no_longer_than_a_picture_needs(tmp_path):
    image = draw(tmp_path, [train_row(steps) for steps in range(5_000)])
    assert pixels(image, TRAIN) > 500


def test_missing_file_is_named_and_no_picture_is_left(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        plot_learning_curve(tmp_path / "metrics.jsonl", tmp_path / "curve.png")
    assert list(tmp_path.iterdir()) == []


def test_global_state_of_matplotlib_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    before = rc_params()
    draw(tmp_path, [train_row(1)])
    assert rc_params() == before
    assert "matplotlib.pyplot" not in sys.modules


def test_failed_save_leaves_the_old_picture(tmp_path, monkeypatch):
    draw(tmp_path, [train_row(1)])
    old = (tmp_path / "cartpole" / "run-1" / "curve.png").read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("parl_cli.reports.learning_curve.os.replace", full)
    with pytest.raises(OSError, match="No space"):
        draw(tmp_path, [train_row(1), train_row(2)])
    assert (tmp_path / "cartpole" / "run-1" / "curve.png").read_bytes() == old
    assert len(list((tmp_path / "cartpole" / "run-1").iterdir())) == 2
