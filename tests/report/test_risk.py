"""The risk page: detectors are never shown without the attack that knows them."""
import pytest

from medrobust_jax.report.html import build_report
from medrobust_jax.report.risk import (
    cost_table,
    detection_table,
    named_systems,
    risk_figures,
    risk_panels,
    risk_section,
    risk_sentences,
    risk_tables,
)

GRID = (2 / 255, 8 / 255)


@pytest.fixture
def systems(make_row):
    """A model alone, and with a detector that fools itself: good against who does not know it, else useless."""
    rows = []

    def add(defense, attack, eps, **metrics):
        rows.extend(make_row(value, defense=defense, attack=attack, eps=eps, metric=metric, checkpoint='c')
                    for metric, value in metrics.items())

    add('ssat', 'clean', 0., risk_system=.1, risk_classifier=.1, false_alarms=0.)
    add('ssat+gaussian', 'clean', 0., risk_system=.08, risk_classifier=.1, false_alarms=.05)
    for eps in GRID:
        add('ssat', 'worst_unaware', eps, risk_system=.6)
        add('ssat', 'worst_case', eps, **{'risk_system': .6, 'risk_cost_0.1': .6})
        add('ssat+gaussian', 'pgd', eps, risk_system=.2, detection_auroc=.93)
        add('ssat+gaussian', 'aware', eps, risk_system=.57, detection_auroc=.51, rejected=.02)
        add('ssat+gaussian', 'worst_unaware', eps, risk_system=.2)
        add('ssat+gaussian', 'worst_case', eps, **{'risk_system': .57, 'risk_cost_0.1': .575})
    return rows


def test_what_a_detector_changes_is_said_in_words(systems):
    panel, = risk_panels(systems)
    sentence, = risk_sentences(panel, named_systems(systems))
    assert 'at most 8/255, 60 wrong answers reach the clinic where no detector is used' in sentence
    assert 'With the detector gaussian 20 do if the attacker does not know it, and 57 if' in sentence


def test_costs_stand_beside_the_risk(systems):
    panel, = risk_panels(systems)
    table = cost_table(systems, panel)
    assert table.columns[-2:] == ['risk at eps 2/255', 'risk + 0.1 per referral']
    alone, guarded = table.lines
    assert alone[0] == 'ssat'
    assert [cell.split()[0] for cell in guarded[1:]] == ['5.0', '10.0', '8.0', '57.0', '57.5']


def test_an_auroc_without_the_aware_attack_is_not_shown(systems):
    panel, = risk_panels(systems)
    table = detection_table(systems, panel)
    assert table is not None
    assert table.columns == ['system', 'pgd', 'aware', 'aware: rejected']
    assert [line[0] for line in table.lines] == ['ssat+gaussian']
    assert [cell.split()[0] for cell in table.lines[0][1:]] == ['93.0', '51.0', '2.0']
    blind = [row for row in systems if row.attack != 'aware']
    assert detection_table(blind, panel) is None
    assert '93.0' not in risk_section(blind)


def test_figures_are_one_per_model(systems, make_row):
    others = [make_row(.5, defense='natural', attack='worst_case', eps=eps, metric='risk_system', checkpoint='d')
              for eps in GRID]
    panel, = risk_panels([*systems, *others])
    figures = dict(risk_figures(panel, named_systems([*systems, *others])))
    assert list(figures) == ['ssat', 'natural']
    assert len(risk_tables(systems)) == 3
    legend = {text.get_text() for text in figures['ssat'].legends[0].get_texts()}
    assert legend == {'no detector', 'gaussian'}


def test_several_architectures_and_data_sets_stay_apart(systems):
    other = [row.__class__(**{**row.__dict__, 'dataset': 'xray', 'model': 'vit', 'provenance': {
        **row.provenance, 'checkpoint_fingerprint': 'v'}}) for row in systems]
    rows = [*systems, *other]
    named = named_systems(rows)
    assert set(named.values()) == {(f'ssat, {model}', detector) for model in ('resnet', 'vit')
                                   for detector in ('', 'gaussian')}
    for panel in risk_panels(rows):
        assert len(risk_sentences(panel, named)) == 1
        assert len(risk_figures(panel, named)) == 1
        assert len(cost_table(rows, panel).lines) == 2
        assert '57.0' in cost_table(rows, panel).lines[1][4]
        assert detection_table(rows, panel) is not None


def test_seeds_are_averaged(systems, make_row):
    again = [row.__class__(**{**row.__dict__, 'seed': 1, 'value': row.value + .1}) for row in systems]
    panel, = risk_panels([*systems, *again])
    table = cost_table([*systems, *again], panel)
    assert table.lines[0][0] == 'ssat (2 runs)'
    assert table.lines[0][2] == '15.0 (10.0 to 20.0)'


def test_the_page_has_a_section_only_with_systems(systems, rows):
    page = build_report(rows, title='x', systems=systems)
    assert 'id="risk"' in page
    assert 'aware attack' in page, 'the glossary explains it'
    assert 'id="risk"' not in build_report(rows, title='x')
    assert risk_section([]) == ''
    assert risk_tables([]) == []
