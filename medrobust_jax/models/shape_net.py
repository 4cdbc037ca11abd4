"""Networks for shapes: boundary points by a linear head, a mask by a decoder, and the image again if asked.

Contents: `ShapeNet`; `shape_net`, of the published size, and `shape_net_small` for a CPU.

Example:

    module = shape_net_small(num_outputs=2 * 68)
    params, model_state = init_variables(module, jax.random.key(0), (64, 32, 1))
    outputs, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
    outputs['points'].shape, outputs['mask'].shape                  # (B, 68, 2), (B, 64, 32)
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.decoder import ConvBlock, Decoder, enlarge
from medrobust_jax.models.layers import Conv, Dense, Normalize, check_size, logits_dtype
from medrobust_jax.models.resnet import BasicBlock, Stem

Array = jax.Array


class ShapeNet(nn.Module):
    """A residual encoder with two or three heads.

    Attributes:
      num_outputs: 2 P for P points.
      stage_sizes: residual blocks per stage; every stage after the first halves the image and doubles
        the channels.
      width: channels of the first stage.
      norm: 'group' (published) or 'batch'.
      reconstruct: whether to rebuild the image from the coarsest features alone, without skips: what
        the network has not learned it cannot rebuild, which tells foreign images apart.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      arXiv 2102.02885: residual encoder from 64 to 1024 channels with GroupNorm, a fully connected head
      for the points, a U-Net decoder for the mask, in one variant a reconstruction. Blocks per stage,
      the decoders' widths and that the head sees all places of the coarsest features are ours.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...]
    width: int = 64
    norm: str = 'group'
    reconstruct: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> dict[str, Array]:
        """Maps images `[B, H, W, C]` in [0, 1] to a dict.

        Returns:
          'points' `[B, num_outputs / 2, 2]`, (x, y) as fractions of width and height, 'mask' `[B, H, W]`
          logits, and with `reconstruct` 'reconstruction' `[B, H, W, C]` in [0, 1] and
          'reconstruction_error' `[B]`, the mean of |reconstruction - image|.

        Raises:
          ValueError: an odd number of outputs, or sides that the stages do not divide.
        """
        stride = 2 ** (len(self.stage_sizes) - 1)
        check_size(images, stride)
        if self.num_outputs % 2 or images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(f'num_outputs = {self.num_outputs} must be even and the sides of images '
                             f'{images.shape} multiples of {stride}: resize them or use fewer stages')
        levels = self._encode(Normalize(self.mean, self.std)(images), batch_norm)
        dtype, coarsest = logits_dtype(images), levels[-1]
        self.sow('intermediates', 'features', global_average_pool(coarsest))
        moved = Dense(self.num_outputs, self.dtype, name='points')(coarsest.reshape(len(images), -1)).astype(dtype)
        x = Decoder(1, self.norm, self.dtype, name='decoder')(levels, batch_norm=batch_norm)
        mask = Conv(1, 1, use_bias=True, dtype=self.dtype, name='mask')(x)[..., 0].astype(dtype)
        outputs = {'points': .5 + moved.reshape(len(images), -1, 2), 'mask': mask}
        if self.reconstruct:
            rebuilt = jax.nn.sigmoid(self._rebuild(levels, images.shape[-1], batch_norm).astype(dtype))
            error = jnp.abs(rebuilt - images).mean(axis=(1, 2, 3))
            outputs |= {'reconstruction': rebuilt, 'reconstruction_error': error}
        return outputs

    def _encode(self, x: Array, batch_norm: str) -> list[Array]:
        """The features of every stage, finest first."""
        x = Stem(self.width, 'small', self.norm, self.dtype, name='stem')(x, batch_norm=batch_norm)
        levels = []
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                block = BasicBlock(self.width * 2**stage, 2 if stage and not index else 1, self.norm, self.dtype,
                                   name=f'stage{stage}_block{index}')
                x = block(x, batch_norm=batch_norm)
            levels.append(x)
        return levels

    def _rebuild(self, levels: Sequence[Array], channels: int, batch_norm: str) -> Array:
        """Logits of the image `[B, H, W, C]` from the coarsest features."""
        x = levels[-1]
        for index, level in reversed(list(enumerate(levels[:-1]))):
            block = ConvBlock(level.shape[-1], 1, self.norm, self.dtype, name=f'rebuild{index}')
            x = block(enlarge(x, level.shape[1:3]), batch_norm=batch_norm)
        return Conv(channels, 1, use_bias=True, dtype=self.dtype, name='rebuilt')(x)


shape_net = partial(ShapeNet, stage_sizes=(2, 2, 2, 2, 2), width=64)
shape_net_small = partial(ShapeNet, stage_sizes=(1, 1, 1, 1), width=16)
