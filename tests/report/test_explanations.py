"""Explanations on the page: pictures, tables apart from those of robustness, and words for both."""
import numpy as np
import pytest

from experiments.report import text_tables
from medrobust_jax.report.explanations import explanation_figure, load_explanations
from medrobust_jax.report.figures import to_png
from medrobust_jax.report.html import build_report
from medrobust_jax.report.movement import explanation_tables
from medrobust_jax.report.naming import headline, is_explanation, metric_of
from medrobust_jax.report.summary import main_first

GENERATOR = np.random.default_rng(0)


@pytest.fixture
def moved(make_row):
    """Rows of one attack's explanations."""
    def rows(**changes):
        given = {'attack': 'pgd', 'eps': 4 / 255, 'interval': 'bootstrap', **changes}
        names = {'gradcam_rank_correlation': .68, 'gradcam_rank_correlation/noise': .99,
                 'gradcam_rank_correlation/beyond_noise': -.31, 'gradcam_rank_correlation/changed': .4,
                 'gradcam_top_overlap': .5, 'ig_center_shift': .02, 'ig_completeness_gap': .01}
        return [make_row(value, metric=name, **given) for name, value in names.items()]
    return rows


@pytest.fixture
def save(tmp_path):
    """`save(...)` -> the path of an explanations.npz of two images, as `experiments.explain` writes it."""
    def write(*, gradcam=True, channels=1, target=(0, 1), **changes):
        shape = (2, 6, 9, channels)
        arrays = {'task': 'classification', 'index': [4, 7], 'class_names': ['normal', 'drusen'],
                  'attack': 'pgd20', 'norm': 'linf', 'eps': 4 / 255,
                  'clean': np.full(shape, .5), 'attacked': np.full(shape, .51),
                  'target': np.asarray(target)}
        for name in ('clean', 'attacked'):
            arrays |= {f'{name}/prediction': [0, 1] if name == 'clean' else [1, 1], f'{name}/class': [0, 1],
                       f'{name}/confidence': [.9, .8], f'ig/{name}': GENERATOR.normal(size=shape)}
            arrays |= {f'gradcam/{name}': GENERATOR.uniform(size=shape[:3])} if gradcam else {}
        for method in ('gradcam', 'ig') if gradcam else ('ig',):
            arrays |= {f'{method}_{name}/attacked': [.25, np.nan] for name in ('rank_correlation', 'top_overlap')}
        np.savez(tmp_path / 'explanations.npz', **{**arrays, **changes})
        return tmp_path / 'explanations.npz'
    return write


def test_what_is_said_of_an_image(save):
    first, second = load_explanations(save(), title='natural')
    assert first.caption == ('natural, pgd20, eps 4/255, image 4; truth: normal. The answer goes from normal to '
                             'drusen; the most important tenths of the pixels overlap by 25 % (Grad-CAM) and 25 % '
                             '(integrated gradients).')
    assert second.caption.endswith('The answer stays drusen.'), 'a map that points nowhere overlaps with none'
    assert (first.right, second.right) == ((True, False), (True, True))
    assert first.moved == dict.fromkeys(('gradcam', 'ig'), 'rank corr. 0.25\noverlap 25 %')
    assert second.moved['ig'] == 'points nowhere'
    assert load_explanations(save(), title='x', class_names=('a', 'b'))[0].answers == ('a', 'b')
    assert load_explanations(save(class_names=np.array([], str)), title='x')[0].answers == ('class 0', 'class 1')


def test_of_several_findings_the_strongest_is_there_or_absent(save):
    confidences = {'clean/confidence': [.9, .2], 'attacked/confidence': [.8, .3]}
    first, second = load_explanations(save(target=[[0, 0], [0, 1]], **confidences), title='natural')
    assert 'findings: none. The strongest finding goes from normal to drusen' in first.caption
    assert 'findings: drusen. The strongest finding stays drusen.' in second.caption
    assert (first.answers, first.right, first.confidences) == (('normal', 'drusen'), (False, False), (.9, .8))
    assert (second.answers, second.right) == (('no drusen', 'no drusen'), (False, False))
    assert second.confidences == pytest.approx((.8, .7))
    absent = load_explanations(save(target=[[0, 0], [1, 0]], **confidences), title='natural')[1]
    assert absent.right == (True, True)


