r"""Corruptions of medical images, graded by a severity from 0 (none) to 5.

Each is a pure function `(keys [B], images [B, *spatial, C], severity [B]) -> images` in [0, 1]. The
whole severities are called minimal (1), mild (2), moderate (3), marked (4) and severe (5); between
them the parameter is interpolated linearly, and 0 is the identity exactly. Beyond 5 counts as 5. What
a corruption draws depends on the key alone, so one key at two severities gives one artefact, weak
and strong.

| name | what | parameter at severities 1 ... 5 |
|---|---|---|
| bias_field | smooth uneven gain of random shape; the brightest pixel stays | largest log gain .1 .2 .35 .5 .75 |
| contrast | shrinks to the mean of each channel | factor .9 .8 .7 .6 .4 [a] |
| gamma | x^g, up (g = level) or down (1 / level) | 1.1 1.25 1.5 1.9 2.5 [b] |
| gaussian_noise | adds N(0, s^2) | s .04 .08 .12 .16 .20 [a] |
| rician_noise | magnitude of x + complex noise | s .04 .08 .12 .16 .20 |
| speckle_noise | x (1 + N(0, s^2)) | s .05 .10 .20 .30 .40 [a] |
| gaussian_blur | mirrored at the edges | sigma .012 .018 .024 .030 .038 of the shorter side |
| motion_blur | along a line of random angle | length .02 .035 .05 .075 .10 of the shorter side |
| ghosting | periodic motion in k-space | amplitude .004 .008 .013 .02 .03 of the shorter side |
| low_resolution | outer k-space lost | factor 1.25 1.6 2 2.7 4 |
| jpeg | color planes halved, gradients pass straight through | quality 50 30 15 10 7 [a] |

[a]: MedMNIST-C's constants (for organ CT, chest X-ray or pathology; at 224 pixels). [b]: spans
MedMNIST-C's two gamma corruptions. All others are ours, and so is the unit of lengths: fractions of
the image's shorter side, so that a severity looks alike at any resolution; but JPEG's blocks have 8
pixels at any, and noise is one of pixels, so that small images suffer more. `motion_blur`, `ghosting`
and `jpeg` need two-dimensional images, the others take one to three spatial axes.

Contents: `CORRUPTIONS`, `LEVELS`, `DETERMINISTIC`, `SEVERITIES`, `level_of`.

Example:

    noisy = CORRUPTIONS['rician_noise'](keys, images, jnp.full(len(images), 2.5))

References:
  Di Salvo et al., MedMNIST-C, arXiv 2406.17536 (constants). Hendrycks and Dietterich, Benchmarking
  Neural Network Robustness to Common Corruptions and Perturbations, ICLR 2019 (the scheme).
  Gudbjartsson and Patz, The Rician Distribution of Noisy MRI Data, MRM 1995.
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.core import degradations, rng
from medrobust_jax.core.jpeg import jpeg
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array

# (keys [B], images [B, *spatial, C], severity [B]) -> images
Corruption = Callable[[Array, Array, Array], Array]

SEVERITIES = {1: 'minimal', 2: 'mild', 3: 'moderate', 4: 'marked', 5: 'severe'}
# The parameter at severity 0 (its value without effect), 1, ..., 5.
LEVELS: dict[str, tuple[float, ...]] = {
    'bias_field': (0, .1, .2, .35, .5, .75),
    'contrast': (1, .9, .8, .7, .6, .4),
    'gamma': (1, 1.1, 1.25, 1.5, 1.9, 2.5),
    'gaussian_noise': (0, .04, .08, .12, .16, .20),
    'rician_noise': (0, .04, .08, .12, .16, .20),
    'speckle_noise': (0, .05, .10, .20, .30, .40),
    'gaussian_blur': (0, .012, .018, .024, .030, .038),
    'motion_blur': (0, .02, .035, .05, .075, .10),
    'ghosting': (0, .004, .008, .013, .02, .03),
    'low_resolution': (1, 1.25, 1.6, 2, 2.7, 4),
    'jpeg': (100, 50, 30, 15, 10, 7),
}
DETERMINISTIC = frozenset({'contrast', 'gaussian_blur', 'low_resolution', 'jpeg'})  # make no draws
BIAS_ORDER = 3


def level_of(name: str, severity: Array) -> Array:
    """The parameter of the corruption `name` at each `severity` `[B]`, in the units of the table above."""
    levels = jnp.asarray(LEVELS[name], severity.dtype)
    return jnp.interp(severity, jnp.arange(len(levels), dtype=severity.dtype), levels)


def _graded(name: str, degrade: Callable[[Array, Array, Array], Array]) -> Corruption:
    """`degrade(keys, images, level [B])` as a corruption: graded, in the box, the identity at 0."""
    def corrupt(keys: Array, images: Array, severity: Array) -> Array:
        present = severity > 0
        dtype = jnp.promote_types(images.dtype, jnp.float32)
        # Where nothing is to be done something harmless is computed, for the sake of finite gradients.
        level = level_of(name, jnp.where(present, severity, 1).astype(dtype))
        changed = jnp.clip(degrade(keys, images.astype(dtype), level), 0, 1).astype(images.dtype)
        return jnp.where(per_example(present, images), changed, images)

    return corrupt


def _side(images: Array) -> int:
    return min(images.shape[1:-1])


def _bias_field(keys: Array, images: Array, strength: Array) -> Array:
    terms = degradations.bias_terms(images.ndim - 2, BIAS_ORDER)
    coefficients = rng.uniform(keys, (len(terms),), -1, 1, images.dtype)
    return degradations.bias_field(images, coefficients, strength, order=BIAS_ORDER)


def _contrast(keys: Array, images: Array, factor: Array) -> Array:
    mean = images.mean(axis=tuple(range(1, images.ndim - 1)), keepdims=True)
    return mean + per_example(factor, images) * (images - mean)


def _gamma(keys: Array, images: Array, level: Array) -> Array:
    brighter = rng.uniform(keys, (), dtype=images.dtype) < .5
    exponent = per_example(jnp.where(brighter, 1 / level, level), images)
    positive = images > 0  # the power has no gradient at zero
    return jnp.where(positive, jnp.where(positive, images, 1) ** exponent, 0)


def _gaussian_noise(keys: Array, images: Array, sigma: Array) -> Array:
    return images + per_example(sigma, images) * rng.normal(keys, images.shape[1:], images.dtype)


def _rician_noise(keys: Array, images: Array, sigma: Array) -> Array:
    real, imaginary = (rng.normal(k, images.shape[1:], images.dtype) for k in rng.split_each(keys, 2))
    scale = per_example(sigma, images)
    return jnp.sqrt((images + scale * real) ** 2 + (scale * imaginary) ** 2 + 1e-12)


def _speckle_noise(keys: Array, images: Array, sigma: Array) -> Array:
    return images * (1 + per_example(sigma, images) * rng.normal(keys, images.shape[1:], images.dtype))


def _gaussian_blur(keys: Array, images: Array, fraction: Array) -> Array:
    return degradations.gaussian_blur(images, fraction * _side(images))


def _motion_blur(keys: Array, images: Array, fraction: Array) -> Array:
    degradations.require_plane(images, 'motion_blur')
    longest = -(-_side(images) * LEVELS['motion_blur'][-1] // 1)
    angle = rng.uniform(keys, (), 0, jnp.pi, images.dtype)
    return degradations.motion_blur(images, fraction * _side(images), angle, longest=max(2, int(longest)))


def _ghosting(keys: Array, images: Array, fraction: Array) -> Array:
    draws = rng.uniform(keys, (3,), dtype=images.dtype)
    period = 3 + 5 * draws[:, 0]  # lines per cycle, of the order of TR against a breath or a heartbeat
    return degradations.ghosting(images, fraction * _side(images), period, 2 * jnp.pi * draws[:, 1],
                                 draws[:, 2] < .5)


CORRUPTIONS: dict[str, Corruption] = {name: _graded(name, degrade) for name, degrade in {
    'bias_field': _bias_field,
    'contrast': _contrast,
    'gamma': _gamma,
    'gaussian_noise': _gaussian_noise,
    'rician_noise': _rician_noise,
    'speckle_noise': _speckle_noise,
    'gaussian_blur': _gaussian_blur,
    'motion_blur': _motion_blur,
    'ghosting': _ghosting,
    'low_resolution': lambda keys, images, factor: degradations.low_resolution(images, factor),
    'jpeg': lambda keys, images, quality: jpeg(images, quality),
}.items()}
