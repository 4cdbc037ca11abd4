"""Procedurally drawn, CT-like patches of ten organs; they need no download.

Contents: `CLASS_NAMES`, `render` (images of given classes), `organ_phantoms` (a source).

Each patch shows one organ in soft tissue, beside it bowel-like loops that say nothing. Organs differ in
outline (elongation, bend, lobes), brightness and the grain of their texture, by amounts that overlap under
the noise. Ten classes are what the common attack ensembles take for granted (AutoAttack aims at nine wrong
ones), so this set serves comparisons with them.

Image i of a split depends on (seed, split, i) only. The anatomy is a caricature for tests and benchmarks and
supports no medical conclusion.

Example:

    source = organ_phantoms('test', num_examples=400, seed=0)
    images = render(labels, seed=0, stream=7, size=28)             # uint8 [N, 28, 28, 1]
"""
import numpy as np

from medrobust_jax.data import files
from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.source import ArraySource

# Per organ: elongation, bend, number of lobes, depth of the lobes, brightness, frequency of the texture.
_ORGANS = {
    'liver': (.25, .20, 3, .10, .62, 3.),
    'spleen': (.35, .35, 2, .04, .68, 5.),
    'kidney': (.30, .60, 2, .12, .78, 7.),
    'pancreas': (.75, .50, 5, .14, .56, 9.),
    'stomach': (.40, .75, 2, .06, .42, 2.),
    'bladder': (.05, .00, 2, .02, .34, 1.),
    'heart': (.15, .10, 3, .16, .72, 2.),
    'lung': (.45, .20, 4, .06, .14, 6.),
    'adrenal': (.60, .90, 3, .22, .60, 4.),
    'vertebra': (.10, .05, 5, .26, .90, 8.),
}
CLASS_NAMES = tuple(_ORGANS)
SPLITS = {'train': (0, 2000), 'val': (1, 400), 'test': (2, 1000)}  # stream of draws, default length
NUM_DRAWS = 25  # uniform numbers per image besides the noise
CHUNK = 512  # images drawn at once; bounds memory


def organ_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                   size: int = 28) -> ArraySource:
    """One split of the phantoms, classes in equal numbers.

    Args:
      split: 'train', 'val' or 'test'.
      num_examples: None takes 2000, 400 or 1000.
      seed: of all draws.
      size: height and width, 16 or more.

    Raises:
      ValueError: for an unknown split, a size below 16 or no examples.
    """
    files.check_split(split, tuple(SPLITS), 'organ_phantom')
    stream, length = SPLITS[split]
    length = length if num_examples is None else num_examples
    if size < 16 or length < 1:
        raise ValueError(f'organ_phantom needs size >= 16 and num_examples >= 1, not {size} and {length}')
    labels = np.arange(length) % len(CLASS_NAMES)
    return ArraySource(render(labels, seed=seed, stream=stream, size=size), labels, name='organ_phantom',
                       split=split, class_names=CLASS_NAMES, notes=('Drawn, not acquired.',))


def render(labels: np.ndarray, *, seed: int, stream: int, size: int = 28) -> np.ndarray:
    """Patches of given organs.

    Args:
      labels: `[N]` int in 0..9.
      seed: of all draws.
      stream: keeps splits apart.
      size: height and width.

    Returns:
      `[N, size, size, 1]` uint8; image i depends on (labels[i], seed, stream, i).
    """
    labels = np.asarray(labels)
    parts = [_render(labels[start:start + CHUNK], np.arange(start, min(start + CHUNK, len(labels))), seed, stream,
                     size) for start in range(0, len(labels), CHUNK)]
    return np.concatenate(parts)


def _render(labels: np.ndarray, rows: np.ndarray, seed: int, stream: int, size: int) -> np.ndarray:
    generators = [generator_of(seed, stream, int(row)) for row in rows]
    uniform = np.stack([generator.random(NUM_DRAWS) for generator in generators])
    noise = np.stack([generator.standard_normal((size, size)) for generator in generators])
    columns = iter(uniform.T[..., None, None])

    def draw(low: float, high: float) -> np.ndarray:
        return low + (high - low) * next(columns)

    elongation, bend, lobes, depth, brightness, frequency = (
        column[:, None, None] for column in np.asarray(list(_ORGANS.values())).T[:, labels])
    grid = (np.arange(size) + .5) / size * 2 - 1
    x, y = grid[None, None, :], grid[None, :, None]
    tissue = draw(.40, .60) + draw(-.1, .1) * x + draw(-.1, .1) * y
    for _ in range(2):  # loops of bowel beside the organ
        ring = np.hypot(x - draw(-1., 1.), y - draw(-1., 1.)) - draw(.2, .4)
        tissue = tissue + draw(-.25, .25) * np.exp(-(ring / .12)**2)
    angle = draw(-.5, .5)
    u = np.cos(angle) * (x - draw(-.2, .2)) + np.sin(angle) * (y - draw(-.2, .2))
    v = -np.sin(angle) * x + np.cos(angle) * y
    scale, elongation = draw(.50, .66), elongation + draw(-.15, .15)
    v = v - (bend + draw(-.2, .2)) * (u**2 - .1)
    theta = np.arctan2(v, u)
    outline = scale * (1 + depth * np.cos(lobes * theta + draw(-.6, .6)))
    inside = .5 - .5 * np.tanh((np.hypot(u * (1 - elongation / 2), v * (1 + elongation)) - outline) / .07)
    grain = np.sin(frequency * 3 * u + draw(0, 6.3)) * np.sin(frequency * 3 * v + draw(0, 6.3))
    organ = brightness + draw(-.12, .12) + draw(.04, .09) * grain
    image = tissue + inside * (organ - tissue)
    image = draw(-.04, .04) + draw(.85, 1.15) * image + draw(.03, .07) * noise
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None]
