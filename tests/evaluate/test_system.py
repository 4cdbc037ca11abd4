"""A classifier with a detector under attack: planted cases with known answers.

Images have two pixels. The classifier adds both and compares with 1; labels follow it.
"""
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Examples, Threat
from medrobust_jax.evaluate.system import System, aware_attack, blind_attack, guides_for, outputs_of
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks import system as system_tasks
from medrobust_jax.tasks.classification import classification

TASK = classification(2)
SETTINGS = {'layout': make_layout(data_mesh(), width=4, chunk=8), 'seed': 0}
THREAT = Threat('pgd10', pgd(num_steps=10))
# Distances of .1 from the boundary, split evenly between the pixels: eps .1 is what fools by both, .2 by one.
IMAGES = np.asarray([[.45, .45], [.55, .55], [.47, .43], [.52, .58]], np.float32).reshape(4, 1, 2, 1)
LABELS = np.asarray([0, 1, 0, 1], np.int32)
EXAMPLES = Examples(IMAGES, LABELS, np.arange(4))


def system_of(score, tau):
    def forward(variables, images, keys):
        pixels = images.reshape(len(images), 2)
        total = 40 * (pixels.sum(axis=1) - 1)
        return {'logits': jnp.stack([-total, total], axis=1), 'features': pixels, 'score': score(pixels)}

    return System(forward, (), TASK, tau, spread=.05)


def shares(found):
    return [(f.outcomes.wrong.mean(), f.outcomes.reached.mean()) for f in found]


def test_a_detector_that_watches_one_pixel_stops_who_does_not_know_it_and_nobody_else():
    """The blind attack moves both pixels; who knows the detector moves the other one."""
    system = system_of(lambda pixels: -jnp.abs(pixels[:, 1] - .5), tau=-.08)
    assert outputs_of(system, EXAMPLES, **SETTINGS)['score'].min() >= -.08, 'clean images are accepted'
    blind = blind_attack(system, THREAT, EXAMPLES, (.04, .25), **SETTINGS)
    assert shares(blind) == [(0, 0), (1, 0)]
    aware = aware_attack(system, EXAMPLES, (.04, .25), num_steps=20, **SETTINGS)
    assert shares(aware) == [(0, 0), (1, 1)]
    largest = np.abs(aware[1].images - IMAGES).max()
    assert .05 < largest <= .25 + 1e-6


def test_gamma_is_searched_where_the_first_will_not_do():
    """Scores too flat for their unit are outweighed by the loss at first; steep ones outweigh it."""
    def attacked(steepness, num_rounds):
        system = system_of(lambda pixels: -steepness * jnp.abs(pixels[:, 1] - .5), tau=-.08 * steepness)
        return shares(aware_attack(system, EXAMPLES, (.25,), num_steps=20, num_rounds=num_rounds, **SETTINGS))

    assert attacked(.01, 1)[0][1] < 1
    assert attacked(.01, 8) == [(1, 1)]
    assert attacked(50., 8) == [(1, 1)]


def test_a_detector_that_no_wrong_image_passes_is_not_broken():
    """Clean images lie far from the boundary, accepted is what does, and the ball ends short of the other side."""
    far = EXAMPLES._replace(images=np.repeat([[.25], [.75], [.25], [.75]], 2, axis=1).reshape(4, 1, 2, 1)
                            .astype(np.float32))
    system = system_of(lambda pixels: jnp.abs(pixels.sum(axis=1) - 1), tau=.4)
    pixels = far.images.reshape(4, 2)
    guides = guides_for(pixels, LABELS, {'features': pixels, 'prediction': LABELS})
    aware = aware_attack(system, far, (.35, .5), guides=guides, num_steps=20, num_rounds=4, **SETTINGS)
    assert shares(aware) == [(1, 0), (1, 1)]


def test_a_detector_that_accepts_all_leaves_the_classifiers_risk():
    system = system_of(lambda pixels: 0 * pixels[:, 0], tau=-np.inf)
    blind = blind_attack(system, THREAT, EXAMPLES, (.04, .15), **SETTINGS)
    assert shares(blind) == [(0, 0), (1, 1)]
    aware = aware_attack(system._replace(tau=-1.), EXAMPLES, (.04, .15), num_steps=10, num_rounds=1, **SETTINGS)
    assert shares(aware) == [(0, 0), (1, 1)]


