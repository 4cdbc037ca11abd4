"""Comparisons of whole evaluations from their files: recipes of several seeds, pairs of attacks, older files."""
import json

import numpy as np
import pytest

from experiments.compare import compare, load_sides, tables_of, write
from medrobust_jax.evaluate import records
from medrobust_jax.evaluate.verdicts import Verdicts, save_verdicts
from medrobust_jax.report.tables import to_markdown

N, RADII = 30, (.5, 1.)
PATIENTS = np.arange(N) // 2
EASE = np.random.default_rng(0).uniform(.4, .8, N)  # of the images, the same for every model


def evaluation(workdir, defense, *, clean, loss_per_eps, seed=0, attacks=('pgd', 'smia'), groups=PATIENTS,
               older=False, **changes):
    """Files as `experiments.evaluate` leaves them, of a model whose quality falls linearly with eps."""
    rng = np.random.default_rng(seed + len(defense))
    about = {'dataset': 'acdc', 'split': 'test', 'model': 'unet', 'defense': defense, 'seed': seed,
             'config_fingerprint': defense, 'checkpoint_fingerprint': f'{defense}{seed}',
             'dataset_fingerprint': 'd', 'task': 'segmentation', 'criterion': [.5], 'stop_when_fooled': False,
             'norm': 'l2', 'attack_seed': 0, 'num_steps': 20, **changes}
    first = EASE + clean + .01 * rng.normal(size=N)
    for number, attack in enumerate(attacks):
        falls = (loss_per_eps + .1 * number) * np.array(RADII)[:, None]
        quality = first - falls + .01 * rng.normal(size=(2, N))
        known = {**about, 'attack': attack}
        if older:
            known = {name: value for name, value in known.items()
                     if name not in ('criterion', 'stop_when_fooled', 'task')}
        save_verdicts(workdir / 'verdicts' / f'{attack}.npz', Verdicts(
            index=np.arange(N), eps=np.array(RADII), acceptable=quality >= .5, loss=-quality,
            first_fooled=np.zeros((2, N), int), attacked=np.ones((2, N), bool), withstood_clean=first >= .5,
            quality=quality, clean_quality=None if older else first, groups=groups, about=known))
        identity = {name: about[name] for name in ('dataset', 'split', 'model', 'defense', 'seed')}
        records.update_rows(workdir / 'results.jsonl', [records.Row(
            **identity, attack=attack, norm='l2', eps=.5, metric='dice', value=.5, low=.4, high=.6, n=N,
            interval='bootstrap', attack_options={'stop_when_fooled': about['stop_when_fooled']},
            provenance={'checkpoint_fingerprint': about['checkpoint_fingerprint'],
                        'criterion': about['criterion']})])
    return workdir


def verdict(rows, second, attack, eps, measure='quality'):
    row, = (row for row in rows if (row['second'], row['attack'], row['eps'], row['measure']) == (
        second, attack, eps, measure))
    return row['supported']


def test_one_call_answers_a_claim_about_clean_and_robust_quality(tmp_path):
    """AMAT against SAT at two radii: one as robust and worse on clean images, one better there and less robust."""
    amat = evaluation(tmp_path / 'amat', 'amat', clean=0., loss_per_eps=.3)
    wide = evaluation(tmp_path / 'wide', 'pgd_at', clean=-.2, loss_per_eps=.1)
    half = evaluation(tmp_path / 'half', 'pgd_at', clean=.1, loss_per_eps=.6)
    rows = compare([[amat], [wide], [half]])
    labels = [f'pgd_at ({workdir})' for workdir in (wide, half)]
    assert {row['second'] for row in rows} == set(labels)
    assert {row['first'] for row in rows} == {'amat'}
    found = [(verdict(rows, label, 'clean', 0.), verdict(rows, label, 'pgd', 1.)) for label in labels]
    assert found == [(True, None), (False, True)]
    assert len(rows) == 2 * (1 + 2 * 2) * 2, 'two pairs, clean and two attacks at two radii, two measures'
    first, second = tables_of(rows)
    text = to_markdown(first)
    assert 'amat against pgd_at' in text
    assert '30 images of 15 patients' in text
    assert 'McNemar' not in text, 'images of one patient are not independent'
    assert first.columns[-1] == 'first better'
    clean = first.lines[0]
    assert (clean[0], clean[1], clean[2], clean[-1]) == ('clean', '', 'quality', '**yes**')
    assert second.lines[0][-1] == '**no**'


