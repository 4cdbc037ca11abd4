"""A one-stage, anchor-free detector with a feature pyramid, small enough for a CPU.

Contents: `Detector`; `detector` (the constructor by name).

Example:

    module = detector(num_outputs=5 + 3)                  # three classes
    params, model_state = init_variables(module, jax.random.key(0), (128, 128, 3))
    maps, _ = apply_model(module)(params, model_state, images, batch_norm='eval')   # 32x32, 16x16, 8x8
"""
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Conv, Norm, Normalize, check_size, logits_dtype
from medrobust_jax.models.resnet import BasicBlock, Stem, stem_stride

Array = jax.Array

_PRIOR = .01  # the objectness every point starts with (Lin et al. 2017, section 4.1)


class Detector(nn.Module):
    """Residual backbone, top-down pyramid over its last stages, one head shared by all levels.

    Attributes:
      num_outputs: channels of every map: objectness, four distances, the classes (`core.anchors`); 5 + C.
      stage_sizes: blocks per stage; every stage after the first halves the resolution.
      num_levels: how many of the last stages make the pyramid. With the 'strided' stem and four stages,
        three levels have strides 4, 8 and 16.
      width: channels of the first stage; every later stage doubles them.
      pyramid_width: channels of pyramid and head.
      head_depth: convolutions of the head before the last one.
      stem: 'small', 'strided' or 'large', see `resnet.Stem`.
      norm: of the backbone, 'batch' or 'group'. The head has group norms: its levels share weights but not
        statistics.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation; None follows the images.

    Differs from FCOS in: one head for all outputs and two convolutions instead of two towers of four;
    distances by softplus instead of exp, which bounds their gradients [ours].

    References:
      Tian et al., FCOS: Fully convolutional one-stage object detection, ICCV 2019.
      Lin et al., Feature pyramid networks, CVPR 2017; Focal loss for dense object detection, ICCV 2017.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...] = (1, 1, 1, 1)
    num_levels: int = 3
    width: int = 32
    pyramid_width: int = 64
    head_depth: int = 2
    stem: str = 'strided'
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> tuple[Array, ...]:
        """Maps images `[B, H, W, C]` in [0, 1] to maps `[B, h, w, num_outputs]`, finest first.

        Raises:
          ValueError: unknown option, images too small, or a number of outputs, levels or stages that does not fit.
        """
        check_size(images, stem_stride(self.stem) * 2 ** (len(self.stage_sizes) - 1))
        if not 1 <= self.num_levels <= len(self.stage_sizes) or self.num_outputs < 6:
            raise ValueError('a detector needs 1 <= num_levels <= stages and num_outputs >= 6, not '
                             f'{self.num_levels}, {len(self.stage_sizes)} and {self.num_outputs}')
        x = Normalize(self.mean, self.std)(images)
        x = Stem(self.width, self.stem, self.norm, self.dtype, name='stem')(x, batch_norm=batch_norm)
        stages = []
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                x = BasicBlock(self.width * 2**stage, 2 if stage and not index else 1, self.norm, self.dtype,
                               name=f'stage{stage}_block{index}')(x, batch_norm=batch_norm)
            stages.append(x)
        self.sow('intermediates', 'features', global_average_pool(x))
        levels = self._pyramid(stages[-self.num_levels:])
        head = _Head(self.num_outputs, self.pyramid_width, self.head_depth, self.dtype, name='head')
        return tuple(head(level, batch_norm=batch_norm).astype(logits_dtype(images)) for level in levels)

    def _pyramid(self, stages: list[Array]) -> list[Array]:
        """Every stage plus what coarser ones know, `[B, h, w, pyramid_width]`, finest first."""
        conv = partial(Conv, self.pyramid_width, use_bias=True, dtype=self.dtype)
        levels, above = [], None
        for number in reversed(range(len(stages))):
            x = conv(kernel_size=1, name=f'lateral{number}')(stages[number])
            if above is not None:
                x = x + _doubled(above)[:, :x.shape[1], :x.shape[2]]
            above = x
            levels.append(nn.relu(conv(kernel_size=3, name=f'smooth{number}')(x)))
        return levels[::-1]


class _Head(nn.Module):
    """Convolutions shared by all levels."""

    num_outputs: int
    width: int
    depth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, *, batch_norm: str) -> Array:
        for number in range(self.depth):
            x = Conv(self.width, 3, dtype=self.dtype, name=f'conv{number}')(x)
            x = nn.relu(Norm('group', self.dtype, name=f'norm{number}')(x, batch_norm=batch_norm))
        x = Conv(self.num_outputs, 3, dtype=self.dtype, name='outputs')(x)
        return x + self.param('bias', _first_bias, (self.num_outputs,)).astype(x.dtype)


def _first_bias(key: Array, shape: tuple[int, ...]) -> Array:
    """Objectness starts at `_PRIOR`, everything else at 0."""
    del key
    return jnp.zeros(shape).at[0].set(np.log(_PRIOR / (1 - _PRIOR)))


def _doubled(x: Array) -> Array:
    """Every pixel four times: nearest-neighbor upsampling by 2."""
    batch, height, width, channels = x.shape
    tiles = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return tiles.reshape(batch, 2 * height, 2 * width, channels)


detector = Detector