def test_features_are_taken_on_where_the_score_has_no_gradient():
    """A step function accepts what lies near clean images; the joint objective sees no slope, the guides do."""
    clean = IMAGES.reshape(4, 2)

    def score(pixels):
        distance = jnp.abs(pixels[:, None] - clean[None]).max(axis=-1).min(axis=1)
        return jnp.where(distance < .02, 1., 0.)

    system = system_of(score, tau=.5)
    guides = guides_for(clean, LABELS, {'features': clean, 'prediction': LABELS}, count=2)
    assert guides.shape == (4, 2, 2)
    without = aware_attack(system, EXAMPLES, (.25,), num_steps=20, num_rounds=2, **SETTINGS)
    aware = aware_attack(system, EXAMPLES, (.25,), guides=guides, num_steps=30, num_rounds=2, **SETTINGS)
    assert without[0].outcomes.reached.mean() < 1
    assert aware[0].outcomes.reached.mean() == 1


def test_guides_are_the_nearest_of_other_classes():
    features = np.asarray([[0., 0.], [1., 1.]])
    known = {'features': np.asarray([[.1, 0.], [.9, 1.], [.5, .5], [2., 2.]]),
             'prediction': np.asarray([0, 1, 1, 1])}
    guides = guides_for(features, np.asarray([0, 1]), known, count=2)
    np.testing.assert_allclose(guides[0], [[.5, .5], [.9, 1.]], atol=1e-6)
    np.testing.assert_allclose(guides[1], [[.1, 0.], [.1, 0.]], atol=1e-6)
    with pytest.raises(ValueError, match='no accepted clean image is predicted as another class than 1'):
        guides_for(features, np.asarray([1, 1]), {'features': features, 'prediction': np.asarray([1, 1])})


def test_joint_loss_by_hand():
    task = system_tasks.joint(TASK, tau=-1., spread=2., slack=.5)
    outputs = {'logits': jnp.zeros((2, 2)), 'features': jnp.zeros((2, 1)), 'score': jnp.asarray([-3., 5.])}
    targets = {'label': jnp.asarray([0, 1]), 'gamma': jnp.asarray([10., 10.])}
    np.testing.assert_allclose(task.loss(outputs, targets), [np.log(2) - 10 * 3 / 2, np.log(2)], rtol=1e-6)
    np.testing.assert_array_equal(task.acceptable(outputs, targets), [True, False])
    gone = {**outputs, 'score': jnp.full(2, jnp.nan)}
    assert task.acceptable(gone, targets).all(), 'a score that is not a number is no acceptance'
    with pytest.raises(ValueError, match='spread > 0'):
        system_tasks.joint(TASK, tau=0., spread=0.)


def test_the_image_that_is_kept_is_the_one_that_was_wrong():
    """Guides lead to images that are right and accepted; the wrong ones that were rejected stay the findings."""
    system = system_of(lambda pixels: -jnp.abs(pixels.sum(axis=1) - .9), tau=-.01)
    lower = EXAMPLES._replace(images=IMAGES[::2], targets=LABELS[::2], index=np.arange(2))
    guides = np.repeat(IMAGES[::2].reshape(2, 1, 2), 1, axis=1)  # the images themselves: right and accepted
    (found,) = aware_attack(system, lower, (.25,), guides=guides, num_steps=10, num_rounds=2, **SETTINGS)
    assert found.outcomes.wrong.all()
    assert not found.outcomes.reached.any()
    assert (found.score < system.tau).all(), 'what is wrong and did not reach the clinic was rejected'


def test_settings_are_checked():
    system = system_of(lambda pixels: pixels[:, 0], tau=0.)
    with pytest.raises(ValueError, match='num_rounds = 0'):
        aware_attack(system, EXAMPLES, (.1,), num_rounds=0, **SETTINGS)
