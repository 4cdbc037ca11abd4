"""A small vision transformer, without convolutions in loops and without running statistics.

Contents: `VisionTransformer`.

Example:

    module = VisionTransformer(num_outputs=9, patch_size=4, width=64, depth=2)
    params, model_state = init_variables(module, jax.random.key(0), (28, 28, 3))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.models.layers import Dense, Normalize, check_batch_norm, check_size, logits_dtype, sow_stage

Array = jax.Array


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each normalized before and added to its input."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Maps tokens `[B, T, D]` to `[B, T, D]`."""
        width = tokens.shape[-1]
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm1')(tokens)
        x = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name='attention')(x)
        tokens = tokens + x
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm2')(tokens)
        x = nn.gelu(Dense(4 * width, self.dtype, name='dense1')(x))
        return tokens + Dense(width, self.dtype, name='dense2')(x)


class VisionTransformer(nn.Module):
    """A vision transformer with learned positions.

    Differs from the paper in: tokens are averaged where the paper appends a class token.

    Attributes:
      num_outputs: size of the logits.
      patch_size: side of the square patches; must divide height and width.
      width: size of a token, a multiple of `num_heads`.
      depth: number of encoder blocks.
      num_heads: attention heads.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, equations 1-4.
    """

    num_outputs: int
    patch_size: int = 4
    width: int = 64
    depth: int = 4
    num_heads: int = 4
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, H, W, C]` in [0, 1] to logits `[B, num_outputs]`.

        Args:
          images: `[B, H, W, C]`, of the height and width of initialization.
          batch_norm: checked and otherwise without effect: there is no batch normalization.

        Raises:
          ValueError: unknown mode, or sides that `patch_size` does not divide.
        """
        check_batch_norm(batch_norm)
        check_size(images, self.patch_size)
        batch, height, width, channels = images.shape
        side = self.patch_size
        if height % side or width % side:
            raise ValueError(f'patch_size {side} does not divide the images\' {height} x {width} pixels')
        x = Normalize(self.mean, self.std)(images)
        x = x.reshape(batch, height // side, side, width // side, side, channels).swapaxes(2, 3)
        x = x.reshape(batch, -1, side * side * channels)
        x = Dense(self.width, self.dtype, name='patches')(x)
        positions = self.param('positions', nn.initializers.normal(0.02), (x.shape[1], self.width))
        x = x + positions.astype(x.dtype)
        for index in range(self.depth):
            x = EncoderBlock(self.num_heads, self.dtype, name=f'block{index}')(x)
            sow_stage(self, x)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name='norm')(x).mean(1)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))
