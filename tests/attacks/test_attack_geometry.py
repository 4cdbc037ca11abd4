"""What holds for every attack and norm: ball, box, eps 0, independence of the batch."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import STARTS, pgd, start_noise
from medrobust_jax.attacks.registry import create_attack
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import restarts
from medrobust_jax.core.balls import NORMS

EPS = {'linf': .08, 'l2': .3, 'l1': 1.2}
# The classical attacks; the others have tests of their own.
ATTACKS = ('fgsm', 'ifgsm', 'pgd', 'pgd_adam', 'pgd_margin', 'mi_fgsm', 'di_fgsm', 'ti_fgsm', 'smia', 'cw_linf',
           'noise')
CLIMBING = set(ATTACKS) - {'fgsm', 'noise', 'cw_linf'}  # with steps and a step size


def options(name, norm):
    own = {'fgsm': {'norm': norm}, 'noise': {'norm': norm, 'num_draws': 4}, 'cw_linf': {'num_steps': 4}}
    return own.get(name, {'norm': norm, 'num_steps': 4})


@pytest.mark.parametrize(('name', 'norm'), [(name, 'linf') for name in ATTACKS] + [
    (name, norm) for name in ('pgd', 'mi_fgsm', 'pgd_adam', 'smia') for norm in ('l2', 'l1')])
def test_ball_box_and_progress(name, norm, setting, norms, found_and_last):
    s = setting((5, 5, 1))
    eps = jnp.linspace(0, EPS[norm], 8)  # another radius per example, the first one 0
    attack = create_attack(name, **options(name, norm))
    clean = s.victim.forward(s.images, s.keys)
    result, last = found_and_last(attack, s, eps=eps)
    for images in (result.images, last):
        assert images.dtype == s.images.dtype
        assert np.all(norms(images - s.images, norm) <= np.asarray(eps) * (1 + 1e-5) + 1e-6)
        assert images.min() >= 0
        assert images.max() <= 1
        np.testing.assert_array_equal(images[0], s.images[0])
    assert np.any(result.images[1:] != s.images[1:], axis=(1, 2, 3)).mean() > .5
    # Attacks that climb end higher than they began; of those that draw, the worst draw counts.
    after = result.loss if name == 'noise' else s.victim.loss(s.victim.forward(last, s.keys), s.labels)
    assert after.mean() > s.victim.loss(clean, s.labels).mean()
    # The verdict is that of the image handed back.
    outputs = s.victim.forward(result.images, s.keys)
    np.testing.assert_array_equal(s.victim.acceptable(outputs, s.labels), result.acceptable)
    np.testing.assert_array_equal(result.first_fooled < 0, result.acceptable)


@pytest.mark.parametrize('shape', [(9, 2), (4, 5, 1), (3, 4, 2, 1)])
@pytest.mark.parametrize('make', [pgd, smia], ids=['pgd', 'smia'])
def test_one_to_three_spatial_axes(make, shape, setting, norms, found_by):
    s = setting(shape, batch=3, classes=2)
    result = found_by(make(num_steps=3), s, eps=.1)
    assert result.images.shape == (3, *shape)
    assert np.all(norms(result.images - s.images, 'linf') <= .1 + 1e-6)
    assert np.all(result.loss >= s.victim.loss(s.victim.forward(s.images, s.keys), s.labels) - 1e-6)


@pytest.mark.parametrize('attack', [pgd(num_steps=3), smia(num_steps=3, start='ball', norm='l2'),
                                    restarts(pgd(num_steps=2, norm='l1'), 2)], ids=['pgd', 'smia', 'restarts'])
def test_permuting_the_batch_permutes_the_result_bit_for_bit(attack, setting, same_bits):
    s = setting()
    go = jax.jit(partial(run, attack, s.victim, eps=.2))
    order = np.random.default_rng(5).permutation(8)
    plain = go(s.keys, s.images, s.labels)
    permuted = go(s.keys[order], s.images[order], s.labels[order])
    same_bits(jax.tree.map(lambda a: a[order], plain), permuted)


@pytest.mark.parametrize('batch', [1, 3])
def test_draws_do_not_depend_on_the_batch(batch, setting):
    s = setting()
    first = lambda n: pgd(num_steps=1).init(s.victim, s.keys[:n], s.images[:n], s.labels[:n], None,  # noqa: E731
                                            {'eps': jnp.full(n, .1)}).images
    np.testing.assert_array_equal(first(batch), first(8)[:batch])


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize('start', STARTS)
def test_starts(norm, start, setting, norms):
    s = setting(low=.2, high=.8)
    eps = jnp.array([0, 1e-4, 1e-3, .01, .05, .1, .1, .1])
    noise = start_noise(s.keys, s.images, eps, start=start, norm=norm)
    size = norms(noise, norm)
    assert np.all(size <= np.asarray(eps) * (1 + 1e-4) + 1e-9)
    assert np.all((size[3:] > 0) == (start != 'clean'))


def test_narrow_floats_run(setting, found_by):
    s = setting(batch=4)
    s.images = s.images.astype(jnp.bfloat16)
    assert found_by(smia(num_steps=2), s, eps=.1).images.dtype == jnp.bfloat16


def test_refusals(setting):
    s = setting(batch=2)
    with pytest.raises(ValueError, match='8 keys for 2 images'):
        run(pgd(), s.victim, setting().keys, s.images, s.labels, eps=.1)
    with pytest.raises(TypeError, match='uint8'):
        run(pgd(), s.victim, s.keys, (255 * s.images).astype(jnp.uint8), s.labels, eps=.1)
    for name in CLIMBING:
        with pytest.raises(ValueError, match='num_steps = 0 must be at least 1'):
            create_attack(name, num_steps=0)
        with pytest.raises(ValueError, match='relative_step_size = 0 must be positive'):
            create_attack(name, relative_step_size=0)
        with pytest.raises(ValueError, match="did you mean 'linf'"):
            create_attack(name, norm='inf')
    for make in (pgd, smia):
        with pytest.raises(ValueError, match="unknown start 'cleen'; did you mean 'clean'"):
            make(start='cleen')
    with pytest.raises(ValueError, match="did you mean 'pgd'"):
        create_attack('pdg')
    with pytest.raises(ValueError, match="unknown option of attack 'pgd' 'steps'; did you mean 'num_steps'"):
        create_attack('pgd', steps=3)
    with pytest.raises(ValueError, match="did you mean 'hard'"):
        smia(stabilization='hrad')
    with pytest.raises(ValueError, match='stabilization_weight >= 0'):
        smia(stabilization_weight=-1)
