"""Losses of landmark maps against NumPy, and their limits."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import special

from medrobust_jax.core import heatmaps
from medrobust_jax.losses.landmarks import head_divergence, landmark_loss

GENERATOR = np.random.default_rng(0)
RADIUS = .25  # of 8 rows: 2 pixels


def example(batch=2, points=3):
    maps = GENERATOR.normal(size=(batch, 8, 6, 3 * points)).astype(np.float32)
    return jnp.asarray(maps), jnp.asarray(GENERATOR.uniform(size=(batch, points, 2)), jnp.float32)


def test_the_loss_by_hand():
    maps, points = example()
    got = landmark_loss(maps, points, radius_fraction=RADIUS)
    for b in range(2):
        bce, errors = [], []
        for p in range(3):
            for row in range(8):
                for column in range(6):
                    away = np.asarray(points, np.float64)[b, p] * [6, 8] - [column + .5, row + .5]
                    inside = np.hypot(*away) <= 2
                    logit, x, y = np.asarray(maps, np.float64)[b, row, column, p::3]
                    bce.append(-np.log(special.expit(logit if inside else -logit)))
                    if inside:
                        errors.append([abs(x - away[0] / 2), abs(y - away[1] / 2)])
        expected = np.mean(errors, axis=0).sum() + 2 * np.mean(bce)
        np.testing.assert_allclose(got[b], expected, rtol=1e-5)


def test_right_maps_have_no_loss_and_gradients_are_right():
    maps, points = example()
    heat, offsets = heatmaps.disk_maps(points, size=(8, 6), radius=2.)
    perfect = jnp.concatenate([60 * (heat - .5), offsets[..., 0], offsets[..., 1]], axis=-1)
    np.testing.assert_allclose(landmark_loss(perfect, points, radius_fraction=RADIUS), 0, atol=1e-6)
    check_grads(lambda m: landmark_loss(m, points, radius_fraction=RADIUS), (maps,), order=1, modes=['rev'],
                atol=2e-2, rtol=2e-2)
    gradient = jax.grad(lambda m: landmark_loss(m, points, radius_fraction=RADIUS).sum())(1e5 * maps)
    assert np.isfinite(gradient).all()


def test_a_landmark_outside_adds_heat_alone():
    maps, points = example(batch=1)
    outside = points + 5.
    logits = np.asarray(maps, np.float64)[..., :3]
    np.testing.assert_allclose(landmark_loss(maps, outside, radius_fraction=RADIUS)[0],
                               -2 * special.log_expit(-logits).mean(), rtol=1e-5)


def test_divergence_is_the_heads_kl():
    maps, _ = example()
    other, _ = example()
    expected = 0
    for head in range(3):
        p, q = (special.softmax(np.asarray(a, np.float64)[..., 3 * head:3 * head + 3].reshape(2, -1), axis=1)
                for a in (maps, other))
        expected = expected + special.rel_entr(p, q).sum(1)
    np.testing.assert_allclose(head_divergence(maps, other), expected, rtol=1e-5)
    np.testing.assert_allclose(head_divergence(maps, maps), 0, atol=1e-7)


def test_other_numbers_of_landmarks_are_refused():
    maps, points = example()
    with pytest.raises(ValueError, match='for 3 landmarks, the targets have 2'):
        landmark_loss(maps, points[:, :2], radius_fraction=RADIUS)
