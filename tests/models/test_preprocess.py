"""Preprocessors: values, the gradient that each mode shows, and that a masked one does not count as robustness."""
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import averaged_over
from medrobust_jax.core import rng
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right
from medrobust_jax.models.preprocess import (
    BACKWARD,
    PREPROCESSORS,
    create_preprocessor,
    denoiser,
    preprocessed,
    usable_gradient,
)

ATTACK = pgd(num_steps=8, start='clean')
SIZE, KEYS = 16, rng.example_keys(0, jnp.arange(6))
IMAGES = np.random.default_rng(0).uniform(.1, .9, (6, SIZE, SIZE, 1)).astype(np.float32)
# Non-linear in the pixels, so that where the gradient is taken shows.
squared = lambda images, keys: (images ** 2).reshape(len(images), -1).sum(axis=1)  # noqa: E731


def template():
    """A smooth pattern of unit size: what two classes differ by, and what filters leave alone."""
    y, x = np.mgrid[:SIZE, :SIZE] / (SIZE - 1) - .5
    pattern = np.exp(-8 * (x**2 + y**2)) - .3
    return (pattern / np.linalg.norm(pattern)).astype(np.float32)


def two_classes(count=24, seed=0):
    """Images that hold the template, bright or dark, and the linear classifier that tells them apart."""
    draws, pattern = np.random.default_rng(seed), template()
    labels = np.arange(count) % 2
    strength = (2 * labels - 1) * draws.uniform(.1, .25, count)
    images = .5 + strength[:, None, None] * pattern + draws.normal(scale=.02, size=(count, SIZE, SIZE))

    def forward(images, keys):
        score = 10 * jnp.einsum('bhwc,hw->b', images - .5, pattern)
        return jnp.stack([-score, score], axis=-1)

    return SimpleNamespace(forward=forward, images=jnp.asarray(images.clip(0, 1)[..., None], jnp.float32),
                           labels=jnp.asarray(labels), keys=rng.example_keys(seed, jnp.arange(count)))


def withstood(system, forward, eps):
    victim = Victim(forward, cross_entropy, prediction_is_right)
    attacked = jax.jit(partial(run, ATTACK, victim, eps=eps))
    return np.asarray(attacked(system.keys, system.images, system.labels).acceptable)


@pytest.mark.parametrize('name', PREPROCESSORS)
def test_values_never_depend_on_the_gradient_shown(name):
    made = create_preprocessor(name)
    modes = [mode for mode in BACKWARD if not (mode == 'exact' and made.flat)]
    through = {mode: preprocessed(squared, made.apply, backward=mode) for mode in modes}

    @jax.jit
    def both(images):
        values = {mode: forward(images, KEYS) for mode, forward in through.items()}
        slopes = {mode: jax.grad(lambda x, f=forward: f(x, KEYS).sum())(images)
                  for mode, forward in through.items()}
        return values, slopes, made.apply(rng.split_each(KEYS, 2)[0], images)

    values, slopes, seen = both(IMAGES)
    assert seen.shape == IMAGES.shape
    assert not np.allclose(seen, IMAGES, atol=1e-3), 'something is done'
    for mode in modes:
        np.testing.assert_allclose(values[mode], squared(np.asarray(seen), None), rtol=1e-6)
    np.testing.assert_allclose(slopes['identity'], 2 * seen, rtol=1e-5, err_msg='BPDA: f at t(x), t as if t = x')
    assert not slopes['blocked'].any()
    if made.differentiable:
        assert np.abs(slopes['exact']).max() > 0
    assert usable_gradient(made) == ('exact' if made.differentiable else 'identity')


@pytest.mark.parametrize('name', ['median', 'total_variation', 'random_resize', 'gaussian_noise'])
def test_exact_gradients_are_those_of_differences(name):
    forward = preprocessed(squared, create_preprocessor(name).apply)
    direction = np.random.default_rng(1).normal(size=IMAGES.shape)
    with jax.enable_x64(True):
        at = jax.jit(jax.value_and_grad(lambda x: forward(x, KEYS).sum()))
        x, step = IMAGES.astype(np.float64), 1e-6
        numeric = (at(x + step * direction)[0] - at(x - step * direction)[0]) / (2 * step)
        assert float((at(x)[1] * direction).sum()) == pytest.approx(float(numeric), rel=1e-3)


def test_the_order_is_that_of_wrapping_and_draws_are_apart():
    double, less = (lambda keys, images: 2 * images), (lambda keys, images: images - 1)
    forward = preprocessed(preprocessed(lambda images, keys: images, double), less)
    np.testing.assert_allclose(forward(jnp.full((6, 1, 1), 3.), KEYS), 4.)  # 2 (x - 1)
    noise = create_preprocessor('gaussian_noise', sigma=1.0).apply
    model = lambda images, keys: images - noise(keys, jnp.zeros_like(images))  # noqa: E731 - draws as well
    three = preprocessed(preprocessed(model, noise), noise)(jnp.zeros((6, 40, 40, 1)), KEYS)
    assert float(three.std()) == pytest.approx(np.sqrt(3), rel=.05), 'equal draws would give 3 or 1'


