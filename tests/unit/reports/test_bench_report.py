import copy
import io

import pytest
from matplotlib.image import imread
from rich.console import Console

from parl_cli.reports.bench import BenchProgress, print_report, reason
from parl_cli.reports.bench_chart import plot_bench

COMMAND = "parl train" + " env=cartpole" * 10
SHARES = {"env": 0.2, "act": 0.1, "learn": 0.6, "wait": 0.0, "other": 0.1}


def speed(*rounds):
    middle = sorted(rounds)[len(rounds) // 2]
    per_step = {"us_per_step": 1e6 / middle, "steps_per_s": middle, "cpu_us_per_step": 7.5}
    return per_step | {"rounds_steps_per_s": list(rounds)}


def entry(label, alone, together, num_envs=32, **options):
    end_to_end = together and speed(*together) | {"shares": SHARES, "actors": {}}
    name = label.partition(",")[0]
    return {"label": label, "vectorizer": name, "num_envs": num_envs, **options} | {
        "env_only": speed(*alone),
        "end_to_end": end_to_end,
    }


SERIAL = entry("serial", (100_000, 100_000), (20_000, 20_000))
TWO = entry("subprocess, 2 workers", (150_000, 150_000), (18_000, 18_000), num_workers=2)


def data(*entries, winner=0, **changes):
    versions = {"python": "3.11.7", "torch": "2.13.0", "numpy": "2.0", "gymnasium": "1.2"}
    return {
        "algo": "ppo",
        "env": "CartPole-v1",
        "num_envs": 32,
        "wall_s": 9.4,
        "machine": {"cores": 2, "device": "cpu", "num_threads": 1, **versions},
        "env_step": {"us": 6.0, "cpu_share": 1.0},
        "wake_up_us": 20.0,
        "core_share": 0.99,
        "cpu_of_children_counted": True,
        "parts": [{"num_envs": 32, "act_us": 3.25, "learn_us": 41.0, "update_steps": 4096}],
        "vectorizers": list(entries),
        "refused": {},
        "winner": entries[winner],
    } | changes


def shown(report, width=80, terminal=True, encoding="utf-8"):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    out = Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False)
    print_report(report, "outputs/bench/1", COMMAND, to=out)
    file.flush()
    return file.buffer.getvalue().decode(encoding).splitlines()


# ---- why ----


def test_serial_wins_by_what_waking_costs():
    assert reason(data(SERIAL, TWO)) == (
        "serial wins: a CartPole-v1 step costs 6 µs, a wake-up 20 µs; "
        "subprocess, 2 workers has 0.90 × its speed end to end, 1.50 × in stepping alone"
    )


def test_another_wins_by_its_gain_over_serial():
    faster = entry("thread, 2 workers", (190_000, 190_000), (24_000, 24_000), num_workers=2)
    assert reason(data(SERIAL, TWO, faster, winner=2)) == (
        "thread, 2 workers wins: 1.20 × serial end to end, 1.90 × in stepping alone; a CartPole-v1 step costs 6 µs, a "
        "wake-up 20 µs"
    )


def test_a_tuning_compares_with_serial_at_the_same_size():
    small = entry("serial", (1.0,), (1.0,), num_envs=8)
    large, won = entry("serial", (2.0,), (2.0,), num_envs=64), entry("thread, 2 workers", (3.0,), (3.0,), num_envs=64)
    assert reason(data(small, large, won, winner=2)).startswith(
        "thread, 2 workers, 64 envs wins: 1.50 × serial, 64 envs end to end"
    )


def test_ratios_are_those_of_the_same_round():
    slowed = entry("thread, 2 workers", (1, 1, 1), (110, 11, 11), num_workers=2)
    steady = entry("serial", (1, 1, 1), (100, 10, 10))
    assert "1.10 × serial end to end" in reason(data(steady, slowed, winner=1))


def test_one_alone_is_no_comparison():
    assert reason(data(SERIAL)) == "serial is all that was compared: a CartPole-v1 step costs 6 µs, a wake-up 20 µs"


# ---- the table ----


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("width", [80, 120, 200])
def test_no_figure_is_cut_off(width, several):
    grouped = entry("async, 2 workers, 4 groups", (123_456,) * 2, (98_765,) * 2, num_workers=2, num_groups=4)
    sized = entry("serial", (1.0,) * 2, (1.0,) * 2, num_envs=256 if several else 32)
    lines = shown(data(sized, SERIAL, TWO, grouped), width)
    table = [line for line in lines[: len(lines) - 4] if "parl train" not in line]
    assert not any("…" in line for line in table)
    assert all(len(line.rstrip()) <= width for line in table)
    row = next(line for line in table if line.startswith(" async"))
    for figure in ("2", "4", "8.10", "98.8k", "10.1", "7.50", "20", "10", "60", "0"):
        assert figure in row.split()


def test_a_wide_table_has_every_figure():
    row = next(line for line in shown(data(SERIAL, TWO), 200) if line.startswith(" subprocess"))
    assert row.split()[:8] == ["subprocess", "2", "150.0k", "6.67", "7.50", "18.0k", "55.6", "7.50"]
    assert row.split()[8:] == ["20", "10", "60", "0", "10"]