def test_two_attacks_on_one_model_and_the_files_written(tmp_path):
    workdir = evaluation(tmp_path / 'a', 'natural', clean=0., loss_per_eps=.2, groups=None)
    rows = compare([[workdir]], pair=('smia', 'pgd'))
    assert {row['supported'] for row in rows if row['measure'] == 'quality'} == {True}
    assert {row['eps'] for row in rows} == set(RADII)
    reverse = compare([[workdir]], pair=('pgd', 'smia'))
    np.testing.assert_allclose([row['difference'] for row in rows], [-row['difference'] for row in reverse])
    assert {row['supported'] for row in reverse if row['measure'] == 'quality'} == {False}
    table, = tables_of(rows)
    assert table.columns[3:5] == ['smia', 'pgd']
    assert table.columns[-2:] == ['first stronger', 'McNemar p']
    write(rows, tmp_path / 'out' / 'rows.jsonl')
    lines = [json.loads(line) for line in (tmp_path / 'out' / 'rows.jsonl').read_text().splitlines()]
    assert [line['difference'] for line in lines] == [row['difference'] for row in rows]
    assert lines[0]['provenance']['versions']
    with pytest.raises(ValueError, match=r'not evaluated with fab \(seeds \[0\]\); there are pgd, smia'):
        compare([[workdir]], pair=('fab', 'pgd'))


def test_seeds_are_paired_and_must_be_the_same(tmp_path):
    recipes = [[evaluation(tmp_path / f'{name}{seed}', name, clean=clean, loss_per_eps=.2, seed=seed)
                for seed in (1, 0)] for name, clean in (('amat', .1), ('natural', 0.))]
    rows = compare(recipes, attacks=('pgd',))
    assert {tuple(row['seeds']) for row in rows} == {(0, 1)}
    assert {row['attack'] for row in rows} == {'clean', 'pgd'}
    assert {len(row['by_seed']) for row in rows} == {2}
    singles = [compare([[recipes[0][at]], [recipes[1][at]]], attacks=('pgd',))[0] for at in (1, 0)]
    np.testing.assert_allclose(rows[0]['by_seed'], [row['difference'] for row in singles])
    with pytest.raises(ValueError, match=r'amat has the seeds \[0, 1\], natural \[0\]'):
        compare([recipes[0], recipes[1][1:]])
    with pytest.raises(ValueError, match='seed 0 comes twice'):
        load_sides([[recipes[0][1], recipes[1][1]]])
    with pytest.raises(ValueError, match=r'hold different defenses \(amat, natural\)'):
        load_sides([[recipes[0][0], recipes[1][1]]])


def test_older_files_say_less_and_are_completed_from_the_rows(tmp_path):
    new = evaluation(tmp_path / 'new', 'amat', clean=.1, loss_per_eps=.2)
    old = evaluation(tmp_path / 'old', 'natural', clean=0., loss_per_eps=.2, older=True)
    rows = compare([[new], [old]])
    assert {(row['attack'], row['measure']) for row in rows} == {
        ('clean', 'robust_accuracy'), *((attack, measure) for attack in ('pgd', 'smia')
                                        for measure in ('quality', 'robust_accuracy'))}
    other = evaluation(tmp_path / 'other', 'natural', clean=0., loss_per_eps=.2, older=True, criterion=[.6])
    with pytest.raises(ValueError, match=r'amat and natural, pgd: .* differ in criterion \(\[0.5\], \[0.6\]\)'):
        compare([[new], [other]])


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = evaluation(tmp_path / 'a', 'amat', clean=0., loss_per_eps=.2)
    b = evaluation(tmp_path / 'b', 'natural', clean=0., loss_per_eps=.2, attacks=('fab',))
    for recipes, options, message in (
            ([[a]], {}, 'nothing to compare'), ([[a], [b]], {}, 'no attack in common'),
            ([[a]], {'pair': ('pgd', 'pgd')}, 'must name two attacks')):
        with pytest.raises(ValueError, match=message):
            compare(recipes, **options)
    with pytest.raises(FileNotFoundError, match=r'run experiments\.evaluate'):
        load_sides([[tmp_path]])
    evaluation(a, 'amat', clean=0., loss_per_eps=.2, attacks=('fab',), checkpoint_fingerprint='trained again')
    with pytest.raises(ValueError, match='are of 2 checkpoints'):
        load_sides([[a]])