def test_the_form_with_variables():
    forward = preprocessed(lambda weights, images, keys: images * weights, lambda keys, images: images + 1)
    np.testing.assert_array_equal(forward(3., jnp.ones((6, 2, 1)), KEYS), np.full((6, 2, 1), 6.))


def test_draws_belong_to_the_image():
    forward = jax.jit(preprocessed(squared, create_preprocessor('random_resize').apply))
    order = np.array([4, 0, 5])
    np.testing.assert_allclose(forward(IMAGES[order], KEYS[order]), forward(IMAGES, KEYS)[order], rtol=1e-5)


def test_a_denoiser_is_differentiated_through():
    forward = preprocessed(squared, denoiser(lambda images: images ** 2).apply)
    gradient = jax.grad(lambda x: forward(x, KEYS).sum())(IMAGES)
    np.testing.assert_allclose(gradient, 4 * IMAGES ** 3, rtol=1e-5)


@pytest.mark.parametrize(('name', 'options'), [('bit_depth', {'bits': 5}), ('jpeg', {'quality': 75}),
                                               ('median', {'size': 2})])
def test_a_masked_gradient_is_no_robustness(name, options):
    """The control: with its gradient blocked the attack finds nothing; with the usable one the model falls."""
    system, made = two_classes(), create_preprocessor(name, **options)
    before = partial(preprocessed, system.forward, made.apply)
    nothing = withstood(system, system.forward, 0.0)
    alone = withstood(system, system.forward, 4 / 255)
    masked = withstood(system, before(backward='blocked'), 4 / 255)
    shown = withstood(system, before(backward=usable_gradient(made)), 4 / 255)
    assert nothing.all()
    np.testing.assert_array_equal(masked, withstood(system, before(backward='blocked'), 0.0))
    assert masked.mean() > .9
    assert alone.mean() < .5
    assert shown.mean() < alone.mean() + .15


def test_random_resizing_falls_to_the_average_over_draws():
    """The classes differ by a fine grating, and much of the net's gradient says where one draw has put it."""
    draws = np.random.default_rng(0)
    pattern = np.asarray(np.indices((SIZE, SIZE))[1] % 4 < 2, np.float32) - .5
    labels = jnp.arange(48) % 2
    images = jnp.asarray(.5 + (2 * labels - 1)[:, None, None] * .3 * pattern
                         + draws.normal(scale=.05, size=(48, SIZE, SIZE)), jnp.float32)[..., None]
    hidden = jnp.asarray(draws.normal(size=(SIZE * SIZE, 32)), jnp.float32)

    def net(images, keys):
        rest = .3 * jnp.sin(3 * (images - .5).reshape(len(images), -1) @ hidden).sum(axis=1)
        score = 4 * jnp.einsum('bhwc,hw->b', images - .5, pattern) / SIZE + rest
        return jnp.stack([-score, score], axis=-1)

    forward = preprocessed(net, create_preprocessor('random_resize', smallest=.8).apply)
    victim, keys = Victim(forward, cross_entropy, prediction_is_right), rng.example_keys(1, jnp.arange(48))

    @jax.jit
    def expected(images):
        fresh = jax.vmap(lambda i: forward(images, rng.fold(keys, 1000 + i)))(jnp.arange(64))
        return jax.vmap(lambda out: cross_entropy(out, labels))(fresh).mean()

    def climbed(num_samples):
        attack = averaged_over(ATTACK, identity, num_samples=num_samples, majority=True)
        found = jax.jit(partial(run, attack, victim, eps=.06))(keys, images, labels)
        return float(expected(found.images) - expected(images))

    assert climbed(16) > 1.5 * max(climbed(1), .05)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: create_preprocessor('jpg'), "unknown preprocessor 'jpg'; did you mean 'jpeg'"),
    (lambda: create_preprocessor('jpeg', qualty=3), "option of preprocessor 'jpeg' 'qualty'; did you mean 'qua"),
    (lambda: create_preprocessor('jpeg', quality=0), 'quality from 1 to 100, not 0'),
    (lambda: create_preprocessor('bit_depth', bits=0), 'bits from 1 to 16'),
    (lambda: create_preprocessor('median', size=0), 'size of at least 1'),
    (lambda: create_preprocessor('total_variation', weight=-1), 'weight >= 0'),
    (lambda: create_preprocessor('random_resize', smallest=2), 'smallest in'),
    (lambda: create_preprocessor('gaussian_noise', sigma=-1), 'sigma >= 0'),
    (lambda: usable_gradient(create_preprocessor('bit_depth'), 'exact'), "is zero: choose 'identity'"),
    (lambda: usable_gradient(create_preprocessor('jpeg'), 'bpda'), "unknown gradient of a preprocessor 'bpda'"),
    (lambda: preprocessed(squared, identity, backward='auto'), "unknown gradient of a preprocessor 'auto'")])
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
