"""Radial errors and Cobb angles: by hand, and against the angles published with real spines."""
import numpy as np
import pytest

from medrobust_jax.metrics import landmarks
from medrobust_jax.metrics.cobb import angle_errors, cobb_angles

GENERATOR = np.random.default_rng(0)


def spine(tilts, centers=None):
    """Corners `[4 V, 2]` of vertebrae with the given tilts in degrees, one below the other."""
    tilts = np.radians(np.asarray(tilts, float))
    if centers is None:
        centers = np.stack([np.full(len(tilts), 50.), 20. * np.arange(1, len(tilts) + 1)], 1)
    across = np.stack([np.cos(tilts), np.sin(tilts)], 1)
    down = np.stack([-np.sin(tilts), np.cos(tilts)], 1)
    corners = [centers + 8 * sx * across + 5 * sy * down for sy in (-1, 1) for sx in (-1, 1)]
    return np.stack(corners, 1).reshape(-1, 2)


def test_errors_and_rates_by_hand():
    true = np.array([[[.5, .5], [.2, .2]], [[.1, .1], [.9, .9]]])
    predicted = true + np.array([[[.03, .04], [0, 0]], [[.1, 0], [np.nan, 0]]])
    extent = landmarks.extent_of((100, 50), 'percent')
    assert extent == (100, 50)
    errors = landmarks.radial_errors(predicted, true, extent)
    np.testing.assert_allclose(errors, [[np.hypot(1.5, 4), 0], [5, np.hypot(100, 50)]])
    got = landmarks.landmark_metrics(predicted, true, extent=extent, radii=(4.5, 5))
    assert got['mean_radial_error'].value == pytest.approx(errors.mean())
    assert got['detected_within_4.5'].value == .5
    assert got['detected_within_5'].value == .75
    grouped = landmarks.landmark_metrics(predicted, true, np.array([7, 7]), extent=extent, radii=())
    assert 'patient' in grouped['mean_radial_error'].method


def test_extents_and_their_refusals():
    assert landmarks.extent_of((128, 64), 'px') == (128, 64)
    np.testing.assert_allclose(landmarks.extent_of((2400, 1935), 'mm', (.1, .1)), (240, 193.5))
    with pytest.raises(ValueError, match="did you mean 'percent'"):
        landmarks.extent_of((8, 8), 'percents')
    for unit, pixel_size in (('mm', None), ('px', (.1, .1))):
        with pytest.raises(ValueError, match="belongs to unit='mm'"):
            landmarks.extent_of((8, 8), unit, pixel_size)
    for pixel_size in ((.1,), (.1, 0.), (.1, np.nan), .1):
        with pytest.raises(ValueError, match=r'must be .height, width. of a pixel'):
            landmarks.extent_of((8, 8), 'mm', pixel_size)


def test_angles_of_drawn_spines():
    bent = spine([-10, -20, 0, 15, 30, 5])
    bow = np.stack([50 + 10 * np.sin(np.linspace(0, 3.1, 6)), 20. * np.arange(1, 7)], 1)
    one_sided = spine([-10, -20, 0, 15, 30, 5], bow)
    # Main: -20 to 30. One-sided: first to upper, lower to last.
    np.testing.assert_allclose(cobb_angles(one_sided[None], 140), [[50, 10, 25]], atol=1e-6)
    wave = np.stack([50 + 10 * np.sin(np.linspace(.1, 6.1, 6)), 20. * np.arange(1, 7)], 1)
    s_shaped = spine([-10, -20, 0, 15, 30, 5], wave)
    np.testing.assert_allclose(cobb_angles(s_shaped[None], 1000), [[50, 10, 25]], atol=1e-6)
    # In the lower half the third is above the second's vertebra, here the first one: nothing.
    np.testing.assert_allclose(cobb_angles(s_shaped[None], 100), [[50, 10, 0]], atol=1e-6)
    np.testing.assert_allclose(cobb_angles(3 * bent[None] + 7, 500), cobb_angles(bent[None], 160), atol=1e-6)


def test_errors_of_angles():
    true = spine([0, 0, 10, 20])[None] / 100
    predicted = spine([0, 0, 10, 26])[None] / 100
    got = angle_errors(np.concatenate([predicted, true, true * np.nan]), np.concatenate([true] * 3), (100, 100))
    np.testing.assert_allclose(got['cobb_main_error'], [6, 0, 180], atol=1e-6)
    a, b = (cobb_angles(p * 100, 100)[0] for p in (predicted, true))
    np.testing.assert_allclose(got['cobb_smape'], [100 * abs(a - b).sum() / (a + b).sum(), 0, 100], atol=1e-6)
    with pytest.raises(ValueError, match=r'\[N, 4 \* vertebrae, 2\]'):
        cobb_angles(np.zeros((1, 7, 2)), 1)


@pytest.mark.realdata
@pytest.mark.parametrize('split', ['train', 'test'])
def test_published_angles_of_real_spines(data_dir, split):
    folder = data_dir / 'aasce_spine'
    tables = [np.loadtxt(folder / f'{split}_{name}.csv', delimiter=',')
              for name in ('landmarks', 'native_sizes', 'angles')]
    flat, sizes, published = tables
    points = np.stack([flat[:, :68], flat[:, 68:]], -1) * sizes[:, None]
    got = np.concatenate([cobb_angles(p[None], size[1]) for p, size in zip(points, sizes, strict=True)])
    # Landmarks are published to five digits, which costs hundredths of a degree.
    np.testing.assert_allclose(got, published, atol=.02)


def test_points_are_checked_by_row():
    points = GENERATOR.uniform(size=(4, 3, 2))
    landmarks.check_points(points, 3)
    points[2, 1, 0] = 1.02
    with pytest.raises(ValueError, match=r'row 2, point 1 has x = 1\.02, outside the image'):
        landmarks.check_points(points, 3)
    points[1, 0, 1] = np.nan
    with pytest.raises(ValueError, match='row 1, point 0 has y = nan'):
        landmarks.check_points(points, 3)
    with pytest.raises(ValueError, match=r'not \[N, 5, 2\]'):
        landmarks.check_points(points, 5)
