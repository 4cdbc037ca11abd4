"""Procedurally drawn spines with landmarks and masks; they need no download.

Contents: `spine_phantoms` (a source), `render` (images, points and tilts).

A curved column of vertebrae, brighter than the soft tissue around it and brightest along its rims,
crossed by ribs, under an uneven exposure with noise. The landmarks are the corners of the vertebrae,
per vertebra from the top down as top left, top right, bottom left, bottom right, as in AASCE; the
mask is what the contour through them encloses (`core.polygons.spine_contour`). Which vertebra is
which can be told only by counting from the ends, which fade.
Image i of a split depends on (seed, split, i) only, so a longer split extends a shorter one.
The anatomy is a caricature for tests and demonstrations and supports no medical conclusion.

Example:

    source = spine_phantoms('train', num_examples=500, size=(64, 32))
    source[0]['points'].shape, source[0]['segmentation'].shape           # (24, 2), (64, 32)
"""
import numpy as np

from medrobust_jax.core.polygons import rasterize, spine_contour
from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.resize import Size, target_size
from medrobust_jax.data.source import ArraySource

SPLITS = {'train': (0, 1000), 'val': (1, 200), 'test': (2, 300)}  # stream of draws, default length
OVERSAMPLING = 2


def spine_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                   size: Size = (64, 32), num_vertebrae: int = 6, mask: bool = True) -> ArraySource:
    """The phantoms as a source with 'points' `[4 num_vertebrae, 2]` and, with `mask`, 'segmentation'.

    Args:
      split: 'train', 'val' or 'test'; they share no image.
      num_examples: how many; None means 1000, 200 and 300.
      seed: of all draws.
      size: (height, width) in pixels, or one number for both.
      num_vertebrae: V >= 2; with 17 the landmarks are AASCE's 68.
      mask: whether to add the mask inside the contour.

    Raises:
      ValueError: for an unknown split or a number out of range.
    """
    if split not in SPLITS:
        raise ValueError(f"spine_phantom has the splits {', '.join(SPLITS)}; not '{split}'")
    stream, default = SPLITS[split]
    num_examples = default if num_examples is None else num_examples
    pair = target_size(size)
    if num_examples < 1 or num_vertebrae < 2 or min(pair) < 16:
        raise ValueError(f'spine_phantom needs num_examples >= 1, num_vertebrae >= 2 and a size of at least 16, '
                         f'not {num_examples}, {num_vertebrae} and {size}')
    drawn = [render(row, seed=seed, stream=stream, size=pair, num_vertebrae=num_vertebrae)
             for row in range(num_examples)]
    images, points = (np.stack(part) for part in zip(*drawn, strict=True))
    targets = {'points': points}
    if mask:
        targets['segmentation'] = rasterize(points[:, spine_contour(4 * num_vertebrae)], pair).astype(np.int32)
    names = tuple(f'vertebra {vertebra} {corner}' for vertebra in range(1, num_vertebrae + 1)
                  for corner in ('top left', 'top right', 'bottom left', 'bottom right'))
    return ArraySource(images, targets, name='spine_phantom', split=split,
                       class_names=names, range_map='uint8 / 255, drawn procedurally')


def render(row: int, *, seed: int, stream: int, size: tuple[int, int],
           num_vertebrae: int) -> tuple[np.ndarray, np.ndarray]:
    """One phantom: uint8 `[H, W, 1]` and its corners, float32 `[4 V, 2]` fractions.

    Args:
      row: which one.
      seed: of all draws.
      stream: apart from the seed, to keep splits apart.
      size: (height, width) in pixels.
      num_vertebrae: V.
    """
    generator = generator_of(seed, stream, row)
    height, width = size
    aspect = width / height
    corners = _corners(generator, aspect, num_vertebrae)
    steps = [(np.arange(OVERSAMPLING * side) + .5) / (OVERSAMPLING * side) for side in size]
    x, y = np.meshgrid(aspect * steps[1], steps[0])  # in heights
    scan = _tissue(generator, x, y, aspect)
    for quad in corners:
        scan = _vertebra(scan, quad, x, y, strength=generator.uniform(.25, .45))
    scan = scan.reshape(height, OVERSAMPLING, width, OVERSAMPLING).mean((1, 3))
    scan = generator.uniform(.75, 1.05) * scan + generator.normal(0, generator.uniform(.02, .06), size)
    image = np.round(255 * np.clip(scan, 0, 1)).astype(np.uint8)[..., None]
    return image, (corners.reshape(-1, 2) / (aspect, 1)).astype(np.float32)


