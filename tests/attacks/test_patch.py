"""Patches: the window, what changes and what does not, and that they fool."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import directions
from medrobust_jax.attacks.patch import changed_share, fixed_patch, patch
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import restarts
from medrobust_jax.core import rng


def covered(images, clean):
    """Which pixels differ, `[B, *spatial]`, by NumPy."""
    return np.any(np.asarray(images) != np.asarray(clean), axis=-1)


def box_of(mask):
    """The smallest box around the True entries of one mask."""
    ranges = [np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
              for axis in range(mask.ndim)]
    return tuple(slice(r[0], r[-1] + 1) for r in ranges)


@pytest.mark.parametrize('shape', [(10, 12, 2), (20, 1), (4, 5, 6, 1)])
def test_window_is_a_box_of_the_share_asked_for(shape, setting, found_and_last):
    s = setting(shape, batch=6, classes=2)
    eps = jnp.array([0., .003, .09, .25, .5, 1.])
    result, last = found_and_last(patch(num_steps=3), s, eps=eps)
    for images in (result.images, last):
        mask = covered(images, s.images)
        share = mask.reshape(6, -1).mean(axis=1)
        np.testing.assert_allclose(changed_share(images, s.images), share, rtol=1e-6)
        assert np.all(share <= np.asarray(eps) * (1 + 1e-5))
        assert not mask[0].any()
        assert mask[5].all()
        for row in range(2, 6):
            assert mask[row][box_of(mask[row])].all()
            side = np.asarray(mask[row][box_of(mask[row])].shape)
            np.testing.assert_array_equal(side, np.floor(float(eps[row]) ** (1 / mask[row].ndim)
                                                         * np.asarray(shape[:-1]) + 1e-4))
        assert images.min() >= 0
        assert images.max() <= 1


def test_larger_windows_hold_smaller_ones_and_restarts_move_them(setting):
    s = setting((9, 9, 1), batch=12)
    keys = jnp.concatenate([s.keys[:1]] * 6 + [s.keys[1:2]] * 6)
    images, labels = jnp.repeat(s.images[:1], 12, axis=0), jnp.repeat(s.labels[:1], 12)
    eps = jnp.tile(jnp.array([.02, .05, .12, .3, .6, .9]), 2)
    start = jax.jit(lambda k: patch().init(s.victim, k, images, labels, None, {'eps': eps}).images)
    mask = covered(start(keys), images)
    for small, large in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (8, 9), (10, 11)):
        assert np.all(mask[large] | ~mask[small])
        assert mask[large].sum() > mask[small].sum()
    assert np.any(mask[0] != mask[6])
    assert np.any(covered(start(rng.fold(keys, 1)), images) != mask)


@pytest.mark.parametrize(('location', 'window'), [('center', (slice(2, 6), slice(2, 6))),
                                                  ((0, 1), (slice(0, 4), slice(4, 8)))])
def test_given_locations(location, window, setting):
    s = setting((8, 8, 1), batch=3)
    start = jax.jit(lambda k: patch(location=location).init(s.victim, k, s.images, s.labels, None,
                                                            {'eps': jnp.full(3, .25)}).images)
    assert all(box_of(mask) == window for mask in covered(start(s.keys), s.images))


def test_climbs_to_the_corners_of_a_linear_model(setting, found_and_last):
    s = setting((6, 6, 1), classes=2, hidden=0, batch=8)
    _, last = found_and_last(patch(num_steps=30, location='center'), s, eps=.25)
    other = (s.w1[:, 1] - s.w1[:, 0]).reshape(1, 6, 6, 1) * np.where(s.labels == 0, 1, -1).reshape(-1, 1, 1, 1)
    best = np.array(s.images)
    best[:, 2:5, 2:5] = (other > 0)[:, 2:5, 2:5]  # of two places in the middle the second
    np.testing.assert_array_equal(last, best)


@pytest.mark.long
def test_fools_more_with_area_and_beats_its_start(setting, found_by):
    s = setting((8, 8, 1), batch=32)
    attack = patch(num_steps=15)
    standing = [found_by(attack, s, eps=jnp.full(32, eps)).acceptable.sum() for eps in (.05, .4)]
    assert standing[1] < standing[0]
    noise_alone = found_by(patch(num_steps=1, relative_step_size=1e-9), s, eps=.4)
    assert standing[1] < noise_alone.acceptable.sum()


def test_neighbors_do_not_matter(setting, same_bits):
    s = setting((6, 6, 1))
    attack = restarts(patch(num_steps=2, direction=directions.momentum()), 2)
    go = jax.jit(partial(run, attack, s.victim, eps=.2))
    order = np.random.default_rng(5).permutation(8)
    plain = go(s.keys, s.images, s.labels)
    same_bits(jax.tree.map(lambda a: a[order], plain), go(s.keys[order], s.images[order], s.labels[order]))


def test_fixed_patch(setting, found_by):
    s = setting((8, 8, 1), batch=8, low=.2, high=.8)
    values = jnp.ones((2, 4, 1))
    attack = fixed_patch(values, num_draws=6)
    found = found_by(attack, s, eps=jnp.array([.125] * 4 + [.124] * 4))
    mask = covered(found.images, s.images)
    assert not mask[4:].any()
    boxes = [box_of(m) for m in mask[:4]]
    assert all(np.all(image[box] == 1) and (m.sum() == 8)
               for image, box, m in zip(np.asarray(found.images[:4]), boxes, mask[:4], strict=True))
    assert len({str(box) for box in boxes}) > 1
    once = found_by(fixed_patch(values, num_draws=1), s, eps=.5)
    many = found_by(attack, s, eps=.5)
    assert np.all(~np.asarray(many.acceptable) | np.asarray(once.acceptable))
    assert np.mean(many.loss) > np.mean(once.loss)
    assert fixed_patch(values, location='center', num_draws=9).num_steps == 0


def test_refusals(setting):
    s = setting((8, 8, 1), batch=2)
    with pytest.raises(ValueError, match='num_steps = 0'):
        patch(num_steps=0)
    with pytest.raises(ValueError, match='relative_step_size = -1 must be positive'):
        patch(relative_step_size=-1)
    with pytest.raises(ValueError, match="did you mean 'center'"):
        patch(location='centre')
    with pytest.raises(ValueError, match='in \\[0, 1\\]'):
        fixed_patch(jnp.ones((2, 2, 1)), location=(0, 2))
    for attack in (patch(location=(.5,)), fixed_patch(jnp.ones((9, 2, 1))), fixed_patch(jnp.ones((2, 1)))):
        with pytest.raises(ValueError, match=r'for images of shape|does not fit'):
            run(attack, s.victim, s.keys, s.images, s.labels, eps=.5)
