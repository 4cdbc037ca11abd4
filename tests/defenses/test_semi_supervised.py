"""SSAT, RST and UAT: limits, losses by hand, whose pseudo-labels they are, where gradients flow."""
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import fgsm, pgd
from medrobust_jax.core import rng
from medrobust_jax.core.masking import masked_mean
from medrobust_jax.defenses.pseudo_labels import pseudo_targets, unlabeled_batch
from medrobust_jax.defenses.radius import constant, uniform_per_batch
from medrobust_jax.defenses.robust_self_training import _joined, robust_self_training
from medrobust_jax.defenses.ssat import ssat
from medrobust_jax.defenses.standard import natural
from medrobust_jax.defenses.trades import trades
from medrobust_jax.defenses.unsupervised_at import unsupervised_at
from medrobust_jax.tasks.classification import classification
from medrobust_jax.tasks.detection import detection
from medrobust_jax.tasks.ordinal import ordinal
from medrobust_jax.tasks.shape import shape
from tests.defenses.test_defense_family import (
    KEYS,
    PARAMS,
    SIZE,
    STATE,
    STEP,
    assert_same,
    forward,
    helper,
    make_batch,
)

TASK, RADIUS = classification(3), constant(.1)
ATTACK, GAUSSIAN = pgd(num_steps=2), pgd(num_steps=2, start='gaussian')
UNLABELED = jnp.asarray(np.random.default_rng(5).uniform(size=(SIZE, 4, 4, 1)), jnp.float32)
BATCH = {**make_batch(), 'unlabeled': UNLABELED}


def trained(defense, batch=BATCH, state=(), step=STEP):
    """Losses `[B]`, gradient and model state of a step, and what was crafted for it."""
    @jax.jit
    def both():
        crafted = defense.craft(forward, PARAMS, STATE, state, batch, step, KEYS)

        def mean_loss(params):
            losses, rest = defense.loss(forward, params, STATE, state, batch, crafted, step, KEYS)
            return masked_mean(losses, batch['mask']), (losses, rest[0])
        return jax.grad(mean_loss, has_aux=True)(PARAMS), crafted
    return both()


def right(images):
    """A helper that knows the labels of the labeled images."""
    return 9.0 * jax.nn.one_hot(BATCH['label'], 3)


AS_LABELED = {**BATCH, 'unlabeled': BATCH['image']}
ALONE = make_batch()
LIMITS = {
    'ssat without unlabeled images': (partial(ssat, TASK, fgsm(), radius=RADIUS), natural(TASK), ALONE),
    'ssat of weight 0': (partial(ssat, TASK, fgsm(), radius=RADIUS, weight=0.0), natural(TASK), BATCH),
    'rst without unlabeled images': (partial(robust_self_training, TASK, GAUSSIAN, helper, radius=RADIUS),
                                     trades(TASK, GAUSSIAN, radius=RADIUS), ALONE),
    'rst of share 0': (partial(robust_self_training, TASK, GAUSSIAN, helper, radius=RADIUS, pseudo_share=0.0),
                       trades(TASK, GAUSSIAN, radius=RADIUS), BATCH),
    'rst on its labeled images': (
        partial(robust_self_training, TASK, GAUSSIAN, right, radius=constant(0.0), pseudo_share=.3),
        trades(TASK, GAUSSIAN, radius=constant(0.0)), AS_LABELED),
    'uat without unlabeled images': (partial(unsupervised_at, TASK, ATTACK, radius=RADIUS), natural(TASK), ALONE),
    'uat of weight 0': (partial(unsupervised_at, TASK, ATTACK, radius=RADIUS, weight=0.0), natural(TASK), BATCH),
}


@pytest.mark.parametrize(('make', 'limit', 'batch'), LIMITS.values(), ids=LIMITS.keys())
def test_limits(make, limit, batch):
    assert_same(trained(make(), batch)[0], trained(limit, batch)[0])


