"""FAB: closed forms of linear models, distances and verdicts, starts and targets, independence of the batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.fab import fab
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.attacks.wrappers import averaged_over, stop_when_fooled
from medrobust_jax.core.balls import NORMS
from medrobust_jax.core.hyperplanes import DUAL
from medrobust_jax.core.transforms import identity

ORDERS = {'linf': np.inf, 'l2': 2, 'l1': 1}
EPS = {'linf': .1, 'l2': .4, 'l1': 1.2}


def compiled(attack, s):
    """`go(eps, knobs=None)` -> result, with the clean outputs given; one program for all radii."""
    clean = s.victim.forward(s.images, None)
    return jax.jit(lambda eps, knobs=None: run(attack, s.victim, s.keys, s.images, s.labels, eps=eps, knobs=knobs,
                                               clean_outputs=clean))


def linear_setting(setting, shape, *, batch, classes):
    s = setting(shape, batch=batch, classes=classes, hidden=0, low=.45, high=.55, seed=len(shape))
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    return s


def distances_to_classes(s, norm):
    """`[B, C]`, the closed form; infinite for the label."""
    logits = np.asarray(s.victim.forward(s.images, None), np.float64)
    w, y = np.asarray(s.w1, np.float64), np.asarray(s.labels)
    gap = logits[np.arange(len(y)), y][:, None] - logits
    dual = np.linalg.norm(w[:, :, None] - w[:, None, :], ord=ORDERS[DUAL[norm]], axis=0)[y]
    return np.where(np.arange(logits.shape[1]) == y[:, None], np.inf, gap / np.where(dual > 0, dual, 1))


@pytest.mark.parametrize(('norm', 'targeted', 'shape', 'batch', 'classes'), [
    ('linf', False, (30, 2), 1, 2), ('l2', True, (3, 4, 4, 1), 1, 2), ('l1', False, (3, 4, 4, 1), 3, 4),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        ('linf', True, (6, 5, 1), 3, 4), ('l2', False, (6, 5, 1), 8, 3), ('l1', True, (30, 2), 8, 3)))])
def test_linear_model_is_met_at_its_nearest_boundary(norm, targeted, shape, batch, classes, setting, norms):
    s = linear_setting(setting, shape, batch=batch, classes=classes)
    expected = distances_to_classes(s, norm)
    optimum = expected.min(axis=1)
    assert optimum.max() < .45  # no pixel meets the box
    found = compiled(fab(num_steps=20, norm=norm, targeted=targeted), s)(np.inf)
    size = norms(found.images - s.images, norm)
    assert not found.acceptable.any()
    np.testing.assert_allclose(found.loss, -size, rtol=1e-4)
    assert np.all(size >= optimum * (1 - 1e-4))
    logits = np.where(np.isfinite(expected), s.victim.forward(s.images, None), -np.inf)
    runner_up = expected[np.arange(batch), logits.argmax(axis=1)]  # need not be the nearest class
    assert np.all(size <= 1.01 * (runner_up if targeted else optimum))


@pytest.mark.parametrize('norm', ['linf', 'l1'])
def test_verdicts_ball_and_box(norm, setting, norms):
    s = setting((5, 5, 1), batch=16)
    eps = np.linspace(0, 2 * EPS[norm], 16).astype(np.float32)
    go = compiled(fab(num_steps=10, norm=norm), s)
    found, nearest = go(eps), go(np.full(16, np.inf, np.float32))
    size = norms(found.images - s.images, norm)
    wrong = np.asarray(s.victim.forward(found.images, None).argmax(-1) != s.labels)
    fooled = ~np.asarray(found.acceptable)
    assert 0 < fooled.mean() < 1
    assert np.all(size <= eps)
    assert found.images.min() >= 0
    assert found.images.max() <= 1
    np.testing.assert_array_equal(fooled, wrong)
    np.testing.assert_array_equal(np.asarray(found.first_fooled) < 0, ~fooled)
    np.testing.assert_allclose(np.asarray(found.loss)[fooled], -size[fooled], rtol=1e-5, atol=1e-7)
    # The radius decides verdicts, not the path.
    assert not nearest.acceptable.any()
    np.testing.assert_array_equal(fooled, -np.asarray(nearest.loss) <= eps)
    np.testing.assert_array_equal(np.asarray(found.images)[fooled], np.asarray(nearest.images)[fooled])
    clean_wrong = np.asarray(s.victim.forward(s.images, None).argmax(-1) != s.labels)
    assert clean_wrong.any()
    np.testing.assert_array_equal(size[clean_wrong], 0)


def test_a_boundary_out_of_reach_is_approached_to_the_corner(setting):
    s = setting(batch=4)

    def never(images, keys):
        bright = images.sum((1, 2, 3))
        return jnp.stack([bright, -9 + 0 * bright], axis=1)

    s.victim, s.labels = s.victim._replace(forward=never), jnp.zeros(4, jnp.int32)
    found = compiled(fab(num_steps=5), s)(np.inf)
    assert found.acceptable.all()
    assert np.all(found.loss <= -np.maximum(s.images, 1 - s.images).max((1, 2, 3)))
    np.testing.assert_array_equal(found.images, 0)


def test_leaving_when_fooled_changes_no_verdict_and_saves_passes(setting):
    s = setting(batch=16, seed=1)
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    attack = fab(num_steps=20)
    ends = []
    for one in (attack, stop_when_fooled(attack)):
        step = jax.jit(partial(one.step, s.victim, s.images, s.labels))
        state = begin(attack, s.victim, s.keys, s.images, s.labels, eps=.08)
        for _ in range(attack.num_steps + 3):  # more calls than it takes looks
            state = step(state)
        ends.append(state)
    full, early = ends
    np.testing.assert_array_equal(early.acceptable, full.acceptable)
    np.testing.assert_array_equal(early.first_fooled, full.first_fooled)
    assert 0 < full.acceptable.mean() < 1
    np.testing.assert_array_equal(full.step, 21)
    np.testing.assert_array_equal(early.step, np.where(full.acceptable, 21, full.first_fooled + 1))
    assert np.all(full.best_loss >= early.best_loss)


@pytest.mark.parametrize('norm', NORMS)
def test_restarts_begin_at_half_the_radius(norm, setting, norms):
    s = setting((4, 4, 2), batch=6, low=.5, high=.5)
    eps = jnp.array([.02, .2, .3, jnp.inf, jnp.inf, .2]) * EPS[norm]
    knobs = {'restart': jnp.array([0, 1, 2, 1, 1, 1]), 'distance': jnp.array([9, 9, 9, 9, .1, 9]) * EPS[norm]}
    begins = jax.jit(lambda eps, knobs: begin(fab(norm=norm), s.victim, s.keys, s.images, s.labels, eps=eps,
                                              knobs=knobs).images)
    first = begins(eps, knobs)
    reach = {'linf': .3, 'l2': 1., 'l1': 5.}[norm]
    expected = np.array([0, .2 * EPS[norm], .3 * EPS[norm], min(reach, 9 * EPS[norm]), .1 * EPS[norm],
                         .2 * EPS[norm]]) / 2
    np.testing.assert_allclose(norms(first - s.images, norm), expected, rtol=1e-5, atol=1e-7)
    other = begins(eps, {**knobs, 'restart': jnp.array([0, 2, 2, 2, 2, 2])})
    changed = np.any(np.asarray(first != other), axis=(1, 2, 3))
    np.testing.assert_array_equal(changed, [False, True, False, True, True, True])


def test_a_misclassified_start_counts(setting, norms):
    s = setting((4, 4, 1), batch=32, seed=3)
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    found = compiled(fab(num_steps=1), s)(.5, {'restart': jnp.ones(32, jnp.int32)})
    at_start = np.asarray(found.first_fooled) == 0
    assert 0 < at_start.mean() < 1
    assert np.all(norms(found.images - s.images, 'linf')[at_start] <= .25 + 1e-6)


def test_target_is_ranked_among_the_wrong_classes(setting):
    s = setting(batch=8, classes=4)
    logits = np.asarray(s.victim.forward(s.images, None))
    labels = np.asarray(s.labels)
    ranks = jnp.array([1, 2, 3, 1, 2, 3, 1, 7])
    attack = fab(targeted=True)
    state = begin(attack, s.victim, s.keys, s.images, s.labels, eps=.1, knobs={'target_rank': ranks},
                  clean_outputs=jnp.asarray(logits))
    for goal, row, label, rank in zip(state.inner, logits, labels, ranks, strict=True):
        wrong = [c for c in np.argsort(-row) if c != label]
        assert goal == wrong[min(int(rank), 3) - 1]
    with pytest.raises(ValueError, match='pass clean_outputs'):
        run(attack, s.victim, s.keys, s.images, s.labels, eps=.1)


@pytest.mark.parametrize(('norm', 'targeted'), [('linf', False), ('l1', True)])
def test_slots_that_are_refilled_give_what_each_example_gives_alone(norm, targeted, setting, same_bits):
    s = setting((5, 5, 1), classes=4)
    attack, clean = fab(num_steps=5, norm=norm, targeted=targeted), s.victim.forward(s.images, None)
    start = jax.jit(lambda keys, images, labels, clean: begin(
        attack, s.victim, keys, images, labels, eps=EPS[norm], clean_outputs=clean))
    step = jax.jit(partial(attack.step, s.victim))
    together = alone = start(s.keys, s.images, s.labels, clean)
    for _ in range(8):  # more calls than it takes looks
        alone = step(s.images, s.labels, alone)
    assert alone.done.all()
    # After two steps, slots 0 to 3 are refilled with examples 4 to 7, in another order.
    for _ in range(2):
        together = step(s.images, s.labels, together)
    source = jnp.array([6, 5, 7, 4, 4, 5, 6, 7])
    images, labels = s.images[source], s.labels[source]
    fresh = start(s.keys[source], images, labels, clean[source])
    together = jax.tree.map(lambda new, old: jnp.concatenate([new[:4], old[4:]]), fresh, together)
    for _ in range(6):
        together = step(images, labels, together)
    assert together.done.all()
    for field in ('images', 'best_images', 'best_loss', 'acceptable', 'first_fooled', 'step'):
        same_bits(getattr(together, field), getattr(alone, field)[source])


def test_a_new_radius_costs_no_compilation_and_types_are_kept(setting):
    s = setting(batch=4)
    go = jax.jit(lambda images, eps: run(fab(), s.victim, s.keys, images, s.labels, eps=eps).images)
    traced = go.trace(s.images, .1)
    assert traced.jaxpr is go.trace(s.images, np.inf).jaxpr
    assert jax.eval_shape(go, s.images.astype(jnp.bfloat16), .1).dtype == jnp.bfloat16


def test_non_finite_gradients_do_not_move_the_image(setting):
    s = setting(batch=4)
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    forward = s.victim.forward
    s.victim = s.victim._replace(
        forward=lambda x, keys: forward(x, keys) + jnp.sqrt(0 * x.sum((1, 2, 3)))[:, None])
    found = compiled(fab(num_steps=2), s)(.1)
    assert found.acceptable.all()
    np.testing.assert_array_equal(found.images, s.images)


def test_refusals(setting):
    s = setting(batch=2)
    for options in ({'alpha_max': -.1}, {'alpha_max': 2}, {'eta': .9}, {'beta': 1.}):
        with pytest.raises(ValueError, match='fab needs alpha_max'):
            fab(**options)
    with pytest.raises(ValueError, match='num_steps = 0 must be at least 1'):
        fab(num_steps=0)
    with pytest.raises(ValueError, match="did you mean 'linf'"):
        fab(norm='inf')
    dense = s.victim._replace(forward=lambda x, k: x, loss=lambda o, t: o.sum((1, 2, 3)))
    for attack, victim in ((fab(), dense), (averaged_over(fab(), identity, num_samples=2), s.victim)):
        with pytest.raises(ValueError, match='fab needs logits'):
            run(attack, victim, s.keys, s.images, s.labels, eps=.1)
