"""The layers that the models share.

Contents: `Conv`, `Norm`, `Dense`, `Normalize`; `check_batch_norm`, `check_size`, `logits_dtype`,
`divided`.

Weights, strides and symmetric padding are PyTorch's, so that PyTorch weights can be carried over
by transposing them (convolutions OIHW to HWIO, matrices to their transpose).

Example, inside a module's `__call__(images, *, batch_norm)`:

    x = Normalize(self.mean, self.std)(images)
    x = Conv(64, 3, stride=2, name='conv1')(x)
    x = nn.relu(Norm('batch', name='bn1')(x, batch_norm=batch_norm))
"""
from math import gcd
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.models.convolution import conv_general_dilated

Array = jax.Array

BATCH_NORM_MODES = ('train', 'batch_stats', 'eval')
NORMS = ('batch', 'group')
_NUM_GROUPS = 8

_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015, eq. 10
_dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # PyTorch's nn.Linear


def check_batch_norm(mode: str) -> None:
    """Raises ValueError, with a suggestion, unless `mode` is one of `BATCH_NORM_MODES`."""
    if mode not in BATCH_NORM_MODES:
        did_you_mean(mode, BATCH_NORM_MODES, 'batch_norm mode')


def check_size(images: Array, total_stride: int) -> None:
    """Raises ValueError unless images are `[B, H, W, C]` with sides of at least `total_stride`."""
    if images.ndim != 4:
        raise ValueError(f'the model takes images [B, H, W, C], got shape {images.shape}')
    if min(images.shape[1:3]) < total_stride:
        raise ValueError(
            f'images of {images.shape[1]} x {images.shape[2]} pixels are smaller than the model\'s total '
            f'stride of {total_stride}: set a stem with a smaller stride or use fewer stages'
        )


def logits_dtype(images: Array) -> Any:
    """The dtype of logits: the images' own, but never below float32."""
    return jnp.promote_types(images.dtype, jnp.float32)


def divided(width: float, divisor: int = 8) -> int:
    """Rounds a width to a multiple of `divisor`, losing at most 10 % (MobileNet's rule)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


class Conv(nn.Module):
    """A 2-D convolution with symmetric padding, as PyTorch pads.

    Attributes:
      features: output channels.
      kernel_size: side of the square kernel.
      stride: step in both directions.
      dilation: spacing of the kernel's taps.
      groups: 1, or the number of input channels for a depthwise convolution.
      use_bias: whether a bias is added; not needed before a norm.
      dtype: dtype of the computation; None follows inputs and parameters.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolves `[B, H, W, C]` into `[B, H_out, W_out, features]`; odd kernels and stride 1 keep H, W.

        Raises:
          ValueError: the parameters were made for another number of channels.
        """
        channels = inputs.shape[-1]
        if self.has_variable('params', 'kernel'):
            known = self.get_variable('params', 'kernel').shape[2] * self.groups
            if known != channels:
                raise ValueError(
                    f'{"/".join(self.path)}: the parameters were made for {known} input channels, the input '
                    f'{inputs.shape} has {channels}: initialize the model with the shape of its images'
                )
        shape = (self.kernel_size, self.kernel_size, channels // self.groups, self.features)
        kernel = self.param('kernel', _conv_init, shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else None
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        pad = self.dilation * (self.kernel_size - 1) // 2
        outputs = conv_general_dilated(
            inputs, kernel, (self.stride,) * 2, ((pad, pad),) * 2,
            rhs_dilation=(self.dilation,) * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            feature_group_count=self.groups,
        )
        return outputs if bias is None else outputs + bias


class Norm(nn.Module):
    """Batch or group normalization, with PyTorch's constants.

    Attributes:
      kind: 'batch' (Ioffe & Szegedy 2015) or 'group' (Wu & He 2018; 8 groups, or as many as divide
        both 8 and the channels). Group norm keeps no state and treats every example by itself.
      dtype: dtype of the result; statistics are never below float32.
    """

    kind: str = 'batch'
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Normalizes `[B, ..., C]`.

        Args:
          inputs: `[B, ..., C]`.
          batch_norm: 'train' (batch statistics, running ones updated), 'batch_stats' (batch
            statistics; the caller discards the update) or 'eval' (running statistics).

        Returns:
          An array like `inputs`.

        Raises:
          ValueError: unknown mode or kind.
        """
        check_batch_norm(batch_norm)
        if self.kind == 'group':
            groups = gcd(_NUM_GROUPS, inputs.shape[-1])
            return nn.GroupNorm(groups, epsilon=1e-5, dtype=self.dtype, name='norm')(inputs)
        if self.kind != 'batch':
            did_you_mean(self.kind, NORMS, 'norm')
        # PyTorch writes the same momentum as 0.1, the weight of the new statistics. Its running
        # variance is the unbiased one; ours is not, a factor of 1 - 1 / (B H W).
        norm = nn.BatchNorm(batch_norm == 'eval', momentum=0.9, epsilon=1e-5, dtype=self.dtype, name='norm')
        return norm(inputs)


class Dense(nn.Module):
    """A matrix product plus bias on the last axis, initialized as PyTorch's `nn.Linear`."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[..., C]` to `[..., features]`."""
        return nn.Dense(self.features, kernel_init=_dense_init, dtype=self.dtype, name='dense')(inputs)


class Normalize(nn.Module):
    """Subtracts a mean and divides by a standard deviation per channel, inside the model.

    Attacks and defenses so see images in [0, 1] only, and eps keeps its unit.

    Attributes:
      mean: one number, or one per channel, in units of [0, 1] images.
      std: likewise.
    """

    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)

    @nn.compact
    def __call__(self, images: Array) -> Array:
        """Normalizes `[B, H, W, C]`.

        Raises:
          ValueError: `mean` or `std` has neither one value nor one per channel.
        """
        for name, values in (('mean', self.mean), ('std', self.std)):
            if len(values) not in (1, images.shape[-1]):
                raise ValueError(
                    f'{name} has {len(values)} values, the images {images.shape} have {images.shape[-1]} '
                    f'channels: set the model option {name} to one value or one per channel'
                )
        mean, std = (jnp.asarray(values, images.dtype) for values in (self.mean, self.std))
        return (images - mean) / std
