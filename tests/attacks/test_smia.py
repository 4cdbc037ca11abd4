"""SMIA against a straight-line re-implementation in NumPy, written from the method's equations."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import averaged_over, restarts
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Victim
from medrobust_jax.tasks.ordinal import ordinal

EPS, STEPS = .15, 6


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def network(s, x):
    hidden = np.tanh((x.reshape(len(x), -1) - .5) @ s.w1)
    return hidden @ s.w2, hidden


def reference_smia(s, x, labels, *, a1, a2, kind, radius, step, dilation):
    """The loop, line by line; gradients of the two-layer network by hand, all in float64."""
    classes = s.w2.shape[1]
    line = np.exp(-.5 * np.arange(-1, 2)**2)
    line /= line.sum()
    kernel = np.zeros((1 + 2 * dilation,) * 2)
    kernel[::dilation, ::dilation] = np.outer(line, line)
    current, z = x.copy(), None
    for t in range(STEPS):
        out, hidden = network(s, current)
        p = softmax(out)
        d_out = a1 * (p - np.eye(classes)[labels])
        if t > 0:
            # d/d out of KL(q || p), and of the cross-entropy of p to argmax z, is p - target.
            target = softmax(z) if kind == 'kl' else np.eye(classes)[z.argmax(1)]
            d_out -= a2 * (p - target)
        g = np.sign((((d_out @ s.w2.T) * (1 - hidden**2)) @ s.w1.T).reshape(x.shape))
        blurred = np.stack([ndimage.convolve(one[..., 0], kernel, mode='constant')[..., None] for one in g])
        z, _ = network(s, current + radius * EPS * blurred)
        current = np.clip(x + np.clip(current + step * EPS * g - x, -EPS, EPS), 0, 1)
    return current


@pytest.mark.parametrize('kind', ['kl', 'hard'])
@pytest.mark.parametrize(('a2', 'dilation'), [(1.0, 1), (2.0, 2)])
def test_iterates_are_those_of_the_equations(kind, a2, dilation, setting, last_of):
    with jax.enable_x64(True):
        s = setting((6, 5, 1), dtype=np.float64, seed=3)
        attack = smia(num_steps=STEPS, stabilization=kind, stabilization_weight=a2, deviation_weight=.7,
                      stabilization_radius=.8, dilation=dilation)
        got = np.asarray(last_of(attack, s, eps=EPS))
        settings = {'a1': .7, 'radius': .8, 'step': 2.5 / STEPS, 'dilation': dilation}
        labels = np.asarray(s.labels)
        expected = reference_smia(s, np.asarray(s.images), labels, a2=a2, kind=kind, **settings)
        np.testing.assert_allclose(got, expected, atol=1e-12)
        plain = reference_smia(s, np.asarray(s.images), labels, a2=0, kind=kind, **settings)
        assert abs(expected - plain).max() > .01  # the term matters here


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_without_stabilization_it_is_pgd_from_the_clean_image(norm, setting, found_and_last):
    s = setting()
    ours, ours_last = found_and_last(smia(num_steps=4, norm=norm, stabilization_weight=0.0), s, eps=.3)
    pgds, pgds_last = found_and_last(pgd(num_steps=4, norm=norm, start='clean'), s, eps=.3)
    np.testing.assert_allclose(ours_last, pgds_last, atol=1e-6)
    np.testing.assert_array_equal(ours.acceptable, pgds.acceptable)
    np.testing.assert_array_equal(ours.first_fooled, pgds.first_fooled)


def test_one_step_has_no_stabilization(setting, last_of, same_bits):
    s = setting()
    same_bits(last_of(smia(num_steps=1, stabilization_weight=9.0), s, eps=.1),
              last_of(smia(num_steps=1, stabilization_weight=0.0), s, eps=.1))


def test_recorded_loss_is_the_victims(setting, found_by):
    s = setting()
    found = found_by(smia(num_steps=4, stabilization_weight=2.0), s, eps=.1)
    expected = s.victim.loss(s.victim.forward(found.images, None), s.labels)
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)


@pytest.mark.parametrize('stabilization', ['kl', 'hard', 'squared_error'])
def test_two_classes_in_three_dimensions(stabilization, setting, found_by):
    s = setting((3, 4, 2, 1), classes=2, batch=4)
    found = found_by(smia(num_steps=4, stabilization=stabilization), s, eps=.3)
    clean = s.victim.loss(s.victim.forward(s.images, None), s.labels)
    assert found.loss.mean() > clean.mean() + .1


@pytest.mark.parametrize('stabilization', ['squared_error', ordinal(4).divergence],
                         ids=['squared_error', 'bernoulli_kl'])
def test_ordinal_grades(stabilization, setting, found_by):
    s, task = setting(classes=3), ordinal(4)
    s.victim = Victim(s.victim.forward, task.loss, task.acceptable)
    found = found_by(smia(num_steps=4, stabilization=stabilization), s, eps=.3)
    assert found.loss.mean() > task.loss(s.victim.forward(s.images, None), s.labels).mean() + .1
    assert np.isfinite(found.images).all()


def test_tree_outputs(setting, found_by):
    s, forward = setting(batch=3), setting(batch=3).victim.forward
    s.victim = Victim(lambda x, k: {'a': forward(x, k), 'b': forward(x, k)[:, :2]},
                      lambda out, y: s_loss(out['a'], y), lambda out, y: out['a'].argmax(-1) == y)
    s_loss = setting().victim.loss
    assert np.isfinite(found_by(smia(num_steps=3, stabilization='squared_error'), s, eps=.1).loss).all()


def test_wrapped_in_restarts_and_averages(setting, found_by):
    s = setting()
    plain = found_by(smia(num_steps=3), s, eps=.1)
    # Averaged over copies of the image, loss and stabilization are what they were.
    averaged = found_by(averaged_over(smia(num_steps=3), identity, num_samples=2), s, eps=.1)
    np.testing.assert_allclose(averaged.images, plain.images, atol=1e-6)
    again = found_by(restarts(smia(num_steps=3), 2), s, eps=.1)  # from the clean image: nothing new
    np.testing.assert_allclose(again.images, plain.images, atol=1e-6)
    assert jnp.all(again.first_fooled == plain.first_fooled)
