"""Nearest points of hyperplanes inside the box: against general solvers, in closed form, on degenerate planes."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from medrobust_jax.core.balls import NORMS
from medrobust_jax.core.hyperplanes import DUAL, to_hyperplane

ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}
solve = jax.jit(to_hyperplane, static_argnames='norm')


def planes(shape=(6,), batch=12, seed=0, reach=.6):
    """Points on and off the box's faces, normals with zeros, and values that the box can reach."""
    draws = np.random.default_rng(seed)
    points = np.clip(draws.uniform(-.2, 1.2, size=(batch, *shape)), 0, 1)
    normals = draws.normal(size=(batch, *shape)) * (draws.uniform(size=(batch, *shape)) < .9)
    sign = draws.choice([-1, 1], size=batch)
    way = -np.sign(normals) * sign.reshape(-1, *[1] * len(shape))
    room = np.where(way > 0, 1 - points, points) * (way != 0)
    most = (abs(normals) * room).reshape(batch, -1).sum(axis=1)
    return points, normals, sign * most * draws.uniform(0, reach, size=batch)


def by_linear_program(point, normal, value, norm):
    """The smallest norm, by scipy's linear programs."""
    n = point.size
    bounds = [(-p, 1 - p) for p in point]
    if norm == 'linf':
        above = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        found = optimize.linprog(np.r_[np.zeros(n), 1], above, np.zeros(2 * n), np.r_[normal, 0][None], [-value],
                                 bounds=[*bounds, (0, None)])
    else:
        found = optimize.linprog(np.ones(2 * n), A_eq=np.r_[normal, -normal][None], b_eq=[-value],
                                 bounds=[(0, 1 - p) for p in point] + [(0, p) for p in point])
    return found.fun


def by_quadratic_program(point, normal, value):
    found = optimize.minimize(lambda d: d @ d / 2, np.zeros(point.size), jac=lambda d: d, method='SLSQP',
                              bounds=[(-p, 1 - p) for p in point],
                              constraints={'type': 'eq', 'fun': lambda d: normal @ d + value,
                                           'jac': lambda d: normal}, options={'ftol': 1e-14, 'maxiter': 200})
    return np.linalg.norm(found.x)


@pytest.mark.parametrize('norm', NORMS)
def test_is_what_general_solvers_find(norm):
    points, normals, values = planes()
    with jax.enable_x64(True):
        moves = np.asarray(solve(points, normals, values, norm=norm))
    np.testing.assert_allclose((normals * moves).sum(axis=1), -values, atol=1e-12)
    assert (points + moves).min() >= -1e-15
    assert (points + moves).max() <= 1 + 1e-15
    assert np.all(moves[normals == 0] == 0)
    reference = [by_quadratic_program(*row) if norm == 'l2' else by_linear_program(*row, norm)
                 for row in zip(points, normals, values, strict=True)]
    np.testing.assert_allclose(np.linalg.norm(moves, ord=ORDERS[norm], axis=1), reference, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('shape', [(40, 1), (7, 6, 3), (4, 5, 3, 2)])
def test_no_other_point_of_the_plane_and_the_box_is_nearer(norm, shape):
    points, normals, values = (a.astype(np.float32) for a in planes(shape, batch=5))
    moves = np.asarray(solve(points, normals, values, norm=norm), np.float64)
    assert moves.shape == points.shape
    flat, w = moves.reshape(5, -1), normals.reshape(5, -1)
    np.testing.assert_allclose((w * flat).sum(axis=1), -values, rtol=2e-5, atol=1e-5)
    assert (points + moves).min() >= -1e-6
    assert (points + moves).max() <= 1 + 1e-6
    draws = np.random.default_rng(1)
    for _ in range(50):  # feasible points in random directions along the plane
        along = draws.normal(size=flat.shape) * 10. ** draws.uniform(-4, 0)
        along -= w * ((w * along).sum(axis=1) / (w * w).sum(axis=1))[:, None]
        other = flat + along
        inside = np.all((points.reshape(5, -1) + other >= 0) & (points.reshape(5, -1) + other <= 1), axis=1)
        size = [np.linalg.norm(a, ord=ORDERS[norm], axis=1) for a in (flat, other)]
        assert np.all((size[1] >= size[0] * (1 - 1e-5)) | ~inside)


@pytest.mark.parametrize('norm', NORMS)
def test_far_from_the_box_the_distance_is_value_over_dual_norm(norm):
    draws = np.random.default_rng(0)
    normals = draws.normal(size=(6, 9)).astype(np.float32)
    dual = np.linalg.norm(normals, ord=ORDERS[DUAL[norm]], axis=1)
    values = (draws.uniform(-.3, .3, size=6) * dual / {'linf': 1, 'l2': 1.5, 'l1': 1}[norm]).astype(np.float32)
    moves = solve(np.full((6, 9), .5, np.float32), normals, values, norm=norm)
    np.testing.assert_allclose(np.linalg.norm(moves, ord=ORDERS[norm], axis=1), abs(values) / dual, rtol=1e-5)


@pytest.mark.parametrize('norm', NORMS)
def test_degenerate_planes(norm):
    points = np.array([[0, 1, .5, .25]] * 6, np.float32)
    normals = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [0] * 4, [1, -1, 0, 0], [1e-30, 0, -2e-30, 0], [1, 1, 1, 0]],
                       np.float32)
    values = np.array([5, 0, 1, 1, 1e-31, -1e-9], np.float32)
    moves = np.asarray(solve(points, normals, values, norm=norm))
    assert np.isfinite(moves).all()
    np.testing.assert_array_equal(moves[0], [0, -1, -.5, 0])  # out of reach: all the way
    np.testing.assert_array_equal(moves[1:4], np.zeros((3, 4)))  # there already; no normal; no room
    np.testing.assert_allclose(moves[4], [0, 0, .05, 0], rtol=1e-5)  # squares would underflow
    assert np.linalg.norm(moves[5], ord=ORDERS[norm]) < 2e-9


@pytest.mark.parametrize('norm', NORMS)
def test_scale_of_the_plane_and_neighbors_do_not_matter(norm):
    points, normals, values = (a.astype(np.float32) for a in planes((5, 4), batch=8))
    moves = solve(points, normals, values, norm=norm)
    np.testing.assert_allclose(solve(points, -256 * normals, -256 * values, norm=norm), moves, atol=1e-7)
    order = np.random.default_rng(2).permutation(8)
    np.testing.assert_array_equal(solve(points[order], normals[order], values[order], norm=norm), moves[order])
    alone = jax.jit(jax.vmap(partial(to_hyperplane, norm=norm)))  # one row at a time
    np.testing.assert_allclose(alone(points[:, None], normals[:, None], values[:, None])[:, 0], moves, atol=1e-6)


def test_planes_at_the_far_end_of_dark_images_are_reached():
    draws = np.random.default_rng(3)
    points = np.where(draws.uniform(size=(4, 3000)) < .7, 0, draws.uniform(size=(4, 3000)) ** 4)
    normals = draws.normal(size=(4, 3000)) * 10. ** draws.uniform(-6, 0, size=(4, 3000))
    most = np.where(normals > 0, points, 1 - points) * abs(normals)
    with jax.enable_x64(True):
        for norm in NORMS:
            moves = solve(points, normals, .97 * most.sum(axis=1), norm=norm)
            np.testing.assert_allclose((normals * moves).sum(axis=1), -.97 * most.sum(axis=1), rtol=1e-12)


def test_refusals():
    with pytest.raises(ValueError, match="did you mean 'linf'"):
        to_hyperplane(jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.ones(1), norm='inf')
