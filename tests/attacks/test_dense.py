"""SegPGD, CosPGD and SEA: replays in NumPy or from tested parts, ball and box, order, independence."""
from functools import partial, reduce
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.apgd import apgd
from medrobust_jax.attacks.apgd_ascent import momentum_ascent
from medrobust_jax.attacks.dense import climbing, cospgd, segpgd
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.attacks.sea import RADII, SEA_LOSSES, sea, sea_run
from medrobust_jax.attacks.wrappers import restarts, stop_when_fooled, strongest
from medrobust_jax.core import balls, rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses import pixelwise
from medrobust_jax.losses import segmentation as losses

EPS = {'linf': .1, 'l2': .5}


def setting(spatial=(4, 4), *, batch=6, classes=3, dtype=np.float32, low=0., high=1.):
    """A dense victim: a smooth network from all pixels to logits of every pixel, right on most of them."""
    generator = np.random.default_rng(0)
    size = int(np.prod(spatial))
    w1 = 3 * generator.normal(size=(size, 12)).astype(dtype) / np.sqrt(size)
    w2 = generator.normal(size=(12, size * classes)).astype(dtype)

    def forward(images, keys):
        hidden = jnp.tanh((images.reshape(len(images), -1) - .5) @ w1)
        return (hidden @ w2).reshape(len(images), *spatial, classes)

    images = jnp.asarray(generator.uniform(low, high, size=(batch, *spatial, 1)).astype(dtype))
    wrong = generator.uniform(size=(batch, *spatial)) < .2
    labels = (np.asarray(forward(images, None)).argmax(-1) + wrong) % classes

    def acceptable(outputs, targets):
        return losses.best_dice(outputs, targets) > .5

    victim = Victim(forward, losses.mean_cross_entropy, acceptable)
    return SimpleNamespace(victim=victim, images=images, w1=w1, w2=w2, labels=jnp.asarray(labels),
                           keys=rng.example_keys(0, jnp.arange(batch)))


def iterates(attack, s, *, eps, count, start=None):
    """The first `count` images that the attack looks at `[count, B, ...]`, and the last state."""
    victim = attack.adapt(s.victim)

    @jax.jit
    def go(keys, images, labels):
        state = begin(attack, victim, keys, images, labels, eps=eps)
        if start is not None:  # an APGD that starts elsewhere than at the ball's center
            fresh = momentum_ascent(num_steps=1, norm='linf', rho=.5).init(start)
            state = state.replace(images=start, inner=fresh)
        return jax.lax.scan(lambda t, _: (attack.step(victim, images, labels, t), t.images), state, length=count)

    state, seen = go(s.keys, s.images, s.labels)
    return seen, state


def pixel_weights(kind, p, y, t, steps):
    if kind == 'segpgd':
        return np.where(p.argmax(-1) == y.argmax(-1), 1 - t / (2 * steps), t / (2 * steps))
    return (p * y).sum(-1) / np.linalg.norm(p, axis=-1)


