"""Models by name: published sizes, output shapes, refusals."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.forward import apply_model, evidence, init_variables
from medrobust_jax.models.registry import MODELS, create_model, options_of

# Parameters as counted for PyTorch: torchvision for 224 pixels, the CIFAR networks for 32.
PUBLISHED = {
    'resnet18-cifar': ('resnet18', 10, 32, {}, 11_173_962),
    'resnet18': ('resnet18', 1000, 224, {'stem': 'large'}, 11_689_512),
    'resnet34': ('resnet34', 1000, 224, {'stem': 'large'}, 21_797_672),
    'resnet50': ('resnet50', 1000, 224, {'stem': 'large'}, 25_557_032),
    'wide_resnet_28_10': ('wide_resnet_28_10', 10, 32, {}, 36_479_194),
    'densenet121': ('densenet121', 1000, 224, {'stem': 'large'}, 7_978_856),
    'mobilenet_v2': ('mobilenet_v2', 1000, 224, {'stem': 'large'}, 3_504_872),
}
# The smallest member of every family.
TINY = {
    'resnet': {'stage_sizes': [1, 1], 'width': 8, 'block': 'bottleneck', 'stem': 'large'},
    'wide_resnet': {'depth': 10, 'widen_factor': 1, 'stem': 'strided'},
    'densenet': {'stage_sizes': [1, 1], 'growth': 4, 'width': 8},
    'vision_transformer': {'width': 16, 'depth': 1, 'num_heads': 2},
    'perceptron': {'hidden': [8]},
}


def abstract_variables(module, shape):
    return jax.eval_shape(lambda: init_variables(module, jax.random.key(0), shape))


def signed(rng, leaf):
    signs = rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
    return rng.uniform(0.1, 0.3, leaf.shape) * signs


def drawn_variables(module, shape):
    """Random parameters without compiling an initialization; variances stay positive."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: signed(rng, leaf).astype(leaf.dtype),
        abstract_variables(module, shape),
    )


@pytest.mark.parametrize('case', PUBLISHED)
def test_parameter_counts_are_the_published_ones(case):
    name, num_outputs, size, options, expected = PUBLISHED[case]
    module = create_model(name, num_outputs, **options)
    params, state = abstract_variables(module, (size, size, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    logits, features_seen = jax.eval_shape(
        lambda p, s, x: apply_model(module)(p, s, x, batch_norm='train'), params, state,
        jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32),
    )
    assert logits.shape == (2, num_outputs)
    assert jax.tree.structure(features_seen) == jax.tree.structure(state)


@pytest.mark.parametrize('name', TINY)
def test_outputs_and_input_gradients(name):
    module = create_model(name, 5, **TINY[name])
    params, state = drawn_variables(module, (16, 20, 1))
    images = jax.random.uniform(jax.random.key(1), (3, 16, 20, 1))

    def loss(images):
        logits, _ = apply_model(module)(params, state, images, batch_norm='batch_stats')
        return (logits**2).sum(), logits

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(images)
    assert logits.shape == (3, 5)
    assert logits.dtype == jnp.float32
    assert bool(jnp.isfinite(gradient).all())
    assert float(jnp.abs(gradient).max()) > 0


@pytest.mark.parametrize('name', [*TINY, 'resnet8', 'mobilenet_v2'])
def test_every_model_sows_features_and_follows_dtypes(name):
    module = create_model(name, 5, **TINY.get(name, {}))
    params, state = abstract_variables(module, (16, 16, 2))

    def outputs(module, dtype):
        variables = {'params': params, **state}
        images = jax.ShapeDtypeStruct((3, 16, 16, 2), dtype)
        run = lambda v, x: module.apply(v, x, batch_norm='eval', mutable=['intermediates'])  # noqa: E731
        logits, sown = jax.eval_shape(run, variables, images)
        (features,) = sown['intermediates']['features']
        return logits, features

    logits, features = outputs(module, jnp.float32)
    assert features.shape[0] == 3
    assert features.ndim == 2
    with jax.enable_x64(True):
        assert outputs(module, jnp.float64)[0].dtype == jnp.float64
    logits, features = outputs(module.copy(dtype='bfloat16'), jnp.float32)
    assert features.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype('float32')}


