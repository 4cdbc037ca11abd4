"""Refusals name the offending row and the cure."""
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.checks import check_eps, check_images, check_labels, did_you_mean


def good(*shape):
    return np.full(shape, .5, np.float32)


@pytest.mark.parametrize('shape', [(2, 9, 1), (2, 4, 4, 3), (1, 3, 3, 3, 1)])
@pytest.mark.parametrize('dtype', ['float16', 'float32', 'float64', 'bfloat16'])
def test_images_in_the_contract_pass(shape, dtype):
    check_images(jnp.asarray(good(*shape)).astype(dtype) if dtype == 'bfloat16' else good(*shape).astype(dtype))
    check_images(np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 12, 1))


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, -1e-3, 1.001])
def test_first_bad_image_is_named(value):
    images = good(6, 3, 3, 1)
    images[2, 1, 1, 0] = images[4, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r'scans: image 102 holds .*\(2 of 6 images'):
        check_images(images, what='scans', first_index=100)


def test_bad_bfloat16_images_are_named_too():
    with pytest.raises(ValueError, match=r'image 0 holds values in \[2, 2\]'):
        check_images(jnp.full((1, 2, 1), 2, jnp.bfloat16))


def test_integers_and_shapes():
    with pytest.raises(TypeError, match='uint8 is not floating point; divide 8-bit images by 255'):
        check_images(np.zeros((2, 3, 3, 1), np.uint8))
    for shape in [(4, 4), (0, 4, 4, 1), (1, 2, 2, 2, 2, 1)]:
        with pytest.raises(ValueError, match='is not'):
            check_images(good(*shape))


def test_labels():
    check_labels(np.array([0, 2, 1]), 3)
    with pytest.raises(ValueError, match=r'row 11 holds 3, outside 0\.\.2 \(1 such rows\)'):
        check_labels(np.array([0, 3, 1]), 3, first_index=10)
    with pytest.raises(ValueError, match='row 1 holds -1'):
        check_labels(jnp.array([0, -1]), 2)
    with pytest.raises(ValueError, match='one-hot'):
        check_labels(np.eye(3, dtype=int), 3)
    for labels in (np.array([0., 1.]), np.array([True, False])):
        with pytest.raises(TypeError, match='not an integer'):
            check_labels(labels, 2)


@pytest.mark.parametrize('eps', [-1e-9, np.nan, np.inf, (0.1, -0.1)])
def test_bad_radii(eps):
    with pytest.raises(ValueError, match=r'attack\.eps = .* must be finite and >= 0'):
        check_eps(eps, field='attack.eps')


def test_good_radii():
    check_eps(0)
    check_eps([0, 8 / 255])


def test_did_you_mean():
    with pytest.raises(ValueError, match=r"unknown attack 'pdg'; did you mean 'pgd'\? Known: fgsm, pgd"):
        did_you_mean('pdg', {'pgd': 1, 'fgsm': 2}, 'attack')
    with pytest.raises(ValueError, match=r"unknown attack 'qqqq'\. Known: fgsm, pgd"):
        did_you_mean('qqqq', ['pgd', 'fgsm'], 'attack')
