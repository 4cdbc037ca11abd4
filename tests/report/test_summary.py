"""From rows to panels: seeds, checkpoints, worst attacks, and what is missing."""
import dataclasses
import math

import pytest

from medrobust_jax.report.naming import metric_of
from medrobust_jax.report.summary import (
    CLEAN,
    WORST,
    WORST_PER_IMAGE,
    agree,
    eps_text,
    main_first,
    summarize,
)


def curves_of(panel, system='standard'):
    return {curve.attack: curve for curve in panel.curves if curve.system == system}


def test_one_panel_per_data_set_split_and_norm(make_rows, make_row):
    rows = make_rows() + make_rows(dataset='cxr') + [make_row(0.3, attack='pgd', norm='l2', eps=0.5)]
    panels = summarize(rows)
    assert [(p.dataset, p.norm) for p in panels] == [('oct', 'linf'), ('oct', 'l2'), ('cxr', 'linf')]
    assert panels[0].eps == (2 / 255, 8 / 255)
    assert panels[1].eps == (0.5,)
    assert all(CLEAN in curves_of(panel) for panel in panels), 'clean results belong to every norm'


def test_worst_is_the_attack_that_did_most_harm_at_each_eps(make_row):
    small, large = 2 / 255, 8 / 255
    rows = [make_row(0.5, attack='fgsm', eps=small), make_row(0.4, attack='fgsm', eps=large),
            make_row(0.6, attack='pgd', eps=small), make_row(0.1, attack='pgd', eps=large)]
    worst = curves_of(summarize(rows)[0])[WORST]
    assert [worst.points[eps].value for eps in (small, large)] == [0.5, 0.1]
    assert worst.points[large].low == pytest.approx(0.05)


def test_worst_of_an_error_is_the_largest(make_row):
    rows = [make_row(value, attack=attack, eps=0.1, metric='mean_absolute_grade_error')
            for attack, value in (('fgsm', 0.5), ('pgd', 1.5))]
    assert curves_of(summarize(rows, metric='mean_absolute_grade_error')[0])[WORST].points[0.1].value == 1.5


def test_worst_is_taken_within_each_run_and_then_averaged(make_row):
    values = {('fgsm', 0): 0.5, ('fgsm', 1): 0.3, ('pgd', 0): 0.4, ('pgd', 1): 0.6}
    rows = [make_row(v, attack=attack, seed=seed, eps=0.1) for (attack, seed), v in values.items()]
    summary = curves_of(summarize(rows)[0])[WORST].points[0.1]
    assert summary[:4] == (pytest.approx(0.35), 0.3, 0.4, 2)


def test_an_undefined_attack_does_not_hide_the_worst(make_row):
    rows = [make_row(math.nan, attack='fgsm', eps=0.1), make_row(0.4, attack='pgd', eps=0.1)]
    assert curves_of(summarize(rows)[0])[WORST].points[0.1].value == 0.4


def test_a_single_attack_has_no_worst_and_a_measured_one_is_kept(make_row):
    single = [make_row(0.4, attack='pgd', eps=0.1)]
    assert set(curves_of(summarize(single)[0])) == {'pgd'}
    measured = curves_of(summarize([*single, make_row(0.3, attack='worst_case', eps=0.1)])[0])
    assert measured[WORST_PER_IMAGE].points[0.1].value == 0.3
    assert WORST not in measured


def test_seeds_become_a_mean_with_its_range_and_number(make_rows):
    panel, = summarize(make_rows(seeds=(0, 1, 2)))
    clean = curves_of(panel)[CLEAN].points[0.0]
    assert clean.value == pytest.approx(0.89)
    assert (clean.low, clean.high, clean.runs) == (pytest.approx(0.88), 0.9, 3)
    assert panel.runs == {'standard': 3, 'pgd_at': 3}


def test_a_missing_run_is_noted(make_rows):
    rows = [row for row in make_rows(seeds=(0, 1)) if not (row.seed == 1 and row.attack == 'pgd')]
    curves = curves_of(summarize(rows)[0])
    assert ('1 of 2 runs have a result here', 8 / 255) in curves['pgd'].notes
    assert ('not over pgd: no result here', 8 / 255) in curves[WORST].notes
    assert not curves['fgsm'].notes


def test_two_checkpoints_of_one_recipe_and_seed_stay_apart(make_row):
    rows = [make_row(0.9, checkpoint='aaaaaaaaaa'), make_row(0.5, checkpoint='bbbbbbbbbb')]
    panel, = summarize(rows)
    assert panel.systems == ('standard (aaaaaaaa)', 'standard (bbbbbbbb)')
    assert [curve.points[0.0].value for curve in panel.curves] == [0.9, 0.5]


def test_architectures_are_named_where_there_are_several(make_row):
    panel, = summarize([make_row(), make_row(model='densenet', checkpoint='other')])
    assert panel.systems == ('standard, resnet', 'standard, densenet')


def test_differing_settings_and_counts_are_noted(make_row):
    rows = [make_row(seed=0, attack='pgd', eps=0.1),
            make_row(seed=1, attack='pgd', eps=0.1, attack_options={'num_steps': 5}, n=10)]
    notes = [text for text, _ in curves_of(summarize(rows)[0])['pgd'].notes]
    assert "the attack's settings differ between runs" in notes
    assert 'the number of examples differs between runs' in notes


def test_remarks_of_intervals_and_warnings_reach_the_notes(make_row):
    row = make_row(attack='pgd', eps=0.1, interval='bootstrap (3 of 1000 resamples undefined, left out)',
                   warnings=('gradients vanish',))
    notes = [text for text, _ in curves_of(summarize([row])[0])['pgd'].notes]
    assert notes == ['gradients vanish', row.interval]


def test_nothing_yields_nothing(make_row):
    assert summarize([]) == []
    assert summarize([make_row()], metric='auroc') == []


def test_the_main_metric_is_the_default(make_row):
    rows = [make_row(metric=metric) for metric in ('auroc', 'accuracy', 'robust_accuracy', 'macro_f1')]
    assert main_first(rows) == ['robust_accuracy', 'accuracy', 'auroc', 'macro_f1']
    assert summarize(rows)[0].metric == 'robust_accuracy'
    assert summarize(rows[:1])[0].metric == 'auroc'


def test_metrics_agree_only_where_all_values_do(make_rows):
    rows = [*make_rows(metric='accuracy'), *make_rows(metric='robust_accuracy')]
    assert agree(rows, 'robust_accuracy', 'accuracy')
    assert not agree(rows, 'accuracy', 'auroc')
    assert not agree([*rows[:-1], dataclasses.replace(rows[-1], value=0.0)], 'accuracy', 'robust_accuracy')


def test_eps_is_spoken_of_in_gray_levels():
    assert eps_text(8 / 255, 'linf') == '8/255'
    assert eps_text(0.5 / 255, 'linf') == '0.5/255'
    assert eps_text(0.0, 'linf') == '0'
    assert eps_text(0.25, 'l2') == '0.25'


def test_an_unknown_metric_is_a_plain_number():
    assert metric_of('mean_radial_error').label == 'mean radial error'
    assert not metric_of('mean_radial_error').percent
