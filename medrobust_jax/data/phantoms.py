"""Procedurally drawn, OCT-like retinal scans of four classes; they need no download.

Contents: `CLASS_NAMES`, `render` (images of given classes), `oct_phantoms` (a source).

Each scan is a cross-section: dark vitreous above, a stack of retinal layers that follows the
pigment epithelium (RPE) at its base, the choroid below, shadows of vessels, speckle. On top of
that come

* normal: nothing, though a fold or a bright vessel may look like something;
* dme: dark fluid cysts inside the layers, which swell;
* drusen: deposits that lift the RPE in one or several small domes;
* cnv: one wide, bright, uneven lesion under and through the RPE, often with fluid above it.

How severe a lesion is varies down to what one cannot see: natural models reach 90-99 %, not 100 %.
Image i of a split depends on (seed, split, i) only, so a longer split extends a shorter one.
The anatomy is a caricature for tests and demonstrations and supports no medical conclusion.

Example:

    source = oct_phantoms('test', num_examples=600, seed=0)
    source[0]['image'].shape                                       # (32, 32, 1)
    images = render(labels, seed=0, stream=7, size=48)             # uint8 [N, 48, 48, 1]
"""
from typing import NamedTuple

import numpy as np

from medrobust_jax.data.draws import generator_of
from medrobust_jax.data.source import ArraySource

CLASS_NAMES = ('normal', 'dme', 'drusen', 'cnv')
SPLITS = {'train': (0, 2000), 'val': (1, 400), 'test': (2, 600)}  # stream of draws, default length
NUM_DRAWS = 96  # uniform numbers per image, see _Draws
OVERSAMPLING = 2  # layers are thinner than a pixel: draw finer, then average
CHUNK = 256  # images drawn at once; bounds memory

# Reflectivity by depth: 0 is the inner surface, 1 the top of the RPE (1.13 its bottom).
DEPTHS = (-.06, .00, .10, .14, .34, .38, .48, .50, .56, .58, .78, .80, .87, .89, .95, .98, 1.10, 1.16)
BRIGHTNESS = (.05, .70, .72, .50, .46, .26, .26, .46, .46, .20, .20, .66, .66, .34, .34, .95, .95, .42)


class _Draws:
    """Hands out an image's uniform draws, column by column, as ranges [N, count]."""

    def __init__(self, uniform: np.ndarray) -> None:
        self._uniform = uniform
        self._used = 0

    def __call__(self, low: float, high: float, count: int = 1) -> np.ndarray:
        columns = self._uniform[:, self._used:self._used + count]
        self._used += count
        return low + (high - low) * columns


class _Canvas(NamedTuple):
    """What the parts of a scan share: coordinates, and per image its own geometry."""

    x: np.ndarray  # [1, 1, W], -1 to 1
    y: np.ndarray  # [1, H, 1], 0 (top) to 1
    fovea: np.ndarray  # [N, 1], the x of the center
    base: np.ndarray  # [N, W], the depth of the layer that the RPE rests on
    thickness: np.ndarray  # [N, W], of the retina


def oct_phantoms(split: str = 'train', *, num_examples: int | None = None, seed: int = 0,
                 size: int = 32) -> ArraySource:
    """The phantoms as a source, classes in equal parts.

    Args:
      split: 'train', 'val' or 'test'; they share no image.
      num_examples: how many; None means 2000, 400 and 600.
      seed: of all draws.
      size: height and width in pixels.

    Raises:
      ValueError: for an unknown split, fewer than 4 examples or a size under 16.
    """
    if split not in SPLITS:
        raise ValueError(f"oct_phantom has the splits {', '.join(SPLITS)}; not '{split}'")
    stream, default = SPLITS[split]
    num_examples = default if num_examples is None else num_examples
    if num_examples < len(CLASS_NAMES) or not isinstance(size, int) or size < 16:
        raise ValueError(f'oct_phantom needs num_examples >= 4 and one number size >= 16, '
                         f'not {num_examples} and {size}')
    labels = np.arange(num_examples) % len(CLASS_NAMES)
    return ArraySource(render(labels, seed=seed, stream=stream, size=size), labels, name='oct_phantom',
                       split=split, class_names=CLASS_NAMES, range_map='uint8 / 255, drawn procedurally')


def render(labels: np.ndarray, *, seed: int = 0, stream: int = 0, size: int = 32) -> np.ndarray:
    """Draws one scan per label.

    Args:
      labels: `[N]` in 0 ... 3, in the order of `CLASS_NAMES`.
      seed: of all draws.
      stream: apart from the seed, to keep splits apart.
      size: height and width in pixels.

    Returns:
      uint8 `[N, size, size, 1]`; image i depends on (seed, stream, i, labels[i], size) only.
    """
    labels = np.asarray(labels)
    chunks = [_render_chunk(labels[start:start + CHUNK], start, seed, stream, size)
              for start in range(0, len(labels), CHUNK)]
    return np.concatenate(chunks)


