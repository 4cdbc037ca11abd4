"""SimBA: its bases, its orders, the published loop in NumPy, its norm bound, and examples on their own."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import idctn

from medrobust_jax.attacks import simba as simba_module
from medrobust_jax.attacks.coordinates import basis_vector, make_shells, shuffled, vector_at
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.simba import simba
from medrobust_jax.attacks.wrappers import targeted
from medrobust_jax.core import rng
from medrobust_jax.evaluate.passes import Passes, passes_of


@pytest.mark.parametrize('shape', [(4, 5, 3), (3, 4, 2, 1)])
def test_dct_vectors_are_scipys_and_orthonormal(shape):
    size = int(np.prod(shape))
    with jax.enable_x64(True):
        ours = jax.jit(lambda n: basis_vector(n, shape, basis='dct', dtype=jnp.float64))(np.arange(size))
    units = np.eye(size).reshape(size, *shape)
    spatial = tuple(range(1, len(shape)))
    np.testing.assert_allclose(ours, idctn(units, norm='ortho', axes=spatial), atol=1e-14)
    flat = np.asarray(ours).reshape(size, size)
    np.testing.assert_allclose(flat @ flat.T, np.eye(size), atol=1e-13)


def test_dct_keeps_its_digits_in_float32_on_large_images():
    high = np.array([511 * 512 + 509])
    vector = jax.jit(lambda n: basis_vector(n, (512, 512, 1), basis='dct'))(high)[0, ..., 0]
    waves = [np.sqrt(2 / 512) * np.cos(np.pi * (2 * np.arange(512) + 1) * k / 1024) for k in (511, 509)]
    np.testing.assert_allclose(vector, np.outer(*waves), atol=2e-9)


def test_pixel_vectors_are_unit_entries():
    vectors = jax.jit(lambda n: basis_vector(n, (3, 4, 2), basis='pixel'))(np.arange(24))
    np.testing.assert_array_equal(np.asarray(vectors).reshape(24, 24), np.eye(24))


def test_shuffles_are_permutations_and_differ_between_keys():
    sizes = np.array([1, 2, 5, 16, 17, 150])
    size, position = np.repeat(sizes, sizes), np.concatenate([np.arange(n) for n in sizes])
    keys = rng.example_keys(0, np.repeat(np.arange(40), len(size)))
    sent = np.asarray(jax.jit(shuffled)(keys, np.tile(position, 40), np.tile(size, 40))).reshape(40, -1)
    for n in sizes:
        ours = sent[:, size == n]
        np.testing.assert_array_equal(np.sort(ours, axis=1), np.tile(np.arange(n), (40, 1)))
        if n >= 16:
            assert len(np.unique(ours, axis=0)) == 40
            # No place is favored: means of 40 uniform draws within five standard deviations.
            assert abs(ours.mean(axis=0) - (n - 1) / 2).max() < 5 * n / np.sqrt(12 * 40)


def orders_of(keys, shells, length):
    """The first `length` numbers of every example's order, `[B, length]`."""
    at = jax.jit(lambda k, p: vector_at(shells, jnp.repeat(k, length), p))
    return np.asarray(at(keys, np.tile(np.arange(length), len(keys)))).reshape(len(keys), length)


@pytest.mark.parametrize(('basis', 'order'), [('pixel', 'random'), ('dct', 'expanding'), ('dct', 'diagonal')])
def test_orders_visit_all_vectors_once_then_anew(basis, order):
    shape, total = (16, 8, 2), 256
    shells = make_shells(shape, basis=basis, order=order)
    laps = orders_of(jax.random.split(jax.random.key(0), 1), shells, 2 * total).reshape(2, total)
    np.testing.assert_array_equal(np.sort(laps, axis=1), np.tile(np.arange(total), (2, 1)))
    assert np.any(laps[0] != laps[1])
    rows, columns, _ = np.unravel_index(laps[0], shape)
    if order == 'expanding':  # an eighth of either axis, then by 1/32 of it, at least by one
        assert rows[:4].max() == 1
        assert columns[:4].max() == 0
        assert np.all(np.diff(np.maximum(rows - 1, columns)) >= 0)
    elif order == 'diagonal':
        assert np.all(np.diff(rows / 16 + columns / 8) >= -1e-9)
    else:
        assert abs(np.corrcoef(rows, np.arange(total))[0, 1]) < .25


