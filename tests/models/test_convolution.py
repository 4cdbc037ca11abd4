"""Values and gradients of the loop-safe operations against the stock ones."""
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medrobust_jax.models import convolution
from medrobust_jax.models.convolution import average_pool, conv_general_dilated, global_average_pool, max_pool

LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# kernel, stride, dilation, padding, height, width, input channels, depthwise
CASES = [
    (1, 1, 1, 0, 6, 6, 5, False),
    (1, 2, 1, 0, 7, 6, 5, False),
    (3, 1, 1, 1, 6, 7, 5, False),
    (3, 1, 1, 1, 6, 7, 3, False),
    (3, 2, 1, 1, 6, 8, 5, False),
    (3, 2, 1, 1, 7, 9, 5, False),
    (3, 2, 1, 1, 7, 8, 1, False),
    (3, 3, 1, 0, 10, 11, 5, False),
    (3, 1, 2, 2, 8, 7, 5, False),
    (3, 2, 3, 3, 9, 8, 5, False),
    (3, 4, 2, 2, 9, 8, 5, False),
    (2, 2, 1, 0, 7, 6, 5, False),
    (5, 2, 1, 2, 9, 8, 5, False),
    (7, 2, 1, 3, 12, 11, 3, False),
    (7, 2, 1, 3, 12, 12, 6, False),
    (3, 1, 1, 1, 2, 2, 5, False),
    (3, 2, 1, 1, 1, 3, 5, False),
    (3, 2, 1, 1, 2, 1, 5, False),
    (7, 2, 1, 3, 4, 3, 6, False),
    (3, 1, 1, 1, 6, 7, 4, True),
    (3, 2, 1, 1, 7, 6, 4, True),
    (5, 3, 2, 4, 9, 10, 4, True),
]


def arrays(case, dtype, batch=2, features=6):
    kernel, _, _, _, height, width, channels, depthwise = case
    rng = np.random.default_rng(0)
    shape = (kernel, kernel, 1, channels) if depthwise else (kernel, kernel, channels, features)
    images = rng.normal(size=(batch, height, width, channels)).astype(dtype)
    return images, rng.normal(size=shape).astype(dtype)


def applied(function, case):
    _, stride, dilation, padding, _, _, channels, depthwise = case
    return lambda images, kernels: function(
        images, kernels, (stride,) * 2, ((padding,) * 2,) * 2, rhs_dilation=(dilation,) * 2,
        dimension_numbers=LAYOUT, feature_group_count=channels if depthwise else 1,
    )


def value_and_gradients(function, *inputs):
    """The value, and the gradients of a fixed random projection of it."""
    def both(*inputs):
        value, pull = jax.vjp(function, *inputs)
        ramp = jnp.sin(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape)
        return value, *pull(ramp)
    return jax.jit(both)(*inputs)


def assert_close(actual, expected, tolerance):
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        scale = float(jnp.abs(other).max())
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('case', CASES, ids=str)
def test_equals_stock_in_float32(case):
    inputs = arrays(case, np.float32)
    ours = value_and_gradients(applied(conv_general_dilated, case), *inputs)
    assert_close(ours, value_and_gradients(applied(lax.conv_general_dilated, case), *inputs), 2e-6)


@pytest.mark.parametrize('case', [CASES[i] for i in (3, 5, 10, 13, 20)], ids=str)
def test_equals_stock_in_float64(case):
    with jax.enable_x64(True):
        inputs = arrays(case, np.float64)
        ours = value_and_gradients(applied(conv_general_dilated, case), *inputs)
        assert_close(ours, value_and_gradients(applied(lax.conv_general_dilated, case), *inputs), 1e-14)


