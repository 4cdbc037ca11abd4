"""Procedurally drawn hearts with their label maps, as slices and as volumes; they need no download.

Contents: `CLASS_NAMES`, `draw` (one example), `cardiac_phantoms` (slices), `cardiac_volumes`.

A bright left ventricle (LV) lies in a darker ring, the myocardium; beside it the bright crescent of the
right ventricle (RV). Around them are organs of any brightness, bright vessels without a ring, which are
background, and noise. One example in sixteen shows no heart and one in sixteen no RV, as the first and
last slices of a scan do. Image i of a split depends on (seed, split, i) and the size only, so a longer
split extends a shorter one. The anatomy is a caricature for tests and demonstrations.

Example:

    source = cardiac_phantoms('train', num_examples=512, size=64)
    source[0]['segmentation'].shape                                  # (64, 64)
    volumes = cardiac_volumes('train', num_examples=32, size=32)     # images [32, 32, 32, 1]
"""
import numpy as np
from scipy import ndimage

from medrobust_jax.data import files
from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.source import ArraySource

CLASS_NAMES = ('background', 'RV', 'myocardium', 'LV')
SPLITS = {'train': (0, 1000), 'val': (1, 200), 'test': (2, 300)}  # stream of draws, default length
_VOLUMES = 3  # added to the stream, so that volumes share no draws with slices
_SMALLEST = 16


def cardiac_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                     size: int = 64) -> ArraySource:
    """Slices `[size, size, 1]` with their label maps.

    Args:
      split: 'train', 'val' or 'test'; they share no image.
      num_examples: how many; None means 1000, 200 and 300.
      seed: of all draws.
      size: height and width in pixels.

    Raises:
      ValueError: for an unknown split, no examples or a size under 16.
    """
    return _source('cardiac_phantom', split, num_examples, seed, size, axes=2)


def cardiac_volumes(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                    size: int = 32) -> ArraySource:
    """Volumes `[size, size, size, 1]` with their label maps; arguments as `cardiac_phantoms`.

    None for `num_examples` means 100, 20 and 30.
    """
    return _source('cardiac_volume', split, num_examples, seed, size, axes=3)


def draw(generator: np.random.Generator, *, size: int, axes: int) -> tuple[np.ndarray, np.ndarray]:
    """One example: an image and its label map, both uint8 `[size] * axes`."""
    ticks = (np.arange(size) + .5) / size * 2 - 1
    grid = np.stack(np.meshgrid(*[ticks] * axes, indexing='ij'), axis=-1)
    shade = _surroundings(generator, grid)
    heart = _heart(generator, grid)
    brightness = generator.uniform([.6, .25, .65], [.85, .4, .9])
    for label, value in enumerate(brightness, start=1):
        shade = np.where(heart == label, value, shade)
    shade = ndimage.gaussian_filter(shade, .5 * size / 64)
    shade = generator.uniform(.75, 1.05) * shade + generator.uniform(.03, .08) * generator.normal(size=shade.shape)
    return np.round(255 * np.clip(shade, 0, 1)).astype(np.uint8), heart


def _heart(generator: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    """The label map; every example makes the same draws in the same order."""
    axes = grid.shape[-1]
    center = generator.uniform(-.3, .3, axes)
    turn = np.linalg.qr(generator.normal(size=(axes, axes)))[0]
    radius = generator.uniform(.16, .32) * generator.uniform(.8, 1.2, axes)
    wall = generator.uniform(.07, .13)
    direction = generator.normal(size=axes)
    direction /= np.linalg.norm(direction)
    away = generator.uniform(.75, 1.)
    right_radius = generator.uniform(.2, .34) * generator.uniform(.8, 1.25, axes)
    absent, without_right = generator.uniform(size=2) < 1 / 16
    cavity = _inside(grid - center, turn, radius)
    ring = _inside(grid - center, turn, radius + wall)
    beside = center + direction * away * (radius.mean() + wall + right_radius.mean() / 2)
    heart = np.where(_inside(grid - beside, turn, right_radius) & (not without_right), 1, 0)
    heart = np.where(ring, 2, heart)
    heart = np.where(cavity, 3, heart)
    return (heart * (not absent)).astype(np.uint8)


def _inside(offset: np.ndarray, turn: np.ndarray, radius: np.ndarray) -> np.ndarray:
    return (np.square(offset @ turn.T / radius)).sum(axis=-1) < 1


def _surroundings(generator: np.random.Generator, grid: np.ndarray) -> np.ndarray:
    """Organs of any brightness and bright vessels, `[*spatial]`."""
    axes = grid.shape[-1]
    shade = np.full(grid.shape[:-1], generator.uniform(.1, .3))
    for _ in range(4):
        center, radius = generator.uniform(-1.1, 1.1, axes), generator.uniform(.3, .7, axes)
        turn = np.linalg.qr(generator.normal(size=(axes, axes)))[0]
        shade = np.where(_inside(grid - center, turn, radius), generator.uniform(.1, .6), shade)
    for _ in range(3):
        center, radius = generator.uniform(-.95, .95, axes), generator.uniform(.06, .16)
        vessel = _inside(grid - center, np.eye(axes), np.full(axes, radius))
        shade = np.where(vessel, generator.uniform(.6, .9), shade)
    return shade


def _source(name: str, split: str, num_examples: int | None, seed: int, size: int, *, axes: int) -> ArraySource:
    files.check_split(split, tuple(SPLITS), name)
    stream, default = SPLITS[split]
    count = (default if axes == 2 else default // 10) if num_examples is None else num_examples
    if count < 1 or not isinstance(size, int) or size < _SMALLEST:
        raise ValueError(f'{name} needs num_examples >= 1 and one number size >= {_SMALLEST}, not {count} and '
                         f'{size}')
    images = np.empty((count, *(size,) * axes), np.uint8)
    labels = np.empty_like(images)
    for row in range(count):
        generator = generator_of(seed, stream + _VOLUMES * (axes - 2), row)
        images[row], labels[row] = draw(generator, size=size, axes=axes)
    return ArraySource(images[..., None], {'segmentation': labels}, name=name, split=split,
                       class_names=CLASS_NAMES, range_map='uint8 / 255, drawn procedurally')
