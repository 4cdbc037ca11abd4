"""DDN, FMN and DeepFool, and what all minimum-norm attacks owe their runners."""
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import nearest
from medrobust_jax.attacks import run as run_module
from medrobust_jax.attacks.carlini import cw_l2
from medrobust_jax.attacks.ddn import ddn
from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.fmn import fmn
from medrobust_jax.attacks.wrappers import averaged_over
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, margin, prediction_is_right

ATTACKS = {'cw_l2': (cw_l2(num_steps=30, search_steps=3, initial_constant=1.0), 'l2'),
           'ddn': (ddn(num_steps=30), 'l2'),
           'deepfool_l2': (deepfool(num_steps=10), 'l2'),
           'deepfool_linf': (deepfool(num_steps=10, norm='linf'), 'linf'),
           'fmn_l1': (fmn(num_steps=30, norm='l1'), 'l1'),
           'fmn_linf': (fmn(num_steps=30), 'linf')}


@pytest.fixture(scope='module', params=list(ATTACKS))
def driven(request):
    """An attack, its setting, and a driver on one compiled step: `drive(state) -> state` until all are done."""
    attack, norm = ATTACKS[request.param]
    draws = np.random.default_rng(3)
    w1, w2 = (draws.normal(size=shape).astype(np.float32) for shape in ((16, 8), (8, 3)))
    forward = lambda x, keys: jnp.tanh((x.reshape(len(x), -1) - .5) @ w1) @ w2  # noqa: E731
    images = jnp.asarray(draws.uniform(size=(8, 4, 4, 1)).astype(np.float32))
    labels = np.asarray(forward(images, None)).argmax(1)
    labels[0] = (labels[0] + 1) % 3  # wrong without an attack
    victim = Victim(forward, cross_entropy, prediction_is_right)
    keys, labels = jax.random.split(jax.random.key(0), 8), jnp.asarray(labels)
    traces = []

    @jax.jit
    def step(images, labels, state):
        traces.append(1)
        return attack.step(attack.adapt(victim), images, labels, state)

    def begin(eps, rows=slice(None)):
        return run_module.begin(attack, attack.adapt(victim), keys[rows], images[rows], labels[rows], eps=eps)

    def drive(state, rows=slice(None), calls=attack.num_steps):
        for _ in range(calls):
            state = step(images[rows], labels[rows], state)
        return state

    unlimited = drive(begin(jnp.inf))
    return SimpleNamespace(attack=attack, norm=norm, victim=victim, images=images, labels=labels, begin=begin,
                           drive=drive, traces=traces, unlimited=unlimited)


def test_every_example_ends_fooled_at_its_recorded_distance(driven, norms):
    state = driven.unlimited
    assert state.done.all()
    assert not state.acceptable.any()
    np.testing.assert_array_equal(state.images, state.best_images)
    distance = norms(state.best_images - driven.images, driven.norm)
    np.testing.assert_allclose(-state.best_loss, distance, rtol=1e-5)
    outputs = driven.victim.forward(state.best_images, None)
    assert not driven.victim.acceptable(outputs, driven.labels).any()
    assert state.best_images.min() >= 0
    assert state.best_images.max() <= 1
    # Wrong from the start: one look, nothing changed.
    assert distance[0] == 0
    assert state.first_fooled[0] == 0
    assert state.step[0] == 1
    assert np.all(distance[1:] > 0)


def test_eps_decides_what_counts_and_nothing_else(driven, norms, same_bits):
    distance = -np.asarray(driven.unlimited.best_loss)
    eps = (distance * np.where(np.arange(8) % 2, 1.01, .99)).astype(np.float32)
    state = driven.drive(driven.begin(jnp.asarray(eps)))
    assert len(driven.traces) == 1
    fooled = distance <= eps
    assert 0 < fooled.sum() < 8
    np.testing.assert_array_equal(~state.acceptable, fooled)
    np.testing.assert_array_equal(state.first_fooled >= 0, fooled)
    same_bits(state.best_images[fooled], driven.unlimited.best_images[fooled])
    # Elsewhere: an image of the ball that fools nobody, and a loss below every distance in the box.
    assert np.all(norms(state.best_images - driven.images, driven.norm) <= eps * (1 + 1e-6))
    outputs = driven.victim.forward(state.best_images, None)
    np.testing.assert_array_equal(driven.victim.acceptable(outputs, driven.labels), ~fooled)
    far = np.asarray(nearest.farthest(driven.images, norm=driven.norm))
    assert np.all(state.best_loss[~fooled] < -far[~fooled])
    assert np.all(state.best_loss[~fooled] > -2 * far[~fooled])
    nothing = driven.drive(driven.begin(0.0))
    same_bits(nothing.best_images, driven.images)
    np.testing.assert_array_equal(nothing.acceptable, np.arange(8) > 0)


