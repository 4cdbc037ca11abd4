"""Networks cut at their last feature maps: the two halves are the whole, and the whole is what it was."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.explain import maps_and_head
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model

IMAGES = jax.random.uniform(jax.random.key(1), (2, 16, 24, 1))
# The smallest of every family, and the sides of its last maps for 16 x 24 pixels.
WITH_MAPS = {
    'resnet': ({'stage_sizes': [1, 1], 'width': 8}, (8, 12)),
    'wide_resnet': ({'depth': 10, 'widen_factor': 1, 'stem': 'strided'}, (2, 3)),
    'densenet': ({'stage_sizes': [1, 1], 'growth': 4, 'width': 8}, (8, 12)),
    'mobilenet_v2': ({'width_multiplier': .1}, (2, 3)),
}


def drawn(module):
    """Parameters of any size but 0, without compiling an initialization; running variances stay positive."""
    shapes = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), IMAGES.shape[1:]))
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(generator.uniform(.1, .3, leaf.shape) * generator.choice(
        [-1, 1] if leaf.ndim > 1 else [1], leaf.shape), leaf.dtype), shapes)


@pytest.mark.parametrize('name', WITH_MAPS)
def test_the_two_halves_are_the_network(name):
    options, sides = WITH_MAPS[name]
    module = create_model(name, 3, **options)
    params, state = drawn(module)
    assert set(state) == {'batch_stats'}, 'neither parameters nor state know of the maps'

    @jax.jit
    def halves(images):
        maps, head = maps_and_head(module, params, state, images)
        gradients = jax.grad(lambda a: head(a)[:, 1].sum())(maps)
        return maps, head(maps), gradients, apply_model(module)(params, state, images, batch_norm='eval')[0]

    maps, logits, gradients, whole = halves(IMAGES)
    assert maps.shape[:3] == (2, *sides)
    np.testing.assert_allclose(logits, whole, rtol=1e-5, atol=1e-5)
    expected = params['head']['dense']['kernel'][:, 1] / np.prod(sides)
    np.testing.assert_allclose(gradients, jnp.broadcast_to(expected, maps.shape), rtol=1e-5)


def test_training_returns_nothing_more():
    module = create_model('resnet', 3, stage_sizes=[1], width=8)
    params, state = drawn(module)
    outputs, new_state = jax.eval_shape(
        lambda x: apply_model(module)(params, state, x, batch_norm='train'), IMAGES)
    assert outputs.shape == (2, 3)
    assert set(new_state) == {'batch_stats'}


@pytest.mark.parametrize(('name', 'options', 'what'), [
    ('vision_transformer', {'width': 16, 'depth': 1, 'num_heads': 2}, 'VisionTransformer'),
    ('perceptron', {}, 'Perceptron'), ('unet', {'width': 8, 'depth': 2}, 'UNet')])
def test_networks_without_maps_are_pointed_to_integrated_gradients(name, options, what):
    module = create_model(name, 3, **options)
    params, state = drawn(module)
    with pytest.raises(ValueError, match=f'{what} has none: use integrated gradients'):
        jax.eval_shape(lambda x: maps_and_head(module, params, state, x)[0], IMAGES)
