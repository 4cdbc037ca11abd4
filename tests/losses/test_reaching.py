"""The distance between two segmentations."""
import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from medrobust_jax.losses.reaching import segmentation_distance

GENERATOR = np.random.default_rng(0)


def test_distance_by_hand_and_at_its_ends():
    a, b = (GENERATOR.normal(size=(2, 4, 5, 3)).astype(np.float32) for _ in range(2))
    p, q = (special.softmax(x.astype(np.float64), axis=-1).reshape(2, 20, 3)[..., 1:] for x in (a, b))
    dice = (2 * (p * q).sum(1) + 1) / (p.sum(1) + q.sum(1) + 1)
    np.testing.assert_allclose(segmentation_distance({'logits': jnp.asarray(a)}, jnp.asarray(b)),
                               1 - dice.mean(-1), rtol=1e-5)
    classes = np.tile(np.arange(4) % 3, 40).reshape(2, 8, 10)
    sharp = 100 * jax.nn.one_hot(classes, 3)
    np.testing.assert_allclose(segmentation_distance(sharp, sharp), 0, atol=1e-6)
    apart = segmentation_distance(sharp, jnp.roll(sharp, 1, axis=-1))
    assert (apart > .9).all()
    gradient = jax.grad(lambda z: segmentation_distance(1e4 * z, sharp).sum())(sharp)
    assert np.isfinite(gradient).all()
