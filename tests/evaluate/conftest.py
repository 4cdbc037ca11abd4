"""A linear model whose verdicts are known beforehand, and a small network, for the evaluation's tests."""
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Examples, Threat, attack_grid, clean_point
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks.classification import classification

# One object each, so that programs are compiled once.
ATTACK, TWO_CLASSES = pgd(num_steps=5), classification(2)


def linear_forward(variables, images, keys):
    score = (images.reshape(len(images), -1) - .5) @ variables
    return jnp.stack([-score, score], axis=-1)


def network_forward(variables, images, keys):
    return jnp.tanh((images.reshape(len(images), -1) - .5) @ variables[0]) @ variables[1]


@pytest.fixture(scope='session')
def planted():
    """`planted(radii [N], norm)` -> model and images such that image i falls exactly beyond radii[i]."""
    def make(radii, norm='linf', shape=(4, 4, 1)):
        radii = np.asarray(radii, np.float64)
        weights = np.random.default_rng(0).normal(size=int(np.prod(shape)))
        side = np.where(np.arange(len(radii)) % 2, 1, -1)
        if norm == 'linf':
            inward = np.sign(weights)
        elif norm == 'l2':
            inward = weights / np.linalg.norm(weights)
        else:
            inward = np.sign(weights) * (np.abs(weights) == np.abs(weights).max())
        images = .5 + (side * radii)[:, None] * inward
        labels = (side > 0).astype(np.int32)
        examples = Examples(images.reshape(-1, *shape).astype(np.float32), labels, np.arange(len(radii)))
        return SimpleNamespace(forward=linear_forward, variables=jnp.asarray(weights, jnp.float32),
                               task=TWO_CLASSES, examples=examples)
    return make


@pytest.fixture(scope='session')
def network():
    """A smooth two-layer network of 3 classes and 21 images, most of them classified right."""
    generator = np.random.default_rng(1)
    variables = (jnp.asarray(generator.normal(size=(16, 8)), jnp.float32),
                 jnp.asarray(generator.normal(size=(8, 3)), jnp.float32))
    images = generator.uniform(size=(21, 4, 4, 1)).astype(np.float32)
    labels = np.asarray(network_forward(variables, images, None)).argmax(axis=-1).astype(np.int32)
    labels[::7] = (labels[::7] + 1) % 3
    return SimpleNamespace(forward=network_forward, variables=variables, task=classification(3),
                           examples=Examples(images, labels, 100 + np.arange(21)))


@pytest.fixture(scope='session')
def layout():
    """Blocks of four on one device, chunks of eight."""
    return make_layout(data_mesh(jax.devices()[:1]), width=4, chunk=8)


@pytest.fixture(scope='session')
def grid(layout):
    """`grid(system, eps_grid, attack=, ...)` -> the grid points."""
    def run(system, eps_grid, *, attack=None, norm='linf', num_restarts=1, options=None, **changes):
        threat = Threat('attack', attack or ATTACK, norm, num_restarts, options or {})
        given = {'layout': layout, 'seed': 0, **changes}
        return list(attack_grid(system.forward, system.variables, system.task, threat,
                                given.pop('examples', system.examples), eps_grid, **given))
    return run


@pytest.fixture(scope='session')
def clean(layout):
    """`clean(system)` -> its point without an attack."""
    return lambda system: clean_point(system.forward, system.variables, system.task, system.examples,
                                      layout=layout, seed=0)

