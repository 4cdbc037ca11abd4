"""New anatomy from known shapes: images warped from their own shape to one drawn from a shape model.

Contents: `shape_warp` (a transform, as in `data.transforms`), `model_of`, `warped_source` (a larger
training set).

Example:

    source = spine_phantoms('train')
    model = model_of(source, num_modes=5)
    batch = jax.jit(shape_warp(model))(keys, batch)           # other points, and pixels that fit them
    larger = warped_source(source, model, copies=4, seed=0)

References:
  arXiv 2102.02885: shapes from 3, 5 or 10 modes, images by thin-plate splines; there "training-set
  size" means the number of modes.
"""
import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.core import rng
from medrobust_jax.core.shapes import ShapeModel, fit_shapes, sample_shapes
from medrobust_jax.core.splines import fit_spline, move_points, warp
from medrobust_jax.core.types import Array, Batch
from medrobust_jax.data.source import ArraySource, Source, all_of, gather, read_batch
from medrobust_jax.data.transforms import Transform

_CORNERS = ((0., 0.), (1., 0.), (0., 1.), (1., 1.))
_AT_ONCE = 32  # images warped together
_MISS = 5e-3  # of width or height: a spline that misses its points by more was not solved


def shape_warp(model: ShapeModel, *, p: float = 1., spread: float = 2., anchor: bool = True) -> Transform:
    """Warps images to shapes drawn from `model`; 'points', 'segmentation' and 'image' move together.

    The drawn shape replaces the points exactly, pixels follow by the thin-plate spline from the drawn
    shape to the image's own. Where no such spline exists (two landmarks coincide) the example stays.

    Args:
      model: of shapes in fractions of these images' width and height, see `core.shapes.fit_shapes`.
      p: how often an example is warped.
      spread: modes are drawn from +-spread standard deviations; 2 as published.
      anchor: whether the image's corners stay where they are [ours]; without, the spline is free
        beyond the shape and may turn the image's rim inside out.

    Raises:
      ValueError: for p outside [0, 1], a spread that is negative, or a batch without points or with boxes.
    """
    if not 0 <= p <= 1 or spread < 0:
        raise ValueError(f'shape_warp needs p in [0, 1] and spread >= 0, not {p} and {spread}')
    fixed = jnp.array(_CORNERS if anchor else (), jnp.float32).reshape(-1, 2)

    def one(own: Array, wanted: Array, planes: dict[str, Array]) -> tuple[dict[str, Array], Array]:
        spline = fit_spline(jnp.concatenate([wanted, fixed]), jnp.concatenate([own, fixed]))
        found = (jnp.abs(move_points(spline, wanted) - own) < _MISS).all()  # false for NaN too
        spline = jax.tree.map(lambda part: jnp.where(found, part, 0), spline)
        return {name: warp(plane, spline, order=1 if name == 'image' else 0)
                for name, plane in planes.items()}, found

    def apply(keys: Array, batch: Batch) -> Batch:
        if 'points' not in batch or 'boxes' in batch:
            raise ValueError(f"shape_warp moves images with points and without boxes; this batch has "
                             f"{', '.join(batch)}")
        which, draw = rng.split_each(keys, 2)
        wanted = sample_shapes(draw, model, spread=spread)
        planes = {name: batch[name] for name in ('image', 'segmentation') if name in batch}
        moved, found = jax.vmap(one)(batch['points'], wanted, planes)
        chosen = found & (rng.uniform(which, ()) < p)
        # Interpolation weights add up to 1 only up to rounding.
        moved = {**moved, 'image': jnp.clip(moved['image'], 0., 1.), 'points': wanted}
        return {**batch, **{name: jnp.where(chosen.reshape(-1, *[1] * (new.ndim - 1)), new, batch[name])
                            for name, new in moved.items()}}
    return apply


def model_of(source: Source, *, num_modes: int) -> ShapeModel:
    """The shape model of a source's 'points'.

    Raises:
      ValueError: for a source without points, or a number of modes out of range.
    """
    points = all_of(source, 'points')
    if points is None:
        raise ValueError(f"{source.info.name}/{source.info.split} has no 'points'")
    return fit_shapes(points, num_modes=num_modes)


def warped_source(source: Source, model: ShapeModel, *, copies: int, seed: int = 0,
                  spread: float = 2.) -> ArraySource:
    """A source of `copies` warped copies of every example, after the examples themselves.

    Copy c of row i depends on (seed, c, i) only. Landmarks outside the image are possible, and clipped
    to it; pixels are kept as uint8.

    Args:
      source: with 'points', and 'segmentation' where it has one.
      model: see `shape_warp`.
      copies: >= 1.
      seed: of all draws.
      spread: see `shape_warp`.

    Raises:
      ValueError: for copies < 1, and as `shape_warp`.
    """
    if copies < 1:
        raise ValueError(f'copies = {copies} must be at least 1')
    transform = jax.jit(shape_warp(model, spread=spread))
    images, targets, groups = gather(source)
    targets = targets if isinstance(targets, dict) else {'points': targets}
    parts = [{'image': images, **targets}]
    for copy in range(1, copies + 1):
        for start in range(0, len(source), _AT_ONCE):
            # The last rows are padded by repetition, so that one program serves all.
            rows = np.minimum(np.arange(start, start + _AT_ONCE), len(source) - 1)
            batch = {name: value for name, value in read_batch(source, rows).items() if name != 'group'}
            warped = transform(rng.example_keys(seed, rows, copy), batch)
            kept = min(_AT_ONCE, len(source) - start)
            parts.append({name: np.asarray(value)[:kept] for name, value in warped.items()})
    together = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    pixels = np.round(255 * together.pop('image')).astype(np.uint8)
    outside = ((together['points'] < 0) | (together['points'] > 1)).any((1, 2)).sum()
    together['points'] = np.clip(together['points'], 0, 1)
    notes = (*source.info.notes, f'{copies} warped copies of each example, {model.variances.size} modes, seed '
             f'{seed}; landmarks of {outside} copies were clipped to the image.')
    return ArraySource(pixels, together, name=source.info.name, split=source.info.split,
                       class_names=source.info.class_names, notes=notes,
                       groups=None if groups is None else np.tile(groups, copies + 1),
                       range_map=f'{source.info.range_map}; rounded to uint8 / 255')
