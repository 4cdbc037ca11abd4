"""Multi-label metrics against scikit-learn, with weights, absent findings and patients."""
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from medrobust_jax.metrics.multilabel import (
    mean_auroc,
    mean_average_precision,
    mean_f1,
    micro_auroc,
    micro_average_precision,
    score_metrics,
    verdict_metrics,
)

GENERATOR = np.random.default_rng(3)
N, L = 80, 4
FINDINGS = GENERATOR.integers(0, 2, (N, L))
PROBABILITIES = np.round(GENERATOR.beta(2, 2, (N, L)) * .7 + .3 * FINDINGS, 2)  # with ties


def test_means_and_single_findings_are_scikit_learns():
    got = score_metrics(PROBABILITIES, FINDINGS, names=tuple('abcd'))
    auc = sklearn_metrics.roc_auc_score(FINDINGS, PROBABILITIES, average=None)
    ap = sklearn_metrics.average_precision_score(FINDINGS, PROBABILITIES, average=None)
    for column, name in enumerate('abcd'):
        assert got[f'auroc/{name}'].value == pytest.approx(auc[column], abs=1e-12)
        assert got[f'average_precision/{name}'].value == pytest.approx(ap[column], abs=1e-12)
    assert got['auroc'].value == pytest.approx(auc.mean(), abs=1e-12)
    assert got['average_precision'].value == pytest.approx(ap.mean(), abs=1e-12)
    assert got['micro_auroc'].value == pytest.approx(
        sklearn_metrics.roc_auc_score(FINDINGS, PROBABILITIES, average='micro'), abs=1e-12)
    assert got['micro_average_precision'].value == pytest.approx(
        sklearn_metrics.average_precision_score(FINDINGS, PROBABILITIES, average='micro'), abs=1e-12)
    decided = PROBABILITIES > .5
    assert got['macro_f1'].value == pytest.approx(sklearn_metrics.f1_score(FINDINGS, decided, average='macro'))
    assert got['exact_match'].value == pytest.approx(sklearn_metrics.accuracy_score(FINDINGS, decided))
    assert got['accuracy'].value == pytest.approx(1 - sklearn_metrics.hamming_loss(FINDINGS, decided))
    for estimate in got.values():
        assert estimate.low <= estimate.value <= estimate.high


@pytest.mark.parametrize('metric', [mean_auroc, mean_average_precision, mean_f1, micro_auroc,
                                    micro_average_precision])
def test_weights_are_repetitions(metric):
    values = (PROBABILITIES > .5).astype(int) if metric is mean_f1 else PROBABILITIES
    counts = GENERATOR.integers(0, 3, (7, N))
    drawn = [np.repeat(np.arange(N), row) for row in counts]
    expected = [metric(values[rows], FINDINGS[rows]) for rows in drawn]
    np.testing.assert_allclose(metric(values, FINDINGS, weights=counts.astype(float)), expected, rtol=1e-12)
    assert metric(values, FINDINGS, weights=counts[0].astype(float)) == pytest.approx(expected[0])


def test_findings_that_do_not_vary_are_left_out_and_named():
    findings = FINDINGS.copy()
    findings[:, 1] = 0
    got = score_metrics(PROBABILITIES, findings, names=('a', 'rare', 'c', 'd'))
    kept = [0, 2, 3]
    assert got['auroc'].value == pytest.approx(np.mean(
        sklearn_metrics.roc_auc_score(findings[:, kept], PROBABILITIES[:, kept], average=None)))
    assert 'without rare' in got['auroc'].method
    assert np.isnan(got['auroc/rare'].value)
    assert 'undefined' in got['auroc/rare'].method
    micro = sklearn_metrics.roc_auc_score(findings, PROBABILITIES, average='micro')
    assert got['micro_auroc'].value == pytest.approx(micro), 'of pairs those of the absent finding count too'
    nothing = score_metrics(PROBABILITIES, np.zeros_like(findings))
    assert np.isnan(nothing['micro_auroc'].value)
    assert np.isnan(nothing['auroc'].value)
    assert nothing['auroc'].method.startswith('undefined')


def test_patients_are_resampled_as_wholes():
    patients = np.repeat(np.arange(N // 4), 4)
    alone, together = (verdict_metrics(PROBABILITIES > .5, FINDINGS, groups) for groups in (None, patients))
    assert together['exact_match'].value == alone['exact_match'].value
    assert together['accuracy'].method == 'bootstrap-patients'
    identical = score_metrics(np.repeat(PROBABILITIES[:20], 4, 0), np.repeat(FINDINGS[:20], 4, 0), patients)
    once = score_metrics(PROBABILITIES[:20], FINDINGS[:20])
    assert identical['auroc'].low == pytest.approx(once['auroc'].low)  # copies add no certainty


def test_refusals():
    with pytest.raises(ValueError, match='row 1 holds'):
        verdict_metrics([[0, 1], [2, 0]], [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match='equal shapes'):
        verdict_metrics([[0, 1]], [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match=r'got shape \(2,\)'):
        verdict_metrics([0, 1], [0, 1])
    with pytest.raises(ValueError, match='finite; row 1'):
        score_metrics([[.1, .2], [np.nan, .2]], [[0, 1], [1, 0]])
    with pytest.raises(ValueError, match='1 names for 2 findings'):
        verdict_metrics([[0, 1]], [[0, 1]], names=('a',))
