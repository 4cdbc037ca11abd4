"""How far explanations moved: equal images, batches, patients, and images that are left out."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core import rng
from medrobust_jax.evaluate.explanations import heat, integrated_gradients
from medrobust_jax.evaluate.movement import Moved, Versions, completeness, estimates_of, make_explain, move
from medrobust_jax.metrics.attribution import MEASURES, rank_correlation

GENERATOR = np.random.default_rng(0)
N = 11
IMAGES = GENERATOR.uniform(size=(N, 6, 6, 1)).astype(np.float32)
KERNEL = jnp.asarray(GENERATOR.normal(size=(9, 5)), jnp.float32)
HEAD = jnp.asarray(GENERATOR.normal(size=(5, 3)), jnp.float32)
CLASSES = np.arange(N) % 3


def cut(variables, images):
    """Five maps of a 3 x 3 neighborhood, their average, a linear layer."""
    patches = jax.lax.conv_general_dilated_patches(images, (3, 3), (1, 1), 'SAME',
                                                   dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    return jax.nn.relu(patches @ variables[0]), lambda maps: maps.mean((1, 2)) @ variables[1]


def forward(variables, images, keys):
    maps, head = cut(variables, images)
    return head(maps)


@pytest.fixture(scope='module')
def explained(layout):
    """`explained(attacked, noise, shown)` -> `Moved`."""
    program = make_explain(forward, cut, layout, num_steps=16)

    def run(attacked, noise, shown=(), chunk=layout.chunk, rows=slice(None)):
        images = {'clean': IMAGES[rows], 'attacked': attacked[rows], 'noise': noise[rows]}
        versions = Versions(images, dict.fromkeys(images, CLASSES[rows]))
        keys = rng.example_keys(0, np.arange(N)[rows])
        return move(program, ((KERNEL, HEAD), jnp.zeros((6, 6, 1))), keys, versions,
                    chunk=chunk, shown=np.asarray(shown, int))

    return run


def moved_by(values, *, noise=0., touched=True, name='ig_rank_correlation'):
    values = np.asarray(values, float)
    full = [np.full(len(values), each) for each in (noise, touched)]
    return Moved({name: values}, {name: full[0]}, full[1].astype(bool), np.zeros(len(values)),
                 np.ones(len(values)), {})


def test_equal_images_have_not_moved_and_do_not_count(explained):
    moved = explained(IMAGES, IMAGES)
    assert set(moved.values) == {f'{method}_{name}' for method in ('gradcam', 'ig') for name in MEASURES}
    for name, values in moved.values.items():
        np.testing.assert_allclose(values, 0 if name.endswith('shift') else 1, atol=1e-6)
    assert not moved.touched.any()
    found = estimates_of(moved, np.zeros(N, bool))
    assert all(estimate.method == 'undefined (the attack changed no image)' for estimate in found.values())
    assert not [name for name in found if 'changed' in name]


def test_the_maps_that_are_measured_are_those_of_the_methods(explained):
    attacked = np.clip(IMAGES + .2 * GENERATOR.normal(size=IMAGES.shape), 0, 1).astype(np.float32)
    moved = explained(attacked, IMAGES, shown=[9, 2])
    both = [integrated_gradients(lambda x: forward((KERNEL, HEAD), x, None), jnp.asarray(images), CLASSES,
                                 baseline=jnp.zeros((6, 6, 1)), num_steps=16) for images in (IMAGES, attacked)]
    heats = [heat(np.asarray(each.values)) for each in both]
    np.testing.assert_allclose(moved.values['ig_rank_correlation'], rank_correlation(*heats), atol=.02)
    np.testing.assert_allclose(moved.gap, sum(abs(each.gap) for each in both), atol=1e-4)
    np.testing.assert_allclose(moved.maps['ig/attacked'], both[1].values[np.array([9, 2])], atol=1e-5)
    assert moved.maps['gradcam/clean'].shape == (2, 6, 6)
    np.testing.assert_allclose(moved.noise['ig_rank_correlation'], 1, atol=1e-6)
    assert completeness(moved).value == pytest.approx(moved.gap.sum() / moved.rise.sum())


def test_chunks_and_order_change_nothing(explained):
    attacked = np.clip(IMAGES + .1, 0, 1)
    whole, small = explained(attacked, IMAGES, [3, 10]), explained(attacked, IMAGES, [3, 10], chunk=4)
    jax.tree.map(np.testing.assert_array_equal, small, whole)
    order = GENERATOR.permutation(N)
    permuted = explained(attacked, IMAGES, rows=order)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(permuted.values[name], values[order])


def test_means_differences_and_changed_answers():
    values = np.array([.2, .4, .9, 1.])
    found = estimates_of(moved_by(values, noise=.95), np.array([True, True, False, False]))
    name = 'ig_rank_correlation'
    expected = {'': .625, '/noise': .95, '/beyond_noise': -.325, '/changed': .3, '/unchanged': .95}
    for suffix, value in expected.items():
        estimate = found[name + suffix]
        assert estimate.value == pytest.approx(value)
        assert estimate.low <= estimate.value <= estimate.high
    assert (found[name].n, found[f'{name}/changed'].n) == (4, 2)
    assert found[f'{name}/noise'].low == pytest.approx(.95)


def test_patients_are_resampled_as_wholes():
    values = np.repeat(GENERATOR.uniform(size=5), 4)
    alone = estimates_of(moved_by(values), np.zeros(20, bool))['ig_rank_correlation']
    groups = np.repeat(np.arange(5), 4)
    patients = estimates_of(moved_by(values), np.zeros(20, bool), groups)['ig_rank_correlation']
    assert patients.method == 'bootstrap-patients'
    assert patients.high - patients.low > 1.5 * (alone.high - alone.low)


def test_what_is_left_out_is_counted():
    values = np.array([.2, np.nan, .6, .7, .9])
    moved = moved_by(values)._replace(touched=np.array([True, True, True, True, False]))
    found = estimates_of(moved, np.zeros(5, bool))['ig_rank_correlation']
    assert (found.n, found.value) == (3, pytest.approx(.5))
    assert '1 images left out that the attack did not change' in found.method
    assert '1 images left out where a map points nowhere' in found.method
    nowhere = estimates_of(moved_by([np.nan, np.nan]), np.ones(2, bool))['ig_rank_correlation/changed']
    assert (nowhere.n, nowhere.method) == (0, 'undefined (on every image a map points nowhere)')


def test_a_network_without_maps_has_integrated_gradients_alone(layout):
    program = make_explain(forward, None, layout, num_steps=2)
    versions = Versions(dict.fromkeys(('clean', 'attacked', 'noise'), IMAGES),
                        dict.fromkeys(('clean', 'attacked', 'noise'), CLASSES))
    moved = move(program, ((KERNEL, HEAD), jnp.zeros((6, 6, 1))), rng.example_keys(0, np.arange(N)), versions,
                 chunk=layout.chunk, shown=np.arange(1))
    assert {name.partition('_')[0] for name in moved.values} == {'ig'}
    assert set(moved.maps) == {'ig/clean', 'ig/attacked'}
