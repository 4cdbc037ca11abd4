"""Segmentation: criterion, calibration, what is refused."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.tasks.segmentation import segmentation

GENERATOR = np.random.default_rng(0)


def outputs_and_targets(batch=20, shape=(8, 8)):
    targets = GENERATOR.integers(0, 3, (batch, *shape)).astype(np.int32)
    sharpness = np.linspace(0, 3, batch).reshape(-1, *[1] * (len(shape) + 1))
    logits = sharpness * np.eye(3)[targets] + GENERATOR.normal(size=(*targets.shape, 3))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(targets)


@pytest.mark.parametrize('shape', [(8, 8), (4, 5, 6)], ids=str)
def test_criterion_compares_the_best_structure_with_the_threshold(shape):
    logits, targets = outputs_and_targets(shape=shape)
    task = segmentation(3, threshold=(.7,))
    predicted, true = np.asarray(task.predict(logits)), np.asarray(targets)
    assert predicted.dtype == np.uint8
    assert predicted.shape == true.shape
    dice = [max(2 * ((p == c) & (t == c)).sum() / ((p == c).sum() + (t == c).sum()) for c in (1, 2))
            for p, t in zip(predicted, true, strict=True)]
    np.testing.assert_allclose(task.quality(logits, targets), dice, rtol=1e-6)
    verdicts = jax.jit(task.acceptable)(logits, targets)
    np.testing.assert_array_equal(verdicts, np.asarray(dice) >= .7)
    assert 0 < verdicts.mean() < 1
    assert task.threshold_of(np.asarray(dice)) == (pytest.approx(np.mean(dice)),)
    # Loss and criterion agree about better and worse.
    assert task.loss(logits, targets)[verdicts].mean() < task.loss(logits, targets)[~verdicts].mean()
    assert not task.acceptable(logits.at[-1].set(jnp.nan), targets)[-1]
    assert not segmentation(3, threshold=(0.,)).acceptable(logits.at[-1].set(jnp.nan), targets)[-1]
    np.testing.assert_allclose(task.divergence(logits, logits), 0, atol=1e-6)


def test_metrics_from_logits_and_from_decisions_are_the_same():
    logits, targets = outputs_and_targets()
    task = segmentation(3, class_names=('background', 'a', 'b'))
    by_logits = task.metrics(np.asarray(logits), np.asarray(targets), np.arange(20) // 2)
    by_maps = task.verdict_metrics(np.asarray(task.predict(logits)), np.asarray(targets), np.arange(20) // 2)
    assert by_logits == by_maps
    assert by_logits['dice_a'].method == 'bootstrap-patients'
    assert task.metrics({'logits': np.asarray(logits), 'coarser': ()}, np.asarray(targets), np.arange(20) // 2) \
        == by_maps


def test_refusals():
    task = segmentation(3)
    masks = np.zeros((4, 5, 5), np.int32)
    task.check_targets(masks)
    masks[2, 1, 1] = 3
    with pytest.raises(ValueError, match=r'row 2 holds the unknown label 3, outside 0..2'):
        task.check_targets(masks)
    with pytest.raises(ValueError, match='row 2 holds the unknown label -1'):
        task.check_targets(np.where(masks == 3, -1, masks))
    with pytest.raises(ValueError, match='not one-hot'):
        task.check_targets(np.zeros((4, 5), np.int32))
    with pytest.raises(TypeError, match='float64'):
        task.check_targets(np.zeros((4, 5, 5)))
    for options, message in (({'threshold': (1.2,)}, 'Dice in'), ({'threshold': (.5, .5)}, 'one threshold'),
                             ({'loss': 'mse'}, "not 'mse'"), ({'class_names': ('a',)}, '1 class names for 3')):
        with pytest.raises(ValueError, match=message):
            segmentation(3, **options)
    with pytest.raises(ValueError, match=r'2\.\.256'):
        segmentation(1)
