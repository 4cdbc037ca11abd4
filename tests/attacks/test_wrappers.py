"""Attacks made from attacks: never weaker, the right way round, the right average."""
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.pgd import fgsm, pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import (
    averaged_over,
    best_of,
    restarts,
    stop_when_fooled,
    strongest,
    targeted,
    with_loss,
)
from medrobust_jax.core import rng
from medrobust_jax.core.transforms import gaussian_noise, identity, random_resize
from medrobust_jax.core.types import AttackResult
from medrobust_jax.losses.classification import margin


def test_more_restarts_never_weaken_and_the_first_is_the_plain_attack(setting, found_by, same_bits):
    s = setting(batch=32, seed=2)
    results = [found_by(restarts(pgd(num_steps=2), n), s, eps=.06) for n in (1, 3)]
    plain = found_by(pgd(num_steps=2), s, eps=.06)
    np.testing.assert_allclose(results[0].images, plain.images, atol=1e-7)
    same_bits(results[0].first_fooled, plain.first_fooled)
    for weak, strong in itertools.pairwise(results):
        assert np.all(np.asarray(strong.acceptable) <= np.asarray(weak.acceptable))
        both = np.asarray(strong.acceptable == weak.acceptable)
        assert np.all(np.asarray(strong.loss)[both] >= np.asarray(weak.loss)[both] - 1e-6)
    assert np.any(results[1].loss > results[0].loss + 1e-4)
    fooled_first = np.asarray(plain.first_fooled) >= 0
    same_bits(results[1].first_fooled[fooled_first], plain.first_fooled[fooled_first])


def test_restarts_are_runs_from_their_own_keys(setting, found_by):
    s = setting()
    many = found_by(restarts(pgd(num_steps=3), 3), s, eps=.1)
    keys, runs = s.keys, []
    for restart in range(3):
        s.keys = rng.fold(keys, restart) if restart else keys
        runs.append(found_by(pgd(num_steps=3), s, eps=.1))
    best = strongest(strongest(runs[0], runs[1]), runs[2])
    np.testing.assert_allclose(many.loss, best.loss, rtol=1e-5)
    np.testing.assert_array_equal(many.acceptable, best.acceptable)
    np.testing.assert_allclose(many.images, best.images, atol=1e-6)


def test_keys_of_passes_and_restarts_never_meet():
    keys = rng.example_keys(0, jnp.arange(3))
    data = []
    for restart in range(6):
        own = rng.fold(keys, restart) if restart else keys
        state = looks.start_state(own, jnp.zeros((3, 2, 1)), {})
        data += [own] + [looks.pass_keys(state.replace(step=jnp.full(3, t))) for t in range(6)]
    rows = np.concatenate([np.asarray(jax.random.key_data(k)) for k in data])
    assert len(np.unique(rows, axis=0)) == len(rows)


@pytest.mark.parametrize('attack', [smia(num_steps=4), restarts(pgd(num_steps=2), 2)], ids=['smia', 'restarts'])
def test_stopping_early_changes_no_verdict(attack, setting, found_and_last):
    s = setting(batch=16)
    full, _ = found_and_last(attack, s, eps=.1)
    early, last = found_and_last(stop_when_fooled(attack), s, eps=.1)
    np.testing.assert_array_equal(early.acceptable, full.acceptable)
    np.testing.assert_array_equal(early.first_fooled, full.first_fooled)
    fooled = ~np.asarray(early.acceptable)
    assert 0 < fooled.mean() < 1
    # What stopped is left at the image that fooled the model.
    np.testing.assert_array_equal(np.asarray(last)[fooled], np.asarray(early.images)[fooled])


def test_stopping_early_saves_passes(setting):
    s = setting()
    s.labels = (s.victim.forward(s.images, None).argmax(-1) + 1) % 3  # all wrong from the start
    count = []

    def forward(images, keys):
        jax.debug.callback(lambda: count.append(1))
        return s.victim.forward(images, keys)

    victim = s.victim._replace(forward=forward)
    run(stop_when_fooled(pgd(num_steps=50)), victim, s.keys, s.images, s.labels, eps=.1)
    jax.effects_barrier()
    assert len(count) == 2  # one look, and the last one


