"""The detector: shapes and strides, odd sizes, first objectness, gradients, neighbors, refusals; a fit."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medrobust_jax.core.anchors import points_of
from medrobust_jax.losses.detection import detection_loss
from medrobust_jax.models.detector import Detector
from medrobust_jax.models.forward import apply_model, features, init_variables

TINY = Detector(num_outputs=7, width=8, pyramid_width=8, stage_sizes=(1, 1, 1), num_levels=2, head_depth=1)


def variables(module, shape):
    return jax.jit(lambda: init_variables(module, jax.random.key(0), shape))()


@pytest.mark.parametrize(('options', 'size', 'expected'), [
    ({}, (128, 160), [(32, 40), (16, 20), (8, 10)]), ({}, (100, 72), [(25, 18), (13, 9), (7, 5)]),
    ({'stem': 'large'}, (320, 320), [(40, 40), (20, 20), (10, 10)]),
    ({'num_levels': 2}, (64, 64), [(8, 8), (4, 4)])])
def test_levels_have_the_strides_of_the_stem(options, size, expected):
    module = Detector(num_outputs=8, **options)
    abstract = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), (*size, 3)))
    maps, _ = jax.eval_shape(lambda p, s, x: apply_model(module)(p, s, x, batch_norm='train'), *abstract,
                             jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    assert [level.shape for level in maps] == [(2, *each, 8) for each in expected]
    assert points_of(maps).centers.shape == (sum(height * width for height, width in expected), 2)


def test_first_objectness_gradients_and_neighbors():
    params, state = variables(TINY, (33, 40, 3))
    images = jax.random.uniform(jax.random.key(1), (3, 33, 40, 3))
    forward = jax.jit(lambda images: apply_model(TINY)(params, state, images, batch_norm='eval')[0])
    maps = forward(images)
    assert [level.dtype for level in maps] == [jnp.float32] * 2
    assert 0 < float(jax.nn.sigmoid(maps[0][..., 0]).mean()) < .1
    for level, alone in zip(maps, forward(images[1:2].repeat(3, axis=0)), strict=True):
        np.testing.assert_allclose(level[1], alone[0], rtol=1e-4, atol=1e-5)
    targets = {'boxes': jnp.full((3, 1, 4), .5).at[..., :2].set(.2), 'box_labels': jnp.ones((3, 1), int),
               'box_mask': jnp.ones((3, 1), bool)}
    gradient = jax.jit(jax.grad(lambda images: detection_loss(forward(images), targets).sum()))(images)
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max((1, 2, 3)) > 0).all()
    assert features(TINY, params, state, images).shape == (3, 32)


def test_refusals():
    for options, message in (({'num_outputs': 5}, 'num_outputs >= 6'),
                             ({'num_outputs': 8, 'num_levels': 5}, 'not 5, 4'),
                             ({'num_outputs': 8, 'stem': 'huge'}, "'huge'")):
        with pytest.raises(ValueError, match=message):
            init_variables(Detector(**options), jax.random.key(0), (32, 32, 3))
    with pytest.raises(ValueError, match='total stride of 16'):
        init_variables(Detector(num_outputs=8), jax.random.key(0), (15, 15, 3))


@pytest.mark.slow
def test_it_learns_where_a_square_is():
    images, boxes = np.full((32, 32, 32, 1), .2, np.float32), np.zeros((32, 1, 4), np.float32)
    generator = np.random.default_rng(0)
    for row in range(32):
        low, side = generator.integers(0, 20, 2), generator.integers(6, 12)
        images[row, low[1]:low[1] + side, low[0]:low[0] + side] = .9
        boxes[row, 0] = np.concatenate([low, low + side]) / 32
    targets = {'boxes': boxes, 'box_labels': np.zeros((32, 1), int), 'box_mask': np.ones((32, 1), bool)}
    params, state = variables(TINY, (32, 32, 1))
    optimizer = optax.adam(5e-3)

    @jax.jit
    def step(params, state, slots):
        def loss(params):
            maps, updated = apply_model(TINY)(params, state, images, batch_norm='train')
            return detection_loss(maps, targets).mean(), updated
        (value, state_after), slopes = jax.value_and_grad(loss, has_aux=True)(params)
        updates, slots = optimizer.update(slopes, slots)
        return optax.apply_updates(params, updates), state_after, slots, value

    slots, values = optimizer.init(params), []
    for _ in range(60):
        params, state, slots, value = step(params, state, slots)
        values.append(float(value))
    assert values[-1] < .25 * values[0]
