"""Passes: counted through the attack itself, and summed as the blocks compute them."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.pgd import di_fgsm, fgsm, mi_fgsm, pgd
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.stabilized import smia
from medrobust_jax.attacks.wrappers import averaged_over, restarts, targeted
from medrobust_jax.core import rng
from medrobust_jax.core.transforms import identity
from medrobust_jax.core.types import Victim
from medrobust_jax.evaluate.passes import passes_of
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

VICTIM = Victim(lambda images, keys: images.reshape(len(images), -1)[:, :3], cross_entropy, prediction_is_right)


@pytest.mark.parametrize(('attack', 'expected'), [
    (pgd(num_steps=7), (1, 1, 1)), (fgsm(), (1, 1, 1)), (mi_fgsm(), (1, 1, 1)), (targeted(pgd()), (1, 1, 1)),
    (deepfool(), (1, 2, 1)), (smia(), (2, 1, 1)), (restarts(pgd(), 4), (1, 1, 1)), (di_fgsm(), (2, 1, 2)),
    (averaged_over(pgd(), identity, num_samples=5), (6, 5, 6)),
    (averaged_over(smia(), identity, num_samples=3), (8, 4, 4)),
], ids=['pgd', 'fgsm', 'mi_fgsm', 'targeted', 'deepfool', 'smia', 'restarts', 'di_fgsm', 'eot', 'eot of smia'])
def test_forward_and_backward_passes(attack, expected):
    assert passes_of(attack, VICTIM, image_shape=(2, 2, 1), targets=np.zeros(1, np.int32)) == expected


@pytest.mark.parametrize('attack', [pgd(num_steps=4), smia(num_steps=4), averaged_over(pgd(num_steps=4), identity,
                                                                                      num_samples=3)])
def test_the_counts_are_those_of_a_run(attack):
    """Against a forward pass that counts the images it computes while the attack runs."""
    computed = []

    def forward(images, keys):
        jax.debug.callback(lambda x: computed.append(len(x)), images)
        return VICTIM.forward(images, keys)

    images = jnp.full((2, 2, 2, 1), .5)
    keys, labels = rng.example_keys(0, jnp.arange(2)), jnp.zeros(2, int)
    run(attack, VICTIM._replace(forward=forward), keys, images, labels, eps=.1)
    jax.effects_barrier()
    passes = passes_of(attack, VICTIM, image_shape=(2, 2, 1), targets=np.zeros(1, np.int32))
    assert sum(computed) == 2 * (4 * passes.forward + passes.last_look)


def test_a_grid_reports_passes_per_example_of_the_test_set(planted, grid):
    """8 of 10 are attacked in two blocks of four; at .05 four of them fall at the first look after a step."""
    radii = np.array([-.1, -.1, .01, .01, .01, .01, .2, .2, .2, .2])
    system = planted(radii)
    point, = grid(system, (.05,), attack=fgsm())
    assert (point.forward_passes, point.backward_passes) == (8 * 2 / 10, 8 * 2 / 10)
    point, = grid(system, (.05,), attack=fgsm(), num_restarts=2)
    assert (point.forward_passes, point.backward_passes) == (12 * 2 / 10, 12 * 2 / 10)
    point, = grid(system, (.05,), attack=pgd(num_steps=10, start='clean'), stop_when_fooled=False)
    assert (point.forward_passes, point.backward_passes) == (12 * 11 / 10, 12 * 11 / 10), 'three blocks of four'
    assert point.passes_needed == 10 / 12
    point, = grid(system, (.05,), attack=pgd(num_steps=10, start='clean', relative_step_size=1.0))
    assert (point.forward_passes, point.passes_needed) == ((4 * 2 + 4 * 11) / 10, 1)
