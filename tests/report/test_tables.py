"""Tables: every number with its interval, nothing hidden, text escaped."""
import math

import pytest

from medrobust_jax.report.summary import Summary, summarize
from medrobust_jax.report.tables import (
    MISSING,
    cell_text,
    clean_table,
    robustness_table,
    to_html,
    to_markdown,
    to_text,
)


@pytest.mark.parametrize(('summary', 'percent', 'compact', 'text'), [
    (Summary(0.482, 0.443, 0.521, 1, 400, 'wilson'), True, False, '48.2 [44.3, 52.1]'),
    (Summary(0.482, 0.443, 0.521, 1, 400, 'wilson'), True, True, '48.2 [44, 53]'),
    (Summary(0.57, 0.57, 0.58, 1, 400, 'wilson'), True, True, '57.0 [57, 58]'),
    (Summary(0.482, 0.46, 0.5, 3, 400, 'range over runs'), True, False, '48.2 (46.0 to 50.0)'),
    (Summary(0.612, 0.5, 0.7, 1, 400, 'bootstrap'), False, True, '0.61 [0.50, 0.70]'),
    (Summary(0.482, math.nan, math.nan, 1, 1, 'bootstrap'), True, False, '48.2'),
    (Summary(math.nan, math.nan, math.nan, 1, 4, 'undefined'), True, False, 'undefined'),
    (None, True, False, MISSING),
])
def test_cells(summary, percent, compact, text):
    assert cell_text(summary, percent=percent, compact=compact) == text


def test_robustness_table(rows):
    table = robustness_table(summarize(rows)[0])
    assert table.columns == ['defense', 'attack', 'clean', 'eps 2/255', 'eps 8/255', 'area']
    assert [line[:2] for line in table.lines] == [
        ['standard', 'worst attack'], ['', 'fgsm'], ['', 'pgd'],
        ['pgd_at', 'worst attack'], ['', 'fgsm'], ['', 'pgd']]
    assert [bool(line[2]) for line in table.lines] == [True, False, False] * 2
    assert table.emphasized == {0, 3}
    assert table.lines[0][3:5] == table.lines[2][3:5], 'pgd is the worst here'
    assert table.caption == 'oct test: accuracy in %; L-infinity attacks; [95 % interval: Wilson]; n = 400'


def test_area_is_from_clean_to_the_largest_eps(make_row):
    rows = [make_row(1.0), make_row(0.5, attack='pgd', eps=2 / 255), make_row(0.0, attack='pgd', eps=8 / 255)]
    line, = robustness_table(summarize(rows)[0]).lines
    # (2 x .75 + 6 x .25) / 8
    assert line[-1] == '37.5'
    partial, = robustness_table(summarize(rows[1:])[0]).lines
    assert partial[-1] == MISSING


def test_what_was_not_run_stays_a_gap(make_rows, make_row):
    rows = [*make_rows(attacks=('pgd',)), make_row(0.4, attack='fgsm', eps=8 / 255),
            make_row(0.8, defense='trades')]
    table = robustness_table(summarize(rows)[0])
    lines = {tuple(line[:2]): line for line in table.lines}
    assert lines['', 'fgsm'][3:5] == [MISSING, '40.0 [35.0, 45.0]']
    assert lines['trades', MISSING][2:5] == ['80.0 [75.0, 85.0]', MISSING, MISSING]
    assert 'not over fgsm: no result here (eps 2/255)' in table.footnotes


def test_clean_results_alone_make_a_table(make_row):
    table = robustness_table(summarize([make_row(0.9)])[0])
    assert table.columns == ['defense', 'attack', 'clean']
    assert table.lines == [['standard', MISSING, '90.0 [85.0, 95.0]']]


def test_seeds_are_stated(make_rows):
    text = to_text(robustness_table(summarize(make_rows(seeds=(0, 1, 2)))[0]))
    assert 'standard (3 runs)' in text
    assert '(lowest to highest run)' in text
    assert '89.0 (88.0 to 90.0)' in text


def test_warnings_become_footnotes(make_rows, make_row):
    rows = make_rows(defenses=('standard',))
    warned = [make_row(0.2, attack='spsa', eps=k / 255, warnings=('beats white-box',)) for k in (2, 8)]
    table = robustness_table(summarize(rows + warned)[0])
    assert table.footnotes == ['beats white-box (eps 2/255, 8/255)']
    marks = {line[1]: line[-1] for line in table.lines}
    assert marks['spsa'] == '1'
    assert marks['pgd'] == ''


def test_the_worst_line_names_no_warning_twice(make_row):
    rows = [make_row(0.2, attack='pgd', eps=0.1, warnings=('odd', 'odd'))]
    table = robustness_table(summarize(rows)[0])
    assert table.footnotes == ['odd (eps 25.5/255)']
    assert table.lines[0][-1] == '1'


def test_clean_table_holds_every_metric(make_row):
    rows = [make_row(0.9), make_row(0.95, metric='auroc', interval='bootstrap'), make_row(0.7, dataset='cxr'),
            make_row(0.61, dataset='cxr', metric='quadratic_weighted_kappa')]
    table = clean_table(rows)
    assert table.columns == ['data', 'defense', 'accuracy, %', 'AUROC, %', 'quadratic-weighted kappa']
    assert table.lines == [['oct test', 'standard', '90.0 [85.0, 95.0]', '95.0 [90.0, 100.0]', MISSING],
                           ['cxr test', 'standard', '70.0 [65.0, 75.0]', MISSING, '0.61 [0.56, 0.66]']]
    assert 'Wilson' in table.caption
    assert 'bootstrap' in table.caption


def test_on_clean_images_robust_accuracy_is_shown_only_where_it_differs(make_row):
    both = [make_row(0.9), make_row(0.9, metric='robust_accuracy')]
    assert clean_table(both).columns == ['data', 'defense', 'accuracy, %']
    tolerant = [make_row(0.9), make_row(0.95, metric='robust_accuracy')]
    assert clean_table(tolerant).columns == ['data', 'defense', 'robust accuracy, %', 'accuracy, %']


def test_an_undefined_metric_gets_its_reason(make_row):
    row = make_row(math.nan, metric='auroc', interval='undefined (labels hold one class only, 1)')
    table = clean_table([row])
    assert table.lines[0][2:] == ['undefined', '1']
    assert table.footnotes == ['AUROC: undefined (labels hold one class only, 1)']


def test_no_clean_results_no_table(make_row):
    assert clean_table([make_row(attack='pgd', eps=0.1)]) is None


def test_text_is_aligned_and_compact_fits_a_terminal(make_rows):
    panel, = summarize(make_rows(grid=(1, 2, 4, 8)))
    lines = to_text(robustness_table(panel, compact=True)).splitlines()
    assert max(map(len, lines)) <= 110
    start = lines[1].index('eps 8/255')
    assert all(line[start - 1] == ' ' for line in lines[3:])
    assert all(line == line.rstrip() for line in lines)


def test_markdown_has_equal_columns_and_escapes_pipes(make_row):
    text = to_markdown(robustness_table(summarize([make_row(0.5, defense='a|b')])[0]))
    table = [line for line in text.splitlines() if line.startswith('|')]
    assert r'a\|b' in text
    assert len({line.replace(r'\|', '').count('|') for line in table}) == 1


def test_html_escapes(make_row):
    page = to_html(robustness_table(summarize([make_row(defense='<b>&', warnings=('<script>',))])[0]))
    assert '&lt;b&gt;&amp;' in page
    assert '<script>' not in page
    assert '<b>' not in page
