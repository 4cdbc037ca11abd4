"""Moving averages of weights."""
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.averages import moving_average


def test_moving_average_equation():
    average = {'w': jnp.array(1.0), 'count': jnp.array(3)}
    values = {'w': jnp.array(2.0), 'count': jnp.array(4)}
    early = moving_average(average, values, step=jnp.array(0), decay=0.99)
    late = moving_average(average, values, step=jnp.array(100_000), decay=0.99)
    np.testing.assert_allclose(early['w'], 0.1 * 1 + 0.9 * 2, rtol=1e-6)
    np.testing.assert_allclose(late['w'], 0.99 * 1 + 0.01 * 2, rtol=1e-6)
    assert early['count'] == 4
