"""The page: whole, self-contained, escaped, and honest about what is missing."""
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from medrobust_jax.report.figures import Picture
from medrobust_jax.report.html import build_report


class Page(HTMLParser):
    """Collects tags, addresses and text, and whether tags close in order."""

    VOID = frozenset({'meta', 'img', 'br', 'link'})

    def __init__(self, source):
        super().__init__()
        self.open, self.tags, self.addresses, self.words = [], [], [], []
        self.feed(source)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ('src', 'href')]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return ' '.join(self.words)


@pytest.fixture
def picture():
    clean = np.full((8, 8, 1), 0.5)
    return Picture('scan <3>', clean, clean + 4 / 255, 'drusen', 'drusen', 'normal', 0.98, 0.71)


def test_a_page_holds_every_section_and_loads_nothing(rows, picture):
    source = build_report(rows, [picture], title='My study', commands=['python -m experiments.train'],
                          notes=['Phantoms, not patients.'])
    page = Page(source)
    for heading in ('What was evaluated', 'Results', 'Quality over eps', 'Pictures',
                    'Sanity checks and warnings', 'How to reproduce', 'Glossary'):
        assert heading in page.text
    for text in ('My study', 'Phantoms, not patients.', 'python -m experiments.train', 'eps 8/255', 'c0ffee',
                 'standard-0', 'data-0', 'config-0', 'scan <3>', 'No result carries a warning', 'num_steps 20'):
        assert text in page.text, text
    assert page.tags.count('img') == 2
    assert 'script' not in page.tags
    assert 'link' not in page.tags
    assert all(address.startswith(('data:image/', '#')) for address in page.addresses)
    assert not re.search(r'url\(|@import', source)


def test_the_top_says_what_came_out(rows):
    text = Page(build_report(rows, title='t')).text
    assert 'oct, standard: accuracy in % 90.0 [85.0, 95.0] on clean images' in text
    assert 'at eps 8/255 (worst attack)' in text


def test_everything_from_data_is_escaped(make_rows, make_row, picture):
    evil = '<script>alert("x")</script>'
    rows = make_rows(dataset=evil, model=evil, attacks=(evil, 'pgd'), defenses=(evil,), split=evil)
    rows.append(make_row(0.1, dataset=evil, attack='pgd', eps=0.1, warnings=(evil,), interval=f'w ({evil})',
                         attack_options={evil: evil}))
    source = build_report(rows, [picture._replace(caption=evil, label=evil)], title=evil, commands=[evil],
                          notes=[evil])
    assert 'script' not in Page(source).tags
    assert '&lt;script&gt;' in source


def test_warnings_are_listed_with_their_place(make_rows, make_row):
    rows = [*make_rows(), make_row(0.6, attack='spsa', eps=8 / 255, warnings=('black-box beats white-box',))]
    text = Page(build_report(rows, title='t')).text
    assert 'oct, standard : black-box beats white-box (spsa, eps 8/255)' in ' '.join(text.split())
    assert 'should not be quoted' in text


def test_partial_results_make_a_page(make_row):
    clean_only = Page(build_report([make_row()], title='t'))
    assert 'Quality over eps' not in clean_only.text
    assert 'Pictures' not in clean_only.text
    assert 'under no attacks' in clean_only.text
    attacked_only = Page(build_report([make_row(attack='pgd', eps=0.1)], title='t'))
    assert 'Quality over eps' in attacked_only.text
    bare = Page(build_report([make_row(provenance={}, metric='auroc')], title='t'))
    assert 'AUROC' in bare.text


def test_several_studies_share_a_page(make_rows, make_row):
    rows = [*make_rows(seeds=(0, 1, 2)), *make_rows(dataset='retina', model='densenet'),
            make_row(0.4, attack='pgd', norm='l2', eps=0.5),
            make_row(0.61, dataset='retina', model='densenet', metric='quadratic_weighted_kappa'),
            make_row(0.2, dataset='retina', model='densenet', metric='quadratic_weighted_kappa', attack='pgd',
                     eps=2 / 255)]
    page = Page(build_report(rows, title='t'))
    assert '4 systems under 2 attacks on 2 data sets' in page.text
    assert page.tags.count('img') == 3
    assert 'standard, resnet (3 runs)' in page.text
    assert 'Under attack: quadratic-weighted kappa' in page.text


def test_robust_accuracy_leads_and_its_double_is_not_repeated(make_rows, make_row):
    twins = [*make_rows(metric='accuracy'), *make_rows(metric='robust_accuracy')]
    twins.append(make_row(0.1, metric='robust_accuracy', attack='worst_case', eps=8 / 255))
    text = Page(build_report(twins, title='t')).text
    assert 'oct, standard: robust accuracy in %' in text
    assert '10.0 [5.0, 15.0] at eps 8/255 (worst per image)' in text
    assert 'Equal to robust accuracy everywhere; not repeated' in text
    assert 'under 2 attacks' in text, 'the worst over attacks is no attack of its own'
    loose = [*twins, make_row(0.99, metric='accuracy', attack='pgd', eps=8 / 255, seed=1)]
    assert 'not repeated' not in Page(build_report(loose, title='t')).text


def test_nothing_to_report_is_refused():
    with pytest.raises(ValueError, match='run the evaluation first'):
        build_report([], title='t')