def looked_at(attack, s, eps):
    """The images that the model was shown, `[looks, B, ...]`, and the result."""
    seen = []

    def forward(images, keys):
        jax.debug.callback(lambda shown: seen.append(np.asarray(shown)), images, ordered=True)
        return s.victim.forward(images, keys)

    result = jax.jit(partial(run, attack, s.victim._replace(forward=forward), eps=eps))(s.keys, s.images, s.labels)
    jax.effects_barrier()
    return np.stack(seen), result


def published_loop(s, row, numbers, num_queries, step, linf=np.inf):
    """Algorithm 1 on probabilities, in NumPy: every query in turn."""
    shape = s.images.shape[1:]
    basis = idctn(np.eye(16).reshape(16, *shape), norm='ortho', axes=(1, 2))
    x, delta, queries = np.asarray(s.images)[row], np.zeros(shape), []

    def probability(d):
        queries.append(np.clip(x + np.clip(d, -linf, linf), 0, 1))
        z = np.tanh((queries[-1].ravel() - .5) @ s.w1) @ s.w2
        p = np.exp(z - z.max())
        return p[s.labels[row]] / p.sum()

    best = probability(delta)
    for number in numbers:
        for sign in (-1, 1):
            p = probability(delta + sign * step * basis[number])
            if p < best:
                best, delta = p, delta + sign * step * basis[number]
                break
    return np.stack(queries[:num_queries])


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_queries_are_the_published_loops(norm, setting):
    with jax.enable_x64(True):
        s = setting(dtype=np.float64, batch=5)
        eps = {'l2': 100., 'linf': .06}[norm]
        seen, _ = looked_at(simba(num_queries=40, norm=norm, step_size=.3), s, eps)
        shells = make_shells((4, 4, 1), basis='dct', order='expanding')
        orders = orders_of(rng.fold(s.keys, simba_module._ORDER), shells, 40)
        for row in range(5):
            expected = published_loop(s, row, orders[row], 40, .3, linf=eps if norm == 'linf' else np.inf)
            np.testing.assert_allclose(seen[:, row], expected, atol=1e-12)


def test_ball_of_every_example(setting, norms):
    s = setting(batch=8)
    eps = np.linspace(0, .5, 8).astype(np.float32)
    seen, result = looked_at(simba(num_queries=40), s, jnp.asarray(eps))
    for images in seen:
        assert np.all(norms(images - s.images, 'l2') <= eps * (1 + 1e-5) + 1e-6)
    np.testing.assert_array_equal(result.images[0], s.images[0])
    assert norms(result.images - s.images, 'l2')[-1] > .5 * eps[-1]


def test_norm_bound_box_and_verdicts_of_a_targeted_attack_on_a_step_function(setting, norms):
    s = setting((5, 5, 1), batch=16)
    s.labels = (s.victim.forward(s.images, None).argmax(-1) + 1) % 3
    net = s.victim.forward
    s.victim = s.victim._replace(forward=lambda x, k: jnp.round(20 * jax.lax.stop_gradient(net(x, k))) / 20)
    seen, result = looked_at(targeted(simba(num_queries=150, basis='pixel', step_size=.4)), s, 100.)
    assert seen.min() >= 0
    assert seen.max() <= 1
    size = np.stack([norms(images - s.images, 'l2') for images in seen])
    assert np.all(size <= .4 * np.sqrt(np.arange(150))[:, None] + 1e-5)  # at least one query per direction
    assert size.max() > 1
    reached = s.victim.forward(result.images, None).argmax(-1) == s.labels
    np.testing.assert_array_equal(reached, ~np.asarray(result.acceptable))
    assert reached.mean() > .8


def test_examples_at_different_iterations_are_as_alone(setting, as_alone):
    as_alone(simba(num_queries=40, norm='linf'), setting(batch=6), head_start=9, steps=7)


def test_one_forward_pass_per_look(setting):
    s = setting(batch=1)
    assert passes_of(simba(), s.victim, image_shape=(4, 4, 1), targets=s.labels) == Passes(1, 0, 1)


def test_refusals():
    for options, message in (({'num_queries': 0}, 'num_queries >= 1'), ({'step_size': 0.}, 'step_size > 0'),
                             ({'basis': 'dtc'}, "did you mean 'dct'"), ({'norm': 'inf'}, "did you mean 'linf'"),
                             ({'order': 'diagonl'}, "did you mean 'diagonal'"),
                             ({'basis': 'pixel', 'order': 'diagonal'}, "use basis 'dct'")):
        with pytest.raises(ValueError, match=message):
            simba(**options)