@pytest.mark.parametrize('kind', ['segpgd', 'cospgd'])
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_iterates_are_those_of_the_equations(kind, norm):
    steps, eps = 5, EPS[norm]
    with jax.enable_x64(True):
        s = setting(dtype=np.float64)
        attack = {'segpgd': segpgd, 'cospgd': cospgd}[kind](num_steps=steps, norm=norm, start='clean')
        seen, state = iterates(attack, s, eps=eps, count=steps)
        clean = np.asarray(s.images).reshape(6, -1)
        y = np.eye(3)[np.asarray(s.labels).reshape(6, -1)]
        x = clean
        for t in range(steps):
            np.testing.assert_allclose(np.asarray(seen[t]).reshape(6, -1), x, atol=1e-9)
            hidden = np.tanh((x - .5) @ s.w1)
            z = (hidden @ s.w2).reshape(6, -1, 3)
            p = np.exp(z - z.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            d = pixel_weights(kind, p, y, t, steps)[..., None] * (p - y) / 16
            g = (d.reshape(6, -1) @ s.w2.T * (1 - hidden**2)) @ s.w1.T
            g = np.sign(g) if norm == 'linf' else g / np.linalg.norm(g, axis=1, keepdims=True)
            delta = x + 2.5 / steps * eps * g - clean
            shrink = np.minimum(1, eps / np.linalg.norm(delta, axis=1, keepdims=True))
            x = np.clip(clean + (np.clip(delta, -eps, eps) if norm == 'linf' else delta * shrink), 0, 1)
        # Recorded is the victim's own loss, at the image that is kept.
        values = s.victim.loss(s.victim.forward(state.best_images, None), s.labels)
        np.testing.assert_allclose(state.best_loss, values, rtol=1e-6)


ATTACKS = {'segpgd': partial(segpgd, num_steps=6), 'cospgd': partial(cospgd, num_steps=6),
           **{f'sea-{name}': partial(sea_run, name, num_steps=12) for name in SEA_LOSSES}}


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('norm', ['linf', 'l2'])
def test_ball_box_and_progress(name, norm, norms):
    s, attack = setting(batch=8), ATTACKS[name](norm=norm)
    eps = jnp.linspace(0, EPS[norm], 8)
    result = jax.jit(partial(run, attack, s.victim, eps=eps))(s.keys, s.images, s.labels)
    assert np.all(norms(result.images - s.images, norm) <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
    assert result.images.min() >= 0
    assert result.images.max() <= 1
    np.testing.assert_array_equal(result.images[0], s.images[0])
    before, after = (s.victim.forward(x, None) for x in (s.images, result.images))
    worse = pixelwise.pixel_error(after, s.labels) - pixelwise.pixel_error(before, s.labels)
    assert worse[1:].mean() > .05
    np.testing.assert_array_equal(s.victim.acceptable(after, s.labels), result.acceptable)
    np.testing.assert_array_equal(result.first_fooled < 0, result.acceptable)
    recorded = attack.adapt(s.victim).loss(after, s.labels)
    np.testing.assert_allclose(result.loss, recorded, atol=1e-5)


@pytest.mark.parametrize('name', ['segpgd', 'sea-segpgd'])
def test_examples_at_other_steps_and_places_are_as_alone(name, as_alone):
    # Six ahead of four: in the first, second and third phase of SEA at once.
    as_alone(ATTACKS[name](), setting(), head_start=6, steps=4)


@pytest.mark.parametrize('loss', ['segpgd', 'normalized_logit'])
def test_seas_phases_are_those_of_apgd(loss):
    """Each phase by the tested APGD, started from the image of lowest pixel accuracy of the one before."""
    eps, moves = .1, [6, 6, 8]
    with jax.enable_x64(True):
        s = setting(dtype=np.float64)
        seen, state = iterates(sea_run(loss, num_steps=20), s, eps=eps, count=23)
        start, at = seen[0], 0
        for phase, (count, radius) in enumerate(zip(moves, RADII, strict=True)):
            attack = climbing(apgd(num_steps=count, loss='task', start='clean'), lambda z, y, look, n=count:
                              SEA_LOSSES[loss](z, y, look / (2 * n)))
            expected, _ = iterates(attack, s, eps=radius * eps, count=count + 1, start=start)
            np.testing.assert_allclose(seen[at:at + count + 1], expected, atol=1e-9)
            error = np.stack([pixelwise.pixel_error(s.victim.forward(x, None), s.labels) for x in expected])
            kept = expected[error.argmax(0), np.arange(6)]
            if phase < 2:
                inner = balls.project(kept - s.images, jnp.full(6, RADII[phase + 1] * eps), norm='linf')
                start = balls.to_box(s.images + inner)
            at += count + 1
        np.testing.assert_allclose(state.best_loss, error.max(0), atol=1e-6)
        assert state.inner['ascent']['step_ratio'].min() < 2


def test_looks_outside_the_ball_do_not_count(norms):
    s = setting()
    attack = sea_run('masked_ce', num_steps=12)
    seen, early = iterates(attack, s, eps=.1, count=10)  # the two larger phases
    assert norms(seen[4] - s.images, 'linf').max() > .15
    assert early.acceptable.all()
    np.testing.assert_array_equal(early.best_images, s.images)
    assert (early.best_loss == -jnp.inf).all()


def test_the_ensemble_is_no_weaker_than_its_runs_and_beats_pgd():
    s = setting((6, 6), batch=12)
    go = jax.jit(lambda: [run(attack, s.victim, s.keys, s.images, s.labels, eps=.05)
                          for attack in sea(num_steps=40).values()])
    found = go()
    worst = reduce(strongest, found)
    assert all(jnp.all(worst.loss >= each.loss) | jnp.any(worst.acceptable != each.acceptable) for each in found)
    assert worst.acceptable.sum() <= min(each.acceptable.sum() for each in found)
    plain = jax.jit(partial(run, pgd(num_steps=40), s.victim, eps=.05))(s.keys, s.images, s.labels)
    error = pixelwise.pixel_error(s.victim.forward(plain.images, None), s.labels)
    assert worst.loss.mean() > error.mean()


def test_wrappers_volumes_and_classification():
    s = setting((3, 4, 2), batch=3)
    for attack in (restarts(segpgd(num_steps=2), 2), stop_when_fooled(sea_run('jensen_shannon', num_steps=3))):
        result = jax.jit(partial(run, attack, s.victim, eps=.1))(s.keys, s.images, s.labels)
        assert result.images.shape == (3, 3, 4, 2, 1)
    # In every restart t begins anew: the second equals a first one with the other key.
    two = jax.jit(partial(run, restarts(segpgd(num_steps=2), 2), s.victim, eps=.1))(s.keys, s.images, s.labels)
    ones = [jax.jit(partial(run, segpgd(num_steps=2), s.victim, eps=.1))(keys, s.images, s.labels)
            for keys in (s.keys, rng.fold(s.keys, 1))]
    np.testing.assert_array_equal(two.images, strongest(*ones).images)
    # A restart of SEA draws another start.
    knobs = [{'eps': jnp.full(3, .1), 'restart': jnp.full(3, r)} for r in (0, 1)]
    starts = [sea_run('segpgd').init(s.victim, s.keys, s.images, s.labels, None, k).images for k in knobs]
    assert (starts[0] != starts[1]).any()


def test_refusals():
    with pytest.raises(ValueError, match="did you mean 'masked_ce'"):
        sea_run('maskd_ce')
    with pytest.raises(ValueError, match="unknown norm of SEA 'l1'"):
        sea_run('segpgd', norm='l1')
    with pytest.raises(ValueError, match='num_steps >= 3'):
        sea_run('segpgd', num_steps=2)
    with pytest.raises(ValueError, match='num_steps = 0'):
        segpgd(num_steps=0)
    assert [attack.num_steps for attack in sea().values()] == [302] * 4