def test_what_was_not_trained_has_no_figures_of_training():
    alone = entry("thread, 2 workers", (100_000,), None, num_workers=2)
    row = next(line for line in shown(data(SERIAL, alone), 200) if line.startswith(" thread"))
    assert row.split() == ["thread", "2", "100.0k", "10.0", "7.50"]


def test_the_command_is_the_last_line_and_never_broken():
    for terminal in (True, False):
        assert shown(data(SERIAL, TWO), terminal=terminal)[-1] == COMMAND


def test_what_is_missing_is_said():
    refused = {"native": "CartPole-v1 brings no batch"}
    text = "\n".join(shown(data(SERIAL, refused=refused, cpu_of_children_counted=False), 120))
    assert "not measured: native: CartPole-v1 brings no batch" in text
    assert "CPU times are those of this process" in text


def test_a_busy_machine_is_told_and_a_quiet_one_is_not():
    assert not any("other processes" in line for line in shown(data(SERIAL), 120))
    text = "\n".join(shown(data(SERIAL, core_share=0.6), 120))
    assert "warning: other processes had 40% of the core meanwhile" in text


def test_the_parts_are_those_of_the_job_s_own_size():
    parts = [{"num_envs": n, "act_us": n / 2, "learn_us": 3.0, "update_steps": 8} for n in (8, 32, 64)]
    lines = shown(data(SERIAL, parts=parts, env_step={"us": 1080.0, "cpu_share": 0.1}), 120)
    assert "  act only     16 µs per env step" in lines
    assert "  one env      1.08 ms a step, most of it waiting; a wake-up costs 20 µs" in lines


def test_another_number_of_envs_is_a_warning():
    large = entry("serial", (1.0,), (1.0,), num_envs=64)
    assert any("num_envs changes what is learned" in line for line in shown(data(large)))
    assert not any("num_envs changes what is learned" in line for line in shown(data(SERIAL)))


def test_without_a_terminal_it_is_plain_lines_in_any_encoding():
    lines = shown(data(SERIAL, TWO), terminal=False, encoding="ascii")
    assert "  act only     3.2 us per env step" in lines
    assert any(line.startswith(" subprocess") for line in lines)
    assert not any("?" in line for line in lines)


# ---- progress ----


def test_progress_without_a_terminal_is_one_line_per_stage():
    file = io.StringIO()
    with BenchProgress(Console(file=file, width=80)) as progress:
        for stage, now in (("one", ""), ("two", "1 of 2"), ("two", "2 of 2")):
            progress(stage, now)
    assert file.getvalue() == "measuring one\nmeasuring two\n"


def test_progress_on_a_terminal_leaves_nothing_behind():
    file = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with BenchProgress(Console(file=file, width=80, force_terminal=True)) as progress:
        progress("two", "1 of 2")
    file.flush()
    text = file.buffer.getvalue().decode()
    assert "two: 1 of 2" in text
    assert text.endswith("\x1b[2K")  # the line is erased


# ---- the picture ----


def test_every_vectorizer_that_was_trained_gets_a_bar(tmp_path):
    heights = []
    for entries in ([SERIAL], [SERIAL, TWO], [SERIAL, TWO, entry("thread, 2 workers", (1.0,), None)]):
        plot_bench(data(*entries), tmp_path / "bench.png")
        image = imread(tmp_path / "bench.png")
        assert image.shape[1] == 1200
        heights.append(image.shape[0])
    assert heights[0] < heights[1] == heights[2]
    assert [path.name for path in tmp_path.iterdir()] == ["bench.png"]


def test_bars_are_parted_as_the_time_was(tmp_path):
    report = data(copy.deepcopy(SERIAL))
    plot_bench(report, tmp_path / "bench.png")
    image = (imread(tmp_path / "bench.png")[..., :3] * 255).round().astype(int)
    counts = {
        part: int((abs(image - [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=2) < 3).sum())
        for part, colour in {"env": "#2a6fb0", "learn": "#5a9e5d"}.items()
    }
    assert 2.5 < counts["learn"] / counts["env"] < 3.5


def test_actors_that_act_on_their_own_have_shares_of_their_own():
    apart = copy.deepcopy(SERIAL)
    apart["end_to_end"]["actors"] = {"env": 0.7, "act": 0.2, "wait": 0.06, "other": 0.04}
    line = "actors of serial: env 70%, act 20%, wait 6%, other 4%; the shares above are the learner's"
    assert line in shown(data(apart, TWO), width=120)
    assert not [line for line in shown(data(SERIAL, apart)) if line.startswith("actors of")]


def test_what_was_faster_but_not_reliably_is_said():
    shaky = entry("subprocess, 2 workers", (150_000, 150_000, 150_000), (19_000, 30_000, 31_000), num_workers=2)
    steady = entry("serial", (100_000,) * 3, (20_000,) * 3)
    assert reason(data(steady, shaky)) == (
        "serial stays: subprocess, 2 workers has 1.50 × its speed end to end, 1.50 × in stepping alone, which is not "
        "clear enough; seconds=30 tells more; a CartPole-v1 step costs 6 µs, a wake-up 20 µs"
    )
