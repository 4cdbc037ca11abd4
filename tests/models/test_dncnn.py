"""The denoiser's network: what it subtracts, and what it refuses."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model


def test_it_starts_as_the_identity_and_subtracts_what_it_estimates():
    module = create_model('dncnn', 2, depth=3, width=4)
    params, state = init_variables(module, jax.random.key(0), (6, 5, 2))
    images = np.random.default_rng(0).uniform(size=(3, 6, 5, 2)).astype(np.float32)
    run = jax.jit(lambda p: apply_model(module)(p, state, images, batch_norm='eval')[0])
    np.testing.assert_array_equal(run(params), images)
    biased = {**params, 'conv2': {**params['conv2'], 'bias': jnp.array([.1, -.2])}}
    np.testing.assert_allclose(run(biased), images - np.array([.1, -.2]), atol=1e-6)


def test_the_papers_depth_and_width_have_its_size():
    shapes = jax.eval_shape(lambda: init_variables(create_model('dncnn', 1, depth=17, width=64), jax.random.key(0),
                                                   (40, 40, 1)))[0]
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == (9 * 64 + 64) + 15 * (9 * 64 * 64 + 2 * 64) + (9 * 64 + 1)


@pytest.mark.parametrize('options', [{'num_outputs': 3}, {'num_outputs': 1, 'depth': 1}])
def test_refusals(options):
    with pytest.raises(ValueError, match='equal to the 1 channels of its images and depth >= 2'):
        jax.eval_shape(lambda: init_variables(create_model('dncnn', **options), jax.random.key(0), (8, 8, 1)))