def by_hand(eps):
    """x_u' and yhat of the paper's step, the network in train mode."""
    yhat = forward(PARAMS, STATE, UNLABELED, batch_norm='train')[0].argmax(axis=-1)
    gradient = jax.grad(lambda x: TASK.loss(forward(PARAMS, STATE, x, batch_norm='train')[0], yhat).sum())
    return jnp.clip(UNLABELED + eps * jnp.sign(gradient(UNLABELED)), 0, 1), yhat


def test_ssat_by_hand():
    (gradient, (losses, state)), crafted = trained(ssat(TASK, fgsm(), radius=RADIUS))
    images, yhat = by_hand(.1)
    np.testing.assert_allclose(crafted['pool']['image'], images, rtol=1e-6)
    np.testing.assert_array_equal(crafted['pool']['label'], yhat)

    def loss(params):
        clean, after = forward(params, STATE, BATCH['image'], batch_norm='train')
        outputs, after = forward(params, after, images, batch_norm='train')
        losses = TASK.loss(clean, BATCH['label']) + 3 * TASK.loss(outputs, yhat)
        return losses[:-1].mean(), (losses, after)  # the last row is padding
    assert_same((gradient, (losses, state)), jax.grad(loss, has_aux=True)(PARAMS))


def test_ssat_draws_one_radius_per_batch():
    defense = ssat(TASK, fgsm(), radius=uniform_per_batch(.001, .003))

    @jax.jit
    def sizes(step):
        keys = rng.example_keys(0, jnp.arange(SIZE), step)
        crafted = defense.craft(forward, PARAMS, STATE, (), BATCH, step, keys)
        return abs(crafted['pool']['image'] - UNLABELED).max(axis=(1, 2, 3))
    drawn = np.array([sizes(jnp.int32(step)) for step in range(40)])
    np.testing.assert_allclose(drawn, np.broadcast_to(drawn[:, :1], drawn.shape), atol=1e-6)
    assert drawn.min() >= .001 - 1e-6
    assert drawn.max() <= .003 + 1e-6
    assert np.ptp(drawn) > .0015


