"""U-Net for images and volumes, in the spirit of nnU-Net's plans.

Contents: `UNet`, `ConvBlock`.

Example:

    module = UNet(num_outputs=4, width=16, depth=4)
    params, model_state = init_variables(module, jax.random.key(0), (96, 96, 1))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')     # [B, 96, 96, 4]
    volumes = UNet(num_outputs=2, num_spatial_dims=3)                                   # [B, D, H, W, C]
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Outputs
from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Conv, DoubleSize, Norm, Normalize, check_size, logits_dtype

Array = jax.Array

_SLOPE = 0.01  # of the leaky ReLU, nnU-Net's


class ConvBlock(nn.Module):
    """3x3 convolutions, each followed by a norm and a leaky ReLU; the first one may have a stride."""

    width: int
    stride: int = 1
    num_convolutions: int = 2
    norm: str = 'instance'
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, *spatial, C]` to `[B, *(spatial / stride, rounded up), width]`."""
        x = inputs
        for number in range(self.num_convolutions):
            x = Conv(self.width, 3, 1 if number else self.stride, dtype=self.dtype, name=f'conv{number}')(x)
            x = Norm(self.norm, self.dtype, name=f'norm{number}')(x, batch_norm=batch_norm)
            x = nn.leaky_relu(x, _SLOPE)
        return x


class UNet(nn.Module):
    """An encoder by strided convolutions, a decoder by transposed ones, and connections between equal sizes.

    Every size of image is taken: sizes are halved rounding up, and what was added is cut off again.

    Attributes:
      num_outputs: classes, background included.
      num_spatial_dims: 2 or 3; kernels and strides are equal in all directions, so volumes should be
        resampled to one spacing.
      width: channels at full size; every halving doubles them.
      depth: how many sizes there are, >= 2; images shrink to 1 / 2^(depth - 1).
      max_width: the most channels; 512 in nnU-Net's 2-D plans, 320 in its 3-D plans.
      num_convolutions: per size, in the encoder and in the decoder; nnU-Net's 2.
      norm: 'instance' (nnU-Net's), 'group' or 'batch'.
      deep_supervision: whether modes other than 'eval' return coarser logits too, see `__call__`.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      Ronneberger, Fischer, Brox, U-Net, MICCAI 2015; Isensee et al., nnU-Net, Nature Methods 18, 2021.
    Differs from nnU-Net in: no automatic plan; equal strides in all directions; convolutions have no bias,
    which the norm would cancel; by default 4 sizes, while its plans go down to 4 pixels.
    """

    num_outputs: int
    num_spatial_dims: int = 2
    width: int = 32
    depth: int = 4
    max_width: int = 512
    num_convolutions: int = 2
    norm: str = 'instance'
    deep_supervision: bool = False
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Outputs:
        """Maps images `[B, *spatial, C]` in [0, 1] to a class per pixel.

        Returns:
          logits `[B, *spatial, num_outputs]`. With deep supervision, in the modes 'train' and
          'batch_stats': `{'logits': the same, 'coarser': (logits at 1/2, 1/4, ... of the size)}`, for all
          sizes but the smallest; `losses.segmentation` takes both.

        Raises:
          ValueError: an option out of range, or images of another rank or smaller than 2^(depth - 1).
        """
        if self.depth < 2 or self.num_spatial_dims not in (2, 3):
            raise ValueError(f'UNet needs depth >= 2 and 2 or 3 spatial axes, not {self.depth} and '
                             f'{self.num_spatial_dims}')
        check_size(images, 2 ** (self.depth - 1), self.num_spatial_dims)
        widths = [min(self.width * 2**level, self.max_width) for level in range(self.depth)]

        def block(level: int, stride: int, name: str) -> ConvBlock:
            return ConvBlock(widths[level], stride, self.num_convolutions, self.norm, self.dtype, name=name)

        x, skips = Normalize(self.mean, self.std)(images), []
        for level in range(self.depth):
            x = block(level, 2 if level else 1, f'encoder{level}')(x, batch_norm=batch_norm)
            skips.append(x)
        self.sow('intermediates', 'features', global_average_pool(x))
        logits = []
        for level in reversed(range(self.depth - 1)):
            x = DoubleSize(widths[level], self.dtype, name=f'up{level}')(x)
            x = x[(slice(None), *(slice(size) for size in skips[level].shape[1:-1]))]
            x = block(level, 1, f'decoder{level}')(jnp.concatenate([x, skips[level]], -1), batch_norm=batch_norm)
            if level == 0 or self.deep_supervision:
                head = Conv(self.num_outputs, 1, use_bias=True, dtype=self.dtype, name=f'head{level}')
                logits.insert(0, head(x).astype(logits_dtype(images)))
        if self.deep_supervision and batch_norm != 'eval':
            return {'logits': logits[0], 'coarser': tuple(logits[1:])}
        return logits[0]