def test_an_examples_result_does_not_depend_on_its_neighbors_or_their_progress(driven, same_bits):
    parts = lambda state: (state.best_images, state.best_loss, state.acceptable, state.step)  # noqa: E731
    order = np.random.default_rng(5).permutation(8)
    permuted = driven.drive(driven.begin(jnp.inf, order), order)
    same_bits(parts(permuted), jax.tree.map(lambda a: a[order], parts(driven.unlimited)))
    # Slots are refilled while others are under way, and called once more than there are moves.
    rows = np.array([4, 5, 6, 7, 1, 2, 3, 0])
    state = driven.drive(driven.begin(jnp.inf, rows), rows, calls=3)
    refill = np.array([5, 3, 6, 2, 1, 2, 3, 0])
    old, new = jax.tree.flatten(state), jax.tree.leaves(driven.begin(jnp.inf, refill))
    mixed = jax.tree.unflatten(old[1], [jnp.concatenate([b[:4], a[4:]]) for a, b in zip(old[0], new, strict=True)])
    mixed = driven.drive(mixed, refill, calls=driven.attack.num_steps + 1)
    same_bits(parts(mixed), jax.tree.map(lambda a: a[refill], parts(driven.unlimited)))


def test_the_last_look_of_a_runner_changes_nothing(driven, same_bits):
    found = run_module.last_look(driven.attack, driven.victim, driven.labels, driven.unlimited)
    state = driven.unlimited
    same_bits(tuple(found), (state.best_images, state.best_loss, state.acceptable, state.first_fooled))


@pytest.mark.parametrize('name', ATTACKS)
def test_states_keep_their_shapes_and_types_in_narrow_floats(name, setting):
    attack = ATTACKS[name][0]
    s = setting((9, 2), batch=2, classes=2)
    victim, images = attack.adapt(s.victim), s.images.astype(jnp.bfloat16)
    begin = partial(run_module.begin, attack, victim, eps=.1, knobs={'restart': jnp.array([0, 1])})
    state = jax.eval_shape(begin, s.keys, images, s.labels)
    after = jax.eval_shape(partial(attack.step, victim), images, s.labels, state)
    kinds = lambda tree: jax.tree.map(lambda a: (a.shape, a.dtype), tree)  # noqa: E731
    assert kinds(after) == kinds(state)
    assert after.images.dtype == jnp.bfloat16


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_later_restarts_start_near_the_image(norm, setting, norms):
    s = setting()
    eps = jnp.array([.1, .1, .1, 0, jnp.inf, jnp.inf, jnp.inf, 1e-3])
    first = lambda **knobs: nearest.begin(s.keys, s.images, {'eps': eps, **knobs}, norm=norm)  # noqa: E731
    np.testing.assert_array_equal(first().images, s.images)
    restart = jnp.array([0, 1, 2, 1, 0, 1, 2, 1])
    state = first(restart=restart)
    np.testing.assert_array_equal(state.best_images, s.images)
    away = norms(state.images - s.images, norm)
    reach = np.minimum(eps / 2, nearest.farthest(s.images, norm=norm) / 10)
    assert np.all(away <= reach * (1 + 1e-5))
    np.testing.assert_array_equal(away > 0, (np.asarray(restart) > 0) & (reach > 0))


def test_annealing_by_hand():
    got = nearest.annealed(3.0, 1.0, jnp.array([1, 6, 11]), 10, jnp.float32)
    np.testing.assert_allclose(got, [3, 2, 1], atol=1e-6)


