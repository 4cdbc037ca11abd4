"""Two evaluations image by image: what must agree, and the differences by hand."""
import numpy as np
import pytest

from medrobust_jax.evaluate.pairs import check_alike, measures, paired_rows
from medrobust_jax.evaluate.verdicts import Verdicts
from medrobust_jax.metrics.intervals import mcnemar

ABOUT = {'dataset': 'acdc', 'split': 'test', 'model': 'unet', 'defense': 'natural', 'seed': 0, 'criterion': [.5],
         'config_fingerprint': 'c', 'checkpoint_fingerprint': 'w', 'dataset_fingerprint': 'd',
         'task': 'segmentation', 'stop_when_fooled': False, 'norm': 'l2', 'attack_seed': 0, 'attack': 'pgd',
         'num_steps': 20}


def verdicts(quality, clean=None, *, groups=None, **about):
    quality = np.asarray(quality, float)
    ok = quality >= .5 if quality.ndim == 2 else (quality >= .5).all(axis=-1)
    clean = quality[0] if clean is None else np.asarray(clean, float)
    return Verdicts(index=np.arange(quality.shape[1]), eps=np.array([.5, 1.])[:len(quality)], acceptable=ok,
                    loss=np.zeros(ok.shape), first_fooled=np.full(ok.shape, -1), attacked=np.ones(ok.shape, bool),
                    withstood_clean=clean.reshape(len(clean), -1).min(axis=1) >= .5, quality=quality,
                    clean_quality=clean, groups=groups, about={**ABOUT, **about})


RNG = np.random.default_rng(0)
A, B = RNG.uniform(size=(2, 40)), RNG.uniform(size=(2, 40))


def test_a_difference_is_the_first_minus_the_second_with_mcnemar_beside_verdicts():
    quality, share = paired_rows([verdicts(A)], [verdicts(B, defense='amat')], 1., lower_is_claimed=False)
    assert quality['difference'] == pytest.approx(A[1].mean() - B[1].mean())
    assert quality['low'] < quality['difference'] < quality['high']
    assert (quality['measure'], quality['mcnemar_p'], quality['n'], quality['eps']) == ('quality', None, 40, 1)
    assert share['measure'] == 'robust_accuracy'
    assert share['difference'] == pytest.approx((A[1] >= .5).mean() - (B[1] >= .5).mean())
    assert share['mcnemar_p'] == mcnemar(A[1] >= .5, B[1] >= .5)
    clean, _ = paired_rows([verdicts(A, clean=A[1])], [verdicts(B, clean=B[0])], None, lower_is_claimed=False)
    assert clean['difference'] == pytest.approx(A[1].mean() - B[0].mean())
    assert (clean['eps'], clean['norm']) == (0, '')


@pytest.mark.parametrize('lower', [False, True])
def test_a_claim_is_supported_refuted_or_open(lower):
    first = verdicts(A)
    for shift, higher in ((.3, True), (-.3, False), (0, None)):
        row, _ = paired_rows([verdicts(A + shift)], [first], .5, lower_is_claimed=lower)
        assert row['supported'] == (higher if higher is None or not lower else not higher)


def test_seeds_are_averaged_per_image_and_patients_resampled():
    groups = np.arange(40) // 2
    ours = [verdicts(A, groups=groups), verdicts(A + .2, seed=1, groups=groups)]
    theirs = [verdicts(B, groups=groups), verdicts(B, seed=1, groups=groups)]
    row, share = paired_rows(ours, theirs, .5, lower_is_claimed=False)
    single, _ = paired_rows([verdicts(A + .1, groups=groups)], theirs[:1], .5, lower_is_claimed=False)
    assert [row[k] for k in ('difference', 'low', 'high')] == pytest.approx(
        [single[k] for k in ('difference', 'low', 'high')])
    np.testing.assert_allclose(np.diff(row['by_seed']), .2)
    assert row['interval'] == 'bootstrap-patients'
    assert (row['seeds'], row['patients'], share['mcnemar_p']) == ([0, 1], 20, None)


def test_a_detectors_three_qualities_are_named_and_others_numbered():
    boxes = verdicts(RNG.uniform(size=(2, 6, 3)))
    assert list(measures(boxes, .5)) == ['quality_box', 'quality_objectness', 'quality_class', 'robust_accuracy']
    np.testing.assert_array_equal(measures(boxes, 1.)['quality_class'], boxes.quality[1, :, 2])
    np.testing.assert_array_equal(measures(boxes, None)['quality_box'], boxes.clean_quality[:, 0])
    assert list(measures(verdicts(RNG.uniform(size=(2, 6, 2))), .5))[:2] == ['quality_1', 'quality_2']
    classes = boxes._replace(quality=None, clean_quality=None)
    assert list(measures(classes, .5)) == list(measures(classes, None)) == ['robust_accuracy']


def test_files_without_clean_quality_give_the_clean_share_alone():
    older = verdicts(A)._replace(clean_quality=None)
    assert [row['measure'] for row in paired_rows([verdicts(A)], [older], None, lower_is_claimed=False)] == [
        'robust_accuracy']


def test_an_output_that_is_not_finite_has_no_difference():
    broken = A.copy()
    broken[0, 3] = -np.inf
    row, _ = paired_rows([verdicts(broken)], [verdicts(B)], .5, lower_is_claimed=False)
    assert np.isnan(row['difference'])
    assert row['supported'] is None
    assert 'not finite' in row['interval']


@pytest.mark.parametrize(('changes', 'message'), [
    ({'criterion': [.6]}, r'criterion \(\[0.5\], \[0.6\]\)'), ({'num_steps': 40}, r'num_steps \(20, 40\)'),
    ({'dataset_fingerprint': 'e'}, 'dataset_fingerprint'), ({'stop_when_fooled': True}, 'stop_when_fooled'),
    ({'num_restarts': 2}, r'num_restarts \(not stored, 2\)'), ({'norm': 'linf'}, 'norm'),
    ({'groups': np.arange(40) // 2}, 'patients')])
def test_evaluations_that_differ_are_not_compared(changes, message):
    with pytest.raises(ValueError, match=f'cannot be compared; they differ in {message}'):
        check_alike([verdicts(A), verdicts(B, **changes)], 'a and b')


def test_models_may_differ_and_images_may_not():
    other = verdicts(B, defense='amat', model='segnet', seed=3, checkpoint_fingerprint='x')
    check_alike([verdicts(A), other], 'a and b')
    other = verdicts(B)._replace(index=np.arange(10, 50))
    with pytest.raises(ValueError, match=r'images \(40 and 40, 30 of them in both\)'):
        check_alike([verdicts(A), other], 'a and b')
    check_alike([verdicts(A), verdicts(B, attack='smia', num_steps=40)], 'two attacks', settings=False)
    older = verdicts(A)
    older.about.pop('task')
    check_alike([verdicts(A), older], 'an older file')