def test_only_confident_pseudo_labels_count():
    probability = jax.nn.softmax(forward(PARAMS, STATE, UNLABELED, batch_norm='batch_stats')[0]).max(axis=-1)
    middle = float(np.sort(probability)[SIZE // 2])
    (_, (losses, _)), crafted = trained(ssat(TASK, fgsm(), radius=RADIUS, confidence=middle))
    counts = np.array(probability) >= middle
    assert 0 < counts.sum() < SIZE
    np.testing.assert_array_equal(crafted['pool']['counts'], counts)
    clean, all_count = (trained(defense)[0][1][0]
                        for defense in (natural(TASK), ssat(TASK, fgsm(), radius=RADIUS)))
    np.testing.assert_allclose(losses, np.where(counts, all_count, clean), rtol=1e-5)


def test_a_teacher_labels_and_follows():
    defense = ssat(TASK, fgsm(), radius=RADIUS, teacher_decay=.9)
    other = {**PARAMS, 'w2': -PARAMS['w2']}
    teacher = defense.start(defense.init(SIZE, None, None), other, STATE, (4, 4, 1))
    _, crafted = trained(defense, state=teacher)
    theirs = forward(other, STATE, UNLABELED, batch_norm='eval')[0].argmax(axis=-1)
    np.testing.assert_array_equal(crafted['pool']['label'], theirs)
    assert (theirs != forward(PARAMS, STATE, UNLABELED, batch_norm='eval')[0].argmax(axis=-1)).any()
    after = defense.follow(teacher, PARAMS, STATE, jnp.int32(10**6))
    assert_same(after, (jax.tree.map(lambda a, b: .9 * a + .1 * b, other, PARAMS), STATE))
    assert ssat(TASK, fgsm(), radius=RADIUS).start((), PARAMS, STATE, (4, 4, 1)) == ()


def test_the_labeled_adversarial_term_adds_up():
    (_, (losses, _)), crafted = trained(ssat(TASK, ATTACK, radius=RADIUS, labeled_weight=.5))
    plain = trained(ssat(TASK, ATTACK, radius=RADIUS))[0][1][0]
    assert 0 < abs(crafted['labeled'] - BATCH['image']).max() <= .1 + 1e-6
    outputs = forward(PARAMS, STATE, crafted['labeled'], batch_norm='train')[0]
    np.testing.assert_allclose(losses, plain + .5 * TASK.loss(outputs, BATCH['label']), rtol=1e-5)
    alone = trained(ssat(TASK, ATTACK, radius=RADIUS, weight=0.0, labeled_weight=.5), ALONE)
    np.testing.assert_array_equal(alone[1]['labeled'], crafted['labeled'])


def test_labels_of_unlabeled_images_are_not_asked_for():
    """What stands in 'label' touches the labeled term alone."""
    for defense in (ssat(TASK, fgsm(), radius=RADIUS), unsupervised_at(TASK, ATTACK, radius=RADIUS),
                    robust_self_training(TASK, GAUSSIAN, helper, radius=RADIUS)):
        crafted, other = (trained(defense, {**BATCH, 'label': labels})[1]
                          for labels in (BATCH['label'], (BATCH['label'] + 1) % 3))
        crafted, other = ({**each.get('pool', each)} for each in (crafted, other))
        for each in (crafted, other):
            each.pop('both', None)  # the joined rows hold the labels of the labeled half
        jax.tree.map(np.testing.assert_array_equal, crafted, other)


def test_rst_by_hand():
    share = .25
    defense = robust_self_training(TASK, GAUSSIAN, helper, radius=RADIUS, beta=2.0, pseudo_share=share)
    (_, (losses, state)), crafted = trained(defense)
    yhat = helper(UNLABELED).argmax(axis=-1)
    images, labels = jnp.concatenate([BATCH['image'], UNLABELED]), jnp.concatenate([BATCH['label'], yhat])
    assert 0 < abs(crafted['images'] - images).max() <= .1 + 1e-6
    clean, after = forward(PARAMS, STATE, images, batch_norm='train')
    outputs, after = forward(PARAMS, after, crafted['images'], batch_norm='train')
    each = TASK.loss(clean, labels) + 2 * TASK.divergence(clean, outputs)
    np.testing.assert_allclose(losses, (1 - share) * each[:SIZE] + share * each[SIZE:], rtol=1e-5)
    assert_same(state, after)
    moved = crafted['images'] - images
    assert (abs(moved[:SIZE] - moved[SIZE:]).reshape(SIZE, -1).max(axis=1) > 0).all(), 'draws of their own'


@pytest.mark.parametrize('mode', ['online', 'fixed', 'both'])
def test_uat_by_hand(mode):
    defense = unsupervised_at(TASK, ATTACK, radius=RADIUS, mode=mode, weight=2.0, helper=helper)
    (gradient, (losses, state)), crafted = trained(defense)
    yhat = helper(UNLABELED).argmax(axis=-1)
    reference = forward(PARAMS, STATE, UNLABELED, batch_norm='batch_stats')[0]
    assert 0 < abs(crafted['image'] - UNLABELED).max() <= .1 + 1e-6

    def unlabeled_term(outputs, clean):
        online, fixed = TASK.divergence(clean, outputs), TASK.loss(outputs, yhat)
        return (mode != 'fixed') * online + (mode != 'online') * fixed

    def loss(params):
        clean, after = forward(params, STATE, BATCH['image'], batch_norm='train')
        outputs, after = forward(params, after, crafted['image'], batch_norm='train')
        losses = TASK.loss(clean, BATCH['label']) + 2 * unlabeled_term(outputs, reference)  # a constant: stop p
        return losses[:-1].mean(), (losses, after)
    assert_same((gradient, (losses, state)), jax.grad(loss, has_aux=True)(PARAMS))
    still, found = (forward(PARAMS, STATE, x, batch_norm='eval')[0] for x in (UNLABELED, crafted['image']))
    assert unlabeled_term(found, still).sum() > unlabeled_term(still, still).sum() + .1, 'the attack climbs it'


@pytest.mark.parametrize('make', [
    lambda: ssat(TASK, fgsm(), radius=RADIUS, labeled_weight=1.0),
    lambda: robust_self_training(TASK, GAUSSIAN, lambda x: forward(PARAMS, STATE, x, batch_norm='eval')[0],
                                 radius=RADIUS),
    lambda: unsupervised_at(TASK, ATTACK, radius=RADIUS)])
def test_crafting_is_a_constant(make):
    defense = make()

    def total(params):
        crafted = defense.craft(forward, params, STATE, (), BATCH, STEP, KEYS)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(crafted) if jnp.issubdtype(leaf.dtype, jnp.floating))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(PARAMS)))


