import math

import pytest

from parl_cli.metrics import gauges


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (0.00875, "0.0088"),
        (-0.0123, "-0.0123"),
        (2.5e-6, "2.5e-06"),
        (1.5, "1.50"),
        (87.34, "87.3"),
        (1234.5, "1,234"),
        (123_456.0, "123.5k"),
        (-1_240_000.0, "-1.24M"),
        (3e9, "3G"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_figure_keeps_the_digits_that_matter(value, text):
    assert gauges.figure(value) == text


@pytest.mark.parametrize("exponent", range(-300, 300, 3))
def test_figure_never_needs_more_than_nine_characters(exponent):
    for mantissa in (1.0, 9.9999, -1.2345):
        assert len(gauges.figure(mantissa * 10.0**exponent)) <= 9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (8.2, "9s"),
        (59.5, "1m 00s"),
        (65, "1m 05s"),
        (7380, "2h 03m"),
        (3 * 86400 + 4 * 3600, "3d 04h"),
        (-1, "0s"),
        (None, "?"),
        (math.inf, "?"),
    ],
)
def test_duration_reads_in_two_units(seconds, text):
    assert gauges.duration(seconds) == text


def test_rate_and_count_and_bound():
    assert gauges.rate(26_130) == "26.1k steps/s"
    assert gauges.rate(512.4) == "512 steps/s"
    assert gauges.rate(1_250_000) == "1.2M steps/s"
    assert gauges.count(100_352.0) == "100,352"
    assert [gauges.bound(v) for v in (9.0, -2000.0, 0.5, math.nan)] == ["9", "-2,000", "0.5000", "nan"]


@pytest.mark.parametrize("width", [0, 1, 7, 71])
def test_shares_fill_the_bar_exactly(width):
    cells = gauges.apportion([0.41, 0.22, 0.31, 0.03, 0.03], width)
    assert sum(cells) == width
    assert cells[0] == max(cells)


def test_shares_that_are_no_numbers_take_no_cells():
    assert gauges.apportion([math.nan, 0.5, -1.0], 4) == [0, 4, 0]
    assert gauges.apportion([], 4) == []
    assert gauges.apportion([0.0, 0.0], 4) == [0, 0]


def test_rising_values_make_a_rising_chart():
    assert gauges.chart([1, 2, 3, 4, 5, 6, 7, 8], 8, 1) == ["▁▂▃▄▅▆▇█"]
    assert gauges.chart([0, 15], 2, 2) == [" █", "▁█"]


def test_chart_averages_what_is_too_long_and_stretches_what_is_too_short():
    assert gauges.chart([1, 1, 8, 8], 2, 1) == ["▁█"]
    assert gauges.chart([1, 8], 8, 1) == ["▁▂▃▄▅▆▇█"]


@pytest.mark.parametrize("values", [[], [3.0], [2.0, 2.0], [math.nan, 1.0, math.inf], [-1e30, 1e30]])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_chart_always_has_the_size_asked_for(values, width):
    lines = gauges.chart(values, width, 3)
    assert [len(line) for line in lines] == [width] * 3
