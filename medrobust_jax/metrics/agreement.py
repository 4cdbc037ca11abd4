"""How far outputs on one image are those on another, and how well foreign images are told from real ones.

Contents: `agreement_values` (per image), `agreement_metrics` and `foreign_auroc` (with intervals), `REACHED`.

Example:

    estimates = agreement_metrics(found, wanted, patients)         # predictions on foreign and on real images
    print(estimates['output_dice'].value, estimates['reached'].value)

References:
  arXiv 2102.02885: the Dice between the two outputs (near 1 the network was fooled), and the AUROC of the
  reconstruction error.
"""
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medrobust_jax.metrics import segmentation, shape
from medrobust_jax.metrics.classification import auroc
from medrobust_jax.metrics.intervals import Estimate, bootstrap, mean_of, proportion
from medrobust_jax.metrics.landmarks import radial_errors

REACHED = .9  # a Dice from which on one output counts as the other; ours


def agreement_values(found: Any, wanted: Any) -> dict[str, np.ndarray]:
    """One number per image and measure, `[N]` each.

    Args:
      found: predictions: label maps `[N, *spatial]`, or a dict of 'mask' `[N, H, W]` and 'points' `[N, P, 2]`.
      wanted: those on the images whose outputs are to be reached.

    Returns:
      'output_dice', of the masks; of label maps the mean over the foreground classes that one of the two holds;
      1 where both hold none. With points 'output_point_distance', their mean distance in pixels.
    """
    if isinstance(found, Mapping):
        masks = np.asarray(found['mask']), np.asarray(wanted['mask'])
        extent = float(masks[0].shape[1]), float(masks[0].shape[2])
        apart = radial_errors(found['points'], wanted['points'], extent).mean(axis=1)
        return {'output_dice': shape.dice(*masks), 'output_point_distance': apart}
    maps = np.asarray(found), np.asarray(wanted)
    each = segmentation.dice(*maps, max(2, int(max(m.max() for m in maps)) + 1))
    known = ~np.isnan(each)
    mean = np.where(known, each, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return {'output_dice': np.where(known.any(axis=1), mean, 1.)}


def agreement_metrics(found: Any, wanted: Any, groups: ArrayLike | None = None) -> dict[str, Estimate]:
    """The means of `agreement_values`, and 'reached', the share of images with a Dice of `REACHED` or more.

    Intervals are over images, or over the patients `groups` `[N]` of the real ones.
    """
    values = agreement_values(found, wanted)
    means = {name: mean_of(value, groups) for name, value in values.items()}
    return {**means, 'reached': proportion(values['output_dice'] >= REACHED, groups)}


def foreign_auroc(real: ArrayLike, foreign: ArrayLike, groups: ArrayLike | None = None) -> Estimate:
    """How well a score tells foreign images from real ones: P[foreign > real] + P[equal] / 2.

    Args:
      real: `[N]` scores of real images, higher for stranger ones: reconstruction errors.
      foreign: `[N]` scores of foreign images; the i-th was made to reach the i-th real one, so that both are
        resampled together.
      groups: `[N]` patient ids, or None.
    """
    def area(ours: np.ndarray, theirs: np.ndarray, weights: np.ndarray | None = None) -> Any:
        is_foreign = np.repeat([0, 1], [len(ours), len(theirs)])
        both = None if weights is None else np.concatenate([weights, weights], axis=-1)
        return auroc(np.concatenate([ours, theirs]), is_foreign, both)

    return bootstrap(area, (real, foreign), groups=groups, weighted=True)