@pytest.mark.parametrize('wrap', [lambda a: targeted(a), lambda a: targeted(with_loss(a, margin)),
                                  lambda a: with_loss(targeted(a), margin),
                                  lambda a: targeted(averaged_over(a, identity, num_samples=2)),
                                  lambda a: averaged_over(targeted(a), identity, num_samples=2),
                                  lambda a: restarts(targeted(a), 2)],
                         ids=['plain', 'margin inside', 'margin outside', 'eot inside', 'eot outside', 'restarts'])
def test_targeted_reaches_the_wanted_class_in_any_order_of_wrapping(wrap, setting, found_by):
    s = setting()
    wanted = (s.victim.forward(s.images, None).argmax(-1) + 1) % 3
    s.labels = wanted
    found = found_by(wrap(pgd(num_steps=10)), s, eps=.6)
    assert not found.acceptable.any()
    np.testing.assert_array_equal(s.victim.forward(found.images, None).argmax(-1), wanted)


def test_targeted_is_acceptable_until_the_target_is_met(setting, found_by):
    s = setting()
    predicted = s.victim.forward(s.images, None).argmax(-1)
    s.labels = jnp.where(jnp.arange(8) < 4, predicted, (predicted + 1) % 3)
    found = found_by(targeted(pgd(num_steps=1, start='clean')), s, eps=0.0)
    np.testing.assert_array_equal(found.acceptable, jnp.arange(8) >= 4)


def test_another_loss_keeps_the_criterion(setting, found_by):
    s = setting()
    found = found_by(with_loss(fgsm(), lambda z, y: -margin(z, y)), s, eps=.05)
    np.testing.assert_allclose(found.loss, -margin(s.victim.forward(found.images, None), s.labels), atol=1e-5)
    # It climbs the wrong way: the right answers stay.
    right = s.victim.forward(s.images, None).argmax(-1) == s.labels
    assert found.acceptable[right].all()


@pytest.mark.parametrize('num_samples', [1, 4])
def test_average_over_copies_is_the_plain_gradient(num_samples, setting, last_of):
    s = setting()
    plain = pgd(num_steps=3, norm='l2')
    averaged = averaged_over(plain, identity, num_samples=num_samples)
    np.testing.assert_allclose(last_of(averaged, s, eps=.3), last_of(plain, s, eps=.3), atol=1e-5)


def test_average_helps_against_a_randomized_model(setting, last_of):
    s = setting((4, 4, 1), batch=64, classes=2, hidden=0)
    forward = s.victim.forward

    def noisy(images, keys):  # large noise on a few pixels hides the gradient of a saturated output
        shift = rng.normal(keys, images.shape[1:], images.dtype)
        return jnp.tanh(4 * forward(jnp.where(shift > 0, images, 1 - images), keys))

    s.victim = s.victim._replace(forward=noisy)

    def expected_loss(images):
        keys = rng.example_keys(99, jnp.arange(64))
        losses = [s.victim.loss(noisy(images, rng.fold(keys, i)), s.labels) for i in range(30)]
        return float(np.mean(losses))

    # From a clean start and judged on fresh draws, so that luck in one draw does not count.
    plain, averaged = (last_of(attack, s, eps=.2) for attack in (
        pgd(num_steps=8, start='clean'), averaged_over(pgd(num_steps=8, start='clean'), identity, num_samples=16)))
    assert expected_loss(averaged) > expected_loss(plain) + .01
    assert expected_loss(plain) > expected_loss(s.images) - .01


