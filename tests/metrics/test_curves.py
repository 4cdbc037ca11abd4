"""Curves over eps: areas, nested balls, smallest breaking eps."""
import numpy as np
import pytest

from medrobust_jax.metrics.curves import area_under_curve, nested, smallest_breaking_eps

EPS = np.array([0, 1, 2, 4]) / 255
ACCEPTABLE = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]], bool)


def test_area_of_known_curves():
    assert area_under_curve(EPS, [1, 1, 1, 1]) == pytest.approx(1)
    assert area_under_curve(EPS, 1 - EPS / EPS[-1]) == pytest.approx(0.5)
    assert area_under_curve([0, 1, 3], [1, 0, 0]) == pytest.approx(1 / 6)


def test_area_does_not_depend_on_order_or_unit():
    values = np.array([0.9, 0.7, 0.4, 0.1])
    order = [2, 0, 3, 1]
    area = area_under_curve(EPS, values)
    assert area_under_curve(EPS[order], values[order]) == pytest.approx(area)
    assert area_under_curve(255 * EPS, values) == pytest.approx(area)


def test_area_of_an_undefined_point_is_undefined():
    assert np.isnan(area_under_curve(EPS, [1, np.nan, 0, 0]))


def test_smallest_breaking_eps():
    np.testing.assert_array_equal(smallest_breaking_eps(ACCEPTABLE, EPS), [np.inf, EPS[1], EPS[3], 0])
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(smallest_breaking_eps(ACCEPTABLE[order], EPS[order]),
                                  smallest_breaking_eps(ACCEPTABLE, EPS))


def test_what_broke_in_a_small_ball_is_broken_in_a_larger_one():
    expected = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(nested(ACCEPTABLE, EPS), expected)
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(nested(ACCEPTABLE[order], EPS[order]), expected[order])
    np.testing.assert_array_equal(smallest_breaking_eps(expected, EPS),
                                  smallest_breaking_eps(ACCEPTABLE, EPS))


@pytest.mark.parametrize('eps', [[0, 0, 1, 2], [0, -1, 1, 2], [0, np.nan, 1, 2], [0, 1, 2]])
def test_refused(eps):
    with pytest.raises(ValueError, match=r'eps|acceptable'):
        smallest_breaking_eps(ACCEPTABLE, eps)
    with pytest.raises(ValueError, match='eps'):
        area_under_curve(eps, [1, 1, 1, 1])


def test_one_point_is_no_curve():
    with pytest.raises(ValueError, match='two points'):
        area_under_curve([0.1], [1])