def _corners(generator: np.random.Generator, aspect: float, count: int) -> np.ndarray:
    """The corners `[V, 4, 2]` in heights, along a curve that bends once or twice."""
    top, bottom = generator.uniform(.06, .16), generator.uniform(.84, .94)
    ends = np.linspace(0, 1, count + 1)
    middle = (ends[1:] + ends[:-1]) / 2
    reach = min(aspect, .5)  # wide images do not make the spine lie down
    bend = reach * generator.uniform(-.1, .1, 2)
    phase = generator.uniform(-.4, .4)

    def curve(t: np.ndarray) -> np.ndarray:
        swing = bend[0] * np.sin(np.pi * t + phase) + bend[1] * np.sin(2 * np.pi * t)
        return np.stack([aspect * .5 + offset + lean * (t - .5) + swing, top + (bottom - top) * t], -1)

    offset, lean = reach * generator.uniform(-.08, .08), reach * generator.uniform(-.12, .12)
    slope = (curve(middle + .01) - curve(middle - .01)) / .02
    down = slope / np.linalg.norm(slope, axis=1, keepdims=True)
    tilt = np.radians(generator.normal(0, 3, count))[:, None]
    down = np.cos(tilt) * down + np.sin(tilt) * np.stack([-down[:, 1], down[:, 0]], 1)
    across = np.stack([down[:, 1], -down[:, 0]], 1)
    half_height = .40 * (bottom - top) / count
    # Lower vertebrae are wider.
    half_width = (generator.uniform(.075, .105) + .03 * middle[:, None]) * reach / .5
    center = curve(middle)
    return np.stack([center + sx * half_width * across + sy * half_height * down
                     for sy in (-1, 1) for sx in (-1, 1)], axis=1)


def _tissue(generator: np.random.Generator, x: np.ndarray, y: np.ndarray, aspect: float) -> np.ndarray:
    """Soft tissue with ribs, in 0 to .5."""
    tissue = .28 + .06 * np.sin(generator.uniform(2, 5) * y + generator.uniform(0, 6.3))
    tissue = tissue - .12 * np.abs(x / aspect - generator.uniform(.4, .6))
    spacing, lean = generator.uniform(.10, .16), generator.uniform(.3, .7)
    ribs = np.sin(2 * np.pi * (y - lean * np.abs(x - aspect / 2)) / spacing + generator.uniform(0, 6.3))
    return tissue + generator.uniform(.02, .06) * np.maximum(ribs, 0) * (y < generator.uniform(.5, .8))


def _vertebra(scan: np.ndarray, quad: np.ndarray, x: np.ndarray, y: np.ndarray, *, strength: float) -> np.ndarray:
    """Adds one vertebra `[4, 2]`: a plateau whose rims are brighter."""
    center = quad.mean(axis=0)
    across, down = (quad[1] - quad[0]) / 2, (quad[2] - quad[0]) / 2
    relative = np.stack([x, y], -1) - center
    u, v = (relative @ axis / (axis @ axis) for axis in (across, down))  # -1 to 1 inside
    edge = np.maximum(np.abs(u), np.abs(v))
    soft = .5 - .5 * np.tanh((edge - 1) / .08)
    rim = np.exp(-((edge - .92) / .12)**2)
    return scan + soft * strength * (.7 + .6 * rim)
