"""Foreign images on the page: tables of their own, beside robustness and never in front of it."""
import numpy as np
import pytest

from medrobust_jax.report.foreign import KeptForeign, foreign_figure, foreign_scenes, foreign_tables
from medrobust_jax.report.html import build_report
from medrobust_jax.report.naming import headline
from medrobust_jax.report.summary import main_first
from medrobust_jax.report.tables import to_text


@pytest.fixture
def ood_rows(make_row):
    return [make_row(value, metric=metric, attack='ood_noise', norm='l2', eps=eps, defense=defense,
                     attack_options={'start_images': 'noise'})
            for defense in ('standard', 'pgd_at')
            for metric, values in (('output_dice', (.1, .95)), ('reached', (0., .9)))
            for eps, value in zip((0., 7.07), values, strict=True)]


def test_a_table_holds_the_control_above_the_attack(ood_rows):
    table, = foreign_tables(ood_rows)
    assert table.columns == ['defense', 'start images', 'shown', 'Dice of the two outputs, %', 'output reached, %']
    assert [line[:3] for line in table.lines] == [
        ['standard', 'noise', 'as they are'], ['', '', 'attacked, L2 7.07'],
        ['pgd_at', 'noise', 'as they are'], ['', '', 'attacked, L2 7.07']]
    assert [line[3][:4] for line in table.lines] == ['10.0', '95.0'] * 2
    assert 'oct test' in to_text(table)
    assert foreign_tables([]) == []


def test_two_start_images_make_no_worst_attack(ood_rows):
    other = [row.__class__(**{**row.__dict__, 'attack': 'ood_acdc', 'attack_options': {'start_images': 'acdc'}})
             for row in ood_rows]
    table, = foreign_tables([*ood_rows, *other])
    assert [line[1] for line in table.lines] == ['noise', '', 'acdc', ''] * 2


def test_robustness_is_as_without_them(rows, ood_rows):
    everything = [*rows, *ood_rows]
    assert headline(everything) == headline(rows)
    assert main_first(everything) == main_first(rows)
    assert headline(ood_rows) == []
    page, without = build_report(everything, title='t'), build_report(rows, title='t')
    start, end = '<section><h2 id="foreign">', '<section><h2 id="checks">'
    assert start not in without
    assert page.count('<h2 id="foreign">') == 1
    for section in ('results', 'curves'):
        part = f'<h2 id="{section}">'
        assert page.split(part)[1].split('</section>')[0] == without.split(part)[1].split('</section>')[0], section
    assert page.split(start)[1].split(end)[0].count('<table>') == 1
    assert '<dt>out of distribution</dt>' in page
    assert '2 systems under 2 attacks' in page


def test_scenes_say_what_was_reached_and_structures_have_names():
    wanted = np.zeros((2, 8, 8), int)
    wanted[:, 2:6, 2:6], wanted[:, 3, 3] = 1, 2
    after = wanted.copy()
    after[1] = 0
    images = np.full((2, 8, 8, 1), .5)
    kept = KeptForeign('acdc', 3., np.array([4, 9]), images, images + .2, images, 0 * wanted, after, wanted)
    reached, failed = foreign_scenes(kept, title='natural', names=('RV',))
    assert 'real image 4 of the test set' in reached.caption
    assert '0 % before the change, 100 % after it' in reached.caption
    assert (reached.reached, failed.reached) == (True, False)
    assert reached.names == ('RV', 'class 2')
    start, changed, change, on_changed, on_real = foreign_figure(failed).axes
    assert change.get_xlabel() == 'up to 51 of 255\ngray levels'
    assert on_changed.get_xlabel() == 'Dice 0 %\nnot reached'
    assert len(start.images) == len(changed.images) == 1
    assert len(on_real.images) == 2, 'the image and the areas on it'