def test_pseudo_targets_are_targets():
    images = jnp.zeros((2, 16, 8, 1))
    batch = {'unlabeled': images, 'mask': jnp.ones(2, bool), 'index': jnp.arange(2)}
    grades = unlabeled_batch(ordinal(4), batch, jnp.array([[9., 9., -9.], [-9., -9., -9.]]))
    np.testing.assert_array_equal(grades['label'], [2, 0])
    assert grades['image'] is images
    points = jnp.full((2, 4, 2), .25)
    outlines = shape(4, size=(16, 8))
    found = unlabeled_batch(outlines, batch, {'points': points, 'mask': jnp.ones((2, 16, 8)).at[:, :4].set(-1)})
    assert outlines.loss({'points': points, 'mask': 40 * (2.0 * found['segmentation'] - 1)},
                         outlines.targets(found)).max() < 1e-3
    boxes = detection(2)
    maps = (jnp.full((2, 4, 4, 7), -9.).at[0, 1, 2].set(jnp.array([3., 0, 0, 0, 0, -2., 2.]))
            .at[1, 1, 2].set(jnp.array([-2., 0, 0, 0, 0, -2., 2.])),)  # of probability .95, and of .12
    found = pseudo_targets(boxes, maps)
    np.testing.assert_array_equal(found['box_mask'].sum(axis=1), [1, 0])
    assert found['box_labels'][0, 0] == 1
    assert jnp.isfinite(boxes.loss(maps, found)).all()


def test_joined_rows_have_room_for_the_boxes_of_both():
    labeled = {'box_mask': jnp.ones((2, 3), bool), 'boxes': jnp.ones((2, 3, 4)), 'mask': jnp.ones(2, bool)}
    pool = {'box_mask': jnp.ones((2, 5), bool), 'boxes': 2 * jnp.ones((2, 5, 4)), 'mask': jnp.ones(2, bool)}
    both = _joined(labeled, pool)
    np.testing.assert_array_equal(both['box_mask'].sum(axis=1), [3, 3, 5, 5])
    np.testing.assert_array_equal(both['boxes'].sum(axis=(1, 2)), [12, 12, 40, 40])
    assert both['mask'].shape == (4,)


def test_refusals():
    for make, message in (
            (lambda: ssat(TASK, fgsm(), radius=RADIUS, weight=-1.0), 'must not be negative'),
            (lambda: ssat(TASK, fgsm(), radius=RADIUS, labeled_weight=-1.0), 'must not be negative'),
            (lambda: ssat(TASK, fgsm(), radius=RADIUS, confidence=1.0), r'must be in \[0, 1\)'),
            (lambda: ssat(TASK, fgsm(), radius=RADIUS, teacher_decay=1.0), r'must be in \[0, 1\)'),
            (lambda: ssat(ordinal(4), fgsm(), radius=RADIUS, confidence=.5), "'ordinal' has no probability"),
            (lambda: robust_self_training(TASK, ATTACK, helper, radius=RADIUS, pseudo_share=1.0), 'pseudo_share'),
            (lambda: unsupervised_at(TASK, ATTACK, radius=RADIUS, mode='fixd'), "did you mean 'fixed'"),
            (lambda: unsupervised_at(TASK, ATTACK, radius=RADIUS, mode='both'), "needs helper=; it is 'both'"),
            (lambda: unsupervised_at(TASK, ATTACK, radius=RADIUS, weight=-1.0), 'must not be negative')):
        with pytest.raises(ValueError, match=message):
            make()