def test_a_majority_is_not_luck(setting, found_by):
    """A model that is wrong in a third of its draws falls in one of many single looks, and to no majority."""
    s = setting(batch=32)
    s.labels = s.victim.forward(s.images, None).argmax(-1)

    def unsteady(images, keys):
        wrong = rng.uniform(keys, ()) < 1 / 3
        return jnp.where(wrong[:, None], -1, 1) * jax.nn.one_hot(s.labels.repeat(len(images) // 32), 3)

    s.victim = s.victim._replace(forward=unsteady)
    attack = pgd(num_steps=9)
    single, voted = (found_by(averaged_over(attack, identity, num_samples=41, majority=m), s, eps=.1)
                     for m in (False, True))
    assert single.acceptable.mean() < .2
    assert voted.acceptable.mean() > .8
    outputs = jax.nn.one_hot(jnp.array([0, 0, 1, 1]), 3)[None]  # of four samples, of one image of class 0
    four, three = (averaged_over(attack, identity, num_samples=n, majority=True).adapt(s.victim) for n in (4, 3))
    assert not four.acceptable((outputs[:, 0], outputs), jnp.array([0])), 'half is not most'
    assert three.acceptable((outputs[:, 2], outputs[:, :3]), jnp.array([0]))


def test_samples_and_steps_have_their_own_draws(setting):
    s = setting(batch=4)
    seen = []

    def transform(keys, images):
        seen.append(np.asarray(jax.random.key_data(keys)))
        return images

    victim = averaged_over(pgd(num_steps=1), transform, num_samples=3).adapt(s.victim)
    for step in range(2):
        victim.forward(s.images, rng.fold(s.keys, step))
    rows = np.concatenate(seen)
    assert len(rows) == 2 * 4 * 3
    assert len(np.unique(rows, axis=0)) == len(rows)


def test_strongest_prefers_fooled_then_loss():
    make = lambda loss, ok: AttackResult(jnp.full((5, 2, 1), loss[0]), jnp.array(loss, jnp.float32),  # noqa: E731
                                         jnp.array(ok), jnp.arange(5) * (1 if loss[0] else 2))
    a = make([0, 5, 1, 1, np.nan], [True, True, False, False, True])
    b = make([1, 0, 9, 3, 1], [True, False, True, False, True])
    best = strongest(a, b)
    np.testing.assert_array_equal(best.loss[:4], [1, 0, 1, 3])
    np.testing.assert_array_equal(best.acceptable, [True, False, False, False, True])


def test_best_of_is_at_least_as_strong_as_each(setting):
    s = setting(batch=16)
    runs = [partial(run, a, s.victim) for a in (fgsm(), pgd(num_steps=3), smia(num_steps=3))]
    args = (s.keys, s.images, s.labels)
    together = jax.jit(partial(best_of(runs), eps=.1))(*args)
    for one in runs:
        alone = jax.jit(partial(one, eps=.1))(*args)
        assert np.all(np.asarray(together.acceptable) <= np.asarray(alone.acceptable))
        same = np.asarray(together.acceptable == alone.acceptable)
        assert np.all(np.asarray(together.loss)[same] >= np.asarray(alone.loss)[same] - 1e-6)


def test_refusals():
    for make in (lambda: restarts(pgd(), 0), lambda: averaged_over(pgd(), identity, num_samples=0),
                 lambda: best_of([]), lambda: random_resize(probability=2.0), lambda: random_resize(smallest=0.0)):
        with pytest.raises(ValueError, match=r'at least|needs'):
            make()


def test_transforms():
    images = jnp.full((200, 12, 12, 1), .5)
    keys = rng.example_keys(0, jnp.arange(200))
    np.testing.assert_array_equal(random_resize(smallest=1.0)(keys, images), images)
    shrunk = np.asarray(random_resize(smallest=.5)(keys, images))
    assert shrunk.shape == images.shape
    assert shrunk.min() >= 0
    assert shrunk.max() <= .5 + 1e-6
    assert (abs(shrunk - .5) > 1e-3).any(axis=(1, 2, 3)).mean() > .9
    halved = np.asarray(random_resize(probability=.5, smallest=.5)(keys, images))
    assert .35 < (abs(halved - .5) > 1e-3).any(axis=(1, 2, 3)).mean() < .65
    noise = np.asarray(gaussian_noise(sigma=.1)(keys, images)) - .5
    assert noise.std() == pytest.approx(.1, rel=.05)


def test_an_attack_that_ends_by_itself_begins_again(setting, found_by):
    """DeepFool is done once it has fooled; every restart is begun all the same."""
    s, starts = setting(classes=3, hidden=8), []

    def counted(victim, keys, images, targets, clean_outputs, knobs):
        jax.debug.callback(lambda restart: starts.append(int(restart.max())), knobs['restart'])
        return deepfool(num_steps=10).init(victim, keys, images, targets, clean_outputs, knobs)

    found_by(restarts(deepfool(num_steps=10)._replace(init=counted), 3), s, eps=np.inf)
    jax.effects_barrier()
    assert {0, 1, 2} == set(starts)
