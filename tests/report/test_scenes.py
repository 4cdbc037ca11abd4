"""Masks, points, boxes, findings and margins: the numbers under the pictures, and what is drawn."""
import numpy as np
import pytest

from medrobust_jax.report.gallery import Kept, scenes
from medrobust_jax.report.margins import Margins, margin_figure
from medrobust_jax.report.overlays import scene_figure


def kept(task, target, before, after, shape=(1, 12, 12, 1)):
    clean = np.full(shape, .5)
    return Kept(task, clean, clean + .02, target, before, after, [7], [True], [False])


@pytest.fixture
def mask():
    mask = np.zeros((1, 12, 12), int)
    mask[0, 2:6, 2:6], mask[0, 7:9, 7:9] = 1, 2
    return mask


def test_masks_carry_dice_of_each_structure(mask):
    attacked = np.where(mask == 2, 0, mask)
    scene, = scenes(kept('segmentation', mask, mask, attacked), title='pgd', names=('RV', 'LV'))
    assert scene.caption == 'pgd, image 7'
    assert scene.before_text.startswith('Dice 100 %')
    assert scene.after_text == 'Dice 50 %\nRV 100, LV 0'
    truth, before, _, after = scene_figure(scene).axes
    assert 'within criterion' in before.get_xlabel()
    assert 'outside criterion' in after.get_xlabel()
    assert len(truth.images) == 2, 'the image and the areas on it'


def test_a_volume_is_shown_by_its_fullest_slice(mask):
    volume = np.stack([np.zeros((12, 12), int), mask[0]])[None]
    scene, = scenes(kept('segmentation', volume, volume, 0 * volume, (1, 2, 12, 12, 1)), title='pgd')
    assert 'slice 2 of 2' in scene.caption
    assert scene.clean.shape == (12, 12, 1)
    assert scene.after_text.startswith('Dice 0 %')


def test_points_are_measured_in_percent_of_the_height():
    points = np.full((1, 4, 2), .5)
    scene, = scenes(kept('landmarks', points, points, points + np.array([0, .1])), title='pgd')
    assert 'mean error 0.0 %' in scene.before_text
    assert 'mean error 10.0 %' in scene.after_text
    assert len(scene_figure(scene).axes) == 3


def test_boxes_below_the_decision_score_are_not_shown():
    target = {'boxes': np.array([[[.1, .1, .5, .5], [0, 0, 0, 0]]]), 'box_labels': np.array([[1, 0]]),
              'box_mask': np.array([[True, False]])}
    found = {'boxes': target['boxes'], 'classes': target['box_labels'], 'scores': np.array([[.9, 0.]]),
             'valid': target['box_mask']}
    scene, = scenes(kept('detection', target, found, {**found, 'scores': np.array([[.2, 0.]])}), title='pgd',
                    names=('RBC', 'WBC'))
    assert scene.before_text == 'average IoU 100 %, 1 boxes shown'
    assert scene.after_text == 'average IoU 0 %, 0 boxes shown'
    assert len(scene_figure(scene).axes[1].patches) == 2, 'the true box and the found one'


def test_findings_that_changed_are_listed():
    scene, = scenes(kept('multilabel', np.array([[1, 0, 0]]), np.array([[1, 0, 0]]), np.array([[0, 1, 0]])),
                    title='pgd', names=('mass', 'nodule', 'hernia'))
    assert scene.after_text == '2 of 3 findings wrong\nadded by the attack: nodule\nlost to the attack: mass'
    scene_figure(scene)


def test_a_task_without_drawings_is_refused():
    with pytest.raises(ValueError, match="no drawings for the task 'ordinal'"):
        scenes(kept('ordinal', [0], [0], [0]), title='pgd')


def test_margins_over_epochs_end_where_training_is():
    history = np.full((5, 21), np.nan)
    history[0], history[1], history[2] = .1, .2, np.linspace(0, .3, 21)
    bands, last = margin_figure(Margins('amat', np.linspace(0, .3, 40), history, 'l2')).axes
    assert bands.get_xlim() == (0, 2)
    np.testing.assert_allclose(bands.lines[0].get_ydata(), [.1, .2, .15])
    assert last.get_title() == 'after epoch 2'
    assert len(margin_figure(Margins('mma', np.ones(3))).axes) == 1, 'without a history the histogram alone'
    with pytest.raises(ValueError, match='one number per example'):
        margin_figure(Margins('mma', np.ones((3, 2))))
