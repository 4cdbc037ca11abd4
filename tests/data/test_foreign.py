"""Images of no kind a model knows: drawn by their keys alone, in its shape, inside the box."""
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.data import registry
from medrobust_jax.data.foreign import fit_to, foreign_images

KEYS = rng.example_keys(0, jnp.arange(200))


@pytest.mark.parametrize(('kind', 'mean', 'spread'), [('noise', .5, 12**-.5), ('gaussian', .5, .24)])
def test_noise_is_what_it_says_and_each_images_own(kind, mean, spread):
    images, origin = foreign_images(kind, KEYS, image_shape=(8, 4, 3))
    assert (images.shape, images.dtype, origin) == ((200, 8, 4, 3), np.float32, '')
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.mean() == pytest.approx(mean, abs=.01)
    assert images.std() == pytest.approx(spread, abs=.01)
    assert len(np.unique(images[:, 0, 0, 0])) > 150
    np.testing.assert_array_equal(foreign_images(kind, KEYS[5:7], image_shape=(8, 4, 3))[0], images[5:7])


def test_noise_is_not_the_draw_that_an_attack_makes_with_the_same_keys():
    images, _ = foreign_images('noise', KEYS, image_shape=(8, 4, 1))
    assert abs(np.corrcoef(images.ravel(), np.ravel(rng.uniform(KEYS, (8, 4, 1))))[0, 1]) < .05


def test_another_data_set_gives_its_test_images(monkeypatch):
    source = registry.load('oct_phantom', 'test', num_examples=6, size=16)
    monkeypatch.setattr(registry, 'load', lambda name, split, data_dir=None: source)
    images, origin = foreign_images('oct_phantom', KEYS[:40], image_shape=(16, 16, 1))
    assert origin == source.info.fingerprint
    known = np.stack([source[row]['image'] for row in range(6)])
    matches = (images[:, None] == known).all(axis=(2, 3, 4))
    assert (matches.sum(axis=1) == 1).all(), 'each is one of the six'
    assert matches.any(axis=0).sum() >= 5, 'and most of the six come'
    again, _ = foreign_images('oct_phantom', KEYS[3:5], image_shape=(16, 16, 1))
    np.testing.assert_array_equal(again, images[3:5])
    with pytest.raises(ValueError, match="images of 'oct_phantom' cannot be shown to this model"):
        foreign_images('oct_phantom', KEYS[:2], image_shape=(4, 16, 16, 1))


def test_images_keep_their_proportions_and_their_mean_color():
    image = np.zeros((1, 4, 8, 3), np.float32)
    image[:, :, 2:6] = (.3, .6, .9)
    fitted = fit_to(image, (2, 2, 1))  # the middle 4 x 4, whose color is .6 on the mean
    assert fitted.shape == (1, 2, 2, 1)
    np.testing.assert_allclose(fitted, .6, rtol=1e-6)
    np.testing.assert_allclose(fit_to(image[..., :1], (4, 8, 3)), np.repeat(image[..., :1], 3, axis=-1))
    with pytest.raises(ValueError, match='3 channels do not become 2'):
        fit_to(image, (4, 8, 2))
