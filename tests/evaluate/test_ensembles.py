"""Ensembles: their members and constants, and known answers on a linear model."""
import itertools
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.fmn import fmn
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.square import square
from medrobust_jax.evaluate.ensembles import autoattack, medical_ensemble
from medrobust_jax.evaluate.sanity import check_cascade
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, attack_in_turn
from medrobust_jax.tasks.multilabel import multilabel

RADII = np.concatenate([[-.02], .005 + .01 * np.arange(8)])
EPS = (.02, .05)


def effort(ensemble):
    return [(m.name, m.attack.num_steps, m.num_restarts, m.num_targets) for m in ensemble.members]


def test_standard_is_the_original():
    for norm in ('linf', 'l2'):
        assert effort(autoattack(num_classes=10, norm=norm)) == [
            ('apgd_ce', 100, 1, 1), ('apgd_t', 100, 1, 9), ('fab_t', 101, 1, 9), ('square', 5000, 1, 1)]
    l1 = effort(autoattack(num_classes=10, norm='l1'))
    assert [(name, restarts, targets) for name, _, restarts, targets in l1] == [
        ('apgd_ce', 5, 1), ('apgd_t', 1, 5), ('fab_t', 1, 9), ('square', 1, 1)]


def test_other_versions():
    plus = effort(autoattack(num_classes=10, version='plus'))
    assert [(name, restarts, targets) for name, _, restarts, targets in plus] == [
        ('apgd_ce', 5, 1), ('apgd_dlr', 5, 1), ('fab', 5, 1), ('square', 1, 1), ('apgd_t', 1, 9), ('fab_t', 1, 9)]
    assert [m.name for m in autoattack(num_classes=10, version='rand').members] == ['apgd_ce', 'apgd_dlr']
    chosen = autoattack(num_classes=10, version='custom', members=('square', 'apgd_ce'), num_queries=7)
    assert [m.name for m in chosen.members] == ['square', 'apgd_ce']
    assert chosen.options['measure'] == 'AutoAttack, own settings'


def test_the_record_says_what_it_is():
    assert autoattack(num_classes=10).options['measure'] == 'AutoAttack standard'
    five = autoattack(num_classes=5)
    assert five.options['measure'] == 'AutoAttack standard, with the 4 targets that 5 classes have'
    assert [m.num_targets for m in five.members] == [1, 4, 4, 1]
    assert 'AutoAttack' not in medical_ensemble(num_classes=10).options['measure']


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: autoattack(num_classes=3), "not defined for 3 classes.*'medical_ensemble'"),
    (lambda: autoattack(num_classes=10, version='standart'), "did you mean 'standard'"),
    (lambda: autoattack(num_classes=10, version='custom'), 'needs members'),
    (lambda: autoattack(num_classes=10, version='custom', members=('apgd',)), 'member of AutoAttack'),
    (lambda: medical_ensemble(num_classes=1), 'two classes at least'),
    (lambda: autoattack(num_classes=10, members=('square',)), "members are for version 'custom'"),
])
def test_what_is_not_defined_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def run(system, threat, *, layout, **options):
    return attack_grid(system.forward, system.variables, system.task, threat, system.examples, EPS, layout=layout,
                       seed=0, **options)


@pytest.mark.parametrize('norm', ['linf', pytest.param('l2', marks=pytest.mark.long)])
def test_two_classes_are_judged_exactly_on_a_linear_model(planted, layout, norm):
    ensemble = medical_ensemble(num_classes=2, norm=norm, num_steps=20, num_queries=30)
    assert [m.num_targets for m in ensemble.members] == [1, 1, 1, 1]
    system = planted(RADII, norm)
    stages = attack_in_turn(ensemble.members, partial(run, system, layout=layout))
    for position, eps in enumerate(EPS):
        np.testing.assert_array_equal(stages[-1][position].result.acceptable, eps < RADII)
        np.testing.assert_array_equal(stages[-1][position].rescored, eps < RADII)
        standing = [stage[position].result.acceptable.sum() for stage in stages]
        assert standing == sorted(standing, reverse=True)
        passes = [stage[position].forward_passes for stage in stages]
        assert passes == sorted(passes)


