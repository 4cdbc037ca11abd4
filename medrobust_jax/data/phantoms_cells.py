"""Procedurally drawn blood smears with boxes around three kinds of cells; they need no download.

Contents: `CLASS_NAMES`, `render`, `cell_phantoms`.

On a pale, unevenly lit background lie

* red: many pink disks with a pale center, which may overlap;
* white: none to two large cells with a lobed violet nucleus;
* platelet: a few small violet specks with a pale rim.

Stain, light and sizes vary from image to image; one image in fifteen holds no cell at all, only debris,
which is in every image and no object. Boxes are those of the cells' outlines, clipped to the image; of a cell
at the edge about two thirds of its width, at least, are inside. Image i of a split depends on (seed, split, i)
only. A caricature for tests and demonstrations; no medical conclusion follows.

Example:

    source = cell_phantoms('train', num_examples=200, size=64)
    source[0]['boxes'], source[0]['box_labels'], source[0]['box_mask']
"""
import numpy as np

from medrobust_jax.data.boxes import Objects, pack
from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.resize import Size, target_size
from medrobust_jax.data.source import ArraySource

CLASS_NAMES = ('red', 'white', 'platelet')
SPLITS = {'train': (0, 600), 'val': (1, 120), 'test': (2, 160)}  # stream of draws, default length
_RADII = ((.075, .105), (.14, .19), (.022, .036))  # of each class, as fractions of the side
_COUNTS = ((3, 8), (0, 3), (0, 4))  # how many of each class, the upper end excluded
# Of each class: the body's color, and that of the center or the nucleus.
_STAINS = (((.87, .58, .58), (.97, .82, .80)), ((.78, .72, .88), (.42, .28, .62)),
           ((.62, .48, .74), (.88, .80, .92)))


def cell_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                  size: Size = 64) -> ArraySource:
    """The phantoms as a source with 'boxes', 'box_labels' and 'box_mask'.

    Args:
      split: 'train', 'val' or 'test'; they share no image.
      num_examples: how many; None means 600, 120 and 160.
      seed: of all draws.
      size: (height, width) in pixels, or one number for both; cells are stretched with the image.

    Raises:
      ValueError: for an unknown split, no examples or a size under 32.
    """
    if split not in SPLITS:
        raise ValueError(f"cell_phantom has the splits {', '.join(SPLITS)}; not '{split}'")
    stream, default = SPLITS[split]
    num_examples = default if num_examples is None else num_examples
    if num_examples < 1 or min(target_size(size)) < 32:
        raise ValueError(f'cell_phantom needs num_examples >= 1 and a size >= 32, '
                         f'not {num_examples} and {size}')
    drawn = [render(index, seed=seed, stream=stream, size=size) for index in range(num_examples)]
    without = sum(not len(objects.labels) for _, objects in drawn)
    return ArraySource(np.stack([image for image, _ in drawn]), pack([objects for _, objects in drawn]),
                       name='cell_phantom', split=split, class_names=CLASS_NAMES,
                       range_map='uint8 / 255, drawn procedurally',
                       notes=[f'{without} images have no object.'] if without else [])


def render(index: int, *, seed: int = 0, stream: int = 0, size: Size = 64) -> tuple[np.ndarray, Objects]:
    """One image uint8 `[H, W, 3]` and its objects.

    Args:
      index: of the image.
      seed: of all draws.
      stream: apart from the seed, to keep splits apart.
      size: (height, width) in pixels, or one number for both.
    """
    height, width = target_size(size)
    draws = generator_of(seed, stream, index)
    x, y = np.meshgrid(*((np.arange(2 * side) + .5) / (2 * side) for side in (width, height)))
    light = 1 + draws.uniform(-.08, .08) * (x - .5) + draws.uniform(-.08, .08) * (y - .5)
    image = np.array([.95, .92, .88]) * light[..., None]
    for _ in range(draws.integers(1, 4)):  # debris: faint, ragged, no object
        _paint(image, _disk(x, y, draws.random(2), draws.uniform(.015, .05), draws, ragged=.5),
               np.array([.80, .78, .76]), draws.uniform(.2, .5))
    boxes, labels = [], []
    if draws.random() > 1 / 15:
        for label, center, radius in _places(draws):
            inside = _cell(image, x, y, label, center, radius, draws)
            columns, rows = (np.flatnonzero(inside.any(axis=axis)) for axis in (0, 1))
            edges = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            boxes.append(edges / (2 * np.array([width, height, width, height])))
            labels.append(label)
    image = image.reshape(height, 2, width, 2, 3).mean((1, 3)) * draws.uniform(.85, 1.02)
    image += draws.normal(0, .02, image.shape)
    objects = Objects(np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(labels, np.int32))
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8), objects


def _places(draws: np.random.Generator) -> list[tuple[int, np.ndarray, float]]:
    """(class, center, radius) of every cell; red ones first, so that others lie on top of them."""
    places: list[tuple[int, np.ndarray, float]] = []
    for label, (fewest, end) in enumerate(_COUNTS):
        for _ in range(draws.integers(fewest, end)):
            radius = draws.uniform(*_RADII[label])
            for _ in range(10):  # tries; a cell that finds no place is left out
                center = draws.uniform(.3 * radius, 1 - .3 * radius, 2)
                gaps = [np.hypot(*(center - other)) / (radius + reach) for _, other, reach in places]
                if not gaps or min(gaps) > .75:
                    places.append((label, center, radius))
                    break
    return places


def _cell(image: np.ndarray, x: np.ndarray, y: np.ndarray, label: int, center: np.ndarray, radius: float,
          draws: np.random.Generator) -> np.ndarray:
    """Paints one cell and returns where it is, `[H, W]` bool."""
    outer, inner = (np.array(color) + draws.normal(0, .02, 3) for color in _STAINS[label])
    body = _disk(x, y, center, radius, draws, ragged=.06)
    _paint(image, body, outer, .9)
    if label == 1:
        for _ in range(3):  # lobes of the nucleus
            place = center + draws.uniform(-.35, .35, 2) * radius
            _paint(image, _disk(x, y, place, radius * draws.uniform(.38, .5), draws, ragged=.08), inner, .95)
    else:
        _paint(image, _disk(x, y, center, radius * (.55 if label == 0 else .5), draws), inner, .8)
    return body > .5


def _disk(x: np.ndarray, y: np.ndarray, center: np.ndarray, radius: float, draws: np.random.Generator,
          ragged: float = .03) -> np.ndarray:
    """A soft disk, 0 to 1, whose radius varies around it."""
    angle = np.arctan2(y - center[1], x - center[0])
    lobes, phase = draws.integers(2, 5), draws.uniform(0, 2 * np.pi)
    reach = radius * (1 + ragged * np.sin(lobes * angle + phase))
    return .5 + .5 * np.tanh((reach - np.hypot(x - center[0], y - center[1])) / .006)


def _paint(image: np.ndarray, where: np.ndarray, color: np.ndarray, strength: float) -> None:
    weight = (strength * where)[..., None]
    image += weight * (color - image)
