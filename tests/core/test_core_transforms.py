"""Bit depth by hand; what transforms refuse. Random ones are tested with the attacks that average over them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.transforms import bit_depth, gaussian_noise


def test_levels_are_equally_spaced_and_reach_both_ends():
    images = jnp.linspace(0, 1, 1001)[None, :, None]
    np.testing.assert_allclose(np.unique(bit_depth(bits=2)(None, images)), [0, 1 / 3, 2 / 3, 1], atol=1e-7)
    np.testing.assert_array_equal(np.unique(bit_depth(bits=1)(None, images)), [0, 1])
    fine = bit_depth(bits=8)(None, images)
    assert np.abs(fine - images).max() <= .5 / 255 + 1e-6
    np.testing.assert_array_equal(bit_depth(bits=8)(None, fine), fine)


def test_levels_have_no_gradient():
    images = jnp.linspace(0, 1, 50)[None, :, None]
    assert not jax.grad(lambda x: bit_depth(bits=3)(None, x).sum())(images).any()


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: bit_depth(bits=0), 'bits from 1 to 16, not 0'), (lambda: bit_depth(bits=2.5), 'not 2.5'),
    (lambda: gaussian_noise(sigma=-.1), 'not -0.1'), (lambda: gaussian_noise(sigma=np.nan), 'not nan')])
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()
