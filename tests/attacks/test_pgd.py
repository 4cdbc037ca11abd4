"""PGD and its relatives: closed forms of a linear model, and re-implementations in NumPy."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import pgd as attacks
from medrobust_jax.attacks.registry import create_attack, pgd_adam
from medrobust_jax.attacks.wrappers import targeted
from medrobust_jax.core.filters import gaussian_weights, smooth
from medrobust_jax.losses.classification import margin

NORMS = ('linf', 'l2', 'l1')


@pytest.mark.parametrize('norm', NORMS)
def test_one_clean_step_is_fgsm(norm, setting, same_bits, found_by):
    s = setting()
    one = found_by(attacks.pgd(num_steps=1, start='clean', relative_step_size=1.0, norm=norm), s, eps=.1)
    same_bits(found_by(attacks.fgsm(norm=norm), s, eps=.1), one)
    same_bits(found_by(attacks.ifgsm(num_steps=1, norm=norm), s, eps=.1), one)


def test_fgsm_by_hand(setting, last_of):
    s = setting()
    gradient = jax.grad(lambda x: s.victim.loss(s.victim.forward(x, None), s.labels).sum())(s.images)
    expected = np.clip(s.images + np.float32(.1) * np.sign(gradient), 0, 1)
    np.testing.assert_allclose(last_of(attacks.fgsm(), s, eps=.1), expected,
                               atol=1e-7)


@pytest.mark.parametrize('batch', [1, 3, 8])
@pytest.mark.parametrize('aim', [False, True])
def test_linf_is_exact_on_a_linear_model_of_two_classes(batch, aim, setting, last_of, found_by):
    s = setting(batch=batch, classes=2, hidden=0)
    attack = targeted(attacks.pgd(num_steps=10)) if aim else attacks.pgd(num_steps=10)
    found = found_by(attack, s, eps=.1)
    away = np.where(np.asarray(s.labels) == 1, -1, 1)[:, None] * (s.w1[:, 1] - s.w1[:, 0])
    away = (-away if aim else away).reshape(s.images.shape)
    last = last_of(attack, s, eps=.1)
    optimum = np.clip(s.images + np.float32(.1) * np.sign(away), 0, 1)
    np.testing.assert_allclose(last, optimum, atol=2e-7)
    loss = s.victim.loss(s.victim.forward(optimum, None), s.labels) * (-1 if aim else 1)
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


def linear_optimum(images, away, eps, norm):
    """max <away, d> over the ball and the box, by sorting (l1) or bisection on the multiplier (l2)."""
    flat, room = images.reshape(len(images), -1), None
    values = []
    for x, w in zip(flat.astype(np.float64), away.reshape(len(flat), -1).astype(np.float64), strict=True):
        room = np.where(w > 0, 1 - x, x)
        if norm == 'l1':
            order = np.argsort(-abs(w))
            before = np.cumsum(room[order]) - room[order]
            spent = np.minimum(room[order], np.maximum(eps - before, 0))
            values.append((abs(w)[order] * spent).sum())
        else:
            low, high = 0.0, 1e6
            for _ in range(100):
                t = (low + high) / 2
                low, high = (t, high) if np.linalg.norm(np.minimum(t * abs(w), room)) < eps else (low, t)
            values.append((abs(w) * np.minimum(low * abs(w), room)).sum())
    return np.array(values)


@pytest.mark.parametrize(('norm', 'eps', 'tolerance'), [('l2', .5, .02), ('l2', 1.5, .02),
                                                        ('l1', 1., .03), ('l1', 10., .08)])
def test_l2_and_l1_come_near_the_optimum_of_a_linear_model(norm, eps, tolerance, setting, found_by):
    s = setting((5, 5, 1), classes=2, hidden=0)
    away = np.where(np.asarray(s.labels) == 1, -1, 1)[:, None] * (s.w1[:, 1] - s.w1[:, 0])
    s.victim = s.victim._replace(loss=margin)
    ratio = .1 if norm == 'l2' else .05
    found = found_by(attacks.pgd(num_steps=60, norm=norm, relative_step_size=ratio), s, eps=eps)
    clean = margin(s.victim.forward(s.images, None), s.labels)
    gain, optimum = np.asarray(found.loss - clean), linear_optimum(np.asarray(s.images), away, eps, norm)
    assert np.all(gain <= optimum * (1 + 1e-4))
    assert np.all(gain >= optimum * (1 - tolerance))


def numpy_gradient(s, x):
    """d CE / dx of the tanh network in float64, by hand."""
    flat = x.reshape(len(x), -1) - .5
    hidden = np.tanh(flat @ s.w1)
    z = hidden @ s.w2
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    dz = p - np.eye(z.shape[1])[np.asarray(s.labels)]
    return ((dz @ s.w2.T * (1 - hidden**2)) @ s.w1.T).reshape(x.shape)


def numpy_attack(s, x, eps, ratio, steps, rule):
    """Projected Linf ascent from the clean image; `rule(gradient, t, memory) -> direction`."""
    current, memory = x.copy(), {}
    for t in range(1, steps + 1):
        moved = current + ratio * eps * rule(numpy_gradient(s, current), t, memory)
        current = np.clip(x + np.clip(moved - x, -eps, eps), 0, 1)
    return current


def by_momentum(decay, blur=None):
    def rule(g, t, memory):
        g = g if blur is None else np.asarray(smooth(jnp.asarray(g), blur))
        mean = abs(g).reshape(len(g), -1).mean(1).reshape(-1, 1, 1, 1)
        memory['m'] = decay * memory.get('m', 0) + g / mean
        return np.sign(memory['m'])
    return rule


def by_adam(g, t, memory):
    memory['m'] = .9 * memory.get('m', 0) + .1 * g
    memory['v'] = .999 * memory.get('v', 0) + .001 * g**2
    return memory['m'] / (1 - .9**t) / (np.sqrt(memory['v'] / (1 - .999**t)) + 1e-12)


@pytest.mark.parametrize(('attack', 'ratio', 'rule'), [
    (attacks.ifgsm(num_steps=7), 1 / 7, lambda g, t, memory: np.sign(g)),
    (attacks.mi_fgsm(num_steps=7, decay=.7), 1 / 7, by_momentum(.7)),
    (attacks.ti_fgsm(num_steps=7, kernel_size=3, sigma=1.0), 1 / 7, by_momentum(1.0, gaussian_weights())),
    (pgd_adam(num_steps=7, start='clean'), 2.5 / 7, by_adam)], ids=['i', 'mi', 'ti', 'adam'])
def test_iterates_are_those_of_numpy(attack, ratio, rule, setting, last_of):
    with jax.enable_x64(True):
        s = setting((5, 4, 1), dtype=np.float64)
        expected = numpy_attack(s, np.asarray(s.images), .1, ratio, 7, rule)
        got = last_of(attack, s, eps=.1)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_momentum_and_smoothing_matter(setting, last_of):
    s = setting((5, 4, 1))
    last = [last_of(a, s, eps=.2) for a in (
        attacks.ifgsm(num_steps=6), attacks.mi_fgsm(num_steps=6), attacks.ti_fgsm(num_steps=6))]
    assert np.any(last[0] != last[1])
    assert np.any(last[1] != last[2])
    np.testing.assert_array_equal(
        last[0], last_of(attacks.mi_fgsm(num_steps=6, decay=0.0), s, eps=.2))


@pytest.mark.long
def test_diverse_inputs_are_plain_at_probability_zero(setting, last_of):
    s = setting((6, 6, 1))
    last = [last_of(a, s, eps=.2) for a in (
        attacks.mi_fgsm(num_steps=4), attacks.di_fgsm(num_steps=4, probability=0.0),
        attacks.di_fgsm(num_steps=4, probability=1.0, smallest=.6))]
    np.testing.assert_array_equal(last[0], last[1])
    assert np.any(last[0] != last[2])


@pytest.mark.parametrize('norm', NORMS)
def test_tiny_gradients_still_attack(norm, setting, last_of):
    s = setting(classes=2, hidden=0)
    plain = last_of(attacks.pgd(num_steps=5, norm=norm), s, eps=.3)
    loss = s.victim.loss
    s.victim = s.victim._replace(loss=lambda z, y: 1e-25 * loss(z, y))
    np.testing.assert_allclose(last_of(attacks.pgd(num_steps=5, norm=norm), s, eps=.3), plain, atol=1e-5)


def test_margin_attack_climbs_the_margin(setting, found_by):
    s = setting()
    found = found_by(create_attack('pgd_margin', num_steps=5), s, eps=.1)
    expected = margin(s.victim.forward(found.images, None), s.labels)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-4, atol=1e-5)
