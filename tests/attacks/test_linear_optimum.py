"""A linear model, whose nearest boundaries have closed forms: how near every attack comes to them.

With logits `W (x - 1/2)` the distance to where class k beats class y is `(z_y - z_k) / ||w_k - w_y||_q`,
1/p + 1/q = 1; the optimum is the smallest of these without a target. Images keep so far from the
ends of the box that it does not matter.
"""
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.carlini import cw_l2
from medrobust_jax.attacks.ddn import ddn
from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.fmn import fmn
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.wrappers import targeted, with_loss
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, margin, prediction_is_right

MINIMUM_NORM = {'cw_l2': (cw_l2(num_steps=60, search_steps=6, initial_constant=.1), 'l2'),
                'ddn': (ddn(num_steps=200), 'l2'),
                'deepfool_l2': (deepfool(), 'l2'),
                'deepfool_linf': (deepfool(norm='linf'), 'linf'),
                'fmn_l1': (fmn(num_steps=60, norm='l1'), 'l1'),
                'fmn_l2': (fmn(num_steps=60, norm='l2'), 'l2'),
                'fmn_linf': (fmn(num_steps=60, norm='linf'), 'linf')}
BUDGET = {'l1': pgd(num_steps=40, norm='l1', relative_step_size=.1), 'l2': pgd(num_steps=20, norm='l2'),
          'linf': pgd(num_steps=20)}
SHAPES = [(9, 2), (4, 5, 1), (3, 3, 2, 1)]


def linear_setting(shape, *, batch, classes, seed=0):
    """Images of all classes, some way behind their own side of the boundaries."""
    draws = np.random.default_rng(seed)
    weights = draws.normal(size=(int(np.prod(shape)), classes)).astype(np.float32)
    labels = np.arange(batch) % classes
    centered = weights - weights.mean(axis=1, keepdims=True)
    away = (centered / abs(centered).max(axis=0)).T[labels] * draws.uniform(.08, .15, size=(batch, 1))
    images = (.5 + away + draws.uniform(-.02, .02, size=away.shape)).astype(np.float32)
    forward = lambda x, keys: (x.reshape(len(x), -1) - .5) @ weights  # noqa: E731
    return SimpleNamespace(victim=Victim(forward, cross_entropy, prediction_is_right), weights=weights,
                           images=jnp.asarray(images.reshape(batch, *shape)), labels=jnp.asarray(labels),
                           keys=rng.example_keys(seed, jnp.arange(batch)))


def distances_to(s, norm):
    """`[B, C]`, the distance to where each class beats the label, inf for the label itself; in float64."""
    weights, labels = s.weights.astype(np.float64), np.asarray(s.labels)
    logits = (np.asarray(s.images, np.float64).reshape(len(labels), -1) - .5) @ weights
    gaps = logits[np.arange(len(labels)), labels][:, None] - logits
    normals = weights.T[None] - weights.T[labels][:, None]  # [B, C, pixels]
    sizes = np.linalg.norm(normals, ord={'l1': np.inf, 'l2': 2, 'linf': 1}[norm], axis=2)
    return np.where(sizes > 0, gaps / np.where(sizes > 0, sizes, 1), np.inf)


CASES = [(SHAPES[1], 8, 3, False), (SHAPES[0], 3, 2, True), (SHAPES[2], 1, 3, False), (SHAPES[1], 1, 2, True),
         (SHAPES[0], 3, 3, False), (SHAPES[2], 8, 2, True)]


def two_of_the_cases(names):
    """Every attack with a target and without, one of them long; a compilation each, so not all combinations."""
    return [pytest.param(name, *CASES[(2 * row + half) % len(CASES)],
                         marks=[pytest.mark.long] if half != row % 2 else [])
            for row, name in enumerate(names) for half in (0, 1)]


@pytest.mark.parametrize(('name', 'shape', 'batch', 'classes', 'aim'), two_of_the_cases(MINIMUM_NORM))
def test_minimum_norm_attacks_come_within_a_quarter_of_the_optimum(name, shape, batch, classes, aim, found_by,
                                                                   norms):
    attack, norm = MINIMUM_NORM[name]
    s = linear_setting(shape, batch=batch, classes=classes)
    optimum = distances_to(s, norm).min(axis=1)
    assert optimum.min() > 0
    if aim:
        attack, s.labels = targeted(attack), 1 - s.labels
    found = found_by(attack, s, eps=jnp.inf)
    reached = norms(found.images - s.images, norm)
    assert not found.acceptable.any()
    np.testing.assert_allclose(-found.loss, reached, rtol=1e-4)
    assert np.all(reached >= optimum * (1 - 1e-4))
    assert np.all(reached <= 1.25 * optimum)
    predicted = np.asarray(s.victim.forward(found.images, None)).argmax(1)
    assert np.all((predicted == s.labels) == aim)


@pytest.mark.parametrize(('norm', 'shape', 'batch', 'classes', 'aim'), two_of_the_cases(BUDGET))
def test_budget_attacks_succeed_within_a_quarter_more_than_the_optimum(norm, shape, batch, classes, aim, found_by,
                                                                       norms):
    s = linear_setting(shape, batch=batch, classes=classes)
    budget = 1.25 * distances_to(s, norm).min(axis=1).max()
    attack = with_loss(BUDGET[norm], margin)
    if aim:
        attack, s.labels = targeted(attack), 1 - s.labels
    found = found_by(attack, s, eps=budget)
    assert not found.acceptable.any()
    assert np.all(norms(found.images - s.images, norm) <= 1.01 * budget)


def most_demanding(s, target, norm):
    """The largest distance to the boundaries between `target` and each other class: no attack needs less."""
    own = SimpleNamespace(**{**vars(s), 'labels': target})
    return -np.where(np.isinf(distances_to(own, norm)), np.inf, distances_to(own, norm)).min(axis=1)


@pytest.mark.parametrize('name', ['cw_l2', 'deepfool_l2', 'fmn_linf'])
def test_targets_among_three_classes_are_reached(name, found_by, norms):
    attack, norm = MINIMUM_NORM[name]
    s = linear_setting((4, 5, 1), batch=6, classes=3)
    wanted = (s.labels + 1 + jnp.arange(6) // 3) % 3  # each label with both others
    needed = most_demanding(s, wanted, norm)
    s.labels = wanted
    found = found_by(targeted(attack), s, eps=jnp.inf)
    np.testing.assert_array_equal(np.asarray(s.victim.forward(found.images, None)).argmax(1), wanted)
    reached = norms(found.images - s.images, norm)
    assert np.all(reached >= needed * (1 - 1e-4))
    assert np.all(reached <= 1.5 * needed)  # the corner of two boundaries may lie beyond either of them
