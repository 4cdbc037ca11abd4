"""No attack breaks what interval bound propagation certifies.

For `x' in [x - eps, x + eps]` intervals `[l, u]` pass an affine layer as center and radius,
`W c + b` and `|W| r`, and a ReLU as `[max(l, 0), max(u, 0)]`; the differences `z_y - z_k` are the last
layer's rows, so that `min over the ball of (z_y - z_k) >= lower bound` (Gowal et al., ICCV 2019).
Written here, apart from the library, for two small networks.
"""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.carlini import cw_l2
from medrobust_jax.attacks.ddn import ddn
from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.fmn import fmn
from medrobust_jax.attacks.noise import noise
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, margin, prediction_is_right

CLASSES, BATCH = 3, 16
# In L1 and L2 the ball of a radius lies in the Linf ball of the same radius: the bound holds there too.
ATTACKS = {'pgd': pgd(num_steps=10), 'smia': smia(num_steps=6), 'noise': noise(num_draws=5),
           'pgd_l2': pgd(num_steps=10, norm='l2'), 'ddn': ddn(num_steps=30), 'fmn_linf': fmn(num_steps=30),
           'cw_l2': cw_l2(num_steps=40, search_steps=3, initial_constant=3.0, learning_rate=.05),
           'fmn_l1': fmn(num_steps=30, norm='l1'), 'deepfool': deepfool(norm='linf')}
MINIMUM_NORM = ('ddn', 'fmn_linf', 'cw_l2', 'fmn_l1', 'deepfool')
PAIRS = [('mlp', name) for name in ATTACKS] + [('conv', 'pgd')] + [
    pytest.param('conv', name, marks=pytest.mark.long) for name in ('fmn_linf', 'deepfool')]


def affine_layers(kind, draws):
    """Affine maps as `(linear function of images or features, its absolute twin, bias)`, ReLUs between them."""
    def dense(rows, columns, gain):
        weight = jnp.asarray(draws.normal(size=(rows, columns)).astype(np.float32) * gain / np.sqrt(rows))
        bias = jnp.asarray(.1 * draws.normal(size=columns).astype(np.float32))
        apply = lambda w: lambda x: x.reshape(len(x), -1) @ w  # noqa: E731
        return apply(weight), apply(abs(weight)), bias

    def convolution(inputs, outputs):
        kernel = jnp.asarray(draws.normal(size=(3, 3, inputs, outputs)).astype(np.float32) / np.sqrt(9 * inputs))
        apply = lambda k: lambda x: jax.lax.conv_general_dilated(  # noqa: E731
            x, k, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
        return apply(kernel), apply(abs(kernel)), jnp.asarray(.1 * draws.normal(size=outputs).astype(np.float32))

    if kind == 'mlp':
        return [dense(36, 12, 1.5), dense(12, 8, 1.5), dense(8, CLASSES, 3)]
    return [convolution(1, 4), dense(36, CLASSES, 3)]


def lower_margin(layers, images, labels, eps):
    """`[B]`, a lower bound of `min_k z_y - z_k` over the Linf ball of radius `eps` `[B]` within the box."""
    radius = eps.reshape(-1, 1, 1, 1)
    low, high = jnp.maximum(images - radius, 0), jnp.minimum(images + radius, 1)
    for map_, absolute, bias in layers[:-1]:
        center, half = map_((low + high) / 2) + bias, absolute((high - low) / 2)
        low, high = jax.nn.relu(center - half), jax.nn.relu(center + half)
    last, _, bias = layers[-1]
    rows = last(jnp.eye(low[0].size))  # [features, C]: the last layer's matrix
    bounds = []
    for k in range(CLASSES):
        difference = rows[:, labels].T - rows[:, k]  # [B, features]
        center, half = ((low + high) / 2).reshape(len(low), -1), ((high - low) / 2).reshape(len(low), -1)
        bound = jnp.sum(difference * center - abs(difference) * half, axis=1) + bias[labels] - bias[k]
        bounds.append(jnp.where(labels == k, jnp.inf, bound))
    return jnp.stack(bounds).min(axis=0)


@pytest.fixture(scope='module')
def certified(request):
    """A network, images it gets right, the largest radii it is certified at, and the bound as a function."""
    draws = np.random.default_rng(1)
    layers = affine_layers(request.param, draws)

    def forward(images, keys):
        features = images
        for map_, _, bias in layers[:-1]:
            features = jax.nn.relu(map_(features) + bias)
        return layers[-1][0](features) + layers[-1][2]

    images = jnp.asarray(draws.uniform(size=(BATCH, 6, 6, 1)).astype(np.float32))
    labels = forward(images, None).argmax(1)
    bound = jax.jit(lambda eps: lower_margin(layers, images, labels, eps))
    low, high = jnp.zeros(BATCH), jnp.ones(BATCH)
    for _ in range(20):
        middle = (low + high) / 2
        safe = bound(middle) > 1e-5
        low, high = jnp.where(safe, middle, low), jnp.where(safe, high, middle)
    victim = Victim(forward, cross_entropy, prediction_is_right)
    return SimpleNamespace(victim=victim, images=images, labels=labels, radii=low, bound=bound,
                           keys=rng.example_keys(0, np.arange(BATCH)))


@pytest.mark.parametrize('certified', ['mlp', 'conv'], indirect=True)
def test_the_certificate_is_exact_without_a_ball_and_holds_for_random_images(certified):
    clean = -margin(certified.victim.forward(certified.images, None), certified.labels)
    np.testing.assert_allclose(certified.bound(jnp.zeros(BATCH)), clean, rtol=1e-4, atol=1e-5)
    assert (certified.radii > 1e-3).mean() > .5  # the bound is not vacuous
    draws = np.random.default_rng(2)
    for eps in (.01, .1):
        low = certified.bound(jnp.full(BATCH, eps))
        for _ in range(20):
            shifted = jnp.clip(certified.images + draws.choice([-eps, eps], certified.images.shape), 0, 1)
            reached = -margin(certified.victim.forward(shifted.astype(jnp.float32), None), certified.labels)
            assert np.all(reached >= low - 1e-5)


@pytest.mark.parametrize(('certified', 'name'), PAIRS, indirect=['certified'])
def test_no_attack_breaks_what_is_certified(certified, name, norms):
    attack = jax.jit(lambda eps: run(ATTACKS[name], certified.victim, certified.keys, certified.images,
                                     certified.labels, eps=eps))
    for eps in (certified.radii, 3 * certified.radii, jnp.full(BATCH, .3)):
        found = attack(eps)
        reached = -margin(certified.victim.forward(found.images, None), certified.labels)
        assert np.all(reached >= certified.bound(eps) - 1e-5)
        assert np.all(found.acceptable | (eps > certified.radii))
    # The widest ball holds images that fool, so that the attack had something to find.
    assert name == 'noise' or not found.acceptable.all()
    if name in MINIMUM_NORM:
        found = attack(jnp.full(BATCH, jnp.inf))
        fooled = ~np.asarray(found.acceptable)
        assert fooled.mean() > .7
        assert np.all(norms(found.images - certified.images, 'linf')[fooled] >= certified.radii[fooled])