def _render_chunk(labels: np.ndarray, start: int, seed: int, stream: int, size: int) -> np.ndarray:
    uniform = np.empty((len(labels), NUM_DRAWS))
    speckle = np.empty((len(labels), size, size))
    for row in range(len(labels)):
        generator = generator_of(seed, stream, start + row)
        uniform[row] = generator.random(NUM_DRAWS)
        speckle[row] = generator.standard_gamma(12.0, (size, size)) / 12.0
    draws = _Draws(uniform)
    canvas = _geometry(draws, size * OVERSAMPLING)
    scans = _shade(draws, _lesions(draws, canvas, labels), canvas)
    scans = scans.reshape(len(labels), size, OVERSAMPLING, size, OVERSAMPLING).mean((2, 4))
    return _expose(draws, scans, speckle)


def _geometry(draws: _Draws, pixels: int) -> _Canvas:
    """Where the retina lies: tilt, curvature, folds, thickness and the foveal pit."""
    grid = (np.arange(pixels) + .5) / pixels
    x = 2 * grid[None, :] - 1
    fovea = draws(-.35, .35)
    base = (draws(.64, .72) + draws(-.05, .05) * x + draws(-.06, .03) * x**2
            + draws(0, .01) * np.sin(draws(3, 8) * x + draws(0, 6.3)))
    pit = draws(.05, .45) * np.exp(-((x - fovea) / draws(.18, .34))**2)
    thickness = draws(.34, .44) * (1 + draws(-.12, .12) * x) * (1 - pit)
    return _Canvas(x[:, None], grid[None, :, None], fovea, base, thickness)


class _Lesion(NamedTuple):
    """How lesions deform and fill a scan; fields `[N, W]` or `[N, H, W]`."""

    lift: np.ndarray  # of the RPE, [N, W]
    swelling: np.ndarray  # of the retina, [N, W]
    disruption: np.ndarray  # of the RPE line, 0 to 1, [N, W]
    deposit: np.ndarray  # reflectivity between lifted RPE and base, [N, H, W]
    fluid: np.ndarray  # 0 to 1, dark, [N, H, W]


def _lesions(draws: _Draws, canvas: _Canvas, labels: np.ndarray) -> _Lesion:
    """The lesions of each image's class; every image uses the same draws in the same order."""
    severity = draws(0, 1)
    # One lesion in sixteen is incipient, at the limit of what can be seen: these cost accuracy.
    severity = np.where(draws(0, 1) < .06, draws(-1.5, -.5), severity)
    is_dme, is_drusen, is_cnv = ((labels == kind)[:, None].astype(float) for kind in (1, 2, 3))
    domes = _domes(draws, canvas, severity) * is_drusen
    mound, texture = _mound(draws, canvas, severity)
    pocket = _pocket(draws, canvas, mound) * (is_cnv * (draws(0, 1) < .7))[:, None]
    mound = mound * is_cnv
    cysts, swelling = _cysts(draws, canvas, severity)
    disruption = is_cnv * np.clip(mound / .05, 0, 1) * draws(.5, 1)
    deposit = .50 * is_drusen[:, None] + (.66 + .30 * texture) * is_cnv[:, None]
    return _Lesion(domes + mound, swelling * is_dme, disruption,
                   deposit, np.maximum(cysts * is_dme[:, None], pocket))


def _domes(draws: _Draws, canvas: _Canvas, severity: np.ndarray) -> np.ndarray:
    """Drusen: one to five small domes [N, W]."""
    x = canvas.x[:, 0]
    number = 1 + np.floor(4.99 * np.maximum(severity, 0)**.5 * draws(.5, 1))
    total = np.zeros_like(canvas.base)
    for rank in range(5):
        height = (.11 + .05 * severity) * draws(.8, 1.1)
        bump = height * np.exp(-((x - draws(-.85, .85)) / draws(.09, .16))**2)
        total = np.maximum(total, bump * (rank < number))
    return total


