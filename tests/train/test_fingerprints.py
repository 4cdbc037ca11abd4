"""Fingerprints: equal for equal arrays, different for everything else."""
import jax.numpy as jnp
import numpy as np

from medrobust_jax.train.fingerprints import config_fingerprint, differing_fields, fingerprint


def test_differing_fields():
    config = {'a': {'b': 1, 'c': [1, 2]}}
    assert differing_fields(config, config) == []
    assert differing_fields(config, {'a': {'b': 2, 'c': [1, 2]}, 'd': 0}) == ['a.b: 1 -> 2', 'd: (absent) -> 0']
    assert differing_fields({'a': {'b': 1}}, {'a': 2}) == ["a: {'b': 1} -> 2"]


def test_fingerprints_tell_values_names_and_types_apart():
    trees = [{'a': jnp.ones(2)}, {'b': jnp.ones(2)}, {'a': jnp.ones(2, jnp.int32)}, {'a': jnp.ones((2, 1))},
             {'a': jnp.array([1.0, -1.0])}]
    assert len({fingerprint(tree) for tree in trees}) == 5
    assert fingerprint({'a': np.ones(2, np.float32)}) == fingerprint(trees[0])


def test_config_fingerprints_ignore_the_order_of_names():
    assert config_fingerprint({'a': 1, 'b': 2}) == config_fingerprint({'b': 2, 'a': 1})
    assert config_fingerprint({'a': 1}) != config_fingerprint({'a': 2})
