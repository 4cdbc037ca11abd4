"""The modes of batch normalization, and models as pure functions."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.models.forward import apply_model, eval_forward, evidence, features, init_variables
from medrobust_jax.models.perceptron import Perceptron
from medrobust_jax.models.resnet import ResNet
from medrobust_jax.models.unet import UNet

MODULE = ResNet(num_outputs=4, stage_sizes=(1, 1), width=8)
MODES = ('train', 'batch_stats', 'eval')
IMAGES = jax.random.uniform(jax.random.key(1), (6, 8, 8, 2))


@pytest.fixture(scope='module')
def variables():
    return init_variables(MODULE, jax.random.key(0), (8, 8, 2))


def same(first, second) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), first, second)))


def test_only_train_updates_the_state(variables):
    forward = jax.jit(apply_model(MODULE), static_argnames='batch_norm')
    states = {mode: forward(*variables, IMAGES, batch_norm=mode)[1] for mode in MODES}
    assert same(states['eval'], variables[1])
    assert same(states['batch_stats'], variables[1])
    assert not same(states['train'], variables[1])
    assert jax.tree.structure(states['train']) == jax.tree.structure(variables[1])


def test_train_and_batch_stats_compute_the_same_outputs_and_eval_others(variables):
    forward = jax.jit(apply_model(MODULE), static_argnames='batch_norm')
    outputs = {mode: forward(*variables, IMAGES, batch_norm=mode)[0] for mode in MODES}
    np.testing.assert_array_equal(outputs['train'], outputs['batch_stats'])
    assert float(jnp.abs(outputs['eval'] - outputs['batch_stats']).max()) > 0.1


def test_running_statistics_move_by_a_tenth_towards_the_batch(variables):
    params, state = variables
    _, updated = apply_model(MODULE)(params, state, IMAGES, batch_norm='train')
    stem = updated['batch_stats']['stem']['norm']['norm']
    _, sown = MODULE.apply(
        {'params': params, **state}, IMAGES, batch_norm='eval', capture_intermediates=True
    )
    convolved = sown['intermediates']['stem']['conv']['__call__'][0]
    np.testing.assert_allclose(stem['mean'], 0.1 * convolved.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(stem['var'], 0.9 + 0.1 * convolved.var((0, 1, 2)), rtol=1e-5)


def test_state_keeps_its_dtype_under_float64_images(variables):
    with jax.enable_x64(True):
        logits, state = apply_model(MODULE)(*variables, IMAGES.astype(jnp.float64), batch_norm='train')
    assert logits.dtype == jnp.float64
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}


def test_eval_treats_every_example_by_itself(variables):
    forward = eval_forward(MODULE, *variables)
    keys = jax.random.split(jax.random.key(2), 6)
    together = forward(IMAGES, keys)
    alone = forward(IMAGES[2:3], keys[2:3])
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)
    whole, part = (apply_model(MODULE)(*variables, x, batch_norm='batch_stats')[0] for x in (IMAGES, IMAGES[2:4]))
    assert float(jnp.abs(whole[2:4] - part).max()) > 1e-2


def test_group_norm_has_no_state_and_one_answer_in_every_mode():
    module = ResNet(num_outputs=4, stage_sizes=(1,), width=8, norm='group')
    params, state = init_variables(module, jax.random.key(0), (8, 8, 2))
    assert not jax.tree.leaves(state)
    outputs = [apply_model(module)(params, state, IMAGES, batch_norm=mode) for mode in MODES]
    for logits, unchanged in outputs:
        assert unchanged == state
        np.testing.assert_array_equal(logits, outputs[0][0])


def test_features_are_what_the_head_reads(variables):
    params, state = variables
    pooled = features(MODULE, params, state, IMAGES)
    assert pooled.shape == (6, 16)
    head = params['head']['dense']
    logits, _ = apply_model(MODULE)(params, state, IMAGES, batch_norm='eval')
    np.testing.assert_allclose(pooled @ head['kernel'] + head['bias'], logits, rtol=1e-5, atol=1e-6)


def test_evidence_holds_logits_features_and_pooled_stages(variables):
    seen = jax.jit(lambda x: evidence(MODULE, *variables, x))(IMAGES)
    logits, _ = jax.jit(lambda x: apply_model(MODULE)(*variables, x, batch_norm='eval'))(IMAGES)
    np.testing.assert_allclose(seen['logits'], logits, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen['features'], features(MODULE, *variables, IMAGES), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen['images'], IMAGES)
    _, sown = MODULE.apply({'params': variables[0], **variables[1]}, IMAGES, batch_norm='eval',
                           capture_intermediates=True)
    stages = [sown['intermediates'][f'stage{stage}_block0']['__call__'][0].mean((1, 2)) for stage in range(2)]
    assert [layer.shape for layer in seen['layers']] == [(6, 8), (6, 16)]
    for layer, stage in zip(seen['layers'], stages, strict=True):
        np.testing.assert_allclose(layer, stage, rtol=1e-5, atol=1e-6)


def test_what_detectors_read_costs_other_programs_nothing(variables):
    def program(batch_norm):
        return str(jax.make_jaxpr(lambda x: apply_model(MODULE)(*variables, x, batch_norm=batch_norm)[0])(IMAGES))

    with_layers = {mode: program(mode) for mode in MODES}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('medrobust_jax.models.resnet.sow_stage', lambda module, x: None)
        assert {mode: program(mode) for mode in MODES} == with_layers


@pytest.mark.parametrize(('module', 'message'), [
    (UNet(2, width=4, depth=2), 'UNet sows no layers'),
    (Perceptron(2, hidden=()), 'Perceptron sows no layers'),
])
def test_evidence_of_what_has_no_stages_is_refused(module, message):
    params, state = jax.eval_shape(lambda: init_variables(module, jax.random.key(0), (8, 8, 2)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda p, s: evidence(module, p, s, IMAGES), params, state)


def test_unknown_mode_is_refused_with_a_suggestion(variables):
    with pytest.raises(ValueError, match="did you mean 'train'"):
        apply_model(MODULE)(*variables, IMAGES, batch_norm='training')


def test_another_number_of_channels_is_refused(variables):
    with pytest.raises(ValueError, match='made for 2 input channels'):
        apply_model(MODULE)(*variables, jnp.zeros((1, 8, 8, 3)), batch_norm='eval')
