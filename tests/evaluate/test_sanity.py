"""Every check fires on the fault it is for, and is silent on a healthy model."""
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import fgsm, pgd
from medrobust_jax.core import rng
from medrobust_jax.evaluate import sanity
from medrobust_jax.evaluate.suite import Threat

RADII = .005 + .01 * np.arange(12)
FGSM, CLIMB = fgsm(), {norm: pgd(num_steps=10, norm=norm) for norm in ('linf', 'l2', 'l1')}


@pytest.fixture
def system(planted):
    return planted(RADII)


@pytest.fixture
def gradient_warnings(system, layout):
    def check(forward):
        return sanity.check_gradients(forward, system.variables, system.task, system.examples, layout=layout,
                                      seed=0)
    return check


def test_a_healthy_model_raises_nothing(system, grid, layout, gradient_warnings):
    model = (system.forward, system.variables, system.task)
    points = [grid(system, (.02, .05), attack=attack) for attack in (FGSM, CLIMB['linf'])]
    threat, drawn = Threat('pgd', CLIMB['linf']), {'layout': layout, 'seed': 0}
    assert gradient_warnings(system.forward) == ()
    assert sanity.check_randomness(system.forward, system.variables, system.examples, **drawn) == ()
    assert [sanity.check_point(point, system.examples, norm='linf') for point in points[1]] == [(), ()]
    assert sanity.check_floor(*model, threat, system.examples, **drawn) == ()
    assert sanity.check_order(*points, weak_name='fgsm', strong_name='pgd') == ()


@pytest.mark.parametrize('fault', ['rounded', 'saturated'])
def test_zero_gradients(system, gradient_warnings, fault):
    def forward(weights, images, keys):
        if fault == 'rounded':
            return system.forward(weights, jnp.round(images * 8) / 8, keys)
        return jnp.clip(1e6 * system.forward(weights, images, keys), -1, 1)

    warning, = gradient_warnings(forward)
    assert 'of 12 input gradients are exactly zero' in warning


def test_gradients_that_are_not_finite(system, gradient_warnings):
    """sqrt has an infinite slope at 0; three images hold a black pixel."""
    system.examples.images[:3, 0, 0, 0] = 0
    warning, = gradient_warnings(lambda weights, images, keys: system.forward(weights, jnp.sqrt(images), keys))
    assert warning == '3 of 12 input gradients are not finite'


def test_a_randomized_model(system, grid, layout):
    healthy = system.forward

    def forward(weights, images, keys):
        return healthy(weights, images + .05 * rng.normal(keys, images.shape[1:]), keys)

    warning, = sanity.check_randomness(forward, system.variables, system.examples, layout=layout, seed=0)
    assert 'the model is randomized' in warning
    system.forward = forward
    point, = grid(system, (.05,))
    assert any('verdicts change when' in each for each in sanity.check_point(point, system.examples, norm='linf'))


def changed(point, rows, value):
    images = point.result.images.copy()
    images[rows, 0, 0, 0] = value
    return point._replace(result=point.result._replace(images=images))


@pytest.mark.parametrize(('value', 'sentences'), [
    (-.01, ('2 adversarial images leave [0, 1] or hold NaN', '2 adversarial images leave the linf ball of 0.05')),
    (1.5, ('2 adversarial images leave [0, 1] or hold NaN', '2 adversarial images leave the linf ball of 0.05')),
    (np.nan, ('2 adversarial images leave [0, 1] or hold NaN',)),
    (.99, ('2 adversarial images leave the linf ball of 0.05',)),
])
def test_images_outside_the_box_or_the_ball(system, grid, value, sentences):
    point, = grid(system, (.05,))
    found = sanity.check_point(changed(point, [2, 7], value), system.examples, norm='linf')
    assert [each[:len(sentence)] for each, sentence in zip(found, sentences, strict=True)] == list(sentences)


@pytest.mark.parametrize(('norm', 'excess', 'fires'), [
    ('linf', 1e-7, False), ('linf', 1e-4, True), ('l2', 1e-3, True), ('l1', 1e-3, True)])
def test_the_ball_is_that_of_the_norm_up_to_rounding(planted, grid, norm, excess, fires):
    system = planted(RADII, norm)
    point, = grid(system, (.05,), attack=CLIMB[norm], norm=norm)
    assert sanity.check_point(point, system.examples, norm=norm) == ()
    images = system.examples.images.copy()
    images[4, 1, 1, 0] += .05 + excess
    point = point._replace(result=point.result._replace(images=images))
    assert bool(sanity.check_point(point, system.examples, norm=norm)) == fires


def test_verdicts_that_change_when_scored_again_are_listed(system, grid):
    point, = grid(system, (.05,))
    rescored = point.rescored.copy()
    rescored[[3, 9]] ^= True
    examples = system.examples._replace(index=np.arange(500, 512))
    warning, = sanity.check_point(point._replace(rescored=rescored), examples, norm='linf')
    assert warning.startswith('2 verdicts change when')
    assert 'rows 503, 509' in warning


def test_an_attack_that_does_not_work_even_at_a_huge_eps(system, layout):
    model = (system.forward, system.variables, system.task)
    idle = pgd(num_steps=3, start='clean', relative_step_size=1e-6)
    warning, = sanity.check_floor(*model, Threat('idle', idle), system.examples, layout=layout, seed=0)
    assert warning.startswith('idle at eps 0.5 leaves 100% of 12 images standing')
    (warning,) = sanity.check_floor(*model, Threat('idle', idle, 'l2'), system.examples, layout=layout, seed=0)
    assert warning.startswith('idle at eps 2 leaves 100%')  # .5 sqrt(16 pixels)
    for threat in (Threat('single step', FGSM), Threat('no norm', idle, 'severity'),
                   Threat('blind', idle, options={'attack': 'square'})):
        assert sanity.check_floor(*model, threat, system.examples, layout=layout, seed=0) == ()


def test_a_weak_attack_that_beats_a_strong_one(system, grid):
    points = grid(system, (.02, .06))
    none = [point._replace(result=point.result._replace(acceptable=np.ones(12, bool))) for point in points]
    warning, = sanity.check_order(points, none, weak_name='fgsm', strong_name='pgd')
    assert warning.startswith('fgsm breaks 6 more images than pgd at eps 0.06'), 'two images at .02 may be chance'
    assert sanity.check_order(none, points, weak_name='fgsm', strong_name='pgd') == ()
