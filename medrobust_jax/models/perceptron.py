"""A multi-layer perceptron on pixels: the smallest model, and a linear one without hidden layers.

Contents: `Perceptron`.

Example:

    module = Perceptron(num_outputs=2, hidden=())  # linear: attacks have closed forms
    params, model_state = init_variables(module, jax.random.key(0), (8, 8, 1))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.models.layers import Dense, Normalize, check_batch_norm, logits_dtype, sow_stage

Array = jax.Array


class Perceptron(nn.Module):
    """Dense layers with ReLU between them.

    Attributes:
      num_outputs: size of the logits.
      hidden: width of each hidden layer; `()` makes the model linear.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.
    """

    num_outputs: int
    hidden: tuple[int, ...] = (64,)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, ..., C]` in [0, 1] to logits `[B, num_outputs]`.

        Args:
          images: of the shape of initialization.
          batch_norm: checked and otherwise without effect: there is no batch normalization.

        Raises:
          ValueError: unknown mode.
        """
        check_batch_norm(batch_norm)
        x = Normalize(self.mean, self.std)(images).reshape(images.shape[0], -1)
        for index, width in enumerate(self.hidden):
            x = nn.relu(Dense(width, self.dtype, name=f'hidden{index}')(x))
            sow_stage(self, x)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))