@pytest.mark.parametrize(('name', 'options', 'widths'), [
    ('resnet18', {}, (64, 128, 256, 512)),
    ('resnet50', {}, (256, 512, 1024, 2048)),
    ('wide_resnet', {'depth': 10, 'widen_factor': 1}, (16, 32, 64)),
    ('densenet121', {}, (256, 512, 1024, 1024)),
    ('mobilenet_v2', {}, (16, 24, 32, 64, 96, 160, 320)),
    ('vision_transformer', {'width': 16, 'depth': 3, 'num_heads': 2}, (16, 16, 16)),
    ('perceptron', {'hidden': [8, 5]}, (8, 5)),
])
def test_classifiers_show_every_stage(name, options, widths):
    module = create_model(name, 5, **options)
    params, state = abstract_variables(module, (32, 32, 2))
    images = jax.ShapeDtypeStruct((3, 32, 32, 2), jnp.float32)
    seen = jax.eval_shape(lambda p, s, x: evidence(module, p, s, x), params, state, images)
    assert [layer.shape for layer in seen['layers']] == [(3, width) for width in widths]
    assert seen['features'].ndim == 2
    assert seen['logits'].shape == (3, 5)


def test_a_linear_model_has_the_gradient_of_its_weights():
    module = create_model('perceptron', 2, hidden=[])
    params, state = init_variables(module, jax.random.key(0), (4, 4, 1))
    logit = lambda x: apply_model(module)(params, state, x, batch_norm='eval')[0][0, 1]  # noqa: E731
    gradient = jax.grad(logit)(jnp.full((1, 4, 4, 1), 0.3))
    # Normalization with mean and std 0.5 doubles the weights.
    np.testing.assert_allclose(gradient.ravel(), 2 * params['head']['dense']['kernel'][:, 1], rtol=1e-5)


@pytest.mark.parametrize('name', MODELS)
def test_every_model_is_created_and_takes_normalization(name):
    required = {'resnet': {'stage_sizes': (1,)}, 'wide_resnet': {'depth': 10, 'widen_factor': 1}}
    module = create_model(name, 3, mean=[0.1], std=[0.2], **required.get(name, {}))
    assert (module.num_outputs, module.mean, module.std) == (3, (0.1,), (0.2,))
    assert {'mean', 'std', 'dtype'} <= set(options_of(name))


@pytest.mark.parametrize(('name', 'options', 'message'), [
    ('densnet121', {}, "unknown model 'densnet121'; did you mean 'densenet121'"),
    ('resnet18', {'widht': 8}, "unknown option of model resnet18 'widht'; did you mean 'width'"),
    ('wide_resnet', {'depth': 10}, 'widen_factor'),
])
def test_create_model_refuses(name, options, message):
    with pytest.raises(ValueError, match=message):
        create_model(name, 3, **options)


@pytest.mark.parametrize(('name', 'options', 'shape', 'message'), [
    ('resnet18', {'stem': 'smal'}, (32, 32, 3), "did you mean 'small'"),
    ('resnet18', {'norm': 'grupo'}, (32, 32, 3), "did you mean 'group'"),
    ('resnet18', {'block': 'basics'}, (32, 32, 3), "did you mean 'basic'"),
    ('resnet18', {'stem': 'large'}, (28, 28, 3), 'total stride of 32'),
    ('resnet18', {'mean': [0.1, 0.2]}, (32, 32, 3), 'mean has 2 values'),
    ('wide_resnet', {'depth': 12, 'widen_factor': 1}, (32, 32, 3), 'must be 6 n'),
    ('mobilenet_v2', {'stem': 'large'}, (28, 28, 3), 'total stride of 32'),
    ('vision_transformer', {'patch_size': 5}, (28, 28, 3), 'patch_size 5 does not divide'),
])
def test_models_refuse_at_trace_time(name, options, shape, message):
    module = create_model(name, 3, **options)
    with pytest.raises(ValueError, match=message):
        abstract_variables(module, shape)
