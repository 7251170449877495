import io
import math

import pytest
from rich.cells import cell_len
from rich.console import Console

from parl_cli.metrics.catalog import CATALOG
from parl_cli.metrics.panel import LivePanel

ROW = {metric.name: 0.123456 for metric in CATALOG if "<" not in metric.name} | {
    "env_steps": 61_440.0,
    "update": 48.0,
    "time_s": 12.0,
    "episode/return_mean": 187.3,
    "episode/return_min": 9.0,
    "episode/return_max": 500.0,
    "eval/return_mean": 423.4,
    "eval/return_ci95": 12.25,
    "memory/rss_mb": 412.3,
    "policy/clip_fraction": 0.125,
}


def make(width=80, height=40):
    return Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, legacy_windows=False
    )


def draw(panel, width=80, height=40):
    """The panel's lines as the terminal of this size would show them."""
    out = make(width, height)
    panel._console = out
    out.print(panel.render())
    return out.file.getvalue().splitlines()


def panel_of(*rows, name="cartpole-ppo", total=100_352, **more):
    panel = LivePanel(total, name, to=make(), clock=lambda: 0.0, **more)
    for row in rows:
        panel.update(row)
    return panel


def test_panel_tells_all_that_matters():
    text = "\n".join(draw(panel_of(ROW)))
    for part in (
        "cartpole-ppo", "61%", "61,440/100,352", "12s", "187.3 →", "9 to 500", "423.4 ± 12.2", "policy loss",
        "0.1235", "kl", "12.5%", "expl. var", "entropy", "412 MB", "update", "48", "env 12%", "Ctrl-C",
    ):  # fmt: skip
        assert part in text, part


@pytest.mark.parametrize("width", [20, 40, 60, 71, 72, 80, 100, 103, 104, 124, 140, 300])
@pytest.mark.parametrize("rows", [[], [ROW], [{"env_steps": 1.0}], [ROW] * 300], ids=["none", "full", "bare", "many"])
def test_every_line_fits_the_terminal_and_the_frame_is_straight(width, rows):
    lines = draw(panel_of(*rows), width)
    assert {cell_len(line) for line in lines} == {min(width, 124)}
    assert all(line[0] in "╭│╰" and line[-1] in "╮│╯" for line in lines)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e-300])
@pytest.mark.parametrize("width", [40, 80, 124])
def test_absurd_values_are_drawn_without_breaking_the_frame(bad, width):
    fixed = ("env_steps", "update", "time_s")
    row = {name: (value if name in fixed else bad) for name, value in ROW.items()}
    lines = draw(panel_of(ROW, row, row), width)
    assert {cell_len(line) for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 18), (80, 17), (60, 40), (40, 6)])
def test_panel_is_never_taller_than_the_terminal(width, height):
    assert len(draw(panel_of(ROW), width, height)) <= min(height, 17)


def test_actors_on_their_own_have_a_line_of_their_own():
    shares = {"actors/env_share": 0.5, "actors/act_share": 0.25, "actors/wait_share": 0.25, "actors/queue_depth": 1.5}
    inline = {name: value for name, value in ROW.items() if not name.startswith("actors/")}
    lines = draw(panel_of(inline | shares))
    [line] = [line for line in lines if "actors" in line]
    assert "env 50%" in line
    assert "wait 25%" in line
    assert "queue 1.5" in line
    assert len(lines) == len(draw(panel_of(inline))) + 1
    assert not any("actors" in line for line in draw(panel_of(inline)))


def test_wide_terminal_shows_the_optimizer_too():
    panel = panel_of(ROW)
    assert not any("grad norm" in line for line in draw(panel, 80))
    assert any("grad norm" in line for line in draw(panel, 120))


def test_losses_of_another_algorithm_are_shown_under_their_own_name():
    panel = panel_of({"env_steps": 1.0, "loss/critic": 0.5, "loss/actor": 0.25})
    text = "\n".join(draw(panel))
    assert "critic loss" in text
    assert "actor loss" in text
    assert "kl" not in text


def test_rising_return_is_charted_with_its_ends_and_an_arrow():
    panel = panel_of(*({**ROW, "episode/return_mean": float(i)} for i in range(100)))
    lines = draw(panel)
    top, bottom = (next(line for line in lines if label in line) for label in ("return", "best eval"))
    assert "↑" in top
    assert "99.0 │" in top
    assert "0.0 │" in bottom
    assert top.count("█") < bottom.count("█")


def test_long_or_wide_name_is_cut_not_wrapped():
    for name in ("x" * 200, "訓練" * 80, "[bold]x"):
        lines = draw(panel_of(ROW, name=name))
        assert {cell_len(line) for line in lines} == {80}


def test_bar_does_not_move_while_the_numbers_grow():
    bars = set()
    for steps, seconds in ((1, 1.0), (999, 59.0), (61_440, 3700.0), (100_352, 90_000.0)):
        line = draw(panel_of({"env_steps": float(steps), "time_s": seconds, "steps_per_s": 100.0}))[1]
        bars.add(line.count("━"))
    assert len(bars) == 1


def test_terminal_is_restored_when_the_run_raises():
    out = make()

    def train():
        with LivePanel(100, "x", to=out) as panel:
            panel.update(ROW)
            out.print("a line from elsewhere")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        train()
    shown = out.file.getvalue()
    assert shown.count("\x1b[?25l") == 1, "the cursor was hidden once"
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")
    assert "a line from elsewhere" in shown


def test_ended_panel_offers_no_ctrl_c_and_no_time_left():
    panel = LivePanel(100_352, "x", to=make())
    with panel:
        panel.update(ROW)
    text = "\n".join(draw(panel))
    assert "Ctrl-C" not in text
    assert "eta" not in text


def test_narrower_window_clears_what_the_terminal_has_rewrapped():
    out = make(100)
    panel = LivePanel(100, "x", to=out)
    with panel:
        out.width = 80
        panel._live.refresh()
        narrowed = out.file.getvalue()
        out.width = 90
        panel._live.refresh()
    assert "\x1b[2J" in narrowed
    assert out.file.getvalue().count("\x1b[2J") == 1
