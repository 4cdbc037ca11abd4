"""APGD: schedule, loops in NumPy, closed forms of linear models, phases, targets, independence of the batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import apgd_ascent, apgd_l1
from medrobust_jax.attacks.apgd import apgd, apgd_targeted, ranked_target
from medrobust_jax.attacks.run import advance, begin, last_look, run
from medrobust_jax.attacks.wrappers import averaged_over, restarts
from medrobust_jax.core.transforms import identity
from medrobust_jax.losses.classification import margin

EPS = {'linf': .08, 'l2': .3, 'l1': 1.2}


def test_checkpoints_of_100_moves_are_the_papers():
    found = apgd_ascent.checkpoints(100)
    assert [at for at, _ in found] == [22, 41, 57, 70, 80, 87, 93, 99]
    assert [window for _, window in found] == [22, 19, 16, 13, 10, 7, 6, 6]
    assert apgd_ascent.checkpoints(1) == [(1, 1)]


def test_phases():
    assert apgd_l1.phases(100, larger_radii=True) == ([30, 30, 40], [3., 2., 1.])
    assert apgd_l1.phases(3, larger_radii=True)[0] == [1, 1, 1]
    assert apgd_l1.phases(7, larger_radii=False) == ([7], [1.])
    assert apgd(num_steps=100, norm='l1').num_steps == 102  # and so 103 looks


def test_projection_to_ball_and_box_is_that_of_bisection(norms):
    draws = np.random.default_rng(0)
    images = draws.uniform(-.3, 1.3, size=(6, 5, 4, 2)).clip(0, 1).astype(np.float32)
    delta = (draws.normal(size=images.shape) * draws.integers(0, 2, images.shape)).astype(np.float32)
    radius = np.array([0, .3, 2, 5, 8, 100], np.float32)
    got = np.asarray(jax.jit(apgd_l1.project_to_ball_and_box)(images, delta, radius))
    room = np.where(delta > 0, 1 - images, images)
    for row in range(6):
        low, high = 0., 10.
        cut = lambda level, row=row: np.minimum(room[row], np.maximum(abs(delta[row]) - level, 0))  # noqa: E731
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if cut(middle).sum() > radius[row] else (low, middle)
        level = high if cut(0).sum() > radius[row] else 0
        np.testing.assert_allclose(got[row], np.sign(delta[row]) * cut(level), atol=2e-6)
    np.testing.assert_array_equal(got[0], 0)
    assert (got[1] == 0).sum() > 30  # zeros are exact
    assert np.all(norms(got, 'l1') <= radius * (1 + 1e-6))


def test_projection_of_a_large_image_meets_the_radius(norms):
    draws = np.random.default_rng(0)
    images, delta = draws.uniform(size=(1, 100_000, 1)), draws.normal(size=(1, 100_000, 1))
    got = jax.jit(apgd_l1.project_to_ball_and_box)(images.astype('f'), delta.astype('f'), np.array([10.], 'f'))
    np.testing.assert_allclose(norms(got, 'l1'), 10, rtol=1e-5)


def test_sparse_sign_by_hand():
    gradient = jnp.array([[.1, -3, 2, 0], [.1, -3, 2, 0], [0, 0, 0, 0]])
    expected = [[0, -1, 0, 0], [1 / 3, -1 / 3, 1 / 3, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(jax.jit(apgd_l1.sparse_sign)(gradient, jnp.array([1, 4, 2])), expected, atol=1e-7)


def plain_loss_and_gradient(s, x, y):
    """CE of the tanh network and its gradient for one image, in float64."""
    hidden = np.tanh((x - .5) @ s.w1)
    z = hidden @ s.w2
    p = np.exp(z - z.max())
    p /= p.sum()
    return -np.log(p[y]), ((p - np.eye(len(z))[y]) @ s.w2.T * (1 - hidden**2)) @ s.w1.T


def plain_apgd(s, clean, start, y, eps, num_steps, rho, norm):
    """The paper's algorithm 1 for one image, flat, with the authors' details; all iterates."""
    def into(point):
        delta = point - clean
        if norm == 'linf':
            delta = delta.clip(-eps, eps)
        else:
            delta = delta * min(1, eps / max(np.linalg.norm(delta), 1e-300))
        return (clean + delta).clip(0, 1)

    checks = dict(apgd_ascent.checkpoints(num_steps))
    x, step, before, halved = start, 2 * eps, start, True
    best_loss, gradient = plain_loss_and_gradient(s, x, y)
    best, best_gradient, at_check, history, iterates = x, gradient, best_loss, [0.], [x]
    for i in range(1, num_steps + 1):
        d = np.sign(gradient) if norm == 'linf' else gradient / np.linalg.norm(gradient)
        a = 1 if i == 1 else .75
        x, before = into(x + a * (into(x + step * d) - x) + (1 - a) * (x - before)), x
        loss, gradient = plain_loss_and_gradient(s, x, y)
        iterates.append(x)
        history.append(loss)
        if loss > best_loss:
            best_loss, best, best_gradient = loss, x, gradient
        if i in checks:
            rises = np.sum(np.diff(history[-checks[i] - 1:]) > 0)
            halved = rises <= rho * checks[i] or (not halved and at_check >= best_loss)
            at_check = best_loss
            if halved:
                step, x, gradient = step / 2, best, best_gradient
    return np.array(iterates)


@pytest.mark.parametrize(('norm', 'rho'), [('linf', .75), ('l2', .6)])
def test_iterates_are_a_plain_loops(norm, rho, setting):
    with jax.enable_x64(True):
        s, attack = setting(batch=6, dtype=np.float64), apgd(num_steps=40, norm=norm, rho=rho)

        @jax.jit
        def go(keys, images, labels):
            state = begin(attack, s.victim, keys, images, labels, eps=EPS[norm])
            step = lambda t, _: (attack.step(s.victim, images, labels, t), t.images)  # noqa: E731
            return jax.lax.scan(step, state, length=41)

        state, seen = go(s.keys, s.images, s.labels)
        seen = np.asarray(seen).reshape(41, 6, -1)
        assert state.inner['step_ratio'].max() < 2  # every example has halved its steps
        for row in range(6):
            clean = np.asarray(s.images[row]).ravel()
            expected = plain_apgd(s, clean, seen[0, row], int(s.labels[row]), EPS[norm], 40, rho, norm)
            np.testing.assert_allclose(seen[:, row], expected, atol=1e-9)


@pytest.mark.parametrize('norm', list(EPS))
def test_ball_box_verdicts_and_one_more_step(norm, setting, norms):
    s, attack = setting((5, 5, 1)), apgd(num_steps=10, norm=norm, loss='margin')
    victim = attack.adapt(s.victim)

    @jax.jit
    def go(keys, images, labels, eps):
        state = begin(attack, victim, keys, images, labels, eps=eps)
        state = jax.lax.fori_loop(0, attack.num_steps, lambda _, t: attack.step(victim, images, labels, t), state)
        after = attack.step(victim, images, labels, state)
        return last_look(attack, s.victim, labels, state), state.images, after

    eps = jnp.linspace(0, EPS[norm], 8)  # another radius per example, the first one 0
    result, last, after = go(s.keys, s.images, s.labels, eps)
    for images in (result.images, last):
        assert np.all(norms(images - s.images, norm) <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
        assert images.min() >= 0
        assert images.max() <= 1
        np.testing.assert_array_equal(images[0], s.images[0])
    outputs = s.victim.forward(result.images, None)
    np.testing.assert_array_equal(s.victim.acceptable(outputs, s.labels), result.acceptable)
    np.testing.assert_allclose(margin(outputs, s.labels), result.loss, atol=1e-5)
    np.testing.assert_array_equal(result.first_fooled < 0, result.acceptable)
    assert 0 < result.acceptable.mean() < 1
    # A pool looks by one more step, whose move is discarded.
    np.testing.assert_array_equal(after.acceptable, result.acceptable)
    np.testing.assert_allclose(after.best_loss, result.loss, atol=1e-6)
    go(s.keys, s.images, s.labels, 2 * eps)
    assert go._cache_size() == 1  # a new eps costs no compilation


def linear_optimum(images, away, eps, norm):
    """max <away, d> over the ball and, for l1, the box; away from the box else."""
    w, x = (np.asarray(v, np.float64).reshape(len(images), -1) for v in (away, images))
    if norm != 'l1':
        return eps * np.linalg.norm(w, ord=1 if norm == 'linf' else 2, axis=1)
    order = np.argsort(-abs(w), axis=1)
    room = np.take_along_axis(np.where(w > 0, 1 - x, x), order, 1)
    spent = np.clip(eps - np.cumsum(room, axis=1) + room, 0, room)
    return (np.take_along_axis(abs(w), order, 1) * spent).sum(1)


@pytest.mark.parametrize(('norm', 'eps', 'tolerance'), [('linf', .1, 1e-5), ('l2', .25, 1e-3), ('l1', 2., .01)])
def test_optimum_of_a_linear_model_of_two_classes(norm, eps, tolerance, setting, found_by):
    s = setting((5, 5, 1), classes=2, hidden=0, low=.3, high=.7)
    away = np.where(np.asarray(s.labels) == 1, -1, 1)[:, None] * (s.w1[:, 1] - s.w1[:, 0])
    found = found_by(apgd(num_steps=100, norm=norm, loss='margin'), s, eps=eps)
    gain = np.asarray(found.loss - margin(s.victim.forward(s.images, None), s.labels))
    optimum = linear_optimum(s.images, away, eps, norm)
    assert np.all(gain <= optimum * (1 + 1e-4) + 1e-5)
    assert np.all(gain >= optimum * (1 - tolerance))


def test_looks_outside_the_ball_do_not_count(setting, norms):
    """A linear model that 2 eps fools and eps does not."""
    s, attack = setting((5, 5, 1), classes=2, hidden=0, low=.3, high=.7), apgd(num_steps=10, norm='l1')
    s.labels = s.victim.forward(s.images, None).argmax(1)
    away = np.where(np.asarray(s.labels) == 1, -1, 1)[:, None] * (s.w1[:, 1] - s.w1[:, 0])
    distance = -np.asarray(margin(s.victim.forward(s.images, None), s.labels)) / abs(away).max(1)
    eps = jnp.asarray(.9 * np.minimum(distance, .3), jnp.float32)

    @jax.jit
    def go(keys, images, labels, eps):
        start = begin(attack, s.victim, keys, images, labels, eps=eps)
        state, seen = jax.lax.scan(lambda t, _: (attack.step(s.victim, images, labels, t), t.images), start,
                                   length=attack.num_steps + 1)
        return state, jax.vmap(lambda x: ~s.victim.acceptable(s.victim.forward(x, None), labels))(seen)

    state, fooled = go(s.keys, s.images, s.labels, eps)
    assert np.asarray(fooled).any(0)[distance < .3].all()
    assert (distance < .3).any()
    assert state.acceptable.all()
    assert np.all(norms(state.best_images - s.images, 'l1') <= eps * (1 + 1e-5))


@pytest.mark.parametrize(('norm', 'groups'), [
    pytest.param('l2', [[0, 1, 2, 3, 4]], marks=pytest.mark.long), ('l1', [[0, 1], [3, 2], [4, 4]])])
def test_slots_of_a_pool_and_batch_sizes_give_the_same(norm, groups, setting):
    """Five examples through two slots, out of step with each other, next to lock-step in other company."""
    with jax.enable_x64(True):
        s, attack = setting(batch=5, dtype=np.float64), apgd(num_steps=6, norm=norm)
        looks = attack.num_steps + 1

        @jax.jit
        def tick(state, enters, rows):
            keys, images, labels = s.keys[rows], s.images[rows], s.labels[rows]
            fresh = begin(attack, s.victim, keys, images, labels, eps=EPS[norm])
            state = jax.tree.map(partial(apgd_ascent.pick, enters), fresh, state)
            return attack.step(s.victim, images, labels, state)

        @jax.jit
        def start(rows):
            return begin(attack, s.victim, s.keys[rows], s.images[rows], s.labels[rows], eps=EPS[norm])

        def verdicts(state):
            return np.asarray(state.best_images), np.asarray(state.acceptable), np.asarray(state.first_fooled)

        arrivals = {3: (1, 1), looks: (0, 2), looks + 3: (1, 3), 2 * looks: (0, 4)}  # tick: (slot, example)
        slots, pooled, state = np.array([0, 1]), {}, start(np.array([0, 1]))
        for now in range(3 * looks):
            enters = np.zeros(2, bool)
            if now in arrivals:
                slot, example = arrivals[now]
                slots[slot], enters[slot] = example, True
            state = tick(state, enters, slots.copy())
            for slot in np.flatnonzero(np.asarray(state.step) == looks):
                pooled[slots[slot]] = [values[slot] for values in verdicts(state)]
        assert sorted(pooled) == [0, 1, 2, 3, 4]

        for group in map(np.array, groups):
            state = start(group)
            for _ in range(looks):
                state = tick(state, np.zeros(len(group), bool), group)
            for place, example in enumerate(group):
                images, *others = (values[place] for values in verdicts(state))
                np.testing.assert_allclose(images, pooled[example][0], atol=1e-9)
                assert others == pooled[example][1:]


def test_permutations_and_targets(setting, same_bits):
    """Permuting the batch permutes the result bit for bit; a large ball reaches the wanted class."""
    s, attack = setting((5, 5, 1), classes=5), apgd_targeted(num_steps=20, loss='ce')
    logits, rank = s.victim.forward(s.images, None), jnp.arange(8) % 4 + 1

    @jax.jit
    def go(eps, *rows):
        keys, images, labels, logits, rank = rows
        state = advance(attack, s.victim, keys, images, labels, eps=eps, clean_outputs=logits,
                        knobs={'target_rank': rank})
        return last_look(attack, s.victim, labels, state), state.images

    order = np.random.default_rng(5).permutation(8)
    plain, _ = go(.08, s.keys, s.images, s.labels, logits, rank)
    assert 0 < plain.acceptable.mean() < 1
    permuted, _ = go(.08, *(a[order] for a in (s.keys, s.images, s.labels, logits, rank)))
    same_bits(jax.tree.map(lambda a: np.asarray(a)[order], plain), permuted)
    far, last = go(.5, s.keys, s.images, s.labels, logits, rank)
    assert (s.victim.forward(last, None).argmax(1) == ranked_target(logits, s.labels, rank)).mean() > .7
    assert not far.acceptable.any()
    outputs = s.victim.forward(far.images, None)
    np.testing.assert_allclose(far.loss, s.victim.loss(outputs, s.labels), rtol=1e-4)  # the victim's own


def test_targets_are_the_best_wrong_classes():
    logits = jnp.array([[4., 1, 3, 2], [4, 1, 3, 2], [4, -jnp.inf, 3, 2], [1, 1, 1, 1]])
    labels = jnp.array([0, 1, 0, 3])
    wanted = {1: [2, 0, 2, 0], 2: [3, 2, 3, 1], 3: [1, 3, 1, 2], 9: [1, 3, 1, 2]}
    for rank, classes in wanted.items():
        np.testing.assert_array_equal(jax.jit(ranked_target)(logits, labels, jnp.full(4, rank)), classes)


def test_restarts_and_targets_change_the_start(setting):
    s = setting(batch=2, classes=2, low=.2, high=.8)
    logits = s.victim.forward(s.images, None)
    compiled = jax.jit(lambda attack, knobs: begin(
        attack, s.victim, s.keys, s.images, s.labels, eps=.1, knobs=knobs, clean_outputs=logits).images,
        static_argnums=0)
    aims = apgd_targeted(loss='margin')
    plain, aimed = (lambda restart, rank, attack=attack: np.asarray(compiled(
        attack, {'restart': np.full(2, restart), 'target_rank': np.full(2, rank)})) for attack in (apgd(), aims))
    np.testing.assert_array_equal(aimed(0, 1), compiled(aims, {}))
    starts = [plain(0, 1), plain(1, 1), aimed(0, 1), aimed(0, 2), aimed(1, 1), aimed(1, 2)]
    for i, a in enumerate(starts):
        assert all((a != b).any() for b in starts[:i])
        np.testing.assert_allclose(abs(a - s.images).max((1, 2, 3)), .1, rtol=1e-5)  # on the surface
    np.testing.assert_array_equal(compiled(apgd(start='clean'), {}), s.images)


def test_wrappers_and_volumes(setting, found_by):
    """Restarts and averaging over nothing: the clean start makes every run the same."""
    s = setting((3, 4, 2, 1), batch=4)
    attack = apgd(num_steps=3, start='clean', loss='task')
    once = found_by(attack, s, eps=.1)
    again = found_by(restarts(averaged_over(attack, identity, num_samples=2), 2), s, eps=.1)
    assert once.images.shape == (4, 3, 4, 2, 1)
    np.testing.assert_array_equal(once.acceptable, again.acceptable)
    np.testing.assert_allclose(once.images, again.images, atol=1e-6)


def test_narrow_floats_run(setting, found_by):
    s = setting(batch=2)
    s.images = s.images.astype(jnp.bfloat16)
    assert found_by(apgd(num_steps=3, norm='l1'), s, eps=1.).images.dtype == jnp.bfloat16


def test_refusals(setting):
    s = setting(batch=2, classes=3)
    for make in (apgd, apgd_targeted):
        with pytest.raises(ValueError, match='num_steps = 0 must be at least 1'):
            make(num_steps=0)
        with pytest.raises(ValueError, match='num_steps = 2 must be at least 3'):
            make(num_steps=2, norm='l1')
        with pytest.raises(ValueError, match='rho = 2 must be in'):
            make(rho=2)
        with pytest.raises(ValueError, match="did you mean 'linf'"):
            make(norm='inf')
        with pytest.raises(ValueError, match="unknown start 'bal'; did you mean 'ball'"):
            make(start='bal')
        with pytest.raises(ValueError, match="did you mean 'margin'"):
            make(loss='margn')
    with pytest.raises(ValueError, match='needs clean_outputs'):
        run(apgd_targeted(), s.victim, s.keys, s.images, s.labels, eps=.1)
    logits = s.victim.forward(s.images, None)
    with pytest.raises(ValueError, match='at least 4 classes, not 3: use targeted_margin'):
        run(apgd_targeted(), s.victim, s.keys, s.images, s.labels, eps=.1, clean_outputs=logits)
    with pytest.raises(ValueError, match=r'need logits \[B, C\]'):
        run(apgd_targeted(), s.victim, s.keys, s.images, s.labels, eps=.1, clean_outputs=logits[0])
    binary = setting(batch=2, classes=2)
    with pytest.raises(ValueError, match='dlr needs at least 3 classes, not 2: use margin'):
        run(apgd(loss='dlr'), binary.victim, binary.keys, binary.images, binary.labels, eps=.1)
