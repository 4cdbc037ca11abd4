"""Any forward function and arrays of images, judged without config or checkpoint."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.evaluate import own_model
from medrobust_jax.evaluate.own_model import judge_model, threats_called
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.suite import Threat
from medrobust_jax.evaluate.verdicts import load_verdicts

RADII = np.concatenate([[-.02, -.01], .005 + .01 * np.arange(10)])
EPS = (.02, .05)
PGD = Threat('pgd', pgd(num_steps=5), options={'attack': 'pgd', 'num_steps': 5})
RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(5, 4, 4, 1)).astype(np.float32)
LABELS = np.asarray([0, 1, 0, 1, 0])


@pytest.fixture
def model(planted):
    """`images -> logits` of the planted linear model, which closes over its weights, and its examples."""
    system = planted(RADII)
    return (lambda images: system.forward(system.variables, images, None)), system


def two_logits(images):
    """Some classifier of two classes."""
    score = images.reshape(images.shape[0], -1).sum(axis=-1) - 8
    return jnp.stack([-score, score], axis=-1)


def robust(rows, attack, eps):
    found, = (row.value for row in rows if (row.attack, row.metric, row.eps) == (attack, 'robust_accuracy', eps))
    return found


def test_verdicts_are_the_planted_ones(model, layout, tmp_path):
    forward, system = model
    rows = judge_model(forward, system.examples.images, system.examples.targets, workdir=tmp_path / 'a' / 'b',
                       attacks=['fgsm', PGD], eps_grid=EPS, layout=layout, name='linear', dataset='planted')
    for eps in EPS:
        assert robust(rows, 'fgsm', eps) == robust(rows, 'pgd', eps) == (eps < RADII).mean()
    assert robust(rows, 'clean', 0.0) == (RADII > 0).mean()
    assert {(row.defense, row.dataset, row.n) for row in rows} == {('linear', 'planted', len(RADII))}
    assert list(map(repr, rows)) == list(map(repr, read_rows(tmp_path / 'a' / 'b' / 'results.jsonl')))
    saved = load_verdicts(tmp_path / 'a' / 'b' / 'verdicts' / 'pgd.npz')
    np.testing.assert_array_equal(saved.acceptable, [eps < RADII for eps in EPS])


def test_weights_given_apart_change_nothing_but_the_fingerprint(model, layout, tmp_path):
    forward, system = model
    given = {'attacks': [PGD], 'eps_grid': EPS, 'layout': layout, 'num_pictures': 0}
    data = system.examples.images, system.examples.targets
    closed = judge_model(forward, *data, workdir=tmp_path / 'closed', **given)
    apart = judge_model(lambda variables, images: system.forward(variables, images, None), *data,
                        variables=system.variables, workdir=tmp_path / 'apart', **given)
    assert [(row.attack, row.eps, row.metric) for row in closed] == [
        (row.attack, row.eps, row.metric) for row in apart]
    np.testing.assert_array_equal([row.value for row in closed], [row.value for row in apart])
    prints = [{row.provenance['checkpoint_fingerprint'] for row in rows} for rows in (closed, apart)]
    assert len(prints[0]) == len(prints[1]) == 1
    assert prints[0] != prints[1]


@pytest.fixture
def fingerprints(monkeypatch, tmp_path, layout):
    """`fingerprints(forward, ...)` -> those of model and data, without an evaluation."""
    seen = []
    monkeypatch.setattr(own_model, 'judge', lambda subject, *_, **__: seen.append(subject.fingerprints))

    def of(forward, labels=LABELS, **given):
        judge_model(forward, IMAGES, labels, workdir=tmp_path, layout=layout, **given)
        return seen[-1]['checkpoint_fingerprint'], seen[-1]['dataset_fingerprint']
    return of


def test_fingerprints_tell_models_and_data_apart(fingerprints):
    first = fingerprints(two_logits)
    assert first == fingerprints(two_logits), 'the same again'
    other = fingerprints(lambda images: 2 * two_logits(images))
    assert first[0] != other[0]
    assert first[1] == other[1]
    relabeled = fingerprints(two_logits, labels=1 - LABELS)
    assert first[0] == relabeled[0]
    assert first[1] != relabeled[1]
    assert fingerprints(two_logits, fingerprint='epoch 7')[0] == 'epoch 7'


def test_a_randomized_model_is_given_keys_and_found_out(layout, tmp_path):
    def forward(images, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key))(keys)
        return two_logits(images) + jnp.stack([noise, -noise], axis=-1)
    rows = judge_model(forward, IMAGES, LABELS, workdir=tmp_path, attacks=['fgsm'], eps_grid=(.01,), layout=layout)
    assert any('randomized' in sentence for row in rows for sentence in row.warnings)


def test_default_attacks():
    for classes, ensemble, members in ((2, 'medical_ensemble', 4), (4, 'autoattack', 4)):
        fgsm, first_pgd, last = threats_called(('fgsm', 'pgd', 'ensemble'), num_classes=classes)
        assert (fgsm.name, first_pgd.name, last.name) == ('fgsm', 'pgd', ensemble)
        assert (first_pgd.attack.num_steps, first_pgd.num_restarts) == (100, 2)
        assert len(last.members) == members
        assert last.options['attack'] == ensemble
    l2 = threats_called(['pgd', 'apgd_targeted', 'fab', PGD], num_classes=12, norm='l2')
    assert [threat.norm for threat in l2] == ['l2', 'l2', 'l2', 'linf'], 'a threat is taken as it is'
    assert l2[1].num_targets == 9
    assert l2[2].minimum_norm
    json.dumps([threat.options for threat in l2])


@pytest.mark.parametrize(('attacks', 'norm', 'message'), [
    (['pdg'], 'linf', "did you mean 'pgd'"),
    (['autoatack'], 'linf', "did you mean 'autoattack'"),
    (['autoattack'], 'linf', 'not defined for 3 classes'),
    (['cw_l2'], 'linf', "measured in 'l2', not in 'linf'"),
    (['spatial'], 'linf', 'a grid of its own'),
    (['pgd'], 'linff', 'unknown norm'),
    ([], 'linf', 'at least one name'),
    ('pgd', 'linf', "must be a list")])
def test_refused_attacks(attacks, norm, message):
    with pytest.raises(ValueError, match=message):
        threats_called(attacks, num_classes=3, norm=norm)


@pytest.mark.parametrize(('change', 'error', 'message'), [
    ({'images': (255 * IMAGES).astype(np.uint8)}, TypeError, 'divide 8-bit images by 255'),
    ({'images': 2 * IMAGES}, ValueError, r'in \[0, 1\]'),
    ({'labels': LABELS[:3]}, ValueError, "'images': 5, 'labels': 3"),
    ({'groups': np.arange(4)}, ValueError, "'groups': 4"),
    ({'labels': LABELS + 1}, ValueError, 'row 1 holds 2'),
    ({'labels': LABELS.astype(np.float32)}, TypeError, 'not an integer type'),
    ({'num_classes': 3}, ValueError, 'forward returns 2 logits'),
    ({'forward': lambda images: two_logits(images)[:, 0]}, ValueError, 'jnp.stack'),
    ({'forward': lambda images: two_logits(images)[:, :1]}, ValueError, 'jnp.stack'),
    ({'forward': lambda images: {'logits': two_logits(images)}}, ValueError, 'that are a dict'),
    ({'eps_grid': (-.1,)}, ValueError, 'eps_grid'),
    ({'eps_grid': None, 'norm': 'l2'}, ValueError, 'eps_grid must be given')])
def test_refused_arguments(change, error, message, layout, tmp_path):
    given = {'forward': two_logits, 'images': IMAGES, 'labels': LABELS, 'attacks': ['fgsm'], 'layout': layout,
             **change}
    with pytest.raises(error, match=message):
        judge_model(given.pop('forward'), given.pop('images'), given.pop('labels'), workdir=tmp_path, **given)
    assert not (tmp_path / 'results.jsonl').exists()
