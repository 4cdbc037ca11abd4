"""Rotations and translations: against SciPy, the limits, the grid, and the order of strengths."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.spatial import spatial, spatial_grid
from medrobust_jax.core.warp import rotate_and_shift

warp = jax.jit(rotate_and_shift, static_argnames='fill')


def images_of(shape=(3, 15, 22, 2), seed=0):
    return np.random.default_rng(seed).uniform(size=shape).astype(np.float32)


@pytest.mark.parametrize(('fill', 'mode'), [('zero', 'grid-constant'), ('edge', 'nearest')])
def test_rotation_and_shift_are_scipys(fill, mode):
    images, degrees = images_of(), np.array([0., 17., -30.])
    turned = warp(images, degrees=degrees, shift=np.zeros((3, 2)), fill=fill)
    np.testing.assert_array_equal(turned[0], images[0])
    for row, angle in enumerate(degrees):
        theirs = ndimage.rotate(images[row].astype(np.float64), angle, order=1, reshape=False, mode=mode)
        np.testing.assert_allclose(turned[row], theirs, atol=5e-6)
    shift = np.array([[2.3, -1.6], [0, 1], [3, 0]])
    moved = warp(images, degrees=np.zeros(3), shift=shift, fill=fill)
    both = warp(images, degrees=degrees, shift=shift, fill='edge')
    for row in range(3):
        theirs = ndimage.shift(images[row].astype(np.float64), (*shift[row], 0), order=1, mode=mode)
        np.testing.assert_allclose(moved[row], theirs, atol=5e-6)
    # First the rotation, then the shift; whole shifts do not interpolate a second time.
    turned = warp(images, degrees=degrees, shift=np.zeros((3, 2)), fill='edge')
    np.testing.assert_allclose(both[1, :, 1:], turned[1, :, :-1], atol=.35)
    np.testing.assert_allclose(both[1, 4:-4, 6:-6], turned[1, 4:-4, 5:-7], atol=5e-6)


def test_quarter_turns_are_counterclockwise():
    images = images_of((1, 8, 8, 1))
    turned = warp(images, degrees=np.array([90.]), shift=np.zeros((1, 2)), fill='zero')
    np.testing.assert_allclose(turned[0], np.rot90(images[0]), atol=1e-5)


def test_gradients_reach_angle_and_shift():
    images = images_of()
    slopes = jax.jit(jax.grad(lambda a, b: jnp.sum(rotate_and_shift(images, degrees=a, shift=b) ** 2), (0, 1)))(
        jnp.array([5., 10., 15.]), jnp.full((3, 2), .3))
    assert all(np.all(np.isfinite(s)) and np.all(s != 0) for s in slopes)


def shown(attack, s, eps):
    """The images that the model was shown, `[looks, B, ...]`, and the result."""
    seen = []

    def forward(images, keys):
        jax.debug.callback(lambda array: seen.append(np.asarray(array)), images, ordered=True)
        return s.victim.forward(images, keys)

    result = jax.jit(partial(run, attack, s.victim._replace(forward=forward)))(s.keys, s.images, s.labels, eps=eps)
    jax.effects_barrier()
    return np.stack(seen), result


def test_draws_stay_within_the_limits_and_spread(setting):
    s = setting((16, 16, 1), batch=4)
    s.images = jnp.zeros_like(s.images).at[:, 8, 8].set(1)  # a bright pixel shows the shift
    seen, _ = shown(spatial(num_draws=60, max_degrees=0, max_shift=.25), s, jnp.array([1., .5, 3., 0.]))
    for drawn, reach in zip(np.moveaxis(seen, 1, 0), (4., 2., 4.), strict=False):
        rows = (drawn.sum(axis=(2, 3)) * np.arange(16)).sum(axis=1) - 8
        assert .9 * reach < np.abs(rows).max() <= reach + 1e-4
        assert abs(rows.mean()) < .25 * reach
    np.testing.assert_array_equal(seen[:, 3], np.stack([s.images[3]] * 60))


def test_more_draws_are_never_weaker(setting, same_bits):
    s = setting((8, 8, 1), batch=16)
    few, weak = shown(spatial(num_draws=2), s, 1.)
    many, strong = shown(spatial(num_draws=9), s, 1.)
    same_bits(few, many[:2])
    assert np.all(~np.asarray(strong.acceptable) | np.asarray(weak.acceptable))
    assert strong.acceptable.sum() < weak.acceptable.sum()
    assert many.min() >= 0
    assert many.max() <= 1


def test_grid_holds_every_point(setting):
    s = setting((8, 8, 1), batch=2)
    attack = spatial_grid(num_degrees=3, num_shifts=3, max_degrees=20, max_shift=.25)
    assert attack.num_steps == 26
    seen, result = shown(attack, s, .5)
    expected = [rotate_and_shift(s.images[:1], degrees=jnp.array([a]), shift=jnp.array([[b, c]]))[0]
                for a in (-10., 0., 10.) for b in (-1., 0., 1.) for c in (-1., 0., 1.)]
    np.testing.assert_allclose(seen[:, 0], np.stack(expected), atol=1e-5)
    np.testing.assert_array_equal(seen[13], s.images)
    # An odd grid contains the clean image, so that it is never weaker than no attack.
    clean = s.victim.loss(s.victim.forward(s.images, None), s.labels)
    assert np.all((result.loss >= clean - 1e-6) | ~result.acceptable)


def test_neighbors_do_not_matter(setting, same_bits):
    s = setting((8, 8, 1), batch=8)
    go = jax.jit(partial(run, spatial(num_draws=4), s.victim, eps=1.))
    order = np.random.default_rng(5).permutation(8)
    plain = go(s.keys, s.images, s.labels)
    same_bits(jax.tree.map(lambda a: a[order], plain), go(s.keys[order], s.images[order], s.labels[order]))


def test_refusals(setting):
    with pytest.raises(ValueError, match='max_degrees in'):
        spatial(max_degrees=200)
    with pytest.raises(ValueError, match="did you mean 'edge'"):
        spatial_grid(fill='egde')
    with pytest.raises(ValueError, match='num_degrees and num_shifts of at least 1'):
        spatial_grid(num_shifts=0)
    s = setting((4, 4, 4, 1), batch=2)
    with pytest.raises(ValueError, match='height, width'):
        run(spatial(), s.victim, s.keys, s.images, s.labels, eps=1.)
