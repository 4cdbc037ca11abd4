"""Features brought to one scale, so that none counts for its unit alone.

Contents: `scale_of`, `standardized`.

Example:

    center, scale = scale_of(training_features)                # [D] each
    z = standardized(features, center, scale)                  # [B, D]
"""
import numpy as np

from medrobust_jax.core.types import Array

_RESOLUTION = 1e-6  # of float32, and some: what varies by a smaller share of its mean does so by rounding


def scale_of(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the standard deviation of every feature.

    A feature that does not vary (a unit that no training image activates) has no scale of its own; it gets the
    median of the others', so that an image that does activate it looks unusual, in a finite measure: our choice.

    Args:
      features: `[N, D]`, float64.

    Returns:
      `[D]` twice, float64; the second one positive.

    Raises:
      ValueError: no feature varies.
    """
    center, deviation = features.mean(axis=0), features.std(axis=0)
    varies = deviation > _RESOLUTION * np.abs(center)
    if not varies.any():
        raise ValueError(f'none of the {features.shape[1]} features varies over {len(features)} training images: '
                         f'the model maps all images to one point')
    return center, np.where(varies, deviation, np.median(deviation[varies]))


def standardized(features: Array, center: Array | np.ndarray, scale: Array | np.ndarray) -> Array:
    """`(features - center) / scale`, `[B, D]`."""
    return (features - center) / scale
