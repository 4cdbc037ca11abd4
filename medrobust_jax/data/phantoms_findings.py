"""Procedurally drawn, chest-like images with five findings, each present or absent; they need no download.

Contents: `FINDINGS`, `render`, `chest_phantoms`.

Two dark lungs in a bright body, a heart, ribs, noise. On top of that, independently of each other:

* cardiomegaly: the heart is wider than it should be;
* effusion: fluid fills the base of one lung up to a level;
* nodule: a small bright disk in a lung;
* pneumothorax: the outer part of one lung is darker, behind a thin line;
* consolidation: a hazy patch in a lung.

A finding is in about one image of three; how marked it is varies down to what one cannot see. Two
successive images are of one patient, whose anatomy they share: the source has groups. Image i of a split
depends on (seed, split, i) only. A caricature for tests and demonstrations; no medical conclusion follows.

Example:

    source = chest_phantoms('train', num_examples=400, seed=0)
    source[0]['findings']                                           # int32 [5]
"""
import numpy as np

from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.source import ArraySource

FINDINGS = ('cardiomegaly', 'effusion', 'nodule', 'pneumothorax', 'consolidation')
SPLITS = {'train': (0, 1600), 'val': (1, 300), 'test': (2, 400)}  # stream of draws, default length
PREVALENCE = .35


def chest_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                   size: int = 32) -> ArraySource:
    """The phantoms as a source with the target 'findings' `[5]` and patients as groups.

    Args:
      split: 'train', 'val' or 'test'; they share no patient.
      num_examples: how many images; None means 1600, 300 and 400.
      seed: of all draws.
      size: height and width in pixels.

    Raises:
      ValueError: for an unknown split, no examples or a size under 16.
    """
    if split not in SPLITS:
        raise ValueError(f"chest_phantom has the splits {', '.join(SPLITS)}; not '{split}'")
    stream, default = SPLITS[split]
    num_examples = default if num_examples is None else num_examples
    if num_examples < 1 or not isinstance(size, int) or size < 16:
        raise ValueError(f'chest_phantom needs num_examples >= 1 and one number size >= 16, '
                         f'not {num_examples} and {size}')
    drawn = [render(index, seed=seed, stream=stream, size=size) for index in range(num_examples)]
    images, findings = (np.stack(parts) for parts in zip(*drawn, strict=True))
    return ArraySource(images, {'findings': findings}, name='chest_phantom', split=split, class_names=FINDINGS,
                       groups=np.arange(num_examples) // 2, range_map='uint8 / 255, drawn procedurally')


def render(index: int, *, seed: int = 0, stream: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """One image uint8 `[size, size, 1]` and its findings uint8 `[5]`.

    Args:
      index: of the image; index // 2 is the patient.
      seed: of all draws.
      stream: apart from the seed, to keep splits apart.
      size: height and width in pixels.
    """
    body, own = generator_of(seed, 2 * stream, index // 2), generator_of(seed, 2 * stream + 1, index)
    findings = (own.random(len(FINDINGS)) < PREVALENCE).astype(np.uint8)
    # One finding in twelve is so slight that it can hardly be seen: these cost accuracy.
    strength = np.where(own.random(len(FINDINGS)) < 1 / 12, .1, own.uniform(.55, 1, len(FINDINGS))) * findings
    y, x = np.meshgrid(*2 * [(np.arange(2 * size) + .5) / (2 * size)], indexing='ij')
    shift = own.uniform(-.03, .03, 2)
    image = _draw(x - shift[0], y - shift[1], strength, body, own)
    image = image.reshape(size, 2, size, 2).mean((1, 3))
    image = own.uniform(.85, 1.1) * image + own.normal(0, .03, image.shape)
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)[..., None], findings


def _draw(x: np.ndarray, y: np.ndarray, strength: np.ndarray, body: np.random.Generator,
          own: np.random.Generator) -> np.ndarray:
    """Anatomy from the patient's draws, findings from the image's."""
    wide, fluid, nodule, air, haze = strength
    spread, half_width, half_height = body.uniform(.20, .24), body.uniform(.13, .17), body.uniform(.30, .36)
    image = .72 - .10 * abs(x - .5) + .05 * np.sin(body.uniform(38, 46) * y + 6 * abs(x - .5))
    centers = (.5 - spread, .5 + spread)
    lungs = [_ellipse(x, y, (center, .48), (half_width, half_height)) for center in centers]
    image -= (body.uniform(.40, .48)) * np.maximum(*lungs) * (1 + .12 * np.sin(60 * x) * np.sin(50 * y))
    side, level = own.integers(2), .74 - .16 * fluid
    image += fluid * .42 * lungs[side] * _soft((y - level - .08 * abs(x - centers[side])) / .012)
    side, edge = own.integers(2), half_width * .45
    outward = (x - centers[side]) * (2 * side - 1)
    rim = (outward - edge) / .008
    image -= air * lungs[side] * (.22 * _soft(rim) - .25 * np.exp(-rim**2))
    for kind, amount in ((0, nodule), (1, haze)):
        side = own.integers(2)
        place = (centers[side] + own.uniform(-.5, .5) * half_width, .46 + own.uniform(-.5, .4) * half_height)
        radius = (own.uniform(.030, .045),) * 2 if kind == 0 else (own.uniform(.08, .11), own.uniform(.08, .12))
        distance = np.hypot((x - place[0]) / radius[0], (y - place[1]) / radius[1])
        image += amount * lungs[side] * (.45 * _soft((1 - distance) / .2) if kind == 0 else
                                         .26 * np.exp(-distance**2) * (1 + .4 * np.sin(90 * x) * np.sin(80 * y)))
    heart = _ellipse(x, y, (.54, .62), (body.uniform(.11, .13) + .09 * wide, .13 + .02 * wide))
    return np.minimum(image + .38 * heart * np.maximum(*lungs), .8)


def _ellipse(x: np.ndarray, y: np.ndarray, center: tuple[float, float], radii: tuple[float, float]) -> np.ndarray:
    return _soft((1 - np.hypot((x - center[0]) / radii[0], (y - center[1]) / radii[1])) / .08)


def _soft(values: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1 around zero."""
    return .5 + .5 * np.tanh(values)

