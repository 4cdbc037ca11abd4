"""Carlini and Wagner's attacks: a plain loop in NumPy, the search for the constant, confidence, aborting."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import carlini
from medrobust_jax.attacks import run as run_module
from medrobust_jax.attacks.carlini import cw_l2, cw_linf
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.losses.classification import margin


def numpy_cw(s, row, *, num_steps, search_steps, constant, confidence, abort):
    """One example of the tanh network in float64: `(nearest confident image or None, gradients taken)`."""
    x, label = np.asarray(s.images)[row].ravel(), int(s.labels[row])
    start = np.arctanh(2 * x - 1)
    lower, upper, best, kept, taken = 0., np.inf, np.inf, None, 0
    for search in range(search_steps):
        if search_steps >= 10 and search == search_steps - 1:
            constant = min(upper, 1e10)
        w, m, v, found, previous = start.copy(), 0., 0., False, np.inf
        for t in range(num_steps):
            image = (np.tanh(w) + 1) / 2
            hidden = np.tanh((image - .5) @ s.w1)
            z = hidden @ s.w2
            other = max((k for k in range(len(z)) if k != label), key=lambda k: z[k])
            gap = z[other] - z[label]
            hinge = max(confidence - gap, 0)
            taken += 1
            if z.argmax() != label and gap >= confidence:
                found = True
                if np.linalg.norm(image - x) < best:
                    best, kept = np.linalg.norm(image - x), image
            slope = ((s.w2[:, other] - s.w2[:, label]) * (1 - hidden**2)) @ s.w1.T
            gradient = (2 * (image - x) - constant * slope * (hinge > 0)) * (1 - np.tanh(w)**2) / 2
            objective = ((image - x)**2).sum() + constant * hinge
            m, v = .9 * m + .1 * gradient, .999 * v + .001 * gradient**2
            w = w - .01 * m / (1 - .9**(t + 1)) / (np.sqrt(v / (1 - .999**(t + 1))) + 1e-8)
            if abort and t % max(num_steps // 10, 1) == 0:
                if objective > .9999 * previous:
                    break
                previous = objective
        lower, upper = (lower, min(upper, constant)) if found else (max(lower, constant), upper)
        constant = (lower + upper) / 2 if np.isfinite(upper) else 10 * constant
    return kept, taken


@pytest.mark.parametrize(('search_steps', 'confidence', 'abort'), [(4, .3, False), (11, 0., True)])
def test_images_are_those_of_numpy(search_steps, confidence, abort, setting):
    with jax.enable_x64(True):
        s = setting((4, 3, 1), batch=5, dtype=np.float64, low=.1, high=.9)
        attack = cw_l2(num_steps=20, search_steps=search_steps, initial_constant=.3, confidence=confidence,
                       abort_early=abort)
        state = jax.jit(partial(run_module.advance, attack, s.victim, eps=jnp.inf))(s.keys, s.images, s.labels)
        assert state.done.all()
        compared = 0
        for row in range(5):
            image, taken = numpy_cw(s, row, num_steps=20, search_steps=search_steps, constant=.3,
                                    confidence=confidence, abort=abort)
            if np.array_equal(image, np.asarray(s.images[row]).ravel()) or image is None:
                continue  # wrong from the start, where ours ends at once, or never found
            compared += 1
            np.testing.assert_allclose(state.best_images[row].ravel(), image, atol=1e-9)
            assert state.step[row] == taken
            assert abort == (taken < 20 * search_steps)
        assert compared >= 3


def replay(found, constant, search_steps):
    """The constants that a search uses, given which of them work."""
    lower, upper, used = 0., np.inf, []
    for search, worked in enumerate(found):
        if search_steps >= 10 and search == search_steps - 1:
            constant = min(upper, 1e10)
        used.append(constant)
        lower, upper = (lower, min(upper, constant)) if worked else (max(lower, constant), upper)
        constant = (lower + upper) / 2 if np.isfinite(upper) else constant * 10
    return used


@pytest.mark.parametrize('search_steps', [6, 12])
def test_the_search_for_the_constant(search_steps):
    found = np.random.default_rng(0).uniform(size=(20, search_steps)) < .5
    found[0], found[1] = True, False
    inner = {'first': jnp.ones(20), 'point': jnp.zeros(20), 'moments': (jnp.ones(20), jnp.ones(20)),
             'iteration': jnp.full(20, 7), 'search': jnp.zeros(20, jnp.int32), 'constant': jnp.full(20, 1e-3),
             'lower': jnp.zeros(20), 'upper': jnp.full(20, jnp.inf), 'found': jnp.zeros(20, bool),
             'previous': jnp.zeros(20)}
    following, used = jax.jit(partial(carlini._next_search, search_steps=search_steps)), []
    for search in range(search_steps):
        used.append(np.asarray(inner['constant']))
        inner = following({**inner, 'found': jnp.asarray(found[:, search])})
    for row in range(20):
        np.testing.assert_allclose(np.array(used)[:, row], replay(found[row], 1e-3, search_steps), rtol=1e-5)
    assert np.all(inner['search'] == search_steps)
    for name, fresh in (('point', 1), ('iteration', 0), ('found', False), ('previous', np.inf)):
        assert np.all(inner[name] == fresh)
    assert np.all(inner['moments'][0] == 0)


def test_images_have_the_confidence_asked_for(setting, found_by):
    s = setting(batch=6)
    options = {'num_steps': 60, 'search_steps': 3, 'initial_constant': 3.0, 'learning_rate': .05}
    plain, sure = (found_by(cw_l2(**options, confidence=c), s, eps=jnp.inf) for c in (0.0, .5))
    assert not plain.acceptable.any()
    assert not sure.acceptable.any()
    assert margin(s.victim.forward(sure.images, None), s.labels).min() >= .5
    assert np.all(sure.loss <= plain.loss)
    # With little room an image that fools, but not by as much, is better than none.
    near = found_by(cw_l2(**options, confidence=.5), s, eps=-.8 * sure.loss)
    reached = np.asarray(margin(s.victim.forward(near.images, None), s.labels))
    np.testing.assert_array_equal(reached > 0, ~near.acceptable)
    assert np.any((reached > 0) & (reached < .5))


def test_black_and_white_pixels_start_where_they_are_and_move(setting, found_by):
    s = setting(batch=4)
    s.images = jnp.round(s.images)
    s.labels = s.victim.forward(s.images, None).argmax(1)
    attack = cw_l2(num_steps=60, search_steps=3, initial_constant=3.0, learning_rate=.05)
    start = run_module.begin(attack, attack.adapt(s.victim), s.keys, s.images, s.labels, eps=jnp.inf)
    np.testing.assert_array_equal(start.images, s.images)
    assert np.isfinite(start.inner['point']).all()
    found = found_by(attack, s, eps=jnp.inf)
    assert not found.acceptable.any()
    assert found.images.min() >= 0
    assert found.images.max() <= 1


def test_linf_is_projected_ascent_of_the_capped_margin(setting, found_by, norms, same_bits):
    s = setting()
    plain = with_loss(pgd(num_steps=6, relative_step_size=.25), margin)
    ours = found_by(cw_linf(num_steps=6, relative_step_size=.25), s, eps=.1)
    expected = found_by(plain, s, eps=.1)
    same_bits(tuple(ours), tuple(expected))  # margins of this model stay below the confidence
    assert ours.loss.max() > .5
    capped = found_by(cw_linf(num_steps=6, relative_step_size=.25, confidence=.5), s, eps=.1)
    np.testing.assert_array_equal(capped.acceptable, ours.acceptable)
    assert capped.loss.max() == .5
    assert np.all(norms(capped.images - s.images, 'linf') <= .1 + 1e-6)


def test_refusals():
    for options in ({'num_steps': 0}, {'search_steps': 0}):
        with pytest.raises(ValueError, match='search_steps >= 1'):
            cw_l2(**options)
    for options in ({'learning_rate': 0.0}, {'initial_constant': 0.0}, {'confidence': -1.0}):
        with pytest.raises(ValueError, match='confidence >= 0'):
            cw_l2(**options)
    with pytest.raises(ValueError, match='confidence = -1'):
        cw_linf(confidence=-1)
    with pytest.raises(ValueError, match="did you mean 'ball'"):
        cw_linf(start='bal')
