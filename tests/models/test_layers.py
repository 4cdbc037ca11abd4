"""The shared layers, against hand-computed values."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.layers import Conv, DoubleSize, Norm, Normalize, divided


def test_normalize_per_channel():
    images = jnp.array([0.2, 0.6]).reshape(1, 1, 1, 2)
    normalized = Normalize(mean=(0.2, 0.5), std=(1.0, 0.1)).apply({}, images)
    np.testing.assert_allclose(normalized.ravel(), [0.0, 1.0], atol=1e-6)


def test_strided_convolution_pads_both_sides_as_pytorch():
    # A kernel of ones on a ramp 1..4 with padding 1 and stride 2 sums (0 1 2) and (2 3 4);
    # 'SAME' would pad on the right only and sum (1 2 3) and (3 4 0).
    images = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1].set(1.0)
    sums = Conv(1, 3, 2).apply({'params': {'kernel': kernel}}, images)
    np.testing.assert_allclose(sums.ravel(), [3.0, 9.0])


def test_convolution_bias_and_initial_scale():
    conv = Conv(256, 3, use_bias=True)
    params = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))['params']
    np.testing.assert_allclose(params['kernel'].std(), np.sqrt(2 / (9 * 256)), rtol=0.02)
    shifted = conv.apply({'params': {**params, 'bias': jnp.full(256, 3.0)}}, jnp.zeros((1, 4, 4, 16)))
    np.testing.assert_allclose(shifted, 3.0)


def test_batch_norm_uses_running_statistics_in_eval():
    variables = {
        'params': {'norm': {'scale': jnp.array([2.0]), 'bias': jnp.array([1.0])}},
        'batch_stats': {'norm': {'mean': jnp.array([3.0]), 'var': jnp.array([4.0])}},
    }
    out = Norm().apply(variables, jnp.array([[5.0], [3.0]]), batch_norm='eval')
    np.testing.assert_allclose(out.ravel(), [3.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize('channels', [8, 12, 3])
def test_group_norm_standardizes_groups_per_example(channels):
    inputs = np.random.default_rng(0).normal(1, 3, (2, 5, 5, channels)).astype(np.float32)
    params = {'norm': {'scale': jnp.ones(channels), 'bias': jnp.zeros(channels)}}
    out = jax.jit(lambda x: Norm('group').apply({'params': params}, x, batch_norm='eval'))(inputs)
    groups = {8: 8, 12: 4, 3: 1}[channels]
    parts = np.asarray(out).reshape(2, 25, groups, -1)
    np.testing.assert_allclose(parts.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(parts.std((1, 3)), 1, atol=1e-4)


@pytest.mark.parametrize('shape', [(5, 6), (3, 4, 5)], ids=str)
def test_instance_norm_is_flaxs(shape):
    inputs = np.random.default_rng(0).normal(1, 3, (2, *shape, 3)).astype(np.float32)
    inputs[1] *= 1e3
    params = {'scale': jnp.array([1., 2., -1.]), 'bias': jnp.array([0., 1., 2.])}

    def both(apply):
        value, pull = jax.vjp(apply, inputs)
        return value, *pull(jnp.sin(value))

    ours = both(lambda x: Norm('instance').apply({'params': {'norm': params}}, x, batch_norm='train'))
    stock = both(lambda x: nn.InstanceNorm(epsilon=1e-5).apply({'params': params}, x))
    np.testing.assert_allclose(ours[0], stock[0], atol=2e-5)
    np.testing.assert_allclose(ours[1], stock[1], atol=2e-5)
    half = Norm('instance', jnp.bfloat16).apply({'params': {'norm': params}}, inputs, batch_norm='eval')
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize('shape', [(3, 4), (2, 3, 2)], ids=str)
def test_double_size_is_a_transposed_convolution(shape):
    inputs = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    module = DoubleSize(5)
    variables = module.init(jax.random.key(0), inputs)
    stock = nn.ConvTranspose(5, (2,) * len(shape), (2,) * len(shape), use_bias=False, transpose_kernel=True)
    kernel = jnp.swapaxes(variables['params']['kernel'], -1, -2)
    expected = stock.apply({'params': {'kernel': kernel}}, inputs)
    np.testing.assert_allclose(module.apply(variables, inputs), expected, atol=1e-5)


@pytest.mark.parametrize(('width', 'expected'), [(32, 32), (33, 32), (12, 16), (10, 16), (3, 8), (89.6, 88)])
def test_widths_round_to_eights_and_lose_at_most_a_tenth(width, expected):
    assert divided(width) == expected