@pytest.mark.parametrize(('gradcam', 'channels', 'count'), [(True, 1, 6), (True, 3, 6), (False, 1, 4)])
def test_the_row_of_panels(save, gradcam, channels, count):
    explanation, nowhere = load_explanations(save(gradcam=gradcam, channels=channels), title='natural')
    figure = explanation_figure(explanation)
    titles = [axes.get_title().replace('\n', ' ') for axes in figure.axes]
    with_cam = ['clean: image', 'clean: Grad-CAM', 'attacked: image', 'attacked: Grad-CAM',
                'clean: int. gradients', 'attacked: int. gradients']
    assert titles == [title for title in with_cam if gradcam or 'CAM' not in title]
    assert len(titles) == count
    below = [axes.get_xlabel() for axes in figure.axes]
    assert below[0] == 'normal\nright, 90 % sure'
    assert below[-1] == 'for normal\nrank corr. 0.25\noverlap 25 %'
    assert to_png(figure).startswith(b'\x89PNG')
    flat = (np.zeros((6, 9)),) * 2 if gradcam else None
    empty = nowhere._replace(ig=(np.zeros((6, 9, channels)),) * 2, gradcam=flat)
    to_png(explanation_figure(empty))  # flat maps draw as nothing, without a warning


def test_the_table_sets_the_attack_beside_noise(moved):
    table, = explanation_tables([*moved(), *moved(attack='smia')])
    assert table.columns == ['defense', 'attack', 'eps', 'map and measure', 'attack', 'noise of the same size',
                             'attack minus noise', 'attack, answer unchanged', 'attack, answer changed']
    assert table.lines[0] == ['standard', 'pgd', '4/255', 'Grad-CAM: rank correlation', '0.68 [0.63, 0.73]',
                              '0.99 [0.94, 1.04]', '-0.31 [-0.36, -0.26]', '–',  # noqa: RUF001
                              '0.40 [0.35, 0.45], n = 400']
    assert [line[:3] for line in table.lines] == [
        ['standard', 'pgd', '4/255'], ['', '', ''], ['', '', ''], ['standard', 'smia', '4/255'], ['', '', ''],
        ['', '', '']]
    noted, = explanation_tables(moved(interval='bootstrap (2 images left out)'))
    assert noted.footnotes == ['2 images left out']
    seeds, = explanation_tables([*moved(), *moved(seed=1)])
    assert seeds.lines[0][0] == 'standard (2 runs)'
    assert not explanation_tables([])


def test_explanations_lead_nothing_and_are_no_robustness_table(rows, moved):
    with_maps = [*moved(), *rows]
    assert headline(with_maps) == headline(rows)
    assert main_first(with_maps) == main_first(rows)
    assert text_tables(with_maps) == text_tables(rows)
    assert headline(moved()) == []
    page, plain = build_report(with_maps, title='t'), build_report(rows, title='t')
    assert page.count('<table>') == plain.count('<table>') + 1
    assert page.count('<img') == plain.count('<img')
    results, plain_results = (each[each.index('id="results"'):each.index('id="curves"')] for each in (page, plain))
    assert results == plain_results


def test_a_page_with_explanations(rows, moved, save):
    explanations = load_explanations(save(), title='natural')
    page = build_report([*rows, *moved()], title='t', explanations=explanations)
    assert '<h2 id="explanations">Explanations</h2>' in page
    for text in ('<dt>Grad-CAM</dt>', '<dt>integrated gradients</dt>', '<dt>movement of a map</dt>',
                 '<dt>noise of the same size</dt>', 'orange pixels speak for the class', explanations[0].caption):
        assert text in page
    assert 'Explanations' not in build_report(rows, title='t')
    alone = build_report(moved(warnings=('too few steps',)), title='t', explanations=explanations)
    assert 'too few steps' in alone
    assert 'id="results"' not in alone


def test_names():
    assert is_explanation('gradcam_top_overlap/noise')
    assert not is_explanation('accuracy')
    assert metric_of('ig_center_shift/beyond_noise').label == (
        'integrated gradients: shift of the center, of the diagonal (beyond noise)')
    assert not metric_of('gradcam_rank_correlation').percent
    assert metric_of('ig_completeness_gap').percent
