"""Defenses: what they reduce to at the limits, where gradients flow, padding."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core import rng
from medrobust_jax.core.masking import masked_mean
from medrobust_jax.defenses.awp import with_weight_perturbation
from medrobust_jax.defenses.pgd_at import pgd_at
from medrobust_jax.defenses.radius import constant, uniform_per_batch, warmed_up
from medrobust_jax.defenses.standard import natural
from medrobust_jax.defenses.trades import trades
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.ordinal import ordinal

TASK, STEP, SIZE = classification(3), jnp.int32(5), 6
ATTACK = pgd(num_steps=2)
RADIUS = constant(.1)
KEYS = rng.example_keys(0, jnp.arange(SIZE))


def forward(params, model_state, images, *, batch_norm):
    """A perceptron whose features are centered, by the batch or by a running mean."""
    hidden = jnp.tanh((images.reshape(len(images), -1) - .5) @ params['w1'] + params['b1'])
    mean = model_state['mean'] if batch_norm == 'eval' else hidden.mean(axis=0)
    if batch_norm == 'train':
        model_state = {'mean': .9 * model_state['mean'] + .1 * mean}
    return (hidden - mean) @ params['w2'], model_state


def variables(outputs=3):
    generator = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)  # noqa: E731
    return {'w1': draw(16, 8), 'b1': draw(8), 'w2': draw(8, outputs)}, {'mean': jnp.zeros(8)}


def make_batch(size=SIZE):
    generator = np.random.default_rng(1)
    return {'image': jnp.asarray(generator.uniform(size=(size, 4, 4, 1)), jnp.float32),
            'label': jnp.asarray(generator.integers(0, 3, size)), 'mask': jnp.arange(size) < size - 1,
            'index': jnp.arange(size)}


def loss_and_gradient(defense, crafted=None, fwd=forward):
    params, state = variables()
    batch = make_batch()
    if crafted is None:
        crafted = defense.craft(fwd, params, state, (), batch, STEP, KEYS)

    def mean_loss(params):
        losses, rest = defense.loss(fwd, params, state, (), batch, crafted, STEP, KEYS)
        return masked_mean(losses, batch['mask']), (losses, rest)

    (_, (losses, rest)), gradient = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    return losses, gradient, rest


def assert_close(a, b, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-6), a, b)


def test_natural_is_the_tasks_loss():
    losses, _, (model_state, metrics) = loss_and_gradient(natural(TASK))
    params, state = variables()
    batch = make_batch()
    outputs, expected_state = forward(params, state, batch['image'], batch_norm='train')
    assert_close(losses, TASK.loss(outputs, batch['label']))
    assert_close(model_state, expected_state)
    assert metrics['accuracy'].shape == (SIZE,)


@pytest.mark.parametrize('defense', [trades(TASK, ATTACK, radius=RADIUS, beta=0.0),
                                     trades(TASK, ATTACK, radius=constant(0.0), beta=6.0),
                                     pgd_at(TASK, ATTACK, radius=constant(0.0)),
                                     pgd_at(TASK, ATTACK, radius=constant(0.0), clean_weight=.4),
                                     with_weight_perturbation(natural(TASK), gamma=0.0),
                                     with_weight_perturbation(natural(TASK), gamma=.1, start_step=6)],
                         ids=['trades beta 0', 'trades eps 0', 'pgd_at eps 0', 'pgd_at mixed eps 0', 'awp gamma 0',
                              'awp before its start'])
def test_limits_are_natural_training(defense):
    expected = loss_and_gradient(natural(TASK))
    got = loss_and_gradient(defense)
    assert_close(got[0], expected[0])
    assert_close(got[1], expected[1], rtol=1e-4)


@pytest.mark.parametrize('mode', ['eval', 'batch_stats'])
@pytest.mark.parametrize('make', [pgd_at, trades])
def test_crafted_images_are_worse_and_in_the_ball(make, mode):
    defense = make(TASK, ATTACK, radius=RADIUS, attack_batch_norm=mode)
    params, state = variables()
    batch = make_batch()
    crafted = jax.jit(lambda p: defense.craft(forward, p, state, (), batch, STEP, KEYS))(params)
    assert abs(crafted - batch['image']).max() <= .1 + 1e-6
    clean = forward(params, state, batch['image'], batch_norm=mode)[0]
    outputs = forward(params, state, crafted, batch_norm=mode)[0]
    if make is trades:
        assert TASK.divergence(clean, outputs).min() > 1e-4
    else:
        assert TASK.loss(outputs, batch['label']).mean() > TASK.loss(clean, batch['label']).mean() + .1


def test_trades_by_hand():
    defense = trades(TASK, ATTACK, radius=RADIUS, beta=3.0)
    params, state = variables()
    batch = make_batch()
    crafted = batch['image'][::-1]
    losses, (_, metrics) = defense.loss(forward, params, state, (), batch, crafted, STEP, KEYS)
    clean, state = forward(params, state, batch['image'], batch_norm='train')
    outputs, _ = forward(params, state, crafted, batch_norm='train')
    p, q = (np.asarray(jax.nn.softmax(z), np.float64) for z in (clean, outputs))
    truth = -np.log(p[np.arange(SIZE), batch['label']]) + 3 * (p * np.log(p / q)).sum(1)
    np.testing.assert_allclose(losses, truth, rtol=1e-4)
    np.testing.assert_array_equal(metrics['robust_accuracy'], q.argmax(1) == batch['label'])


def test_pgd_at_mixes_clean_and_adversarial():
    params, state = variables()
    batch = make_batch()
    crafted = batch['image'][::-1]
    values = [pgd_at(TASK, ATTACK, radius=RADIUS, clean_weight=w).loss(
        forward, params, state, (), batch, crafted, STEP, KEYS)[0] for w in (0.0, .25)]
    clean = TASK.loss(forward(params, state, batch['image'], batch_norm='train')[0], batch['label'])
    np.testing.assert_allclose(values[1], .25 * clean + .75 * values[0], rtol=1e-5)


@pytest.mark.parametrize('make', [pgd_at, trades])
def test_no_gradient_flows_through_crafting(make):
    defense = make(TASK, ATTACK, radius=RADIUS)
    params, state = variables()
    batch = make_batch()
    leaked = jax.grad(lambda p: defense.craft(forward, p, state, (), batch, STEP, KEYS).sum())(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(leaked))


def test_padded_rows_change_nothing():
    batch, params, state = make_batch(), *variables()
    other = {**batch, 'image': batch['image'].at[-1].set(0), 'label': batch['label'].at[-1].set(0)}
    evaluated = lambda p, s, x, *, batch_norm: forward(p, s, x, batch_norm='eval')  # noqa: E731 - rows independent
    results = []
    for b in (batch, other):
        for defense in (natural(TASK), with_weight_perturbation(pgd_at(TASK, ATTACK, radius=RADIUS), gamma=.05)):
            def mean_loss(p, defense=defense, b=b):
                crafted = defense.craft(evaluated, params, state, (), b, STEP, KEYS)
                losses, _ = defense.loss(evaluated, p, state, (), b, crafted, STEP, KEYS)
                return masked_mean(losses, b['mask'])
            results.append(jax.jit(jax.grad(mean_loss))(params))
    assert_close(results[0], results[2])
    assert_close(results[1], results[3])


def test_weight_perturbation_is_one_relative_ascent_step():
    seen = []

    def spy(params, model_state, images, *, batch_norm):
        seen.append(params)
        return forward(params, model_state, images, batch_norm=batch_norm)

    gamma, (params, state), batch = .05, variables(), make_batch()
    defense = with_weight_perturbation(natural(TASK), gamma=gamma)
    losses, _ = defense.loss(spy, params, state, (), batch, (), STEP, KEYS)
    moved = seen[-1]
    for name in ('w1', 'w2'):
        change = np.linalg.norm(moved[name] - params[name]) / np.linalg.norm(params[name])
        assert change == pytest.approx(gamma, rel=1e-4)
    np.testing.assert_array_equal(moved['b1'], params['b1'])
    plain = natural(TASK).loss(forward, params, state, (), batch, (), STEP, KEYS)[0]
    assert masked_mean(losses, batch['mask']) > masked_mean(plain, batch['mask']) + .01
    # The gradient is that at the moved weights.
    at_moved = jax.grad(lambda p: masked_mean(natural(TASK).loss(
        forward, p, state, (), batch, (), STEP, KEYS)[0], batch['mask']))(moved)
    assert_close(loss_and_gradient(defense)[1], at_moved, rtol=1e-4)


def test_ordinal_task_and_jitted_steps():
    task = ordinal(4)
    params, state = variables(outputs=3)
    batch = make_batch()
    from_noise = pgd(num_steps=2, start='gaussian')
    for defense in (trades(task, from_noise, radius=RADIUS), pgd_at(task, ATTACK, radius=RADIUS)):
        crafted = jax.jit(lambda s, d=defense: d.craft(forward, params, state, (), batch, s, KEYS))(STEP)
        assert np.any(crafted != batch['image'])
        assert np.isfinite(defense.loss(forward, params, state, (), batch, crafted, STEP, KEYS)[0]).all()
        assert defense.init(10, None, None) == ()
        assert defense.update((), batch, crafted, {}) == ()
        assert defense.end_epoch((), 1) == ()


def test_radii():
    assert constant(.1)(STEP, KEYS) == np.float32(.1)
    ramp = warmed_up(constant(.2), steps=10)
    np.testing.assert_allclose([ramp(jnp.int32(s), KEYS) for s in (0, 5, 10, 99)], [0, .1, .2, .2], rtol=1e-6)
    assert warmed_up(RADIUS, steps=0) is RADIUS
    drawn = uniform_per_batch(.01, .03)
    keys = [rng.example_keys(0, jnp.arange(SIZE), step) for step in range(300)]
    values = np.array([drawn(STEP, k) for k in keys])
    assert values.shape == (300,)  # one per batch
    assert values.min() >= .01
    assert values.max() <= .03
    assert np.ptp(values) > .019
    assert values.mean() == pytest.approx(.02, abs=.002)
    assert drawn(STEP, keys[7]) == values[7]


def test_refusals():
    for make in (lambda: constant(-1.0), lambda: uniform_per_batch(.2, .1), lambda: uniform_per_batch(-.1, .1),
                 lambda: constant(float('nan')), lambda: trades(TASK, ATTACK, radius=RADIUS, beta=-1.0),
                 lambda: pgd_at(TASK, ATTACK, radius=RADIUS, clean_weight=1.0),
                 lambda: with_weight_perturbation(natural(TASK), gamma=-.1)):
        with pytest.raises(ValueError, match=r'must|exceeds'):
            make()
