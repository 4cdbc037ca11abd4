"""Square: its moves against loops in NumPy, its draws, what it accepts, what it reaches with scores alone."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import square as square_module
from medrobust_jax.attacks import square_moves as moves
from medrobust_jax.attacks.apgd_l1 import project_to_ball_and_box
from medrobust_jax.attacks.noise import noise
from medrobust_jax.attacks.run import begin, last_look
from medrobust_jax.attacks.square import square
from medrobust_jax.attacks.wrappers import restarts, stop_when_fooled, targeted
from medrobust_jax.core import rng
from medrobust_jax.core.balls import NORMS
from medrobust_jax.losses.classification import margin

EPS = {'linf': .1, 'l2': .5, 'l1': 3.}
ORDERS = {'l2': 2, 'l1': 1}
project = jax.jit(project_to_ball_and_box)
bump_start = jax.jit(moves.bump_start, static_argnames='norm')
linf_move = jax.jit(moves.linf_move)


def started(attack, s, *, eps):
    """The adapted victim and the state before the first look."""
    victim = attack.adapt(s.victim)
    start = jax.jit(lambda keys, images, labels, eps: begin(attack, victim, keys, images, labels, eps=eps))
    return victim, start(s.keys, s.images, s.labels, eps)


def bump_by_squares(side, norm):
    """The bump as a sum of growing squares around each half's center."""
    bump = np.zeros((side, side))
    for first, rows, sign in ((0, side // 2, 1), (side // 2, side - side // 2, -1)):
        half = np.zeros((rows, side))
        for reach in range(side // 2 + 1):
            top, left = rows // 2 - reach, side // 2 - reach
            half[max(top, 0):top + 2 * reach + 1, max(left, 0):left + 2 * reach + 1] += (
                1 / (reach + 1) ** {'l2': 2, 'l1': 4}[norm])
        bump[first:first + rows] = sign * half / max(np.linalg.norm(half.ravel(), ord=ORDERS[norm]), 1e-300)
    return bump / np.linalg.norm(bump.ravel(), ord=ORDERS[norm])


def size_of(values, norm):
    return np.linalg.norm(values.ravel(), ord=ORDERS[norm])


def bump_move_by_loops(image, best, eps, bump, first, second, signs, norm):
    """One example's new perturbation before it is scaled to the ball."""
    delta = (best - image).astype(np.float64)
    side, channels = len(bump), image.shape[-1]
    one = (slice(first[0], first[0] + side), slice(first[1], first[1] + side))
    two = (slice(second[0], second[0] + side), slice(second[1], second[1] + side))
    either = np.zeros(delta.shape[:2], bool)
    either[one] = either[two] = True
    total, new = size_of(delta, norm), np.zeros((side, side, channels))
    for c in range(channels):
        held, both = delta[one][..., c], size_of(delta[..., c][either], norm)
        new[..., c] = signs[c] * bump + held / (1e-12 + size_of(held, norm))
        left = (max(eps ** 2 - total ** 2, 0) / channels + both ** 2) ** .5 if norm == 'l2' else (
            max(eps - total, 0) + both * channels)
        new[..., c] *= left / (1e-12 + size_of(new[..., c], norm))
    delta[two] = 0
    delta[one] = new
    return delta


def test_sides_follow_the_schedule():
    assert moves.sides(28, 28, p=.8, norm='linf') == [25, 18, 13, 9, 6, 4, 3, 2, 2, 1]
    assert moves.sides(28, 28, p=.8, norm='l2') == [25, 19, 13, 9, 7, 5, 3, 3, 3, 3]
    assert moves.sides(10, 40, p=.8, norm='linf')[:2] == [10, 10]
    queries = jnp.array([0, 10, 11, 50, 51, 200, 201, 501, 1001, 2001, 4001, 6001, 8000, 8001, 99999])
    np.testing.assert_array_equal(moves.level_of(queries), [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 8, 9, 9])
    np.testing.assert_array_equal(moves.level_of(jnp.array([0, 5, 6, 25, 26, 4000, 4001]), 5000),
                                  [0, 0, 1, 1, 2, 8, 9])


@pytest.mark.parametrize('norm', ['l2', 'l1'])
def test_bump_moves_are_a_loop_over_slices(norm):
    side_list, shape = [1, 3, 4, 5, 7, 9], (9, 11, 2)
    draws, batch = np.random.default_rng(0), 12
    images, best = draws.uniform(.2, .8, size=(2, batch, *shape))
    best = np.where(draws.uniform(size=(batch, 1, 1, 1)) < .2, images, images + .1 * (best - images))
    level, eps = np.arange(batch) % 6, draws.uniform(.1, 4, size=batch)
    side = np.asarray(side_list)[level]
    corners = [np.floor(draws.uniform(size=batch) * (n - side + 1)).astype(int) for n in (9, 11, 9, 11)]
    turned, signs = draws.uniform(size=batch) < .5, draws.choice([-1, 1], size=(batch, 2))
    with jax.enable_x64(True):
        drawn = moves.BumpDraws(moves.Window(*corners[:2], side), moves.Window(*corners[2:], side), turned, signs)
        moved = jax.jit(lambda images, best, eps, level, drawn: moves.bump_move(
            images, best, eps, moves.make_bumps(side_list, norm=norm), level, drawn, norm=norm))(
                images, best, eps, level, drawn)
        expected = np.stack([bump_move_by_loops(
            images[i], best[i], eps[i], np.swapaxes(bump, 0, 1) if turned[i] else bump,
            *np.transpose(corners)[i].reshape(2, 2), signs[i], norm)
            for i in range(batch) for bump in [bump_by_squares(side[i], norm)]])
        if norm == 'l2':
            expected *= (eps / np.sqrt((expected ** 2).sum((1, 2, 3))))[:, None, None, None]
        else:
            expected = np.asarray(project(images, expected, eps * (1 - 1e-6)))
    np.testing.assert_allclose(moved, np.clip(images + expected, 0, 1), atol=1e-9)


@pytest.mark.parametrize('norm', ['l2', 'l1'])
@pytest.mark.parametrize(('height', 'width'), [(16, 16), (7, 13), (12, 3)])
def test_start_is_a_tiling_of_bumps(height, width, norm):
    draws = np.random.default_rng(1)
    side, offset, rows, columns = moves.tiling(height, width)
    assert (height, width) != (16, 16) or (side, offset, rows, columns) == (3, 0, 5, 5)
    turned, signs = draws.uniform(size=(2, rows, columns)) < .5, draws.choice([-1, 1], size=(2, rows, columns, 2))
    images, eps = np.full((2, height, width, 2), .5), np.array([.1, .4])
    with jax.enable_x64(True):
        found = bump_start(images, eps, turned, signs, norm=norm)
    bump, expected = bump_by_squares(side, norm), np.zeros((2, height + side, width + side, 2))
    for b, i, j in np.ndindex(2, rows, columns):
        tile = bump.T if turned[b, i, j] else bump
        window = (b, slice(offset + i * side, offset + (i + 1) * side), slice(offset + j * side, None))
        expected[window][:, :side] = tile[..., None] * signs[b, i, j]
    expected = expected[:, :height, :width]
    size = [size_of(e, norm) for e in expected]
    if norm == 'l1':  # equal magnitudes shrink alike; otherwise the projection has tests of its own
        with jax.enable_x64(True):
            expected = np.asarray(project(images, expected, eps * (1 - 1e-6)))
    else:
        expected = expected * (eps / size)[:, None, None, None]
    np.testing.assert_allclose(found, images + expected, atol=1e-12)


def test_linf_moves_are_slices():
    draws = np.random.default_rng(2)
    images, eps = draws.uniform(size=(4, 6, 5, 3)).astype(np.float32), np.array([0, .1, .2, .3], np.float32)
    stripes = draws.choice([-1, 1], size=(4, 1, 5, 3))
    first = np.asarray(moves.linf_start(images, eps, stripes))
    np.testing.assert_allclose(first, np.clip(images + eps[:, None, None, None] * stripes, 0, 1), atol=1e-7)
    window = moves.Window(*jnp.array([[0, 1, 5, 2], [4, 0, 3, 1], [1, 5, 1, 3]]))
    signs = draws.choice([-1, 1], size=(4, 3))
    expected = first.copy()
    for i, (top, left, side) in enumerate(np.transpose(window)):
        inside = (i, slice(top, top + side), slice(left, left + side))
        expected[inside] = np.clip(images[inside] + eps[i] * signs[i], 0, 1)
    moved = linf_move(images, first, eps, window, signs)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_windows_reach_every_position_equally_often():
    keys, side = rng.example_keys(0, np.arange(6000)), np.full(6000, 4, np.int32)
    window, signs = square_module.draw_linf(keys, np.full(6000, 7), side, (6000, 6, 5, 2))
    counts = np.histogram2d(window.top, window.left, bins=[np.arange(4), np.arange(3)])[0]
    assert counts.sum() == 6000
    assert abs(counts - 1000).max() < 150
    assert abs(np.asarray(signs).mean(axis=0)).max() < .06
    draws = square_module.draw_bumps(keys, np.full(6000, 7), side, (6000, 6, 5, 2))
    assert abs(np.corrcoef([draws.first.top, draws.second.top, draws.first.left, draws.transposed,
                            *draws.signs.T]) - np.eye(6)).max() < .06


@pytest.mark.parametrize('norm', NORMS)
def test_ball_box_and_what_is_accepted(norm, setting, norms, same_bits):
    s = setting((9, 12, 2), batch=6)
    s.labels = s.victim.forward(s.images, None).argmax(-1)
    eps = jnp.linspace(0, 2 * EPS[norm], 6)
    attack = square(num_steps=30, norm=norm)
    victim, state = started(attack, s, eps=eps)
    step = jax.jit(partial(attack.step, victim))
    seen, best = [], np.full(6, -np.inf)
    for _ in range(31):
        seen.append(np.asarray(state.images))
        after = step(s.images, s.labels, state)
        loss = np.asarray(margin(s.victim.forward(state.images, None), s.labels))
        accepted = np.any(np.asarray(after.inner['image'] != state.inner['image']), axis=(1, 2, 3))
        clear = abs(loss - best) > 1e-5
        changes = np.any(np.asarray(state.images != state.inner['image']), axis=(1, 2, 3))
        np.testing.assert_array_equal(accepted[clear & changes], (loss > best)[clear & changes])
        best = np.maximum(best, loss)
        np.testing.assert_allclose(after.inner['loss'], best, atol=1e-5)
        state = after
    size = norms(np.concatenate(seen) - np.tile(s.images, (31, 1, 1, 1)), norm).reshape(31, 6)
    assert np.all(size <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
    if norm == 'linf':  # every look is at a corner of the ball, up to the box
        delta = abs(seen[-1] - s.images)
        corner = np.minimum(eps[:, None, None, None], np.where(seen[-1] > s.images, 1 - s.images, s.images))
        np.testing.assert_allclose(delta, corner, atol=1e-6)
    assert np.concatenate(seen).min() >= 0
    assert np.concatenate(seen).max() <= 1
    assert np.all(best[2:] > margin(s.victim.forward(seen[0], None), s.labels)[2:])
    same_bits(state.best_images, state.inner['image'])
    result = last_look(attack, s.victim, s.labels, state)
    wrong = s.victim.forward(result.images, None).argmax(-1) != s.labels
    np.testing.assert_array_equal(wrong, ~result.acceptable)


def test_scores_alone_come_near_the_optimum_of_a_linear_model(setting, found_by):
    s = setting((6, 6, 1), batch=8, classes=2, hidden=0, low=.3, high=.7)
    s.labels = s.victim.forward(s.images, None).argmax(-1)

    def refuse(*args):
        raise AssertionError('square asked for a gradient')

    forward = jax.custom_vjp(s.victim.forward)
    forward.defvjp(refuse, refuse)
    s.victim = s.victim._replace(forward=forward)
    weights = np.asarray(s.w1[:, 0] - s.w1[:, 1])
    start = margin(s.victim.forward(s.images, None), s.labels)
    found, drawn = (found_by(attack, s, eps=.05) for attack in (square(num_steps=600), noise(num_draws=600)))
    optimum = start + .05 * abs(weights).sum()
    assert np.all(found.loss <= optimum + 1e-4)
    assert np.all(found.loss >= start + .75 * (optimum - start))
    drawn = margin(s.victim.forward(drawn.images, None), s.labels)
    assert np.all(found.loss > drawn)


def test_stopping_when_fooled_is_the_published_attack(setting, found_by):
    s = setting((8, 8, 1), batch=16)
    full, early = (found_by(attack, s, eps=.08) for attack in (
        square(num_steps=60), stop_when_fooled(square(num_steps=60))))
    np.testing.assert_array_equal(full.acceptable, early.acceptable)
    np.testing.assert_array_equal(full.first_fooled, early.first_fooled)
    assert 0 < full.acceptable.mean() < 1
    assert np.all(full.loss >= early.loss)


def test_restarts_begin_from_their_own_start(setting):
    s = setting((6, 6, 1), batch=4)
    attack = restarts(square(num_steps=2), 2)
    victim, state = started(attack, s, eps=.1)
    step = jax.jit(partial(attack.step, victim))
    for _ in range(4):
        state = step(s.images, s.labels, state)
    s.keys = rng.fold(s.keys, 1)
    _, again = started(square(), s, eps=.1)
    np.testing.assert_array_equal(state.inner['attack']['image'], again.images)


def test_wanted_classes_and_a_tasks_own_loss(setting, found_by):
    s = setting((6, 6, 1))
    s.labels = (s.victim.forward(s.images, None).argmax(-1) + 1) % 3
    found = found_by(targeted(square(num_steps=200)), s, eps=.5)
    assert not found.acceptable.any()
    np.testing.assert_array_equal(s.victim.forward(found.images, None).argmax(-1), s.labels)
    assert square(loss='task').adapt(s.victim).loss is s.victim.loss
    assert square().adapt(s.victim).loss is margin


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.long)])
def test_slots_that_are_refilled_give_what_each_example_gives_alone(norm, setting, same_bits):
    s = setting((7, 7, 1))
    attack = square(num_steps=15, norm=norm)  # the window's side changes on the way
    victim = attack.adapt(s.victim)
    start = jax.jit(lambda keys, images, labels: begin(attack, victim, keys, images, labels, eps=EPS[norm]))
    step = jax.jit(partial(attack.step, victim))
    together = alone = start(s.keys, s.images, s.labels)
    for _ in range(16):
        alone = step(s.images, s.labels, alone)
    for _ in range(9):
        together = step(s.images, s.labels, together)
    source = jnp.array([6, 5, 7, 4, 4, 5, 6, 7])
    images, labels = s.images[source], s.labels[source]
    fresh = start(s.keys[source], images, labels)

    def enter(new, old):
        return jnp.concatenate([new[:4], old[4:]])

    together = jax.tree.map(enter, fresh, together)
    for look in range(16):
        together = step(images, labels, together)
        if look == 6:
            old = together
    for field in ('images', 'best_images', 'best_loss', 'acceptable', 'first_fooled', 'step'):
        same_bits(getattr(together, field)[:4], getattr(alone, field)[source][:4])
        same_bits(getattr(old, field)[4:], getattr(alone, field)[source][4:])


def test_refusals(setting):
    for options in ({'num_steps': 0}, {'p': 0}, {'p': 1.1}):
        with pytest.raises(ValueError, match='square needs num_steps'):
            square(**options)
    with pytest.raises(ValueError, match="did you mean 'linf'"):
        square(norm='inf')
    with pytest.raises(ValueError, match="did you mean 'margin'"):
        square(loss='margn')
    for shape in ((9, 2), (3, 4, 4, 1)):
        s = setting(shape, batch=2)
        with pytest.raises(ValueError, match='square moves windows in 2-D images'):
            begin(square(), s.victim, s.keys, s.images, s.labels, eps=.1)
