"""Wide residual networks, the customary networks of adversarial training on small images.

Contents: `WideResNet`; `wide_resnet_28_10`, `wide_resnet_34_10`.

Example:

    module = WideResNet(num_outputs=9, depth=16, widen_factor=2, stem='strided')
    params, model_state = init_variables(module, jax.random.key(0), (28, 28, 3))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Conv, Dense, Norm, Normalize, check_size, logits_dtype, sow_stage

Array = jax.Array

_STEM_STRIDES = {'small': 1, 'strided': 2}


class WideBlock(nn.Module):
    """Norm and ReLU before each of two 3x3 convolutions, and a shortcut."""

    width: int
    stride: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        conv = partial(Conv, self.width, dtype=self.dtype)
        norm = partial(Norm, self.norm, self.dtype)
        activated = nn.relu(norm(name='norm1')(inputs, batch_norm=batch_norm))
        shortcut = inputs
        if inputs.shape[-1] != self.width or self.stride > 1:
            shortcut = conv(1, self.stride, name='shortcut_conv')(activated)
        x = conv(3, self.stride, name='conv1')(activated)
        x = nn.relu(norm(name='norm2')(x, batch_norm=batch_norm))
        return conv(3, name='conv2')(x) + shortcut


class WideResNet(nn.Module):
    """A WRN-d-k: three stages of pre-activated blocks, k times as wide as a thin ResNet.

    Differs from the paper in: no dropout, as in the implementations adversarial training uses.

    Attributes:
      num_outputs: size of the logits.
      depth: d, six times the blocks per stage plus four.
      widen_factor: k; stages have 16 k, 32 k and 64 k channels.
      stem: 'small' (3x3, stride 1) or 'strided' (3x3, stride 2).
      norm: 'batch' or 'group'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      Zagoruyko, Komodakis, "Wide residual networks", BMVC 2016, table 1.
    """

    num_outputs: int
    depth: int
    widen_factor: int
    stem: str = 'small'
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, H, W, C]` in [0, 1] to logits `[B, num_outputs]`.

        Raises:
          ValueError: unknown option, a depth that is not 6 n + 4, images too small, or another
            number of channels than at initialization.
        """
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f'depth {self.depth} of a wide ResNet must be 6 n + 4: 10, 16, 22, 28, 34, ...')
        if self.stem not in _STEM_STRIDES:
            did_you_mean(self.stem, _STEM_STRIDES, 'stem')
        check_size(images, _STEM_STRIDES[self.stem] * 4)
        x = Normalize(self.mean, self.std)(images)
        x = Conv(16, 3, _STEM_STRIDES[self.stem], dtype=self.dtype, name='stem')(x)
        for stage in range(3):
            for index in range((self.depth - 4) // 6):
                block = WideBlock(
                    width=16 * self.widen_factor * 2**stage, stride=2 if stage and not index else 1,
                    norm=self.norm, dtype=self.dtype, name=f'stage{stage}_block{index}',
                )
                x = block(x, batch_norm=batch_norm)
            sow_stage(self, x)
        x = nn.relu(Norm(self.norm, self.dtype, name='norm')(x, batch_norm=batch_norm))
        self.sow('intermediates', 'maps', x)
        x = global_average_pool(x)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))


wide_resnet_28_10 = partial(WideResNet, depth=28, widen_factor=10)
wide_resnet_34_10 = partial(WideResNet, depth=34, widen_factor=10)
