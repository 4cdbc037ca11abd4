"""HopSkipJump and the boundary attack: a linear model's nearest boundary, budgets, and decisions alone."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import decisions
from medrobust_jax.attacks.boundary import boundary_attack, proposals
from medrobust_jax.attacks.hopskipjump import hopskipjump
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.attacks.wrappers import stop_when_fooled, targeted
from medrobust_jax.core.types import Victim
from medrobust_jax.evaluate.passes import Passes, passes_of

ATTACKS = {'hopskipjump l2': (hopskipjump(num_queries=2500, norm='l2'), 'l2'),
           'hopskipjump linf': (hopskipjump(num_queries=2500, norm='linf'), 'linf'),
           'boundary': (boundary_attack(num_queries=2500), 'l2')}
DUAL = {'l2': 'l2', 'linf': 'l1'}


@pytest.fixture(params=['hopskipjump l2', pytest.param('hopskipjump linf', marks=pytest.mark.long), 'boundary'])
def attacked(request, setting, norms):
    """A linear model of two classes, the attack compiled on it, and the closed-form distances."""
    attack, norm = ATTACKS[request.param]
    s = setting((5, 5, 1), batch=8, classes=2, hidden=0, low=.35, high=.65, seed=1)
    net, traces = s.victim.forward, []

    def forward(images, keys):
        traces.append(images.shape)
        return jnp.round(1000 * jax.lax.stop_gradient(net(images, keys)))  # neither smooth nor fine

    # The loss is of no use either: only the criterion may be read.
    s.victim = Victim(forward, lambda outputs, targets: jnp.full(outputs.shape[0], jnp.nan), s.victim.acceptable)
    logits = np.asarray(net(s.images, None), np.float64)
    s.labels = jnp.asarray(logits.argmax(1)).at[3].set(1 - logits[3].argmax())  # one is wrong from the start
    away = np.repeat((s.w1[:, 1] - s.w1[:, 0])[None], 8, axis=0)
    s.optimum = abs(logits[:, 1] - logits[:, 0]) / norms(away, DUAL[norm])
    s.optimum[3] = 0
    s.norm, s.attack, s.traces = norm, attack, traces
    s.run = jax.jit(lambda eps: run(attack, s.victim, s.keys, s.images, s.labels, eps=eps))
    return s


def test_linear_model_budgets_and_verdicts(attacked, norms):
    s = attacked
    nearest = s.run(np.full(8, np.inf, np.float32))
    compiled = len(s.traces)
    distance = norms(nearest.images - s.images, s.norm)
    np.testing.assert_allclose(-nearest.loss, distance, atol=1e-6)
    assert not nearest.acceptable.any()
    assert np.all(distance <= 1.25 * s.optimum)
    assert np.all(distance >= s.optimum * (1 - 1e-3) - 1e-4)
    assert distance[3] == 0
    assert nearest.first_fooled[3] == 0
    assert nearest.images.min() >= 0
    assert nearest.images.max() <= 1
    outputs = s.victim.forward(nearest.images, s.keys)
    assert not s.victim.acceptable(outputs, s.labels).any()
    # Budgets on both sides of what is reached: the walk is the same, only the verdict changes.
    calls = len(s.traces)
    eps = (distance * np.where(np.arange(8) % 2, 1.001, .98) + 1e-6).astype(np.float32)
    within = s.run(eps)
    assert len(s.traces) == calls > compiled  # no new trace
    np.testing.assert_array_equal(within.acceptable, distance > eps)
    standing = np.asarray(within.acceptable)
    assert 2 <= standing.sum() <= 6
    np.testing.assert_array_equal(within.images[~standing], nearest.images[~standing])
    np.testing.assert_array_equal(within.images[standing], s.images[standing])
    np.testing.assert_array_equal(within.first_fooled < 0, standing)
    early = jax.jit(partial(run, stop_when_fooled(s.attack), s.victim))(s.keys, s.images, s.labels, eps=eps)
    np.testing.assert_array_equal(early.acceptable, within.acceptable)
    np.testing.assert_array_equal(early.first_fooled, within.first_fooled)
    assert np.isfinite(within.loss).all()
    assert np.asarray(within.loss)[standing].max() < np.asarray(within.loss)[~standing].min()


@pytest.mark.parametrize('attack', [hopskipjump(num_queries=60, first_samples=5, norm='linf'),
                                    boundary_attack(num_queries=60, check_every=3)],
                         ids=['hopskipjump', 'boundary'])
def test_examples_at_different_iterations_are_as_alone(attack, setting, same_bits):
    s = setting(batch=6, classes=2)
    step = jax.jit(partial(attack.step, s.victim))
    fresh = begin(attack, s.victim, s.keys, s.images, s.labels, eps=jnp.inf)
    history = [fresh]
    for _ in range(61):
        history.append(step(s.images, s.labels, history[-1]))
    late = np.arange(6) % 2 == 1

    def mixed(a, b):
        return jax.tree.map(lambda x, y: jnp.where(late.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)

    state = mixed(history[23], fresh)
    for _ in range(36):
        state = step(s.images, s.labels, state)
    same_bits(*(jax.tree.leaves(t.replace(key=())) for t in (state, mixed(history[59], history[36]))))
    order = np.array([3, 1, 5, 0, 2, 4])
    permuted = begin(attack, s.victim, s.keys[order], s.images[order], s.labels[order], eps=jnp.inf)
    for _ in range(36):
        permuted = step(s.images[order], s.labels[order], permuted)
    same_bits(permuted.images, history[36].images[order])
    # The budget ends every example, and a step too many changes nothing.
    assert history[60].done.all()
    same_bits(*(jax.tree.leaves(t.replace(key=())) for t in history[60:]))
    assert history[60].step.max() == 60


def test_targeted_from_a_given_image(setting):
    s = setting(batch=6)
    predicted = s.victim.forward(s.images, None).argmax(-1)
    wanted = (predicted + 1) % 3
    # A start per example: the image of the batch that is most of the wanted class.
    start = s.images[jnp.argmax(s.victim.forward(s.images, None)[:, wanted], axis=0)]
    reached = s.victim.forward(start, None).argmax(-1) == wanted
    attack = targeted(hopskipjump(num_queries=300, max_starts=1))
    found = jax.jit(lambda start: run(attack, s.victim, s.keys, s.images, wanted, eps=jnp.inf,
                                      knobs={'start_image': start}))(start)
    np.testing.assert_array_equal(~np.asarray(found.acceptable), reached)
    assert reached.sum() >= 3
    np.testing.assert_array_equal((s.victim.forward(found.images, None).argmax(-1) == wanted)[reached], True)
    distance = np.linalg.norm(np.asarray(found.images - s.images).reshape(6, -1), axis=1)
    from_start = np.linalg.norm(np.asarray(start - s.images).reshape(6, -1), axis=1)
    assert np.all(distance[reached] < .9 * from_start[reached])
    np.testing.assert_array_equal(found.images[~reached], s.images[~reached])


def test_gives_up_without_a_start_and_asks_once_per_look(setting):
    s = setting(batch=2)
    victim = s.victim._replace(forward=lambda x, k: jax.nn.one_hot(s.labels[:len(x)], 3))
    for attack in (hopskipjump(max_starts=5), boundary_attack(max_starts=5)):
        assert passes_of(attack, s.victim, image_shape=(4, 4, 1), targets=s.labels[:1]) == Passes(1, 0, 1)
    attack = hopskipjump(max_starts=5)
    state = begin(attack, victim, s.keys, s.images, s.labels, eps=1.)
    step = jax.jit(partial(attack.step, victim))
    for _ in range(9):
        state = step(s.images, s.labels, state)
    assert state.done.all()
    np.testing.assert_array_equal(state.step, 6)
    np.testing.assert_array_equal(state.best_images, s.images)


@pytest.mark.parametrize(('shape', 'dtype'), [((6, 2), np.float32), ((3, 4, 2, 1), np.float64),
                                              ((4, 4, 1), jnp.bfloat16)])
def test_one_to_three_spatial_axes_and_any_float(shape, dtype, setting):
    with jax.enable_x64(dtype == np.float64):
        s = setting(shape, batch=3, classes=2, dtype=dtype)
        for attack, _ in ATTACKS.values():
            result = jax.eval_shape(partial(run, attack, s.victim, eps=jnp.inf), s.keys, s.images, s.labels)
            assert result.images.shape == (3, *shape)
            assert result.images.dtype == dtype


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_paths_between_images(norm, norms):
    draws = np.random.default_rng(0)
    x, base = (jnp.asarray(draws.uniform(size=(5, 3, 3, 1)).astype(np.float32)) for _ in range(2))
    share = jnp.array([0, .25, .5, 1, 1], jnp.float32)
    point = decisions.between(x, base, share, norm=norm)
    np.testing.assert_allclose(norms(point - x, norm), share * norms(base - x, norm), rtol=1e-5)
    np.testing.assert_array_equal(point[0], x[0])
    np.testing.assert_array_equal(point[3:], base[3:])


def test_proposals_lie_on_the_sphere_and_then_nearer(norms):
    draws = np.random.default_rng(0)
    x = draws.uniform(.45, .55, size=(6, 4, 4, 1))
    base, noise = x + .1 * draws.normal(size=x.shape), draws.normal(size=x.shape)
    sigma, epsilon = np.linspace(.01, .3, 6), np.linspace(.01, .2, 6)
    sphere, proposal = (np.asarray(p) for p in proposals(*(jnp.asarray(a, jnp.float32) for a in (
        x, base, noise, sigma, epsilon))))
    radius = norms(base - x, 'l2')
    np.testing.assert_allclose(norms(sphere - x, 'l2'), radius, rtol=1e-5)
    np.testing.assert_allclose(norms(proposal - x, 'l2'), (1 - epsilon) * radius, rtol=1e-5)
    # tan of the angle at x between base and sphere point is sigma.
    cosine = ((sphere - x) * (base - x)).sum(axis=(1, 2, 3)) / radius**2
    np.testing.assert_allclose(cosine, 1 / np.sqrt(1 + sigma**2), rtol=1e-5)


def test_refusals():
    for make, options, message in (
            (hopskipjump, {'norm': 'l1'}, 'norm of hopskipjump'), (hopskipjump, {'num_queries': 0}, 'num_queries'),
            (hopskipjump, {'max_samples': 5}, 'max_samples >= first_samples'),
            (hopskipjump, {'gamma': 0}, 'gamma > 0'),
            (boundary_attack, {'check_every': 0}, 'check_every'),
            (boundary_attack, {'adaptation': 1.}, 'adaptation > 1'),
            (boundary_attack, {'source_step': 0.}, 'positive steps')):
        with pytest.raises(ValueError, match=message):
            make(**options)
