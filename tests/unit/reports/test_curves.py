import numpy as np
import pytest

from parl_cli.reports.curves import area, default_thresholds, first_passing, join, until
from parl_cli.reports.statistics import STATISTICS, Bootstrap

MEAN = STATISTICS["mean"]


def series(*points):
    x, y = zip(*points, strict=True)
    return np.array(x, dtype=float), np.array(y, dtype=float)


def test_curves_are_interpolated_and_never_extrapolated():
    one, other = series((0, 0), (10, 10)), series((2, 4), (6, 12), (20, 12))
    curve = join([one, other], MEAN, 9, Bootstrap())
    assert (curve.x[0], curve.x[-1]) == (2.0, 10.0)  # where both have data
    assert np.allclose(curve.x, np.linspace(2, 10, 9))
    by_hand = [(x + min(2 * x, 12)) / 2 for x in curve.x]
    assert np.allclose(curve.value, by_hand)
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()


def test_interval_of_a_curve_is_that_of_the_scores_at_each_point():
    rng = np.random.default_rng(0)
    runs = [series((0, a), (1, b)) for a, b in rng.normal(size=(6, 2))]
    curve = join(runs, STATISTICS["iqm"], 3, Bootstrap(resamples=1000))
    from parl_cli.reports.statistics import interval

    ends = interval([np.array([y[1] for _, y in runs])], STATISTICS["iqm"], Bootstrap(resamples=1000))
    assert np.allclose([curve.low[-1], curve.high[-1]], ends)


def test_one_run_is_its_own_curve_without_an_interval():
    curve = join([series((1, 5), (3, 7))], MEAN, 3, Bootstrap())
    assert np.allclose(curve.value, [5, 6, 7])
    assert np.isnan(curve.low).all()


def test_runs_without_a_common_range_have_no_curve():
    assert join([series((0, 0), (1, 1)), series((2, 0), (3, 1))], MEAN, 10, Bootstrap()).x.size == 0
    assert join([series((1, 4)), series((1, 6))], MEAN, 10, Bootstrap()).value.tolist() == [5.0]


@pytest.mark.parametrize(("threshold", "at"), [(3, 20.0), (2.5, 20.0), (5, 40.0), (6, np.inf)])
def test_a_threshold_is_passed_at_the_first_row_that_reaches_it(threshold, at):
    assert first_passing(series((10, 1), (20, 3), (30, 2), (40, 5)), threshold) == at


def test_area_is_the_mean_height():
    assert area(series((0, 0), (10, 10), (20, 10))) == 7.5
    assert area(series((5, 3))) == 3.0


def test_a_curve_is_cut_at_an_interpolated_point():
    x, y = until(series((0, 0), (10, 10), (20, 0)), 15)
    assert x.tolist() == [0, 10, 15]
    assert y.tolist() == [0, 10, 5]
    assert until(series((0, 0), (10, 10)), 10)[1].tolist() == [0, 10]


def test_default_thresholds_lie_between_the_lowest_start_and_the_highest_end():
    good, bad = (join([series((0, 20), (10, end))], MEAN, 5, Bootstrap()) for end in (500, 100))
    assert default_thresholds([bad, good]) == [260, 380, 452]
    assert default_thresholds([join([series((0, 5), (1, 3))], MEAN, 2, Bootstrap())]) == []
