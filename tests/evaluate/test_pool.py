"""The pool: bit for bit what lock-step finds, whatever enters when, leaves early, or was interrupted."""
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from medrobust_jax.attacks.directions import adam
from medrobust_jax.attacks.noise import noise
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import stop_when_fooled
from medrobust_jax.core import rng
from medrobust_jax.core.blocks import in_blocks
from medrobust_jax.evaluate import suite
from medrobust_jax.evaluate.pool import Pool
from medrobust_jax.evaluate.programs import make_layout, victim_of
from medrobust_jax.evaluate.queue import Item, Search
from medrobust_jax.evaluate.resume import Snapshots, settings_of
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks.classification import classification

NETS = {'conv': ('resnet', {'stage_sizes': (1,), 'width': 8, 'norm': 'group'}), 'mlp': ('perceptron', {}),
        'vit': ('vision_transformer', {'depth': 1, 'width': 16, 'num_heads': 2})}
ATTACKS = {'pgd': pgd(num_steps=9), 'smia': smia(num_steps=5, start='ball', norm='l2'),
           'adam': pgd(num_steps=4, direction=adam(norm='linf')), 'noise': noise(num_draws=12)}
SHAPE, EPS, WIDTH = (8, 8, 1), .03, 4


@pytest.fixture(scope='module', params=list(NETS))
def system(request):
    """A network and 33 images, one in ten of which it gets wrong."""
    name, options = NETS[request.param]
    module = create_model(name, 3, **options)
    params, state = init_variables(module, jax.random.key(1), SHAPE)
    params = jax.tree.map(lambda w: 2 * w if w.ndim > 1 else w, params)  # logits that differ
    model = apply_model(module)
    forward = lambda v, x, k: model(*v, x, batch_norm='eval')[0]  # noqa: E731
    images = np.random.default_rng(0).uniform(size=(33, *SHAPE)).astype(np.float32)
    predicted = np.asarray(jax.jit(partial(forward, (params, state)))(images, None)).argmax(-1)
    labels = np.where(np.arange(33) % 10 == 0, (predicted + 1) % 3, predicted).astype(np.int32)
    return SimpleNamespace(forward=forward, variables=(params, state), task=classification(3),
                           examples=Examples(images, labels, 50 + np.arange(33)))


def layout_of(slots, *, devices=1):
    return make_layout(data_mesh(jax.devices()[:devices]), width=WIDTH, chunk=slots)


def pooled(system, attack, eps_grid=(EPS,), *, slots=16, devices=1, rows=slice(None), **options):
    examples = Examples(*(None if field is None else field[rows] for field in system.examples))
    threat = options.pop('threat', Threat('attack', attack))
    return attack_grid(system.forward, system.variables, system.task, threat, examples, eps_grid,
                       layout=layout_of(slots, devices=devices), seed=0, **options)


def same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(('system', 'attack', 'stop'), [
    ('conv', 'pgd', True), ('mlp', 'pgd', False), ('mlp', 'adam', True), ('vit', 'pgd', True),
    *(pytest.param(*case, marks=pytest.mark.long) for case in (
        ('mlp', 'smia', True), ('mlp', 'noise', True), ('conv', 'pgd', False), ('conv', 'smia', True),
        ('conv', 'noise', True), ('vit', 'smia', True)))],
    indirect=['system'])
def test_images_and_verdicts_are_those_of_lock_step(system, attack, stop):
    attack = ATTACKS[attack]
    lock_step = stop_when_fooled(attack) if stop else attack
    examples, victim = system.examples, victim_of(system.forward, system.variables, system.task)
    whole = jax.jit(in_blocks(partial(run, lock_step, victim, eps=EPS), width=WIDTH))(
        rng.example_keys(0, examples.index), examples.images, examples.targets)
    (point,) = pooled(system, attack, stop_when_fooled=stop)
    np.testing.assert_array_equal(point.result.acceptable, whole.acceptable)
    np.testing.assert_array_equal(point.rescored, whole.acceptable)
    rows = point.attacked  # the others are wrong without an attack
    assert 20 < rows.sum() <= 33
    np.testing.assert_array_equal(point.result.images[rows], np.asarray(whole.images)[rows])
    np.testing.assert_array_equal(point.result.first_fooled[rows], np.asarray(whole.first_fooled)[rows])


