"""Grad-CAM and integrated gradients: by hand, their identities and axioms, and the noise control."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.evaluate.explanations import (
    baseline_image,
    grad_cam,
    heat,
    integrated_gradients,
    noise_of_same_size,
)
from medrobust_jax.models.explain import maps_and_head
from medrobust_jax.models.forward import init_variables
from medrobust_jax.models.resnet import ResNet

GENERATOR = np.random.default_rng(0)
IMAGES = jnp.asarray(GENERATOR.uniform(size=(5, 8, 8, 2)), jnp.float32)
CLASSES = jnp.asarray([0, 2, 1, 2, 0])
MODULE = ResNet(num_outputs=3, stage_sizes=(1,), width=8, norm='group')
WEIGHTS = jnp.asarray(GENERATOR.normal(size=(8 * 8 * 2, 3)), jnp.float32)
HIDDEN = jnp.asarray(GENERATOR.normal(size=(8 * 8 * 2, 16)), jnp.float32)


@pytest.fixture(scope='module')
def cut():
    """The ResNet as `images -> (maps, head)`, with weights of both signs that need no compiled initialization."""
    shapes = jax.eval_shape(lambda: init_variables(MODULE, jax.random.key(0), (8, 8, 2)))
    variables = jax.tree.map(lambda leaf: jnp.asarray(np.random.default_rng(leaf.size).normal(
        size=leaf.shape), jnp.float32), shapes)
    return lambda images: maps_and_head(MODULE, *variables, images), variables[0]['head']['dense']['kernel']


def linear(images):
    return (images.reshape(len(images), -1) - .5) @ WEIGHTS


def smooth(images):
    return jnp.tanh(images.reshape(len(images), -1) @ HIDDEN / 4) @ WEIGHTS[:16]


def test_grad_cam_by_hand():
    """Two maps of 2 x 2 pixels, z_0 = mean of 3 A_0 - A_1, z_1 = A_0 at its first pixel alone."""
    maps = jnp.asarray([[[[1., 0], [0, 2]], [[2, 6], [1, 1]]]])  # [1, 2, 2, K]

    def head(a):
        return jnp.stack([(3 * a[..., 0] - a[..., 1]).mean((1, 2)), a[:, 0, 0, 0]], -1)

    images = jnp.zeros((1, 2, 2, 1))  # of the maps' size: nothing is interpolated
    first, second = (grad_cam(lambda x: (maps, head), images, jnp.asarray([c])) for c in (0, 1))
    # Weights are means over pixels of the gradients: 3/4 and -1/4. The sum is [[3, -2], [0, 2]] / 4.
    np.testing.assert_allclose(first[0], np.array([[3, 0], [0, 2]]) / 3, atol=1e-6)
    np.testing.assert_allclose(second[0], np.array([[1, 0], [2, 1]]) / 2, atol=1e-6)  # 1/4 and 0: the map A_0
    large = grad_cam(lambda x: (maps, head), jnp.zeros((1, 4, 4, 1)), jnp.asarray([1]))[0]
    np.testing.assert_allclose(large[:, 0], np.array([1, 1.25, 1.75, 2]) / 2, atol=1e-6)  # bilinear, downwards
    nothing = grad_cam(lambda x: (maps, lambda a: -head(a)), images, jnp.asarray([1]))
    np.testing.assert_array_equal(nothing, 0)


def test_grad_cam_of_an_average_and_a_linear_layer_is_cam(cut):
    """CAM (Zhou et al. 2016): the maps weighed by the last layer's weights."""
    cut, kernel = cut
    maps, _ = cut(IMAGES)
    cam = jax.nn.relu(jnp.einsum('bhwk,bk->bhw', maps, kernel.T[CLASSES]))
    cam = jax.image.resize(cam, (5, 8, 8), 'bilinear')
    found = jax.jit(lambda x, c: grad_cam(cut, x, c))(IMAGES, CLASSES)
    assert float(cam.max(axis=(1, 2)).min()) > 0
    np.testing.assert_allclose(found, cam / cam.max(axis=(1, 2), keepdims=True), atol=1e-5)
    assert float(found.min()) >= 0
    assert found.max(axis=(1, 2)).tolist() == [1] * 5


