"""One loop, three ways to run it."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.core.loops import repeat


@pytest.mark.parametrize('num_steps', [0, 1, 5])
def test_all_ways_agree(num_steps):
    traces = []

    def body(state):
        traces.append(1)
        return state * 2 + 1

    start = jnp.arange(3.)
    expected = np.arange(3.)
    for _ in range(num_steps):
        expected = expected * 2 + 1
    np.testing.assert_array_equal(repeat(body, start, num_steps), expected)
    assert len(traces) <= 1
    never = repeat(body, start, num_steps, finished=lambda s: jnp.array(False))
    np.testing.assert_array_equal(never, expected)
    np.testing.assert_array_equal(repeat(body, start, num_steps, unroll=True), expected)


def test_ends_as_soon_as_finished():
    assert repeat(lambda s: s + 1, jnp.array(0), 100, finished=lambda s: s >= 7) == 7
    assert repeat(lambda s: s + 1, jnp.array(9), 100, finished=lambda s: s >= 7) == 9


def test_vmapped_loops_end_one_by_one():
    run = lambda s: repeat(lambda v: v + 1, s, 4, finished=lambda v: v >= 7)  # noqa: E731
    np.testing.assert_array_equal(jax.vmap(run)(jnp.array([0, 5, 9])), [4, 7, 9])
