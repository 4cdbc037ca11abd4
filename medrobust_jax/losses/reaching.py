"""How far a segmentation's outputs are from those of another image; for shapes see `losses.shape.output_distance`.

Contents: `segmentation_distance`.

Example:

    victim = reaching(forward, segmentation_distance, tolerance=.1)      # attacks.ood
"""
import jax

from medrobust_jax.core.types import Array, Outputs
from medrobust_jax.losses.segmentation import final_logits
from medrobust_jax.losses.shape import soft_dice


def segmentation_distance(outputs: Outputs, wanted: Outputs) -> Array:
    """`1 - Dice` between two softmax maps, mean over the foreground classes, `[B]` in [0, 1].

    The segmentation's counterpart [ours] of the mask's term in `losses.shape.output_distance`: 0 where
    both maps are certain and equal.

    Args:
      outputs: logits `[B, *spatial, C]`, class 0 the background, or a dict with such 'logits'.
      wanted: likewise.
    """
    p, q = (jax.nn.softmax(final_logits(logits), axis=-1) for logits in (outputs, wanted))
    per_class = jax.vmap(soft_dice, in_axes=-1, out_axes=-1)(p[..., 1:], q[..., 1:])
    return 1 - per_class.mean(axis=-1)