@pytest.mark.parametrize('system', ['conv'], indirect=True)
def test_slots_order_and_company_change_no_bit(system):
    reference = pooled(system, ATTACKS['pgd'], (.01, EPS))
    assert 0 < reference[1].result.acceptable.mean() < reference[0].result.acceptable.mean() < 1
    for slots, rows in ((8, slice(None)), (16, np.random.default_rng(1).permutation(33)), (16, np.array([5]))):
        points = pooled(system, ATTACKS['pgd'], (.01, EPS), slots=slots, rows=rows)
        for a, b in zip(reference, points, strict=True):
            same(jax.tree.map(lambda leaf, r=rows: leaf[r], (a.result, a.outputs)), (b.result, b.outputs))


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
def test_eight_devices_agree(system):
    one, eight = (pooled(system, ATTACKS['pgd'], (.01, EPS), slots=64, devices=devices) for devices in (1, 8))
    for a, b in zip(one, eight, strict=True):
        assert (a.result.acceptable != b.result.acceptable).mean() <= .002
        np.testing.assert_array_equal(b.result.acceptable, b.rescored)


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
def test_bisection_finds_what_ascending_finds_with_fewer_runs(system):
    radii = tuple(np.linspace(.002, .06, 12))
    up = pooled(system, ATTACKS['pgd'], radii)
    halved = pooled(system, ATTACKS['pgd'], radii, order='bisection')
    verdicts = [np.stack([point.result.acceptable for point in points]) for points in (up, halved)]
    # PGD is no perfect attack: rarely it breaks an image at one radius and not at the next.
    assert (verdicts[0] != verdicts[1]).mean() < .02
    assert sum(point.attacked.sum() for point in halved) < .7 * sum(point.attacked.sum() for point in up)
    assert (np.diff(verdicts[1].astype(int), axis=0) <= 0).all()
    for point in halved:
        np.testing.assert_array_equal(point.rescored, point.result.acceptable)


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
def test_a_cascade_attacks_what_stands_and_keeps_what_fell(system):
    first = pooled(system, ATTACKS['noise'], (EPS, 2 * EPS))
    second = pooled(system, ATTACKS['pgd'], (EPS, 2 * EPS), previous=first)
    alone = pooled(system, ATTACKS['pgd'], (EPS, 2 * EPS))
    for a, b, c in zip(first, second, alone, strict=True):
        np.testing.assert_array_equal(b.result.acceptable, a.result.acceptable & c.result.acceptable)
        assert not (b.attacked & ~a.result.acceptable).any()
        assert (b.result.loss >= a.result.loss)[~a.result.acceptable].all(), 'the stronger image is kept'


@pytest.mark.parametrize('system', ['conv'], indirect=True)
@pytest.mark.parametrize('stop', [True, False])
def test_a_killed_search_continues_bit_for_bit(system, stop, tmp_path, monkeypatch):
    threat = Threat('attack', ATTACKS['pgd'], num_restarts=2)
    options = {'eps_grid': (.01, EPS), 'threat': threat, 'stop_when_fooled': stop}
    expected = pooled(system, None, **options)
    advance, calls = Pool.advance, []

    def dying(pool):
        calls.append(pool)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return advance(pool)

    snapshots = Snapshots(tmp_path / 'attack.npz', {'attack': 'pgd'}, every_seconds=0)
    with monkeypatch.context() as patch:
        patch.setattr(suite.Pool, 'advance', dying)
        with pytest.raises(KeyboardInterrupt):
            pooled(system, None, **options, snapshots=snapshots)
    assert len(calls) == 7
    points = pooled(system, None, **options, snapshots=snapshots)
    for a, b in zip(points, expected, strict=True):
        same((a.result, a.outputs, a.attacked), (b.result, b.outputs, b.attacked))
    np.testing.assert_allclose([p.forward_passes for p in points], [p.forward_passes for p in expected])
    with monkeypatch.context() as patch:  # finished: nothing is computed again
        patch.setattr(suite.Pool, 'advance', lambda pool: pytest.fail('a finished search was run again'))
        again = pooled(system, None, **options, snapshots=snapshots)
    same([p.result for p in again], [p.result for p in expected])


