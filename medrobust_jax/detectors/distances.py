"""Distances of features to stored ones, exact where it matters, with finite gradients.

Contents: `squared_distances`, `nearest_distances`.

Example:

    nearest = nearest_distances(features, reference, num_neighbors=20)       # [B, 20], rising
"""
import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core.types import Array


def squared_distances(features: Array, reference: Array | np.ndarray) -> Array:
    """Squared Euclidean distances `[B, M]`, as |q|^2 - 2 q r + |r|^2: one matrix product.

    Rounding is relative to the squared norms, not to the distance, so bring features near the origin first; a
    distance of zero may come out as a little less.

    Args:
      features: q, `[B, D]`.
      reference: r, `[M, D]`.
    """
    r = jnp.asarray(reference)
    products = jnp.einsum('bd,md->bm', features, r, precision='highest')
    return (features ** 2).sum(axis=1, keepdims=True) - 2 * products + (r ** 2).sum(axis=1)


def nearest_distances(features: Array, reference: Array | np.ndarray, *, num_neighbors: int) -> Array:
    """Euclidean distances to the nearest stored features, `[B, num_neighbors]`, rising.

    The product of `squared_distances` finds who is near; the distances themselves are then computed from
    differences, so that they carry no rounding of large norms, and a gradient to those neighbors alone. At
    distance zero the gradient is zero.

    Args:
      features: `[B, D]`.
      reference: `[M, D]`, M >= num_neighbors.
      num_neighbors: k >= 1.
    """
    r = jnp.asarray(reference)
    _, near = jax.lax.top_k(-squared_distances(jax.lax.stop_gradient(features), r), num_neighbors)
    squared = ((features[:, None] - r[near]) ** 2).sum(axis=-1)
    apart = squared > 0  # the root has no gradient at zero
    return jnp.sort(jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1)), 0), axis=1)
