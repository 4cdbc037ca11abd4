"""Grids of eps: known answers on a linear model, and verdicts that depend on nothing but the example."""
import jax
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import fgsm, pgd
from medrobust_jax.attacks.wrappers import restarts
from medrobust_jax.core import rng
from medrobust_jax.evaluate.programs import in_chunks, make_attack, make_layout, make_score
from medrobust_jax.evaluate.slots import make_slots
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, clean_point, worst_case
from medrobust_jax.parallel.mesh import data_mesh

RADII = np.concatenate([[-.02], .005 + .01 * np.arange(12)])  # the first is wrong without an attack
EPS = (.02, .05, .09)
CURVED = (.02, .05, .12)  # on the network: some examples fall at every one of these
ATTACK, CLIMB = pgd(num_steps=5), {norm: pgd(num_steps=20, norm=norm) for norm in ('linf', 'l2', 'l1')}


def same(a, b):
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(left, right)


def take(examples, rows):
    return Examples(*(None if field is None else field[rows] for field in examples))


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
@pytest.mark.parametrize('stop', [True, False])
def test_on_a_linear_model_exactly_those_fall_that_must(planted, grid, clean, norm, stop):
    system = planted(RADII, norm)
    points = grid(system, EPS[::-1], attack=CLIMB[norm], norm=norm, stop_when_fooled=stop)
    assert [point.eps for point in points] == list(EPS), 'ascending, in whatever order they are asked'
    np.testing.assert_array_equal(clean(system).result.acceptable, RADII > 0)
    for point in points:
        np.testing.assert_array_equal(point.result.acceptable, point.eps < RADII)
        np.testing.assert_array_equal(point.rescored, point.eps < RADII)


def test_what_fell_is_carried_with_its_image_and_not_attacked_again(planted, grid):
    points = grid(planted(RADII), EPS)
    standing = RADII > 0
    for before, point in zip([None, *points], points, strict=False):
        np.testing.assert_array_equal(point.attacked, standing)
        standing = point.result.acceptable
        if before is not None:
            assert not (point.result.acceptable & ~before.result.acceptable).any()
            fallen = ~before.result.acceptable
            same(jax.tree.map(lambda a, f=fallen: a[f], before.result),
                 jax.tree.map(lambda a, f=fallen: a[f], point.result))


def test_stopping_changes_losses_but_no_verdict(network, grid):
    stops, goes_on = (grid(network, CURVED, num_restarts=2, stop_when_fooled=stop) for stop in (True, False))
    fallen = [int((~point.result.acceptable).sum()) for point in stops]
    assert 3 < fallen[0] < fallen[1] < fallen[2] < 21, 'the settings decide something at every eps'
    for a, b in zip(stops, goes_on, strict=True):
        np.testing.assert_array_equal(a.result.acceptable, b.result.acceptable)
        assert (b.result.loss >= a.result.loss).all()
        assert b.attacked.all()
    assert (goes_on[-1].result.loss > stops[-1].result.loss).any()


@pytest.mark.parametrize('stop', [True, False])
@pytest.mark.parametrize(('devices', 'chunk'), [(1, 16), (1, 64), (8, 64)])
def test_chunks_padding_and_devices_change_no_bit(network, grid, devices, chunk, stop):
    """21 examples: three chunks of 8, the last with 3 rows of padding; two of 16; one of 64 on 1 or 8 devices."""
    other = make_layout(data_mesh(jax.devices()[:devices]), width=4, chunk=chunk)
    reference = grid(network, CURVED, num_restarts=2, stop_when_fooled=stop)
    points = grid(network, CURVED, num_restarts=2, stop_when_fooled=stop, layout=other)
    for a, b in zip(reference, points, strict=True):
        same((a.result, a.outputs), (b.result, b.outputs))


def test_order_and_company_change_no_bit(network, grid):
    reference = grid(network, CURVED, num_restarts=2)
    for rows in (np.random.default_rng(0).permutation(21), np.array([4]), np.arange(7, 18)):
        points = grid(network, CURVED, num_restarts=2, examples=take(network.examples, rows))
        for a, b in zip(reference, points, strict=True):
            same(jax.tree.map(lambda leaf, r=rows: leaf[r], (a.result, a.outputs)), (b.result, b.outputs))


def test_restarts_from_the_host_are_those_of_the_wrapper(network, grid, clean, layout):
    examples, attack = network.examples, restarts(ATTACK, 3)
    program = in_chunks(make_attack(network.forward, network.task, attack, layout, stop=False), layout)
    right = clean(network).result.acceptable
    for eps in CURVED:
        one, three = (grid(network, (eps,), attack=ATTACK, num_restarts=n, stop_when_fooled=False)[0].result
                      for n in (1, 3))
        wrapped = program(network.variables, rng.example_keys(0, examples.index), examples.images,
                          examples.targets, np.full(21, eps, np.float32))
        for name in ('images', 'loss', 'acceptable'):  # first_fooled counts looks of one restart, or of all
            same(getattr(three, name)[right], getattr(wrapped, name)[right])
        assert not (three.acceptable & ~one.acceptable).any(), 'more restarts are never weaker'
        assert (three.loss >= one.loss).all()
        assert (three.loss > one.loss).any(), 'restarts draw different starts'


