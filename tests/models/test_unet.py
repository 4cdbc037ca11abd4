"""U-Net and SegNet: sizes, deep supervision, independence of the batch, unpooling by hand, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.losses.segmentation import dice_cross_entropy
from medrobust_jax.models.forward import apply_model, features, init_variables
from medrobust_jax.models.segnet import SegNet, pool_with_places, unpool
from medrobust_jax.models.unet import UNet

GENERATOR = np.random.default_rng(0)


def images(*shape):
    return jnp.asarray(GENERATOR.uniform(size=shape), jnp.float32)


def shapes(module, shape, mode='eval'):
    """Shapes of the outputs, and the number of parameters, without computing anything."""
    params, state = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), shape[1:]))
    outputs, _ = jax.eval_shape(lambda p, s, x: apply_model(module)(p, s, x, batch_norm=mode), params, state,
                                jax.ShapeDtypeStruct(shape, jnp.float32))
    return jax.tree.map(lambda leaf: leaf.shape, outputs), sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('sizes', [(32, 32), (19, 30), (17, 8, 12)], ids=str)
def test_every_size_has_an_output_of_its_own_size(sizes):
    module = UNet(3, num_spatial_dims=len(sizes), width=4, depth=3, deep_supervision=True)
    assert shapes(module, (2, *sizes, 1))[0] == (2, *sizes, 3)
    trained, _ = shapes(module, (2, *sizes, 1), 'train')
    half = tuple(-(-n // 2) for n in sizes)
    assert trained == {'logits': (2, *sizes, 3), 'coarser': ((2, *half, 3),)}


def test_parameter_count_by_hand():
    def block(a, b):
        return 9 * a * b + 2 * b + 9 * b * b + 2 * b
    expected = (block(1, 8) + block(8, 16) + block(16, 20)  # the widest is cut to 20
                + 4 * 20 * 16 + block(32, 16) + 4 * 16 * 8 + block(16, 8) + 8 * 3 + 3)
    assert shapes(UNet(3, width=8, depth=3, max_width=20), (1, 16, 16, 1))[1] == expected
    # Two coarser heads would train; of four sizes the smallest has none.
    more = shapes(UNet(3, width=8, depth=3, max_width=20, deep_supervision=True), (1, 16, 16, 1))[1]
    assert more == expected + 16 * 3 + 3


@pytest.mark.parametrize('module', [UNet(3, width=4, depth=2, deep_supervision=True),
                                    SegNet(3, width=4, stage_sizes=(1, 1))], ids=['unet', 'segnet'])
def test_a_step_of_training_lowers_the_loss_and_examples_are_independent(module):
    x = images(3, 8, 8, 1)
    targets = jnp.asarray(GENERATOR.integers(0, 3, (3, 8, 8)))
    params, state = init_variables(module, jax.random.key(0), (8, 8, 1))
    forward = apply_model(module)

    def loss(params):
        return dice_cross_entropy(forward(params, state, x, batch_norm='batch_stats')[0], targets).mean()

    @jax.jit
    def step(params):
        value, gradient = jax.value_and_grad(loss)(params)
        return value, gradient, jax.tree.map(lambda p, g: p - .05 * g, params, gradient)

    before, gradient, params = step(params)
    assert step(params)[0] < before
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
    logits = jax.jit(lambda x: forward(params, state, x, batch_norm='eval')[0])
    poisoned = logits(x.at[0].set(jnp.nan))
    np.testing.assert_array_equal(poisoned[1:], logits(x)[1:])
    assert np.isnan(poisoned[0]).all()
    assert features(module, params, state, x).shape == (3, 8)


def test_deep_supervision_reaches_the_coarser_heads_only_in_training():
    module = UNet(2, width=4, depth=3, deep_supervision=True)
    params, state = init_variables(module, jax.random.key(0), (8, 8, 1))
    x, targets = images(2, 8, 8, 1), jnp.asarray(GENERATOR.integers(0, 2, (2, 8, 8)))

    def gradient(mode):
        return jax.jit(jax.grad(lambda p: dice_cross_entropy(
            apply_model(module)(p, state, x, batch_norm=mode)[0], targets).sum()))(params)['head1']['kernel']

    assert jnp.abs(gradient('train')).max() > 0
    assert jnp.abs(gradient('eval')).max() == 0
    forward = apply_model(module)
    trained, evaluated = jax.jit(lambda x: tuple(forward(params, state, x, batch_norm=mode)[0]
                                                 for mode in ('train', 'eval')))(x)
    np.testing.assert_allclose(trained['logits'], evaluated, atol=1e-5)


def test_unpooling_by_hand():
    x = jnp.array([[1., 5., 2., 2.], [3., 4., 2., 2.]])[None, ..., None]
    pooled, places = pool_with_places(x)
    np.testing.assert_array_equal(pooled[0, 0, :, 0], [5, 2])
    np.testing.assert_array_equal(unpool(10 * pooled, places)[0, ..., 0], [[0, 50, 20, 0], [0, 0, 0, 0]])
    gradient = jax.grad(lambda x: pool_with_places(x)[0].sum())(x)
    np.testing.assert_array_equal(gradient[0, ..., 0], [[0, 1, 1, 0], [0, 0, 0, 0]])


def test_refusals():
    for module, shape, message in (
            (UNet(2, depth=1), (1, 8, 8, 1), 'depth >= 2'), (UNet(2, num_spatial_dims=1), (1, 8, 8, 1), '2 or 3'),
            (UNet(2), (1, 8, 8, 8, 1), r'images \[B, H, W, C\], got shape \(1, 8, 8, 8, 1\)'),
            (UNet(2, num_spatial_dims=3), (1, 8, 8, 1), r'\[B, D, H, W, C\]'),
            (UNet(2, num_spatial_dims=3), (1, 8, 8, 4, 1), 'images of 8 x 8 x 4 pixels are smaller'),
            (SegNet(2), (1, 48, 64, 1), 'images of 48 x 64 pixels are not divisible by the total stride 32'),
            (UNet(2, norm='instanse'), (1, 8, 8, 1), "did you mean 'instance'")):
        with pytest.raises(ValueError, match=message):
            shapes(module, shape)