@pytest.mark.parametrize('padding', ['SAME', 'VALID', ((0, 2), (1, 0))], ids=str)
def test_named_and_uneven_padding(padding):
    images, kernels = arrays((3, 2, 1, 0, 8, 7, 5, False), np.float32)
    ours, stock = (
        value_and_gradients(
            lambda x, k, f=function: f(x, k, (2, 1), padding, dimension_numbers=LAYOUT), images, kernels
        )
        for function in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert_close(ours, stock, 2e-6)


# kernel, stride, dilation, padding, sizes, input channels, depthwise
VOLUMES = [
    (1, 1, 1, 0, (3, 4, 5), 5, False),
    (3, 1, 1, 1, (5, 4, 6), 5, False),
    (3, 1, 1, 1, (5, 4, 6), 1, False),
    (3, 2, 1, 1, (5, 6, 7), 5, False),
    (3, 2, 1, 1, (6, 7, 4), 2, False),
    (3, 2, 3, 3, (7, 8, 5), 5, False),
    (3, 1, 1, 1, (2, 1, 4), 5, False),
    (3, 2, 1, 1, (5, 4, 6), 4, True),
]


def volumes(case, dtype=np.float32):
    kernel, stride, dilation, padding, sizes, channels, depthwise = case
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, *sizes, channels)).astype(dtype)
    kernels = rng.normal(size=((kernel,) * 3 + ((1, channels) if depthwise else (channels, 6)))).astype(dtype)

    def applied(function):
        return lambda x, k: function(
            x, k, (stride,) * 3, ((padding,) * 2,) * 3, rhs_dilation=(dilation,) * 3,
            dimension_numbers=('NDHWC', 'DHWIO', 'NDHWC'), feature_group_count=channels if depthwise else 1)
    return images, kernels, applied


@pytest.mark.parametrize('case', VOLUMES, ids=str)
def test_volumes_equal_stock(case):
    images, kernels, applied = volumes(case)
    ours = value_and_gradients(applied(conv_general_dilated), images, kernels)
    assert_close(ours, value_and_gradients(applied(lax.conv_general_dilated), images, kernels), 3e-6)
    assert 'custom_vjp' in str(jax.make_jaxpr(applied(conv_general_dilated))(images, kernels))


@pytest.mark.parametrize('case', [VOLUMES[3], VOLUMES[4]], ids=str)
def test_volumes_in_a_loop_equal_top_level(case):
    images, kernels, applied = volumes(case)

    def step(function, carry):
        gradients = jax.grad(lambda x, k: jnp.tanh(applied(function)(x, k)).sum(), (0, 1))(*carry)
        return tuple(a - .01 * g for a, g in zip(carry, gradients, strict=True))

    looped = jax.jit(lambda *carry: lax.fori_loop(0, 3, lambda _, c: step(conv_general_dilated, c), carry))
    stepped = (images, kernels)
    stock = jax.jit(lambda *carry: step(lax.conv_general_dilated, carry))
    for _ in range(3):
        stepped = stock(*stepped)
    for one, other in zip(looped(images, kernels), stepped, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_volumes_are_pooled_as_by_stock():
    tied = np.random.default_rng(0).integers(-2, 3, size=(2, 5, 4, 6, 3)).astype(np.float32)
    ours = value_and_gradients(lambda x: max_pool(x, window=3, stride=2, padding=1), tied)
    stock = value_and_gradients(lambda x: nn.max_pool(x, (3,) * 3, (2,) * 3, ((1, 1),) * 3), tied)
    np.testing.assert_array_equal(ours[0], stock[0])
    np.testing.assert_allclose(ours[1], stock[1], atol=1e-6)
    np.testing.assert_allclose(average_pool(tied, window=2), nn.avg_pool(tied, (2,) * 3, (2,) * 3), rtol=1e-6)
    np.testing.assert_allclose(global_average_pool(tied), tied.mean((1, 2, 3)), rtol=1e-5, atol=1e-6)


def test_loop_equals_top_level():
    case = (3, 2, 1, 1, 8, 8, 5, False)
    images, kernels = arrays(case, np.float32)
    gradient = jax.grad(lambda x: (applied(conv_general_dilated, case)(x, kernels) ** 2).sum())
    looped = jax.jit(lambda x: lax.fori_loop(0, 3, lambda _, x: x - 0.01 * gradient(x), x))(images)
    stepped = images
    for _ in range(3):
        stepped = stepped - 0.01 * jax.jit(gradient)(stepped)
    np.testing.assert_allclose(looped, stepped, atol=1e-4)


def test_vmap_equals_one_by_one():
    case = (3, 2, 1, 1, 7, 7, 5, False)
    images, kernels = arrays(case, np.float32, batch=6)
    gradient = jax.grad(lambda x: (applied(conv_general_dilated, case)(x, kernels) ** 2).sum())
    stacked = images.reshape(3, 2, *images.shape[1:])
    np.testing.assert_allclose(
        jax.vmap(gradient)(stacked), jnp.stack([gradient(x) for x in stacked]), rtol=1e-4, atol=1e-4
    )


def test_image_gradient_alone_computes_no_kernel_gradient():
    """Counts the convolutions that survive compilation, in the body of a loop."""
    case = (3, 1, 1, 1, 8, 8, 8, False)
    images, kernels = arrays(case, np.float32, features=8)

    def loss(images, kernels):
        return (applied(conv_general_dilated, case)(images, kernels) ** 2).sum()

    def convolutions(argnums):
        def body(_, carry):
            gradients = jax.grad(loss, argnums)(*carry)
            return tuple(
                array - 0.01 * gradients[argnums.index(i)] if i in argnums else array
                for i, array in enumerate(carry)
            )
        loop = jax.jit(lambda *carry: lax.fori_loop(0, 3, body, carry))
        lines = loop.lower(images, kernels).compile().as_text().splitlines()
        return sum('convolution(' in line for line in lines)

    assert convolutions((0,)) == 2
    assert convolutions((0, 1)) == 3


def test_as_the_convolution_of_nn_conv():
    images, _ = arrays((3, 1, 1, 1, 8, 8, 5, False), np.float32)
    ours = nn.Conv(6, (3, 3), padding=1, strides=2, conv_general_dilated=conv_general_dilated)
    variables = ours.init(jax.random.key(0), images)
    stock = nn.Conv(6, (3, 3), padding=1, strides=2)
    np.testing.assert_allclose(ours.apply(variables, images), stock.apply(variables, images), atol=1e-5)


def test_what_is_not_covered_is_stock():
    rng = np.random.default_rng(0)
    images, kernels = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, 6, 6, 8), (3, 3, 4, 8)))
    grouped = [
        f(images, kernels, (1, 1), 'SAME', dimension_numbers=LAYOUT, feature_group_count=2)
        for f in (conv_general_dilated, lax.conv_general_dilated)
    ]
    np.testing.assert_array_equal(*grouped)
    full = jnp.tile(kernels, (1, 1, 2, 1))
    dilated = [
        f(images, full, (1, 1), ((0, 0),) * 2, lhs_dilation=(2, 2), dimension_numbers=LAYOUT)
        for f in (conv_general_dilated, lax.conv_general_dilated)
    ]
    np.testing.assert_array_equal(*dilated)
    line = [
        f(jnp.ones((1, 1, 9)), jnp.ones((2, 1, 4)), (1,), 'SAME')
        for f in (conv_general_dilated, lax.conv_general_dilated)
    ]
    np.testing.assert_array_equal(*line)


