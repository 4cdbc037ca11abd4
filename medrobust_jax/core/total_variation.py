r"""Denoising by total variation: the Rudin-Osher-Fatemi model, by a fixed number of differentiable steps.

    u = argmin_u  1/2 ||u - f||^2 + weight TV(u),     TV(u) = sum_pixels |D u|_2

with D the forward differences (0 across the last pixel of an axis), per channel. In the dual, with D* the
adjoint and one vector p per pixel,

    u = f - weight D* p,     p = argmin ||f - weight D* p||^2  subject to |p|_2 <= 1 at every pixel,

which is a projected gradient step, accelerated.

Contents: `denoise`, `differences`, `adjoint`, `total_variation`.

Example:

    smooth = denoise(images, weight=.1, num_steps=50)      # [B, *spatial, C]
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def differences(images: Array) -> Array:
    """Forward differences along every spatial axis: `[A, B, *spatial, C]`, A the number of axes."""
    return jnp.stack([jnp.diff(images, axis=axis, append=jax.lax.slice_in_dim(images, -1, None, axis=axis))
                      for axis in range(1, images.ndim - 1)])


def adjoint(fields: Array) -> Array:
    """The adjoint of `differences`, minus the divergence: `[A, B, *spatial, C]` to `[B, *spatial, C]`."""
    total = jnp.zeros_like(fields[0])
    for axis, field in enumerate(fields, 1):
        flow = jax.lax.slice_in_dim(field, 0, -1, axis=axis)  # nothing flows across the last pixel
        total = total - jnp.diff(flow, axis=axis, prepend=0, append=0)
    return total


def total_variation(images: Array) -> Array:
    """`sum |D u|_2` over pixels and channels, `[B]`."""
    lengths = jnp.sqrt((differences(images) ** 2).sum(axis=0))
    return lengths.reshape(images.shape[0], -1).sum(axis=1)


def denoise(images: Array, *, weight: float, num_steps: int = 50) -> Array:
    """Removes noise by total variation, see the equation above.

    Args:
      images: f, `[B, *spatial, C]`.
      weight: >= 0, in units of pixels' values; 0 changes nothing, a large one leaves each channel's mean.
      num_steps: of the accelerated projected gradient, >= 1. The distance to the optimum falls as 1 / steps^2;
        50 is ours.

    Returns:
      u, `[B, *spatial, C]`. Differentiable almost everywhere, through all steps.

    Raises:
      ValueError: for a weight or number out of range.

    References:
      Rudin, Osher, Fatemi, Physica D 1992 (the model). Chambolle, JMIV 2004 (the dual). Beck and Teboulle, IEEE
      TIP 2009, algorithm FGP (the acceleration).
    """
    if not 0 <= weight < float('inf') or num_steps < 1:
        raise ValueError(f'denoising by total variation needs a finite weight >= 0 and num_steps >= 1, '
                         f'not {weight} and {num_steps}')
    if weight == 0:
        return images
    rate = 1 / (4 * (images.ndim - 2) * weight)  # 1 / (weight ||D||^2), ||D||^2 <= 4 per axis

    def step(carry: tuple[Array, Array, Array], _: None) -> tuple[tuple[Array, Array, Array], None]:
        p, ahead, t = carry
        moved = ahead + rate * differences(images - weight * adjoint(ahead))
        squared = (moved ** 2).sum(axis=0)
        outside = squared > 1
        new = moved / jnp.sqrt(jnp.where(outside, squared, 1))  # the root has no gradient at zero
        later = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
        return (new, new + (t - 1) / later * (new - p), later), None

    start = jnp.zeros((images.ndim - 2, *images.shape), images.dtype)
    (p, _, _), _ = jax.lax.scan(step, (start, start, jnp.ones((), images.dtype)), None, length=num_steps)
    return images - weight * adjoint(p)
