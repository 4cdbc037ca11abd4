"""What networks with one output per pixel share: blocks of convolutions, and the way back up with skips.

Contents: `ConvBlock`, `Decoder`, `enlarge`.

Example, inside a module's `__call__(images, *, batch_norm)`:

    features = Decoder(norm='group')(levels, batch_norm=batch_norm)      # at the size of levels[0]

References:
  Ronneberger, Fischer, Brox, "U-Net", MICCAI 2015. Differs from it in: padded convolutions, a norm
  after each, and repeated pixels in place of transposed convolutions, whose gradient is slow on CPU.
"""
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.models.layers import Conv, Norm

Array = jax.Array


class ConvBlock(nn.Module):
    """3x3 convolutions, each with norm and ReLU, as in VGG.

    Attributes:
      width: output channels.
      depth: how many convolutions.
      norm: 'batch' or 'group'.
      dtype: dtype of the computation.
    """

    width: int
    depth: int = 2
    norm: str = 'batch'
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H, W, width]`."""
        for index in range(self.depth):
            x = Conv(self.width, 3, dtype=self.dtype, name=f'conv{index}')(x)
            x = nn.relu(Norm(self.norm, self.dtype, name=f'norm{index}')(x, batch_norm=batch_norm))
        return x


class Decoder(nn.Module):
    """From the coarsest features to the finest: enlarge, join the level's features, convolve.

    Attributes:
      depth: convolutions per level.
      norm: 'batch' or 'group'.
      dtype: dtype of the computation.
    """

    depth: int = 1
    norm: str = 'batch'
    dtype: Any = None

    @nn.compact
    def __call__(self, levels: Sequence[Array], *, batch_norm: str) -> Array:
        """Maps features, finest first, each half as large as the one before, to `[B, *levels[0]'s size, C]`.

        Every level's width is that of the encoder's features there.
        """
        *finer, x = levels
        for index, skip in reversed(list(enumerate(finer))):
            joined = jnp.concatenate([enlarge(x, skip.shape[1:3]), skip], axis=-1)
            block = ConvBlock(skip.shape[-1], self.depth, self.norm, self.dtype, name=f'level{index}')
            x = block(joined, batch_norm=batch_norm)
        return x


def enlarge(x: Array, size: Sequence[int]) -> Array:
    """Repeats every pixel twice each way, and the last ones once more where `size` is odd.

    Args:
      x: `[B, H, W, C]`.
      size: (2 H or 2 H + 1, 2 W or 2 W + 1), what halving by a pool of 2 came from.

    Raises:
      ValueError: for another size.
    """
    batch, height, width, channels = x.shape
    extra = size[0] - 2 * height, size[1] - 2 * width
    if not set(extra) <= {0, 1}:
        raise ValueError(f'features of {height} x {width} pixels cannot be doubled to {size[0]} x {size[1]}')
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    x = x.reshape(batch, 2 * height, 2 * width, channels)
    return jnp.pad(x, ((0, 0), (0, extra[0]), (0, extra[1]), (0, 0)), mode='edge') if any(extra) else x
