r"""Points as maps of pixels, and back: heatmaps that say where, and offsets that say where exactly.

For a point at (u, v) in pixels (column j has its center at j + 1/2) and a disk of radius r around it:

    heat[i, j]     = 1 where (j + 1/2 - u)^2 + (i + 1/2 - v)^2 <= r^2, else 0
    offset_x[i, j] = (u - j - 1/2) / r,      offset_y[i, j] = (v - i - 1/2) / r

so that every pixel of the disk points at the point, and fractions of pixels survive.

Contents: `radius_of`, `disk_maps`, `gaussian_heatmaps`, `split_maps`, `decode`.

Points are `[B, P, 2]`, (x, y) as fractions of width and height, 0 the first pixel's left (top) edge.

Example:

    heat, offsets = disk_maps(points, size=(128, 64), radius=6.4)      # [B, 128, 64, P], [B, 128, 64, P, 2]
    decode(100 * (heat - .5), offsets, radius=6.4)                     # the points again
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array


def radius_of(height: int, fraction: float) -> float:
    """A disk's radius in pixels: `fraction` of the map's height, 1 at least, so that no disk is empty."""
    return max(1.0, fraction * height)


def disk_maps(points: Array, *, size: tuple[int, int], radius: float) -> tuple[Array, Array]:
    """The disks and offsets above.

    Args:
      points: `[B, P, 2]` fractions. A point far outside the image has an empty disk.
      size: (height, width) of the maps in pixels.
      radius: of the disk in pixels, > 0; with 1 / sqrt(2) or more no disk inside the image is empty.

    Returns:
      heat `[B, H, W, P]`, 0 or 1, and offsets `[B, H, W, P, 2]` in radii, (x, y); offsets mean
      something inside the disk only, where their length is at most 1.
    """
    offsets = _toward(points, size) / radius
    return (jnp.square(offsets).sum(-1) <= 1).astype(offsets.dtype), offsets


def gaussian_heatmaps(points: Array, *, size: tuple[int, int], sigma: float) -> Array:
    """`exp(-d^2 / (2 sigma^2))` of each pixel's distance d to the point, `[B, H, W, P]`; sigma in pixels."""
    return jnp.exp(-jnp.square(_toward(points, size)).sum(-1) / (2 * sigma**2))


def split_maps(maps: Array) -> tuple[Array, Array]:
    """Splits a network's maps `[B, H, W, 3P]` into heat logits `[B, H, W, P]` and offsets `[B, H, W, P, 2]`.

    Channels are P logits, P offsets in x, P offsets in y.

    Raises:
      ValueError: when the channels are not a multiple of 3.
    """
    if maps.ndim != 4 or maps.shape[-1] % 3:
        raise ValueError(f'maps of landmarks are [B, H, W, 3 * points], not {maps.shape}')
    heat, x, y = jnp.split(maps, 3, axis=-1)
    return heat, jnp.stack([x, y], axis=-1)


def decode(logits: Array, offsets: Array, *, radius: float) -> Array:
    """The points that maps stand for, to fractions of a pixel.

    Each pixel within `radius` of the hottest one votes for the place that its offset points at, with
    its heat sigmoid(logit) as weight; the point is the votes' mean. Differentiable in logits and
    offsets, the choice of the hottest pixel apart.

    Args:
      logits: `[B, H, W, P]`.
      offsets: `[B, H, W, P, 2]` in radii.
      radius: in pixels, as in `disk_maps`.

    Returns:
      `[B, P, 2]` fractions; not clipped to the image.
    """
    height, width = logits.shape[1:3]
    grid = _centers((height, width), logits.dtype)
    flat = logits.reshape(len(logits), height * width, -1)
    hottest = grid.reshape(-1, 2)[jnp.argmax(flat, axis=1)]  # [B, P, 2]
    near = jnp.square(grid[None, :, :, None] - hottest[:, None, None]).sum(-1) <= radius**2
    # Softmax in place of a quotient of sigmoids: the hottest pixel has weight even where all heat underflows.
    weights = jax.nn.softmax(jnp.where(near, jax.nn.log_sigmoid(logits), -jnp.inf), axis=(1, 2))
    votes = grid[None, :, :, None] + radius * offsets
    return (weights[..., None] * votes).sum((1, 2)) / jnp.array([width, height], votes.dtype)


def _toward(points: Array, size: tuple[int, int]) -> Array:
    """From each pixel's center to each point, in pixels, `[B, H, W, P, 2]`."""
    height, width = size
    pixels = points * jnp.array([width, height], points.dtype)
    return pixels[:, None, None] - _centers(size, points.dtype)[None, :, :, None]


def _centers(size: tuple[int, int], dtype: jnp.dtype) -> Array:
    """The pixels' centers (x, y), `[H, W, 2]`."""
    rows, columns = (jnp.arange(length, dtype=dtype) + .5 for length in size)
    return jnp.stack(jnp.broadcast_arrays(columns[None, :], rows[:, None]), axis=-1)
