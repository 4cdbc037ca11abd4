"""Means over the real rows of a padded batch."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.masking import masked_mean, masked_sum, per_example


def test_padding_does_not_count_not_even_nan():
    values = jnp.array([1., 2, jnp.nan, jnp.inf, 6])
    mask = jnp.array([True, True, False, False, True])
    assert masked_mean(values, mask) == 3
    assert masked_sum(values, mask) == (9, 3)


def test_nothing_but_padding_gives_zero():
    assert masked_mean(jnp.array([jnp.nan, 3.]), jnp.zeros(2, bool)) == 0


def test_gradient_ignores_padding():
    gradient = jax.grad(lambda v: masked_mean(v, jnp.array([True, False, True])))(jnp.array([1., jnp.nan, 3]))
    np.testing.assert_array_equal(gradient, [.5, 0, .5])


@pytest.mark.parametrize('dtype', [bool, jnp.int32, jnp.bfloat16])
def test_verdicts_and_narrow_floats_are_counted_right(dtype):
    values = (jnp.arange(1000) % 4 < 3).astype(dtype)
    mask = jnp.arange(1000) < 800
    assert masked_mean(values, mask) == .75
    assert masked_sum(values, mask) == (600, 800)


def test_per_example_broadcasts():
    like = jnp.zeros((4, 2, 3, 1))
    assert per_example(jnp.arange(4), like).shape == (4, 1, 1, 1)
    assert per_example(jnp.arange(4), jnp.zeros(4)).shape == (4,)
    assert per_example(like, like).shape == like.shape
