"""MobileNetV2, a small network of depthwise convolutions.

Contents: `MobileNetV2`.

Example:

    module = MobileNetV2(num_outputs=9, width_multiplier=0.5, stem='small')
    params, model_state = init_variables(module, jax.random.key(0), (28, 28, 3))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Conv, Dense, Norm, Normalize, check_size, divided, logits_dtype, sow_stage

Array = jax.Array

# Expansion, channels, blocks, stride: Sandler et al. 2018, table 2.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Strides of the first convolution and of the 24-channel stage.
_STEMS = {'small': (1, 1), 'strided': (2, 1), 'large': (2, 2)}


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; a shortcut where shapes agree."""

    expansion: int
    width: int
    stride: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        hidden = inputs.shape[-1] * self.expansion
        x = inputs
        if self.expansion > 1:
            x = Conv(hidden, 1, dtype=self.dtype, name='expand')(x)
            x = nn.relu6(Norm(self.norm, self.dtype, name='expand_norm')(x, batch_norm=batch_norm))
        x = Conv(hidden, 3, self.stride, groups=hidden, dtype=self.dtype, name='depthwise')(x)
        x = nn.relu6(Norm(self.norm, self.dtype, name='depthwise_norm')(x, batch_norm=batch_norm))
        x = Conv(self.width, 1, dtype=self.dtype, name='project')(x)
        x = Norm(self.norm, self.dtype, name='project_norm')(x, batch_norm=batch_norm)
        return x + inputs if x.shape == inputs.shape else x


class MobileNetV2(nn.Module):
    """MobileNetV2 without dropout.

    Differs from the paper in: the stems 'small' and 'strided' drop two or one of the five halvings.

    Attributes:
      num_outputs: size of the logits.
      width_multiplier: scales all widths, rounded to multiples of 8; the last layer never shrinks.
      stem: 'small' (8 times smaller at the end; 28 to 64 pixels), 'strided' (16) or 'large' (32).
      norm: 'batch' or 'group'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018.
    """

    num_outputs: int
    width_multiplier: float = 1.0
    stem: str = 'small'
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, H, W, C]` in [0, 1] to logits `[B, num_outputs]`.

        Raises:
          ValueError: unknown option, images too small, or another number of channels than at
            initialization.
        """
        if self.stem not in _STEMS:
            did_you_mean(self.stem, _STEMS, 'stem')
        strides = _STEMS[self.stem]
        check_size(images, 8 * strides[0] * strides[1])
        x = Normalize(self.mean, self.std)(images)
        x = Conv(divided(32 * self.width_multiplier), 3, strides[0], dtype=self.dtype, name='stem')(x)
        x = nn.relu6(Norm(self.norm, self.dtype, name='stem_norm')(x, batch_norm=batch_norm))
        for stage, (expansion, width, num_blocks, stride) in enumerate(_STAGES):
            stride = strides[1] if stage == 1 else stride
            for index in range(num_blocks):
                block = InvertedResidual(
                    expansion=expansion, width=divided(width * self.width_multiplier),
                    stride=1 if index else stride, norm=self.norm, dtype=self.dtype,
                    name=f'stage{stage}_block{index}',
                )
                x = block(x, batch_norm=batch_norm)
            sow_stage(self, x)
        x = Conv(divided(1280 * max(1.0, self.width_multiplier)), 1, dtype=self.dtype, name='last')(x)
        x = nn.relu6(Norm(self.norm, self.dtype, name='last_norm')(x, batch_norm=batch_norm))
        self.sow('intermediates', 'maps', x)
        x = global_average_pool(x)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))
