"""The denoiser's objective, by hand."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.defenses.denoising import denoising, noised

KEYS = rng.example_keys(0, jnp.arange(400))
IMAGES = np.random.default_rng(0).uniform(size=(400, 8, 8, 1)).astype(np.float32)


def test_noise_has_a_level_of_its_own_per_image():
    noise = np.asarray(jax.jit(lambda k, x: noised(k, x, sigma=.4))(KEYS, IMAGES)) - IMAGES
    levels = noise.std(axis=(1, 2, 3))
    assert levels.max() < .4 * 1.4  # 64 pixels tell a level to within a tenth or so
    assert levels.mean() == pytest.approx(.2, abs=.02)
    assert np.quantile(levels, .25) == pytest.approx(.1, abs=.03)
    part = jax.jit(lambda k, x: noised(k, x, sigma=.4))(KEYS[5:7], IMAGES[5:7])
    np.testing.assert_allclose(part - IMAGES[5:7], noise[5:7], atol=1e-6)


def test_loss_is_the_squared_error_to_the_clean_image():
    def forward(params, state, images, *, batch_norm):
        assert batch_norm == 'train'
        return params * images, state + 1

    defense = denoising(sigma=.3)
    losses, (state, metrics) = jax.jit(lambda p, x: defense.loss(
        forward, p, 0, (), {'image': x}, (), 0, KEYS))(.5, IMAGES)
    seen = np.asarray(noised(KEYS, IMAGES, sigma=.3))
    np.testing.assert_allclose(losses, ((.5 * seen - IMAGES) ** 2).mean(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_array_equal(metrics['mean_squared_error'], losses)
    assert int(state) == 1


@pytest.mark.parametrize('sigma', [0., -1., np.inf])
def test_refusals(sigma):
    with pytest.raises(ValueError, match='finite sigma > 0'):
        denoising(sigma=sigma)
