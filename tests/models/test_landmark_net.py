"""The landmark network and the decoder: shapes, the skips, single examples, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.decoder import enlarge
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.landmark_net import LandmarkNet, landmark_net, landmark_vgg19

SMALL = LandmarkNet(num_outputs=6, stage_sizes=(1, 1, 1), width=8)


@pytest.mark.parametrize('size', [(12, 8), (13, 7)])
def test_maps_have_the_images_size_and_depend_on_their_own_image(size):
    params, state = init_variables(SMALL, jax.random.key(0), (*size, 1))
    images = jax.random.uniform(jax.random.key(1), (3, *size, 1))
    forward = jax.jit(lambda x: apply_model(SMALL)(params, state, x, batch_norm='eval')[0])
    maps = forward(images)
    assert maps.shape == (3, *size, 6)
    np.testing.assert_allclose(forward(images[1:2])[0], maps[1], atol=1e-5)
    gradient = jax.grad(lambda x: forward(x)[0, 0, 0, 0])(images)
    # The corner's output sees far beyond the skips' 3 pixels: through the coarse levels.
    assert np.abs(gradient[0, 6:, 4:]).max() > 0
    assert not np.any(gradient[1:])


def test_enlarging_repeats_pixels():
    x = jnp.arange(4.).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(enlarge(x, (4, 5))[0, ..., 0], np.pad(
        np.arange(4.).reshape(2, 2).repeat(2, 0).repeat(2, 1), ((0, 0), (0, 1)), mode='edge'))
    with pytest.raises(ValueError, match='2 x 2 pixels cannot be doubled to 6 x 4'):
        enlarge(x, (6, 4))


def test_sizes_of_the_named_ones():
    def count(module):
        shapes = jax.eval_shape(lambda: init_variables(module(num_outputs=6), jax.random.key(0), (32, 32, 1)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes[0]))
    assert 1e6 < count(landmark_net) < 3e6
    assert 2.5e7 < count(landmark_vgg19) < 3.5e7  # VGG19's convolutions have 20 million


def test_refusals():
    images = jnp.zeros((1, 8, 8, 1))
    with pytest.raises(ValueError, match='num_outputs = 5 must be 3 per landmark'):
        LandmarkNet(num_outputs=5, stage_sizes=(1,)).init(jax.random.key(0), images, batch_norm='eval')
    with pytest.raises(ValueError, match="stride of 16"):
        landmark_net(num_outputs=6).init(jax.random.key(0), images, batch_norm='eval')