def test_accelerators_get_the_stock_operations(monkeypatch):
    monkeypatch.setattr(convolution.jax, 'default_backend', lambda: 'gpu')
    images = jnp.ones((1, 6, 6, 5))
    kernels = jnp.ones((3, 3, 5, 5))
    for function in (
        lambda x: conv_general_dilated(x, kernels, (1, 1), 'SAME', dimension_numbers=LAYOUT),
        lambda x: max_pool(x, window=2, stride=2),
    ):
        assert 'custom_vjp' not in str(jax.make_jaxpr(function)(images))


@pytest.mark.parametrize(('window', 'stride', 'padding', 'size'), [
    (2, 2, 0, 8), (2, 2, 0, 7), (3, 2, 1, 8), (3, 2, 1, 9), (3, 1, 1, 6), (2, 3, 1, 8),
], ids=str)
def test_max_pool_equals_stock_also_at_ties(window, stride, padding, size):
    rng = np.random.default_rng(0)
    tied = rng.integers(-2, 3, size=(2, size, size, 3)).astype(np.float32)  # many equal maxima
    ours = value_and_gradients(lambda x: max_pool(x, window=window, stride=stride, padding=padding), tied)
    pads = ((padding, padding),) * 2
    stock = value_and_gradients(lambda x: nn.max_pool(x, (window,) * 2, (stride,) * 2, pads), tied)
    np.testing.assert_array_equal(ours[0], stock[0])
    np.testing.assert_allclose(ours[1], stock[1], atol=1e-6)


def test_max_pool_first_of_equals_takes_all():
    gradient = jax.grad(lambda x: max_pool(x, window=2, stride=2).sum())(jnp.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_average_pools():
    images = jnp.arange(2 * 5 * 5 * 3, dtype=jnp.float32).reshape(2, 5, 5, 3)
    np.testing.assert_allclose(average_pool(images, window=2), nn.avg_pool(images, (2, 2), (2, 2)), rtol=1e-6)
    np.testing.assert_allclose(global_average_pool(images), np.asarray(images).mean((1, 2)), rtol=1e-6)