def _mound(draws: _Draws, canvas: _Canvas, severity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A neovascular lesion: one wide mound [N, W], and its uneven texture [N, H, W] in -1 to 1."""
    center = canvas.fovea + draws(-.3, .3)
    width = draws(.32, .42) + .12 * severity
    profile = np.exp(-np.abs((canvas.x[:, 0] - center) / width)**3)
    mound = (.14 + .09 * severity) * draws(.9, 1.1) * profile
    phase = draws(0, 6.3, 2)[:, :, None, None]
    texture = np.sin(15 * canvas.x + phase[:, 0]) * np.sin(40 * canvas.y + phase[:, 1])
    return mound, texture


def _pocket(draws: _Draws, canvas: _Canvas, mound: np.ndarray) -> np.ndarray:
    """Fluid above a neovascular lesion, 0 to 1 [N, H, W]."""
    height = draws(.035, .075) * np.clip(mound / .08, 0, 1)
    top = (canvas.base - mound - .03)[:, None]
    depth = top - canvas.y  # positive above the lesion
    return _soft((height[:, None] - np.abs(depth - height[:, None])) / .012) * (height[:, None] > .01)


def _cysts(draws: _Draws, canvas: _Canvas, severity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Macular edema: one to four dark ellipses, 0 to 1 [N, H, W], and the swelling [N, W]."""
    number = 1 + np.floor(3.99 * np.maximum(severity, 0)**.5 * draws(.5, 1))
    total, swelling = np.zeros(()), np.zeros(())
    for rank in range(4):
        center_x = canvas.fovea + draws(-.5, .5)
        depth = draws(.28, .78)
        half_width = draws(.13, .19) + .08 * severity
        half_height = draws(.06, .08) + .035 * severity
        present = rank < number
        center_y = _at(canvas.base - canvas.thickness * (1 - depth), center_x)
        radius = np.hypot((canvas.x - center_x[..., None]) / half_width[..., None],
                          (canvas.y - center_y[..., None]) / half_height[..., None])
        total = np.maximum(total, _soft((1 - radius) / .12) * present[..., None])
        bump = half_height * draws(.4, 1.2) * np.exp(-((canvas.x[:, 0] - center_x) / (1.6 * half_width))**2)
        swelling = np.maximum(swelling, bump * present)
    return total, swelling


def _shade(draws: _Draws, lesion: _Lesion, canvas: _Canvas) -> np.ndarray:
    """Reflectivity [N, H, W] of layers, lesions, choroid and shadows."""
    rpe = (canvas.base - lesion.lift)[:, None]
    thickness = np.maximum(canvas.thickness + lesion.swelling - .6 * lesion.lift, .12)[:, None]
    depth = 1 + (canvas.y - rpe) / thickness
    scan = np.interp(depth, DEPTHS, BRIGHTNESS, left=.05, right=.42)
    # A disrupted RPE loses its bright line to the lesion's own reflectivity.
    line = np.exp(-((depth - 1.05) / .09)**2) * lesion.disruption[:, None]
    scan += line * (.6 - scan)
    below = canvas.y - canvas.base[:, None] - .03
    inside = _soft(-below / .01) * _soft((depth - 1.12) / .04) * (lesion.lift[:, None] > .004)
    scan += inside * (lesion.deposit - scan)
    texture = 1 + .25 * np.sin(draws(14, 24)[..., None] * canvas.x + draws(0, 6.3)[..., None])
    decay = np.exp(-np.maximum(below - .02, 0) / draws(.10, .2)[..., None])
    choroid = draws(.38, .55)[..., None] * texture * decay
    scan += _soft((below - .02) / .01) * (.05 + choroid - scan)
    scan += lesion.fluid * (.08 - scan)
    for _ in range(2):
        # A vessel in the inner retina casts a shadow downward.
        across = np.exp(-((canvas.x[:, 0] - draws(-.95, .95)) / draws(.03, .07))**2)[:, None]
        scan *= 1 - np.maximum(draws(-.3, .5), 0)[..., None] * across * _soft((depth - .25) / .05)
    return scan


def _expose(draws: _Draws, scans: np.ndarray, speckle: np.ndarray) -> np.ndarray:
    """Speckle, gain and the scanner's floor, as uint8 [N, H, W, 1]."""
    noise = 1 + draws(.4, .9)[..., None] * (speckle - 1)
    gain, floor = draws(.75, 1.05)[..., None], draws(.0, .06)[..., None]
    exposed = floor + gain * np.maximum(scans, 0)**draws(.85, 1.15)[..., None] * noise
    return np.round(255 * np.clip(exposed, 0, 1)).astype(np.uint8)[..., None]


def _soft(values: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1 around zero."""
    return .5 + .5 * np.tanh(values)


def _at(curve: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The values [N, 1] of curves [N, W] at positions x [N, 1] in -1 to 1."""
    columns = np.clip(((x + 1) / 2 * curve.shape[1]).astype(int), 0, curve.shape[1] - 1)
    return np.take_along_axis(curve, columns, axis=1)
