"""What metrics are called per task, and which speak for it."""
from types import SimpleNamespace as Row

import pytest

from experiments.report import notes_on_criteria
from medrobust_jax.report.html import build_report
from medrobust_jax.report.naming import Kind, headline, kind_of, metric_of, split_structure
from medrobust_jax.report.structures import structure_tables
from medrobust_jax.report.summary import WORST, headline_panels, main_first


@pytest.fixture
def dense(make_row):
    def rows(metric, values, **changes):
        return [make_row(values[0], metric=metric, **changes),
                *(make_row(value, metric=metric, attack=attack, eps=8 / 255, **changes)
                  for value, attack in zip(values[1:], ('pgd', 'smia'), strict=True))]
    return rows


def test_structures_are_split_off():
    assert split_structure('dice_RV') == ('dice', 'RV')
    assert split_structure('ap50/WBC') == ('ap50', 'WBC')
    assert split_structure('pixel_accuracy') == ('pixel_accuracy', '')
    assert split_structure('accuracy') == ('accuracy', '')


def test_labels_units_and_direction():
    landmarks = Kind('landmarks', 'percent')
    assert metric_of('mean_radial_error', landmarks).label == 'mean radial error, % of the height'
    assert not metric_of('mean_radial_error', landmarks).more_is_better
    assert metric_of('detected_within_2', landmarks) == ('found within 2 % of the height', True, True)
    assert metric_of('robust_accuracy', landmarks).label == 'within criterion'
    assert metric_of('robust_accuracy').label == 'robust accuracy'
    assert metric_of('hd95_LV').label == 'HD95, pixels, LV'
    assert not metric_of('hd95_LV').more_is_better


def test_dense_results_lead_with_their_own_metric(dense):
    rows = [*dense('robust_accuracy', (1., .2, .1)), *dense('mean_radial_error', (1., 6., 4.)),
            *dense('detected_within_1', (.9, .2, .3))]
    assert kind_of(rows) == Kind('landmarks', 'percent')
    assert headline(rows) == ['mean_radial_error', 'robust_accuracy']
    error, share = headline_panels(rows)
    worst = next(curve for curve in error.curves if curve.attack == WORST)
    assert worst.points[8 / 255].value == 6, 'of an error the largest is the worst'
    assert share.shown.label == 'within criterion'


def test_structures_have_tables_of_their_own(dense):
    rows = [*dense('pixel_accuracy', (.9, .8, .8)), *dense('dice', (.8, .5, .4)), *dense('dice_RV', (.7, .3, .4)),
            *dense('dice_LV', (.9, .7, .4)), *dense('robust_accuracy', (1., .5, .5))]
    assert main_first(rows)[:2] == ['dice', 'robust_accuracy']
    assert not [name for name in main_first(rows) if split_structure(name)[1]]
    table, = structure_tables(rows)
    assert table.columns == ['defense', 'structure', 'clean', 'eps 8/255']
    assert [line[1] for line in table.lines] == ['all', 'RV', 'LV']
    assert [line[3][:4] for line in table.lines] == ['40.0', '30.0', '40.0'], 'the worst attack of each structure'
    page = build_report(rows, title='t')
    for text in ('By structure', 'within criterion in %', '<dt>Dice</dt>', '<dt>within criterion</dt>'):
        assert text in page
    assert '<dt>robust accuracy</dt>' not in page
    assert '<dt>Cobb angle</dt>' not in page


def test_rows_of_different_criteria_are_pointed_out():
    one, other, default = (Row(dataset='acdc', provenance=each)
                           for each in ({'criterion': [.9]}, {'criterion': [.8]}, {}))
    assert notes_on_criteria([one, one]) == notes_on_criteria([default, default]) == []
    (note,) = notes_on_criteria([one, other, default])
    assert '(0.8,), (0.9,)' in note
    assert 'the default' in note
