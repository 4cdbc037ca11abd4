"""Total variation denoising: its optimum is certified by the duality gap, and known in closed form for a step."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.total_variation import adjoint, denoise, differences, total_variation

RNG = np.random.default_rng(0)
solve = jax.jit(denoise, static_argnames=('weight', 'num_steps'))
length = jax.jit(total_variation)


def noisy(shape=(2, 12, 15, 2)):
    edge = (np.arange(shape[2]) > shape[2] // 2) * .5 + .2
    return (edge[:, None] + RNG.normal(scale=.1, size=shape)).astype(np.float32)


def energy(u, f, weight):
    return .5 * ((u - f) ** 2).reshape(len(f), -1).sum(axis=1) + weight * np.asarray(length(np.float32(u)))


@pytest.mark.parametrize('spatial', [(7,), (5, 6), (4, 3, 5)])
def test_adjoint_is_the_adjoint(spatial):
    u = RNG.normal(size=(2, *spatial, 3)).astype(np.float32)
    p = RNG.normal(size=(len(spatial), 2, *spatial, 3)).astype(np.float32)
    du, dp = jax.jit(lambda u, p: (differences(u), adjoint(p)))(u, p)
    np.testing.assert_allclose((du * p).sum(), (u * dp).sum(), rtol=1e-4)


def test_total_variation_by_hand():
    image = np.zeros((1, 3, 3, 1), np.float32)
    image[0, 1, 1, 0] = 1  # 1 to the right of it, 1 below, and sqrt(2) where it falls both ways
    assert float(total_variation(image)[0]) == pytest.approx(2 + np.sqrt(2), rel=1e-6)


def test_the_optimum_has_no_duality_gap():
    """Weak duality in NumPy, written anew: no u has less energy than any feasible dual variable has value."""
    f, weight = noisy(), .15
    u = np.asarray(solve(f, weight=weight, num_steps=600), np.float64)
    height, width = f.shape[1:3]
    down = np.kron(np.eye(height, k=1) - np.eye(height), np.eye(width))
    right = np.kron(np.eye(height), np.eye(width, k=1) - np.eye(width))
    down[-width:] = 0
    right[np.arange(width - 1, height * width, width)] = 0
    for image, clean in zip(f.astype(np.float64)[..., 0], u[..., 0], strict=True):
        slopes = np.hypot(down @ clean.ravel(), right @ clean.ravel())
        primal = .5 * ((clean - image) ** 2).sum() + weight * slopes.sum()
        # The dual value of r = f - u = weight D* p:
        residual = (image - clean).ravel()
        dual = residual @ image.ravel() - .5 * residual @ residual
        assert primal - dual == pytest.approx(0, abs=2e-4 * primal)
        # Feasible: no direction gains more on r than weight times its total variation.
        for _ in range(50):
            v = RNG.normal(size=residual.size).cumsum()
            v = v.reshape(height, width).T.ravel() if RNG.uniform() < .5 else v
            assert residual @ v <= weight * np.hypot(down @ v, right @ v).sum() * (1 + 1e-5)


def test_more_steps_come_closer_and_nothing_nearby_is_better():
    f, weight = noisy(), .1
    values = [energy(solve(f, weight=weight, num_steps=n), f, weight) for n in (1, 10, 50, 400)]
    for worse, better in itertools.pairwise(values):
        assert (better <= worse + 1e-5).all()
    assert (values[2] - values[3] < .01 * values[3]).all(), 'the default is within a percent'
    best = np.asarray(solve(f, weight=weight, num_steps=400))
    for _ in range(20):
        assert (energy(best + RNG.normal(scale=.01, size=f.shape), f, weight) > values[3]).all()


def test_a_step_in_closed_form():
    """Two plateaus of m pixels in one dimension come nearer by 2 weight / m, and stay flat."""
    f = np.repeat([.2, .8], 8)[None, :, None].astype(np.float32)
    u = np.asarray(solve(f, weight=.4, num_steps=400))[0, :, 0]
    np.testing.assert_allclose(u, np.repeat([.25, .75], 8), atol=1e-4)


def test_limits():
    f = noisy()
    np.testing.assert_array_equal(denoise(f, weight=0.0), f)
    flat = np.asarray(solve(f, weight=20.0, num_steps=1500))
    np.testing.assert_allclose(flat, np.broadcast_to(f.mean(axis=(1, 2), keepdims=True), f.shape), atol=2e-3)
    constant = np.full((1, 6, 6, 1), .3, np.float32)
    np.testing.assert_allclose(solve(constant, weight=.1), constant, atol=1e-7)


def test_gradients_are_those_of_differences():
    f = noisy((1, 6, 6, 1))
    weights = RNG.normal(size=f.shape).astype(np.float32)

    def both(x):
        return jax.value_and_grad(lambda x: jnp.sum(weights * denoise(x, weight=.1, num_steps=20)))(x)

    with jax.enable_x64(True):
        x, direction, step = f.astype(np.float64), RNG.normal(size=f.shape), 1e-6
        at = jax.jit(both)
        numeric = (at(x + step * direction)[0] - at(x - step * direction)[0]) / (2 * step)
        assert float((at(x)[1] * direction).sum()) == pytest.approx(float(numeric), rel=1e-4)
        assert np.isfinite(at(np.full(f.shape, .5))[1]).all(), 'also where all differences are zero'


@pytest.mark.parametrize(('weight', 'num_steps'), [(-1., 5), (np.inf, 5), (np.nan, 5), (.1, 0)])
def test_refusals(weight, num_steps):
    with pytest.raises(ValueError, match='finite weight >= 0 and num_steps >= 1'):
        denoise(jnp.zeros((1, 2, 2, 1)), weight=weight, num_steps=num_steps)
