"""The shape network: its heads, its size, single examples, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.shape_net import ShapeNet, shape_net

SMALL = ShapeNet(num_outputs=10, stage_sizes=(1, 1), width=8, reconstruct=True)


def test_heads_see_their_own_image():
    params, state = jax.jit(lambda key: init_variables(SMALL, key, (16, 8, 1)))(jax.random.key(0))
    assert not jax.tree.leaves(state)
    images = jax.random.uniform(jax.random.key(1), (3, 16, 8, 1))
    forward = jax.jit(lambda x: apply_model(SMALL)(params, state, x, batch_norm='eval')[0])
    outputs = forward(images)
    assert {name: value.shape for name, value in outputs.items()} == {
        'points': (3, 5, 2), 'mask': (3, 16, 8), 'reconstruction': (3, 16, 8, 1), 'reconstruction_error': (3,)}
    np.testing.assert_allclose(outputs['reconstruction_error'],
                               np.abs(np.asarray(outputs['reconstruction']) - images).mean((1, 2, 3)), rtol=1e-5)
    permuted = forward(images[::-1])
    for name in outputs:
        np.testing.assert_allclose(permuted[name][::-1], outputs[name], atol=1e-5)
    assert np.abs(np.diff(outputs['points'], axis=0)).max() > 1e-4


def test_the_published_size():
    shapes, _ = jax.eval_shape(lambda key: init_variables(shape_net(num_outputs=352), key, (128, 128, 1)),
                               jax.random.key(0))
    assert shapes['stage4_block1']['conv2']['kernel'].shape == (3, 3, 1024, 1024)
    assert 'rebuilt' not in shapes


def test_refusals():
    with pytest.raises(ValueError, match='multiples of 2: resize them or use fewer stages'):
        SMALL.init(jax.random.key(0), jnp.zeros((1, 17, 8, 1)), batch_norm='eval')
    odd = ShapeNet(num_outputs=9, stage_sizes=(1,))
    with pytest.raises(ValueError, match='num_outputs = 9 must be even'):
        odd.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)), batch_norm='eval')