def test_snapshots_of_another_search_or_damaged_are_not_continued(tmp_path, caplog):
    path = tmp_path / 'a.npz'
    Snapshots(path, {'seed': 1}).save({'x': np.arange(3)})
    assert Snapshots(path, {'seed': 1}).load()['x'].tolist() == [0, 1, 2]
    assert Snapshots(path, {'seed': 2}).load() is None
    assert Snapshots(tmp_path / 'none.npz', {}).load() is None
    path.write_bytes(path.read_bytes()[:-30])
    with caplog.at_level('WARNING', logger='absl'):
        assert Snapshots(path, {'seed': 1}).load() is None
    assert 'starts again' in caplog.text


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
def test_a_search_with_other_settings_or_images_is_not_continued(system, tmp_path):
    snapshots = Snapshots(tmp_path / 'attack.npz', {}, every_seconds=0)
    weak = Threat('attack', pgd(num_steps=1, relative_step_size=.01))
    pooled(system, None, threat=weak, snapshots=snapshots)
    for change in ({'threat': Threat('attack', ATTACKS['pgd'])}, {'rows': np.arange(33)[::-1]},
                   {'threat': weak, 'stop_when_fooled': False}):
        change = {'threat': Threat('attack', ATTACKS['pgd']), **change}
        (point,) = pooled(system, None, snapshots=snapshots, **change)
        (expected,) = pooled(system, None, **change)
        same(point.result, expected.result)


def test_settings_tell_attacks_apart_and_equal_ones_together():
    assert settings_of(pgd(num_steps=9).init) == settings_of(pgd(num_steps=9).init)
    attacks = [pgd(num_steps=9), pgd(num_steps=9, norm='l2'), pgd(num_steps=9, start='clean'),
               pgd(num_steps=9, relative_step_size=.5), smia(num_steps=9), smia(num_steps=9, kernel_size=5)]
    assert len({str([settings_of(part) for part in attack[:2]]) for attack in attacks}) == len(attacks)


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
@pytest.mark.parametrize('stop', [True, False])
def test_few_visits_of_the_host(system, stop, monkeypatch):
    """Where nobody falls the host comes by every few looks, also when the slots are at different looks."""
    visits, advance = [], Pool.advance

    def counted(pool):
        visits.append(1)
        return advance(pool)

    monkeypatch.setattr(suite.Pool, 'advance', counted)
    pooled(system, pgd(num_steps=63), (1e-6,), slots=64, stop_when_fooled=stop)
    assert len(visits) <= (14 if stop else 5)


@pytest.mark.parametrize('system', ['mlp'], indirect=True)
def test_passes_are_what_examples_need_and_a_tail(system):
    """With many more examples than slots, little is computed in vain."""
    examples = jax.tree.map(lambda a: np.concatenate([a] * 8), system.examples)
    many = SimpleNamespace(**{**vars(system), 'examples': examples._replace(index=np.arange(264))})
    points = pooled(many, pgd(num_steps=40), (.01, .02, EPS), slots=32)
    assert points[0].passes_needed > .9


def test_draws_differ_between_restarts_and_targets_and_not_between_radii():
    examples = Examples(np.zeros((3, 2, 2, 1), np.float32), np.zeros(3, np.int32), np.array([4, 9, 11]))
    entrants = suite._entrants(examples, np.zeros((3, 2), np.float32), Search(2, 2, 2), (.1, .2), 0)
    items = [Item(row, eps, restart, rank) for row in range(3) for eps in (0, 1) for restart in (0, 1)
             for rank in (1, 2)]
    new = entrants(items)
    keys = list(map(tuple, np.asarray(jax.random.key_data(new.keys)).tolist()))
    by_run = {(item.row, item.restart, item.rank): key for item, key in zip(items, keys, strict=True)}
    assert len(set(keys)) == len(by_run) == 12
    assert all(by_run[item.row, item.restart, item.rank] == key for item, key in zip(items, keys, strict=True))
    np.testing.assert_array_equal(jax.random.key_data(new.keys[0]),
                                  jax.random.key_data(rng.example_keys(0, examples.index)[0]))
    np.testing.assert_array_equal(new.knobs['eps'], np.float32([(.1, .2)[item.eps] for item in items]))
    np.testing.assert_array_equal(new.knobs['target_rank'], [item.rank for item in items])
