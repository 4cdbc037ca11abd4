"""Planted evidence: three classes of features, with logits that mostly agree with the labels."""
import functools

import jax
import numpy as np
import pytest

from medrobust_jax.detectors.registry import create_detector

SIZE, CLASSES = 6, 3
# Options that fit small evidence.
SMALL = {'lid': {'num_neighbors': 8, 'batch_size': 60}, 'isolation_forest': {'num_trees': 30},
         'feature_squeezing': {'search': 3}}


def draw(seed, n=240, *, dtype=np.float32, shift=0.0):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % CLASSES)
    centers = np.random.default_rng(99).normal(size=(CLASSES, SIZE)) * 3
    mixing = np.random.default_rng(98).normal(size=(SIZE, SIZE))
    features = centers[labels] + rng.normal(size=(n, SIZE)) @ mixing + shift
    logits = 4 * np.eye(CLASSES)[labels] + rng.normal(size=(n, CLASSES))
    layers = (features[:, :4] ** 2 / 5 + features[:, 1:5], features)
    images = rng.random((n, 8, 8, 1))
    evidence = {'logits': logits, 'features': features, 'layers': layers, 'images': images}
    return jax.tree.map(lambda leaf: leaf.astype(dtype), evidence), labels


def model(images):
    flat = images.reshape(images.shape[0], -1)
    weights = np.random.default_rng(5).normal(size=(64, SIZE + CLASSES)).astype(images.dtype) / 4
    out = flat @ weights
    features = out[:, :SIZE]
    return {'logits': 3 * out[:, SIZE:], 'features': features, 'layers': (features[:, :4], features),
            'images': images}


@functools.cache
def fit(name, **options):
    detector = create_detector(name, forward_evidence=model, **{**SMALL.get(name, {}), **options})
    return detector, detector.fit(*draw(0), jax.random.key(3)), jax.jit(detector.score)


@pytest.fixture(scope='session')
def planted():
    """`(seed, n, dtype=, shift=) -> evidence, labels`; `shift` moves all features away from every class."""
    return draw


@pytest.fixture(scope='session')
def linear_model():
    """`images [B, 8, 8, 1] -> evidence`, linear in the pixels."""
    return model


@pytest.fixture(scope='session')
def build():
    """`(name, **options) -> detector`, with options that fit small evidence."""
    return lambda name, **options: create_detector(
        name, forward_evidence=model, **{**SMALL.get(name, {}), **options})


@pytest.fixture(scope='session')
def fitted():
    """`(name, **options) -> detector, its state for planted(0), its compiled score`."""
    return fit


@pytest.fixture(scope='session')
def key():
    return jax.random.key(3)