def test_nothing_is_compiled_again_for_another_eps_restart_or_remainder(network, grid, caplog):
    grid(network, (.01,), num_restarts=2)
    with jax.log_compiles(), caplog.at_level('DEBUG', logger='jax'):
        points = grid(network, (.02, .05, .08, .3), num_restarts=3)
        assert len({int(point.attacked.sum()) for point in points}) == 4, 'as many row counts as radii'
        jax.jit(lambda x: x * 3)(1)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith('Compiling')]
    assert len(compiled) == 1, f'all but the one that shows that compiling is seen: {compiled}'


def test_one_program_serves_data_sets_of_any_size(network, grid, layout):
    slots = make_slots(network.forward, network.task, ATTACK, layout, stop=True)
    programs = (slots.refill, slots.advance, make_score(network.forward, layout))
    for count in (1, 8, 19):
        grid(network, (.04,), attack=ATTACK, examples=take(network.examples, np.arange(count)))
    assert [program._cache_size() for program in programs] == [1, 1, 1]


def test_layouts_round_the_chunk_up():
    mesh = data_mesh()
    assert make_layout(mesh, width=4, chunk=1).chunk == 64
    assert make_layout(mesh, width=4, chunk=65).chunk == 128
    assert make_layout(data_mesh(jax.devices()[:1]), width=3, chunk=6).chunk == 6


@pytest.mark.parametrize(('stop', 'total'), [(True, 12), (False, 13 * 2 * 3)])
def test_progress_grows_to_its_total(planted, grid, stop, total):
    told = []
    grid(planted(RADII), (.05, .1), num_restarts=3, stop_when_fooled=stop, progress=lambda *n: told.append(n))
    assert {t for _, t in told} == {total}
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == total


def test_eps_zero_is_the_clean_image(planted, grid):
    system = planted(RADII)
    point, = grid(system, (0.0,))
    np.testing.assert_array_equal(point.result.images, system.examples.images)
    np.testing.assert_array_equal(point.result.acceptable, RADII > 0)


def test_the_worst_case_is_taken_per_example(planted, grid):
    strong = grid(planted(RADII), EPS)
    weak = grid(planted(RADII), EPS, attack=pgd(num_steps=1, start='clean', relative_step_size=.5))
    same(worst_case([weak, strong]), [point.result.acceptable for point in strong])
    swapped = [strong[0], *weak[1:]]
    for a, b, both in zip(weak, swapped, worst_case([weak, swapped]), strict=True):
        np.testing.assert_array_equal(both, a.result.acceptable & b.result.acceptable)


def test_what_cannot_be_evaluated_is_refused(planted, grid, clean):
    system = planted(RADII)
    with pytest.raises(ValueError, match=r'eps_grid = .* must be finite and >= 0'):
        grid(system, (.1, -.1))
    with pytest.raises(ValueError, match='num_restarts = 0 must be at least 1'):
        grid(system, (.1,), num_restarts=0)
    images = system.examples.images.copy()
    images[3, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match='evaluation images: image 3 holds NaN'):
        grid(system, (.1,), examples=system.examples._replace(images=images))
    with pytest.raises(TypeError, match='divide 8-bit images by 255'):
        grid(system, (.1,), examples=system.examples._replace(images=np.zeros((13, 4, 4, 1), np.uint8)))
    with pytest.raises(ValueError, match=r'row 0 holds 2, outside 0\.\.1'):
        grid(system, (.1,), examples=system.examples._replace(targets=np.full(13, 2, np.int32)))


def test_a_single_step_finds_what_it_must(planted, grid):
    point, = grid(planted(RADII), (.05,), attack=fgsm())
    np.testing.assert_array_equal(point.result.acceptable, RADII > .05)
    assert set(point.result.first_fooled[(RADII > 0) & (RADII < .05)]) == {1}
    assert point.result.first_fooled[0] == 0


def test_a_given_clean_point_saves_its_pass(network, clean, layout):
    point = clean_point(network.forward, network.variables, network.task, network.examples, layout=layout, seed=0)
    none = point._replace(result=point.result._replace(acceptable=np.zeros(21, bool)))
    found, = attack_grid(network.forward, network.variables, network.task, Threat('pgd', pgd(num_steps=3)),
                         network.examples, (.1,), layout=layout, seed=0, clean=none)
    assert not found.attacked.any()
    assert found.forward_passes == found.backward_passes == 0
    same(found.result.images, network.examples.images)
