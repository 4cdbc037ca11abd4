"""Systems that met other attacks than their neighbors in a table are named below it."""
from html import escape

from medrobust_jax.report.met_attacks import unequal_attacks
from medrobust_jax.report.risk import risk_panels, risk_section, risk_tables
from medrobust_jax.report.tables import to_html, to_markdown, to_text

GRID = (2 / 255, 8 / 255)
PGD100, PGD7 = ({'pgd': {'attack': 'pgd', 'eps': [], 'options': {'num_steps': count}}} for count in (100, 7))
SETTINGS = {'seed': 0, 'surrogate': ['s', 100], 'attacks': PGD100,
            'system': {'aware_steps': 50, 'aware_rounds': 6, 'false_alarm_rate': .05},
            'dataset_fingerprint': 'data-0', 'detector': ['none', {}]}


def rows_of(make_row, defense, met, *, grid=GRID, n=200, seed=0, num_guides=3, **changes):
    settings = {**SETTINGS, **changes, 'detector': [defense.partition('+')[2] or 'none', {}]}
    shared = {'defense': defense, 'metric': 'risk_system', 'n': n, 'seed': seed}
    rows = [make_row(.1, attack='clean', **shared)]
    rows += [make_row(.5, attack=attack, eps=eps, **shared) for eps in grid
             for attack in (*met, 'worst_unaware', 'worst_case')]
    for row in rows:
        row.provenance['settings'] = settings
    return [row.__class__(**{**row.__dict__, 'attack_options': {'num_guides': num_guides}})
            if row.attack == 'aware' else row for row in rows]


def remarks(rows):
    panel, = risk_panels(rows)
    return unequal_attacks(rows, panel)


def test_equal_attacks_need_no_remark(make_row):
    """The model that a transfer attack came from may differ, and a model alone has no detector to set up."""
    rows = [*rows_of(make_row, 'natural', ('pgd', 'transfer_ssat', 'aware'), surrogate=['t', 100]),
            *rows_of(make_row, 'ssat', ('pgd', 'transfer_natural', 'aware'),
                     system={**SETTINGS['system'], 'false_alarm_rate': .1}),
            *rows_of(make_row, 'ssat+lid', ('pgd', 'transfer_natural', 'aware'))]
    assert remarks(rows) == ()
    assert 'same attacks' not in risk_section(rows)
    assert not any(table.remarks for table in risk_tables(rows))


def test_a_missing_attack_is_named_below_the_table(make_row):
    rows = [*rows_of(make_row, 'natural', ('pgd', 'transfer_ssat', 'aware')),
            *rows_of(make_row, 'natural+lid', ('pgd', 'aware'), surrogate=['', 100]),
            *rows_of(make_row, 'natural+gaussian', ('pgd', 'aware'), surrogate=['', 100])]
    warning, missing = remarks(rows)
    assert 'looks safer than it is' in warning
    assert missing == 'Not attacked by transfer: "natural+lid" and "natural+gaussian".'
    assert 'see below the tables' in risk_section(rows)
    for table in risk_tables(rows)[:2]:
        assert to_text(table).endswith(f'{missing}\n')
        assert to_markdown(table).endswith(f'\n\n{warning}\n\n{missing}\n')
        assert f'<p class="footnotes">{escape(missing)}</p></div>' in to_html(table)


def test_weaker_attacks_are_named_too(make_row):
    met = ('pgd', 'transfer_x', 'aware')
    rows = [*rows_of(make_row, 'a', met), *rows_of(make_row, 'b', met),
            *rows_of(make_row, 'c', met, n=100, grid=GRID[:1], num_guides=0, seed=1, surrogate=['s', 10],
                     attacks=PGD7, system={**SETTINGS['system'], 'aware_steps': 5}, dataset_fingerprint='data-1')]
    assert set(remarks(rows)[1:]) == {
        'Images: 100 for "c"; 200 for all others.', 'Radii: 2/255 for "c"; 2/255, 8/255 for all others.',
        'Guides of the aware attack: 0 for "c"; 3 for all others.',
        'Steps of the aware attack: 5 for "c"; 50 for all others.',
        'Settings of pgd: attack pgd, num_steps 7 for "c"; attack pgd, num_steps 100 for all others.',
        'Steps of the transfer attack: 10 for "c"; 100 for all others.',
        'Fingerprint of the data set: data-1 for "c"; data-0 for all others.'}


def test_an_attack_counts_where_every_run_met_it(make_row):
    rows = [*rows_of(make_row, 'a', ('pgd', 'aware')), *rows_of(make_row, 'a', ('pgd',), seed=1),
            *rows_of(make_row, 'b', ('pgd', 'aware'))]
    assert remarks(rows)[1:] == ('Not attacked by aware: "a".',)