def test_wanted_images_are_preferred_but_all_that_fool_count(setting):
    s = setting(batch=3)
    state = nearest.begin(s.keys, s.images, {'eps': jnp.full(3, jnp.inf)}, norm='l2')
    record = jax.jit(partial(nearest.record, norm='l2'))
    look = lambda state, shift, wrong, wanted: record(  # noqa: E731
        state.replace(images=s.images * (1 - shift)), s.images, jnp.full(3, -1.), jnp.array(wrong),
        wanted=jnp.array(wanted))[0]
    state = look(state, .1, [True, False, True], [False, False, True])
    np.testing.assert_array_equal(state.acceptable, [False, True, False])
    state = look(state, .3, [True, True, True], [True, True, True])
    size = np.linalg.norm(np.asarray(s.images).reshape(3, -1), axis=1)
    np.testing.assert_allclose(-state.best_loss, size * [.3, .3, .1], rtol=1e-5)
    np.testing.assert_array_equal(state.first_fooled, [0, 1, 0])


def numpy_net(s, objective):
    """`x -> (margin, wrong, gradient of the objective)` of the tanh network in float64, by hand."""
    w1, w2, labels = s.w1, s.w2, np.asarray(s.labels)
    rows = np.arange(len(labels))

    def look(x):
        hidden = np.tanh((x.reshape(len(x), -1) - .5) @ w1)
        z = hidden @ w2
        others = np.where(np.eye(z.shape[1], dtype=bool)[labels], -np.inf, z)
        dz = np.zeros_like(z)
        if objective == 'margin':
            dz[rows, others.argmax(1)] = 1
        else:
            dz = np.exp(z - z.max(1, keepdims=True))
            dz /= dz.sum(1, keepdims=True)
        dz[rows, labels] -= 1
        gradient = ((dz @ w2.T * (1 - hidden**2)) @ w1.T).reshape(x.shape)
        return others.max(1) - z[rows, labels], z.argmax(1) != labels, gradient
    return look


def flat_norm(delta, order=2):
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=order, axis=1)


def expand(values):
    return values.reshape(-1, 1, 1, 1)


def numpy_ddn(s, steps):
    x, look = np.asarray(s.images), numpy_net(s, 'cross-entropy')
    delta, norm = np.zeros_like(x), np.ones(len(x))
    best, kept = np.full(len(x), np.inf), x.copy()
    for t in range(steps):
        _, wrong, gradient = look(x + delta)
        better = wrong & (flat_norm(delta) < best)
        best = np.where(better, flat_norm(delta), best)
        kept[better] = (x + delta)[better]
        alpha = .01 + .99 * (1 + np.cos(np.pi * t / steps)) / 2
        delta = delta + alpha * gradient / expand(flat_norm(gradient))
        norm = np.minimum(norm * np.where(wrong, .95, 1.05), flat_norm(np.maximum(x, 1 - x)))
        delta = np.clip(x + delta * expand(norm / flat_norm(delta)), 0, 1) - x
    return kept


def numpy_fmn_linf(s, steps):
    x, look = np.asarray(s.images), numpy_net(s, 'margin')
    delta, radius = np.zeros_like(x), np.full(len(x), np.inf)
    best, kept = np.full(len(x), np.inf), x.copy()
    for t in range(steps):
        gap, wrong, gradient = look(x + delta)
        better = wrong & (flat_norm(delta, np.inf) < best)
        best = np.where(better, flat_norm(delta, np.inf), best)
        kept[better] = (x + delta)[better]
        share = (1 + np.cos(np.pi * t / steps)) / 2
        gamma, alpha = .001 + .049 * share, .01 + .99 * share
        jump = flat_norm(delta, np.inf) + abs(gap) / flat_norm(gradient, 1)
        jump = jump if t == 0 else np.maximum(jump, radius * (1 + gamma))
        radius = np.where(wrong, np.minimum(radius * (1 - gamma), best),
                          np.where(np.isinf(best), jump, radius * (1 + gamma)))
        radius = np.minimum(radius, flat_norm(np.maximum(x, 1 - x), np.inf))
        moved = delta + alpha * gradient / expand(flat_norm(gradient))
        delta = np.clip(x + np.clip(moved, -expand(radius), expand(radius)), 0, 1) - x
    return kept


@pytest.mark.parametrize(('attack', 'reference'), [(ddn, numpy_ddn), (fmn, numpy_fmn_linf)], ids=['ddn', 'fmn'])
def test_images_are_those_of_numpy(attack, reference, setting, found_by):
    with jax.enable_x64(True):
        s = setting((5, 4, 1), dtype=np.float64)
        found = found_by(attack(num_steps=15), s, eps=jnp.inf)
        assert found.images.dtype == jnp.float64
        fooled = ~np.asarray(found.acceptable)
        assert fooled.mean() > .7
        np.testing.assert_allclose(found.images[fooled], reference(s, 15)[fooled], atol=1e-10)