@pytest.mark.parametrize('rule', ['midpoint', 'trapezoid'])
def test_integrated_gradients_of_a_linear_model_are_exact_in_one_step(rule):
    baseline = jnp.full((8, 8, 2), .25)
    found = integrated_gradients(linear, IMAGES, CLASSES, baseline=baseline, num_steps=1, rule=rule)
    expected = (IMAGES - .25) * WEIGHTS.T[CLASSES].reshape(5, 8, 8, 2)
    np.testing.assert_allclose(found.values, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.gap, 0, atol=1e-4)
    rise = linear(IMAGES) - linear(jnp.broadcast_to(baseline, IMAGES.shape))
    np.testing.assert_allclose(found.rise, rise[jnp.arange(5), CLASSES], rtol=1e-5)


@pytest.mark.parametrize('rule', ['midpoint', 'trapezoid'])
def test_completeness_grows_with_the_square_of_the_steps(rule):
    with jax.enable_x64(True):
        images = IMAGES.astype(jnp.float64)
        gaps = [float(abs(integrated_gradients(smooth, images, CLASSES, baseline=jnp.zeros((8, 8, 2)), rule=rule,
                                               num_steps=steps).gap).max()) for steps in (50, 100, 200)]
    assert gaps[0] > 1e-6
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=.1)
    assert gaps[1] / gaps[2] == pytest.approx(4, rel=.1)


def test_what_the_score_does_not_use_gets_nothing():
    def half_blind(images):
        return smooth(images.at[:, :4].set(.5))

    values = integrated_gradients(half_blind, IMAGES, CLASSES, baseline=jnp.zeros((8, 8, 2)), num_steps=8).values
    np.testing.assert_array_equal(values[:, :4], 0)
    assert float(abs(values[:, 4:]).min(axis=(1, 2, 3)).max()) > 0
    same = integrated_gradients(smooth, IMAGES, CLASSES, baseline=IMAGES[0], num_steps=8)
    np.testing.assert_array_equal(same.values[0], 0)  # where the image equals the baseline
    assert float(same.rise[0]) == 0


def test_an_explanation_does_not_depend_on_its_batch(cut):
    order = jnp.asarray([3, 1, 4, 0, 2])

    def both(images, classes):
        return (grad_cam(cut[0], images, classes), integrated_gradients(
            smooth, images, classes, baseline=jnp.zeros((8, 8, 2)), num_steps=8).values)

    both = jax.jit(both)
    for found, permuted in zip(both(IMAGES, CLASSES), both(IMAGES[order], CLASSES[order]), strict=True):
        np.testing.assert_allclose(permuted, found[order], atol=1e-5)


def test_heat_and_baselines():
    np.testing.assert_allclose(heat(np.array([[[[1., -2.]]]])), [[[3.]]])
    images = np.asarray(IMAGES)
    np.testing.assert_array_equal(baseline_image('black', images), np.zeros((8, 8, 2)))
    np.testing.assert_allclose(baseline_image('mean', images), images.mean(0))
    with pytest.raises(ValueError, match="did you mean 'black'"):
        baseline_image('blak', images)
    with pytest.raises(ValueError, match='num_steps = 0'):
        integrated_gradients(linear, IMAGES, CLASSES, baseline=IMAGES[0], num_steps=0)
    with pytest.raises(ValueError, match="did you mean 'midpoint'"):
        integrated_gradients(linear, IMAGES, CLASSES, baseline=IMAGES[0], rule='midpoints')


def test_noise_has_every_norm_of_the_attack_and_stays_in_the_box():
    images = IMAGES.at[0].set(0).at[1].set(1)  # black and white: one sign alone fits
    attacked = jnp.clip(images + .1 * jnp.asarray(GENERATOR.normal(size=images.shape), jnp.float32), 0, 1)
    keys = rng.example_keys(0, np.arange(5))
    noisy = jax.jit(noise_of_same_size)(keys, images, attacked)
    assert 0 <= float(noisy.min()) <= float(noisy.max()) <= 1
    sizes = [np.sort(abs(np.asarray(other - images)).reshape(5, -1)) for other in (attacked, noisy)]
    np.testing.assert_allclose(*sizes, atol=1e-6)
    delta, noise = (np.asarray(other - images)[2:].reshape(3, -1) for other in (attacked, noisy))
    assert abs((delta * noise).sum(1) / (delta ** 2).sum(1)).max() < .3, 'of its direction nothing is left'
    alone = noise_of_same_size(keys[3:4], images[3:4], attacked[3:4])
    np.testing.assert_array_equal(alone[0], noisy[3])