def test_targets_reach_the_attack(network, layout):
    """Of three classes the margin's two targets are attacked in turn, and break at least what one breaks."""
    member = medical_ensemble(num_classes=3, num_steps=10, num_queries=10).members[1]
    assert member.num_targets == 2
    both, one = (run(network, m, layout=layout) for m in (member, member._replace(num_targets=1)))
    for a, b in zip(both, one, strict=True):
        assert (a.result.acceptable <= b.result.acceptable).all()
    assert sum(point.forward_passes for point in both) > sum(point.forward_passes for point in one)


@pytest.mark.parametrize(('norm', 'attack'), [('l2', deepfool()), ('linf', fmn(num_steps=60))])
def test_one_run_of_a_minimum_norm_attack_serves_the_grid(planted, layout, norm, attack):
    system = planted(RADII, norm)
    points = run(system, Threat('nearest', attack, norm, minimum_norm=True), layout=layout)
    for point in points:
        np.testing.assert_array_equal(point.result.acceptable, point.eps < RADII)
        np.testing.assert_array_equal(point.rescored, point.eps < RADII)
        assert point.attacked.sum() == (RADII > 0).sum()
    assert points[0].forward_passes == points[1].forward_passes


def test_without_stopping_no_member_makes_an_image_weaker(network, layout):
    ensemble = medical_ensemble(num_classes=3, num_steps=10, num_queries=10)
    stages = attack_in_turn(ensemble.members[:3:2], partial(run, network, layout=layout, stop_when_fooled=False))
    for earlier, later in itertools.pairwise(stages):
        for a, b in zip(earlier, later, strict=True):
            level = a.result.acceptable == b.result.acceptable
            assert (b.result.loss >= a.result.loss)[level].all()
            assert (b.result.acceptable <= a.result.acceptable).all()


def test_a_distance_is_measured_and_not_taken_from_the_loss(planted, layout):
    """An attack that is no minimum-norm attack, flagged as one, cannot pass a far image for a near one."""
    wrong = Threat('pgd', pgd(num_steps=3), minimum_norm=True)
    for point in run(planted(RADII), wrong, layout=layout):
        size = np.abs(point.result.images - planted(RADII).examples.images).reshape(len(RADII), -1).max(axis=1)
        assert (size <= point.eps + 1e-6).all()
    with pytest.raises(ValueError, match="'severity' measures no distance"):
        run(planted(RADII), wrong._replace(norm='severity'), layout=layout)


def test_black_box_members_that_break_much_are_reported(planted, layout):
    hampered = pgd(num_steps=2, start='clean', relative_step_size=1e-4)
    members = (Threat('pgd', hampered), Threat('square', square(num_steps=60), options={'attack': 'square'}))
    stages = attack_in_turn(members, partial(run, planted(RADII), layout=layout))
    assert any('square breaks' in sentence for sentence in check_cascade(members, stages))
    assert check_cascade(members[:1], stages[:1]) == ()


@pytest.mark.parametrize('tolerance', [0, 1])
def test_findings_are_judged_exactly_on_a_linear_model(layout, tolerance):
    """Three findings read pixels of their own: the image falls at the radius of rank `tolerance` among theirs."""
    generator = np.random.default_rng(3)
    weights = np.zeros((16, 3), np.float32)
    for finding in range(3):
        weights[5 * finding:5 * finding + 5, finding] = generator.choice([-1., 1.], 5)
    radii = generator.permuted(np.tile([.01, .03, .07], (9, 1)), axis=1)
    radii[4:] += .005
    findings = generator.integers(0, 2, (9, 3)).astype(np.int32)
    images = (.5 + (radii * (2 * findings - 1)) @ weights.T).reshape(9, 4, 4, 1).astype(np.float32)
    task = multilabel(3, tolerance=tolerance)
    system = SimpleNamespace(
        forward=lambda variables, x, keys: (x.reshape(len(x), -1) - .5) @ variables, variables=weights, task=task,
        examples=Examples(images, findings, np.arange(9)))
    ensemble = medical_ensemble(num_classes=3, task='multilabel', margin=task.margin, num_steps=20, num_queries=20)
    assert [member.name for member in ensemble.members] == ['apgd', 'apgd_margin', 'square']
    for point in attack_in_turn(ensemble.members, partial(run, system, layout=layout))[-1]:
        np.testing.assert_array_equal(point.result.acceptable, point.eps < np.sort(radii, axis=1)[:, tolerance])
    alone = run(system, ensemble.members[1], layout=layout)  # the margin finds it by itself
    np.testing.assert_array_equal(alone[0].result.acceptable, np.sort(radii, axis=1)[:, tolerance] > EPS[0])
