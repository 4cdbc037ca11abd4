"""Pixels inside polygons: by hand and against matplotlib."""
import numpy as np
import pytest
from matplotlib.path import Path

from medrobust_jax.core.polygons import rasterize, spine_contour

GENERATOR = np.random.default_rng(0)


def test_a_rectangle_and_a_polygon_without_pixels():
    box = np.array([[.25, .5], [.75, .5], [.75, 1], [.25, 1]])
    expected = np.zeros((4, 8), bool)
    expected[2:, 2:6] = True
    broken = np.where(np.arange(8).reshape(4, 2) == 3, np.nan, box)
    got = rasterize(np.stack([box, box[::-1], broken, box * 0]), (4, 8))
    np.testing.assert_array_equal(got, [expected, expected, 0 * expected, 0 * expected])


def test_simple_polygons_are_matplotlibs():
    angle = np.sort(GENERATOR.uniform(0, 2 * np.pi, size=(5, 12)), axis=1)
    radius = GENERATOR.uniform(.2, .6, size=(5, 12))
    polygons = .5 + radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    x, y = np.meshgrid((np.arange(31) + .5) / 31, (np.arange(17) + .5) / 17)
    centers = np.stack([x.ravel(), y.ravel()], 1)
    expected = np.stack([Path(p, closed=False).contains_points(centers).reshape(17, 31) for p in polygons])
    assert expected.any((1, 2)).all()
    np.testing.assert_array_equal(rasterize(polygons, (17, 31)), expected)


def test_the_spines_contour_goes_around_once():
    order = spine_contour(8)
    np.testing.assert_array_equal(order, [0, 2, 4, 6, 7, 5, 3, 1])
    np.testing.assert_array_equal(np.sort(spine_contour(68)), np.arange(68))
    corners = np.array([[.2, .1], [.8, .1], [.2, .4], [.8, .4], [.3, .5], [.7, .5], [.3, .9], [.7, .9]])
    outline = corners[order]
    closed = np.roll(outline, -1, axis=0)
    area = .5 * abs((outline[:, 0] * closed[:, 1] - outline[:, 1] * closed[:, 0]).sum())
    assert area == pytest.approx(.6 * .3 + .4 * .4 + .5 * .1)
    assert rasterize(outline[None], (100, 100)).mean() == pytest.approx(area, abs=.02)
    with pytest.raises(ValueError, match='four points per vertebra, not 7'):
        spine_contour(7)
