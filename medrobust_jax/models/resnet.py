"""Residual networks, from the 8 layers a CPU trains in minutes to ResNet-50.

Contents: `ResNet`; `resnet8`, `resnet10`, `resnet18`, `resnet34`, `resnet50`; `stem_stride` and
`Stem`, which other families share.

Example:

    module = resnet18(num_outputs=9, stem='strided', norm='group')
    params, model_state = init_variables(module, jax.random.key(0), (64, 64, 1))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.models.convolution import global_average_pool, max_pool
from medrobust_jax.models.layers import Conv, Dense, Norm, Normalize, check_size, logits_dtype, sow_stage

Array = jax.Array

_STEM_STRIDES = {'small': 1, 'strided': 2, 'large': 4}


def stem_stride(stem: str) -> int:
    """By how much a stem reduces height and width; ValueError with a suggestion if unknown."""
    if stem not in _STEM_STRIDES:
        did_you_mean(stem, list(_STEM_STRIDES), 'stem')
    return _STEM_STRIDES[stem]


class Stem(nn.Module):
    """The first layers: convolution, norm, ReLU and, for large images, max-pooling.

    Attributes:
      width: output channels.
      stem: 'small' (3x3, stride 1; 28 to 64 pixels), 'strided' (3x3, stride 2: a quarter of the
        cost) or 'large' (7x7, stride 2, then 3x3 max-pooling with stride 2; 224 pixels).
      norm: 'batch' or 'group'.
      dtype: dtype of the computation.
    """

    width: int
    stem: str
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        stride = min(stem_stride(self.stem), 2)
        x = Conv(self.width, 7 if self.stem == 'large' else 3, stride, dtype=self.dtype, name='conv')(images)
        x = nn.relu(Norm(self.norm, self.dtype, name='norm')(x, batch_norm=batch_norm))
        return max_pool(x, window=3, stride=2, padding=1) if self.stem == 'large' else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left)."""

    width: int
    stride: int
    norm: str
    dtype: Any
    expansion = 1

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, width]`."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(Norm, self.norm, self.dtype)
        x = conv(self.width, 3, self.stride, name='conv1')(inputs)
        x = nn.relu(norm(name='norm1')(x, batch_norm=batch_norm))
        x = conv(self.width, 3, name='conv2')(x)
        x = norm(name='norm2')(x, batch_norm=batch_norm)
        shortcut = inputs
        if x.shape != inputs.shape:
            shortcut = conv(self.width, 1, self.stride, name='shortcut_conv')(inputs)
            shortcut = norm(name='shortcut_norm')(shortcut, batch_norm=batch_norm)
        return nn.relu(x + shortcut)


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5 right).

    Differs from the paper in: the stride sits in the 3x3 convolution, as in PyTorch.
    """

    width: int
    stride: int
    norm: str
    dtype: Any
    expansion = 4

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H / stride, W / stride, 4 width]`."""
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(Norm, self.norm, self.dtype)
        features = self.width * self.expansion
        x = conv(self.width, 1, name='conv1')(inputs)
        x = nn.relu(norm(name='norm1')(x, batch_norm=batch_norm))
        x = conv(self.width, 3, self.stride, name='conv2')(x)
        x = nn.relu(norm(name='norm2')(x, batch_norm=batch_norm))
        x = conv(features, 1, name='conv3')(x)
        x = norm(name='norm3')(x, batch_norm=batch_norm)
        shortcut = inputs
        if x.shape != inputs.shape:
            shortcut = conv(features, 1, self.stride, name='shortcut_conv')(inputs)
            shortcut = norm(name='shortcut_norm')(shortcut, batch_norm=batch_norm)
        return nn.relu(x + shortcut)


BLOCKS = {'basic': BasicBlock, 'bottleneck': BottleneckBlock}


class ResNet(nn.Module):
    """A residual network: stem, stages of blocks, global average, linear layer.

    Attributes:
      num_outputs: size of the logits.
      stage_sizes: blocks per stage; every stage after the first halves the resolution.
      width: channels of the first stage; every later stage doubles them.
      block: 'basic' or 'bottleneck'.
      stem: 'small', 'strided' or 'large', see `Stem`.
      norm: 'batch' or 'group'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...]
    width: int = 64
    block: str = 'basic'
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
        check_size(images, stem_stride(self.stem) * 2 ** (len(self.stage_sizes) - 1))
        if self.block not in BLOCKS:
            did_you_mean(self.block, list(BLOCKS), 'block')
        x = Normalize(self.mean, self.std)(images)
        x = Stem(self.width, self.stem, self.norm, self.dtype, name='stem')(x, batch_norm=batch_norm)
        for stage, num_blocks in enumerate(self.stage_sizes):
            for index in range(num_blocks):
                block = BLOCKS[self.block](
                    width=self.width * 2**stage, stride=2 if stage and not index else 1,
                    norm=self.norm, dtype=self.dtype, name=f'stage{stage}_block{index}',
                )
                x = block(x, batch_norm=batch_norm)
            sow_stage(self, x)
        self.sow('intermediates', 'maps', x)
        x = global_average_pool(x)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))


# Widths of 32 for the two small ones: on CPU, multiples of 32 are twice as fast as 16.
resnet8 = partial(ResNet, stage_sizes=(1, 1, 1), width=32)
resnet10 = partial(ResNet, stage_sizes=(1, 1, 1, 1), width=32)
resnet18 = partial(ResNet, stage_sizes=(2, 2, 2, 2))
resnet34 = partial(ResNet, stage_sizes=(3, 4, 6, 3))
resnet50 = partial(ResNet, stage_sizes=(3, 4, 6, 3), block='bottleneck')
