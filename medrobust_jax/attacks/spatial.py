r"""Rotations and translations: images that a clinician would call the same.

    x' = shift(rotate(x, eps a max_degrees), eps (b, c) max_shift size),      a, b, c in [-1, 1]

by bilinear interpolation. The knob 'eps' in [0, 1] scales the limits and is not the radius of a ball:
the norm of these attacks is called 'spatial'. Beyond 1 counts as 1, and 0 is the identity exactly.

Contents: `spatial` (the worst of n random draws), `spatial_grid` (every point of a grid), `NORM`.

Example:

    attack = spatial(num_draws=10, max_degrees=30, max_shift=.1)
    result = run(attack, victim, keys, images, labels, eps=1.0)

References:
  Engstrom et al., Exploring the Landscape of Spatial Robustness, ICML 2019.
"""
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.sampling import worst_of
from medrobust_jax.core import rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.degradations import require_plane
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack
from medrobust_jax.core.warp import FILLS, rotate_and_shift

NORM = 'spatial'


def spatial(*, num_draws: int = 10, max_degrees: float = 30.0, max_shift: float = 0.1,
            fill: str = 'zero') -> Attack:
    """The worst of `num_draws` random rotations and translations, uniform within the limits.

    The defaults are the paper's: 10 draws within 30 degrees and a tenth of the side (3 of 32 pixels).

    Args:
      num_draws: n >= 1, one forward pass each.
      max_degrees: in [0, 180], either way.
      max_shift: in [0, 1], per axis, in fractions of the image's size along it, either way.
      fill: what comes in from outside: 'zero' (the paper's) or 'edge' (the nearest pixel).

    Raises:
      ValueError: for a limit out of range, an unknown fill, num_draws < 1, or images that are not
        two-dimensional.
    """
    _check_limits(max_degrees, max_shift, fill)

    def draw(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        parameters = rng.uniform(keys, (3,), -1, 1).astype(images.dtype)
        return _move(images, parameters, eps, max_degrees, max_shift, fill)

    return worst_of(draw, num_draws=num_draws)


def spatial_grid(*, num_degrees: int = 31, num_shifts: int = 5, max_degrees: float = 30.0, max_shift: float = 0.1,
                 fill: str = 'zero') -> Attack:
    """Every combination of equidistant angles and shifts: num_degrees * num_shifts^2 forward passes.

    The defaults are the paper's 775 points. An odd number contains the middle, and with it the clean
    image; a number of 1 is the middle alone. The grid at a smaller eps is no part of that at a larger.

    Args:
      num_degrees: >= 1, angles from -max_degrees to max_degrees.
      num_shifts: >= 1, shifts per axis from -max_shift to max_shift.
      max_degrees, max_shift, fill: as `spatial`.

    Raises:
      ValueError: as `spatial`, and for a number < 1.
    """
    _check_limits(max_degrees, max_shift, fill)
    if num_degrees < 1 or num_shifts < 1:
        raise ValueError(f'spatial_grid needs num_degrees and num_shifts of at least 1, '
                         f'not {num_degrees} and {num_shifts}')
    lines = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in (num_degrees, num_shifts, num_shifts)]
    grid = np.stack(np.meshgrid(*lines, indexing='ij'), axis=-1).reshape(-1, 3)

    def draw(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        parameters = jnp.asarray(grid, images.dtype)[jnp.minimum(number, len(grid) - 1)]
        return _move(images, parameters, eps, max_degrees, max_shift, fill)

    return worst_of(draw, num_draws=len(grid))


def _check_limits(max_degrees: float, max_shift: float, fill: str) -> None:
    if not 0 <= max_degrees <= 180 or not 0 <= max_shift <= 1:
        raise ValueError(f'rotations need max_degrees in [0, 180] and max_shift in [0, 1], '
                         f'not {max_degrees} and {max_shift}')
    if fill not in FILLS:
        did_you_mean(fill, FILLS, 'fill')


def _move(images: Array, parameters: Array, eps: Array, max_degrees: float, max_shift: float, fill: str) -> Array:
    """The images at `parameters` `[B, 3]` in [-1, 1]: angle, shift down, shift right."""
    require_plane(images, 'a rotation')
    scaled = jnp.minimum(eps, 1)[:, None] * parameters
    size = jnp.asarray(images.shape[1:-1], images.dtype)
    moved = rotate_and_shift(images, degrees=max_degrees * scaled[:, 0], shift=max_shift * size * scaled[:, 1:],
                             fill=fill)
    # Interpolation rounds: what is in the box stays there, and eps 0 is the image itself.
    return jnp.where(per_example(eps > 0, images), jnp.clip(moved, 0, 1), images)
