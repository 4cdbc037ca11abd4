"""Norm balls: nearest points, inside, idempotent, uniform draws, directions of unit size."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from medrobust_jax.core import balls, rng

SHAPES = [(7, 1), (3, 2, 2, 2)]
project = jax.jit(balls.project, static_argnames='norm')  # one compilation, not one per operation
ascent_direction = jax.jit(balls.ascent_direction, static_argnames=('norm', 'l1_fraction'))
random_start = jax.jit(balls.random_start, static_argnames='norm')
ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}


def draws(shape, batch=6, scale=1.0, seed=0):
    return np.random.default_rng(seed).normal(scale=scale, size=(batch, *shape)).astype(np.float32)


def numpy_norm(delta, norm):
    return np.linalg.norm(np.asarray(delta, np.float64).reshape(len(delta), -1), ord=ORDERS[norm], axis=1)


def nearest(delta, eps, norm):
    """The nearest point of the ball, by other means than the library's."""
    delta = delta.astype(np.float64)
    if norm == 'linf':
        return np.where(np.abs(delta) > eps, np.sign(delta) * eps, delta)
    if norm == 'l2':
        return delta if np.linalg.norm(delta) <= eps else delta / np.linalg.norm(delta) * eps
    if np.abs(delta).sum() <= eps:
        return delta
    excess = lambda level: np.maximum(np.abs(delta) - level, 0).sum() - eps  # noqa: E731
    level = optimize.brentq(excess, 0, np.abs(delta).max(), xtol=1e-14)
    return np.sign(delta) * np.maximum(np.abs(delta) - level, 0)


