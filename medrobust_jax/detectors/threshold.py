"""The score below which an image is rejected.

Contents: `Threshold`, `calibrate`.

Example:

    threshold = calibrate(scores_of_held_out_clean_images, false_alarm_rate=.05, groups=patient_ids)
    rejected = scores < threshold.tau
"""
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics.intervals import Estimate, proportion


class Threshold(NamedTuple):
    """Where a detector rejects, and how often that hits clean images.

    Attributes:
      tau: an image is rejected if its score is below.
      false_alarms: the share of the calibration images that is rejected, with interval and n.
      allowed: the share that was asked for; `false_alarms.value` is never above.
    """

    tau: float
    false_alarms: Estimate
    allowed: float


def calibrate(scores: ArrayLike, *, false_alarm_rate: float = 0.05, groups: ArrayLike | None = None) -> Threshold:
    """The highest threshold that rejects at most the stated share of the calibration images.

    With sorted scores s_(1) <= ... <= s_(n) it is `s_(m+1)`, m = floor(false_alarm_rate n): at most m lie strictly
    below. Fewer do where scores are tied with it: all of equal score are accepted. With fewer than
    1 / false_alarm_rate images m is 0, tau the smallest score and no calibration image rejected; that the rate on
    new images is as small is then not known, as the interval says. A new clean image, exchangeable with these, is
    rejected with a probability of at most (m + 1) / (n + 1).

    Args:
      scores: `[n]` of clean images that the detector was not fitted on.
      false_alarm_rate: in [0, 1); .05 is ours.
      groups: `[n]` patient ids, or None; for the interval.

    Returns:
      The threshold; its interval is Wilson's, or over patients where they have several images.

    Raises:
      ValueError: no scores, a score that is not finite, with its row, or a rate out of range.
    """
    values = np.asarray(scores)
    if values.ndim != 1 or not len(values):
        raise ValueError(f'a threshold is calibrated on [n] scores of held-out clean images, got {values.shape}')
    if not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values)))
        raise ValueError(f'the score of calibration image {row} is {values[row]}; scores must be finite')
    if not 0 <= false_alarm_rate < 1:
        raise ValueError(f'false_alarm_rate = {false_alarm_rate} must lie in [0, 1)')
    # 1e-9 of an image: .05 x 100 must not fall short of 5 by rounding.
    most = int(np.floor(false_alarm_rate * len(values) + 1e-9))
    tau = float(np.sort(values)[most])
    return Threshold(tau, proportion(values < tau, groups), false_alarm_rate)