@pytest.mark.parametrize('name', ['ddn', 'fmn_linf'])
def test_a_model_without_gradients_is_never_fooled_and_nothing_breaks(name, setting, found_by):
    s = setting(batch=2)
    s.victim = s.victim._replace(forward=lambda x, k: jnp.array([[2., 1, 0], [0., 1, 2]]) + 0 * x.sum())
    s.labels = jnp.array([0, 0])  # the second is wrong as it is
    found = found_by(ATTACKS[name][0], s, eps=jnp.inf)
    np.testing.assert_array_equal(found.acceptable, [True, False])
    assert np.isfinite(found.images).all()
    assert np.isfinite(found.loss).all()


def test_fmn_does_not_settle_on_a_linear_boundary(setting, found_by):
    s = setting(classes=2, hidden=0, low=.4, high=.6)
    s.labels = s.victim.forward(s.images, None).argmax(1)
    assert not found_by(fmn(num_steps=40, norm='l2'), s, eps=jnp.inf).acceptable.any()


def test_deepfool_by_hand(setting):
    s = setting(classes=2, hidden=0, low=.4, high=.6)
    s.labels = s.victim.forward(s.images, None).argmax(1)
    attack = deepfool(overshoot=.1, extra=.001)
    victim = attack.adapt(s.victim)
    state = run_module.begin(attack, victim, s.keys, s.images, s.labels, eps=jnp.inf)
    moved = jax.jit(partial(attack.step, victim))(s.images, s.labels, state).images
    gap = np.asarray(margin(s.victim.forward(s.images, None), s.labels))
    normal = (s.w1[:, 1] - s.w1[:, 0])[None] * np.where(np.asarray(s.labels) == 1, -1, 1)[:, None]
    size = np.linalg.norm(normal, axis=1)
    shift = 1.1 * (abs(gap) / size + .001)[:, None] * normal / size[:, None]
    np.testing.assert_allclose(moved, np.clip(s.images + shift.reshape(s.images.shape), 0, 1), rtol=1e-4)


def test_deepfool_takes_the_nearest_of_the_classes_it_considers(setting, norms):
    # At the image class 1 is ranked second, but class 2 has the steeper slope and the nearer boundary.
    weights = jnp.array([[0., 1., 4.], [0., 0., 0.]])
    victim = Victim(lambda x, k: x.reshape(len(x), -1) @ weights + jnp.array([1., 0., -1.]), cross_entropy,
                    prediction_is_right)
    s = setting((2, 1), batch=1)
    images, label = jnp.full((1, 2, 1), .1), jnp.array([0])
    for num_classes, distance in ((3, .4), (2, .9)):
        attack = deepfool(num_classes=num_classes, overshoot=0.0, num_steps=2)
        adapted = attack.adapt(victim)
        state = run_module.begin(attack, adapted, s.keys, images, label, eps=jnp.inf)
        moved = jax.jit(partial(attack.step, adapted))(images, label, state).images
        np.testing.assert_allclose(norms(moved - images, 'l2'), min(distance + 1e-4, .9), rtol=1e-4)


def test_refusals(setting):
    s = setting(batch=2)
    with pytest.raises(ValueError, match=r'deepfool needs logits'):
        run_module.run(averaged_over(deepfool(), identity, num_samples=2), s.victim, s.keys, s.images, s.labels,
                       eps=jnp.inf)
    with pytest.raises(ValueError, match="unknown norm of deepfool 'l1'"):
        deepfool(norm='l1')
    with pytest.raises(ValueError, match='num_classes >= 2'):
        deepfool(num_classes=1)
    with pytest.raises(ValueError, match="did you mean 'linf'"):
        fmn(norm='inf')
    for make in (fmn, ddn, deepfool):
        with pytest.raises(ValueError, match='num_steps >= 1'):
            make(num_steps=0)
    with pytest.raises(ValueError, match='gamma'):
        fmn(first_gamma=1.0)
    with pytest.raises(ValueError, match='gamma in'):
        ddn(gamma=0.0)
    for make in (fmn, ddn):
        with pytest.raises(ValueError, match='step'):
            make(first_step_size=0.0)