@pytest.mark.parametrize('norm', balls.NORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_norm_is_numpys(norm, shape):
    delta = draws(shape)
    np.testing.assert_allclose(balls.norm_of(jnp.asarray(delta), norm=norm), numpy_norm(delta, norm), rtol=1e-6)


@pytest.mark.parametrize('norm', balls.NORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_projection_is_the_nearest_point_and_idempotent(norm, shape):
    delta = draws(shape, batch=8)
    eps = np.array([0, .05, .5, 1, 2, 5, 20, 100], np.float32)
    projected = project(jnp.asarray(delta), jnp.asarray(eps), norm=norm)
    truth = np.stack([nearest(d, e, norm) for d, e in zip(delta, eps, strict=True)])
    np.testing.assert_allclose(projected, truth, atol=3e-6)
    assert np.all(numpy_norm(projected, norm) <= eps * (1 + 1e-6) + 1e-12)
    again = project(projected, jnp.asarray(eps), norm=norm)
    np.testing.assert_allclose(again, projected, rtol=1e-6, atol=1e-7)


def test_l1_projection_beats_every_random_point_of_the_ball():
    delta, eps = draws((4,), batch=1, seed=3), 1.0
    projected = np.asarray(project(jnp.asarray(delta), jnp.array([eps]), norm='l1'))
    generator = np.random.default_rng(0)
    corners = generator.dirichlet(np.ones(4), 4000) * generator.choice([-1, 1], (4000, 4)) * eps
    distances = np.linalg.norm(corners - delta, axis=1)
    assert np.linalg.norm(projected - delta) <= distances.min() + 1e-6
    assert distances.min() < 1.3 * np.linalg.norm(projected - delta)  # the sample does come near


def test_l1_projection_handles_ties_and_many_pixels():
    tied = jnp.array([[1., 1, -1, 1]])
    np.testing.assert_allclose(project(tied, jnp.array([2.]), norm='l1'), tied / 2, atol=1e-7)
    wide = draws((64, 64, 3), batch=2)
    projected = project(jnp.asarray(wide), jnp.array([10., 3000.]), norm='l1')
    np.testing.assert_allclose(numpy_norm(projected, 'l1'), [10, 3000], rtol=1e-5)


@pytest.mark.parametrize('norm', balls.NORMS)
def test_zero_perturbation_and_zero_radius(norm):
    zero = jnp.zeros((2, 3, 3, 1))
    assert not np.any(project(zero, jnp.array([0., 1]), norm=norm))
    assert not np.any(project(zero + .3, jnp.zeros(2), norm=norm))


@pytest.mark.parametrize('norm', balls.NORMS)
def test_direction_has_unit_size_at_every_scale(norm):
    scales = np.float32([1e-37, 1e-30, 1e-20, 1, 1e20, 1e30])
    gradient = draws((5, 5, 2)) * scales[:, None, None, None]
    direction = ascent_direction(jnp.asarray(gradient), norm=norm)
    np.testing.assert_allclose(numpy_norm(direction, norm), 1, rtol=1e-5)
    assert np.all((np.asarray(direction, np.float64) * gradient).reshape(6, -1).sum(1) > 0)


@pytest.mark.parametrize('norm', balls.NORMS)
def test_zero_gradient_gives_zero_direction(norm):
    gradient = jnp.asarray(draws((4, 1))).at[1].set(0)
    direction = np.asarray(ascent_direction(gradient, norm=norm))
    assert np.isfinite(direction).all()
    assert not direction[1].any()
    assert direction[0].any()


@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_no_random_direction_climbs_more(norm):
    gradient = draws((6,), batch=1)
    best = float((np.asarray(ascent_direction(jnp.asarray(gradient), norm=norm)) * gradient).sum())
    others = np.random.default_rng(1).normal(size=(2000, 6))
    others /= np.linalg.norm(others, ord=ORDERS[norm], axis=1, keepdims=True)
    assert (others * gradient).sum(1).max() <= best + 1e-6


def test_sparse_direction_takes_the_asked_share_of_the_largest_entries():
    gradient = jnp.asarray(draws((10, 10, 1)))
    direction = np.asarray(ascent_direction(gradient, norm='l1', l1_fraction=.05)).reshape(6, -1)
    assert np.all((direction != 0).sum(1) == 5)
    largest = np.argsort(-np.abs(np.asarray(gradient)).reshape(6, -1), axis=1)[:, :5]
    for row in range(6):
        assert set(np.flatnonzero(direction[row])) == set(largest[row])


def test_sparse_direction_passes_on_what_a_pixel_has_no_room_for():
    gradient = jnp.array([[5., -4, 3, -2, 1, 0]])
    images = jnp.array([[.9, .5, 1, .05, 0, .5]])
    direction = ascent_direction(gradient, norm='l1', room=balls.room_of(images, jnp.array([1.])))
    np.testing.assert_allclose(direction, [[.1, -.5, 0, -.05, .35, 0]], atol=1e-6)
    assert not np.any(ascent_direction(gradient, norm='l1', room=balls.Room(jnp.zeros((1, 6)), jnp.zeros((1, 6)))))
    plain = ascent_direction(gradient, norm='l1', room=balls.room_of(images, jnp.array([0.])))
    assert np.isfinite(plain).all()


@pytest.mark.parametrize('norm', balls.NORMS)
def test_random_starts_are_inside_per_example_and_of_both_signs(norm):
    images = jnp.zeros((256, 4, 4, 1))
    eps = jnp.linspace(0, 2, 256)
    noise = np.asarray(random_start(rng.example_keys(0, jnp.arange(256)), images, eps, norm=norm))
    sizes = numpy_norm(noise, norm)
    assert np.all(sizes <= np.asarray(eps) * (1 + 1e-5))
    assert sizes[1:].max() > 1
    assert .45 < (noise[1:] > 0).mean() < .55


@pytest.mark.parametrize(('norm', 'dimension'), [('linf', 3), ('l2', 3), ('l2', 40)])
def test_random_starts_are_uniform_in_the_ball(norm, dimension):
    count, eps = 4000, .5
    images = jnp.zeros((count, dimension))
    noise = np.asarray(random_start(rng.example_keys(1, jnp.arange(count)), images, jnp.full(count, eps),
                                          norm=norm), np.float64)
    # In a uniform ball of any norm, (|x| / eps)^d is U(0, 1).
    assert stats.kstest((numpy_norm(noise, norm) / eps) ** dimension, 'uniform').pvalue > 1e-3
    if norm == 'linf':
        assert stats.kstest(noise.ravel() / eps, 'uniform', args=(-1, 2)).pvalue > 1e-3
    else:  # one coordinate of a uniform direction: (u + 1) / 2 is Beta((d - 1) / 2, (d - 1) / 2)
        coordinate = (noise[:, 0] / np.linalg.norm(noise, axis=1) + 1) / 2
        assert stats.kstest(coordinate, 'beta', args=((dimension - 1) / 2,) * 2).pvalue > 1e-3


def test_l1_radius_is_uniform():
    images = jnp.zeros((4000, 6))
    noise = random_start(rng.example_keys(1, jnp.arange(4000)), images, jnp.full(4000, 2.), norm='l1')
    assert stats.kstest(numpy_norm(noise, 'l1') / 2, 'uniform').pvalue > 1e-3


@pytest.mark.parametrize('norm', balls.NORMS)
def test_float64_stays_float64(norm):
    with jax.enable_x64(True):
        delta = jnp.asarray(draws((5, 2)).astype(np.float64))
        eps = jnp.full(6, .3)
        keys = rng.example_keys(0, jnp.arange(6))
        projected = project(delta, eps, norm=norm)
        assert projected.dtype == jnp.float64
        truth = np.stack([nearest(d, .3, norm) for d in np.asarray(delta)])
        np.testing.assert_allclose(projected, truth, atol=1e-13)
        assert random_start(keys, delta, eps, norm=norm).dtype == jnp.float64
        assert ascent_direction(delta, norm=norm).dtype == jnp.float64


def test_unknown_norm_names_the_nearest():
    with pytest.raises(ValueError, match="unknown norm 'l_inf'; did you mean 'linf'"):
        balls.project(jnp.zeros((1, 2)), jnp.ones(1), norm='l_inf')
    with pytest.raises(ValueError, match=r"unknown norm 'zzz'\. Known: l1, l2, linf"):
        balls.norm_of(jnp.zeros((1, 2)), norm='zzz')


def test_box():
    np.testing.assert_array_equal(balls.to_box(jnp.array([-.5, 0, .3, 1, 2])), np.float32([0, 0, .3, 1, 1]))
