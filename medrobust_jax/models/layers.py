"""The layers that the models share.

Contents: `Conv`, `DoubleSize` (a transposed convolution), `Norm`, `InstanceNorm`, `Dense`, `Normalize`;
`check_batch_norm`, `check_size`, `logits_dtype`, `divided`, `sow_stage`.

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
from medrobust_jax.models.convolution import LAYOUTS, conv_general_dilated, global_average_pool

Array = jax.Array

BATCH_NORM_MODES = ('train', 'batch_stats', 'eval')
NORMS = ('batch', 'group', 'instance')
_NUM_GROUPS = 8

_conv_init = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # He et al. 2015, eq. 10
_dense_init = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # PyTorch's nn.Linear


def check_batch_norm(mode: str) -> None:
    """Raises ValueError, with a suggestion, unless `mode` is one of `BATCH_NORM_MODES`."""
    if mode not in BATCH_NORM_MODES:
        did_you_mean(mode, BATCH_NORM_MODES, 'batch_norm mode')


def check_size(images: Array, total_stride: int, num_spatial_dims: int = 2) -> None:
    """Raises ValueError unless images are `[B, *spatial, C]` with sides of at least `total_stride`."""
    if images.ndim != num_spatial_dims + 2:
        axes = {2: 'H, W', 3: 'D, H, W'}.get(num_spatial_dims, f'{num_spatial_dims} spatial axes')
        raise ValueError(f'the model takes images [B, {axes}, C], got shape {images.shape}')
    if min(images.shape[1:-1]) < total_stride:
        raise ValueError(
            f'images of {" x ".join(map(str, images.shape[1:-1]))} pixels are smaller than the model\'s total '
            f'stride of {total_stride}: set a stem with a smaller stride or use fewer stages'
        )


def logits_dtype(images: Array) -> Any:
    """The dtype of logits: the images' own, but never below float32."""
    return jnp.promote_types(images.dtype, jnp.float32)


def divided(width: float, divisor: int = 8) -> int:
    """Rounds a width to a multiple of `divisor`, losing at most 10 % (MobileNet's rule)."""
    rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * width else rounded


def sow_stage(module: nn.Module, x: Array) -> None:
    """Sows the pooled output of a stage, `[B, *spatial, C]` or `[B, C]` to `[B, C]`, as one of 'layers'.

    Detectors read them (`models.forward.evidence`). Where nobody does nothing is computed, so that the
    programs of training and attacks are the same as without.
    """
    if module.is_mutable_collection('intermediates'):
        module.sow('intermediates', 'layers', global_average_pool(x) if x.ndim > 2 else x)


class Conv(nn.Module):
    """A 2-D or 3-D convolution, as its input is, with symmetric padding, as PyTorch pads.

    Attributes:
      features: output channels.
      kernel_size: side of the square or cubic kernel.
      stride: step in all directions.
      dilation: spacing of the kernel's taps.
      groups: 1, or the number of input channels for a depthwise convolution.
      use_bias: whether a bias is added; not needed before a norm.
      kernel_init: draws the kernel.
      dtype: dtype of the computation; None follows inputs and parameters.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = False
    kernel_init: Any = _conv_init
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Convolves `[B, *spatial, C]` into `[B, *spatial_out, features]`; odd kernels and stride 1 keep sizes.

        Raises:
          ValueError: the parameters were made for another number of channels.
        """
        channels, axes = inputs.shape[-1], inputs.ndim - 2
        if self.has_variable('params', 'kernel'):
            known = self.get_variable('params', 'kernel').shape[-2] * self.groups
            if known != channels:
                raise ValueError(
                    f'{"/".join(self.path)}: the parameters were made for {known} input channels, the input '
                    f'{inputs.shape} has {channels}: initialize the model with the shape of its images'
                )
        shape = (self.kernel_size,) * axes + (channels // self.groups, self.features)
        kernel = self.param('kernel', self.kernel_init, shape)
        bias = self.param('bias', nn.initializers.zeros, (self.features,)) if self.use_bias else None
        inputs, kernel, bias = promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        pad = self.dilation * (self.kernel_size - 1) // 2
        outputs = conv_general_dilated(
            inputs, kernel, (self.stride,) * axes, ((pad, pad),) * axes,
            rhs_dilation=(self.dilation,) * axes, dimension_numbers=LAYOUTS[inputs.ndim],
            feature_group_count=self.groups,
        )
        return outputs if bias is None else outputs + bias


class DoubleSize(nn.Module):
    """A transposed convolution with kernel 2 and stride 2 in every direction, without bias.

    Its taps do not overlap, so that it is one matrix product whose results are interleaved; fast inside
    loops on CPU, where stock transposed convolutions are not.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Maps `[B, *spatial, C]` to `[B, *(2 spatial), features]`."""
        batch, *sizes, channels = inputs.shape
        axes = len(sizes)
        init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal', in_axis=-2, batch_axis=range(axes))
        kernel = self.param('kernel', init, (2,) * axes + (channels, self.features))
        inputs, kernel = promote_dtype(inputs, kernel, dtype=self.dtype)
        matrix = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
        products = (inputs @ matrix).reshape(batch, *sizes, *(2,) * axes, self.features)
        order = [place for axis in range(axes) for place in (1 + axis, 1 + axes + axis)]
        interleaved = products.transpose(0, *order, 1 + 2 * axes)
        return interleaved.reshape(batch, *(2 * size for size in sizes), self.features)


class Norm(nn.Module):
    """Batch, group or instance normalization, with PyTorch's constants.

    Attributes:
      kind: 'batch' (Ioffe & Szegedy 2015), 'group' (Wu & He 2018; 8 groups, or as many as divide
        both 8 and the channels) or 'instance' (Ulyanov et al. 2016; every channel by itself, with a
        learned scale and shift). The latter two keep no state and treat every example by itself.
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
        if self.kind == 'instance':
            return InstanceNorm(self.dtype, name='norm')(inputs)
        if self.kind != 'batch':
            did_you_mean(self.kind, NORMS, 'norm')
        # PyTorch writes the same momentum as 0.1, the weight of the new statistics. Its running
        # variance is the unbiased one; ours is not, a factor of 1 - 1 / (B H W).
        norm = nn.BatchNorm(batch_norm == 'eval', momentum=0.9, epsilon=1e-5, dtype=self.dtype, name='norm')
        return norm(inputs)


class InstanceNorm(nn.Module):
    """`(x - mean) / sqrt(variance + 1e-5) * scale + bias`, with statistics per example and channel.

    Differs from `nn.InstanceNorm` in speed alone: the means are matrix products with a vector of ones,
    since XLA:CPU is slow at sums over all but the last axis.
    """

    dtype: Any = None

    @nn.compact
    def __call__(self, inputs: Array) -> Array:
        """Normalizes `[B, *spatial, C]`; of a single pixel nothing but the bias is left."""
        channels = inputs.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,))
        bias = self.param('bias', nn.initializers.zeros, (channels,))
        out_dtype = jnp.result_type(inputs, scale) if self.dtype is None else self.dtype
        x = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32)).reshape(inputs.shape[0], -1, channels)
        share = jnp.full((x.shape[1],), 1 / x.shape[1], x.dtype)
        centered = x - jnp.einsum('bpc,p->bc', x, share, precision='highest')[:, None]
        variance = jnp.einsum('bpc,p->bc', centered * centered, share, precision='highest')
        factor = scale / jnp.sqrt(variance + 1e-5)
        return (centered * factor[:, None] + bias).reshape(inputs.shape).astype(out_dtype)


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
        """Normalizes `[B, *spatial, C]`.

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
