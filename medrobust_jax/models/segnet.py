"""SegNet: a decoder that puts values back where max-pooling took them from.

Contents: `SegNet`, `pool_with_places`, `unpool`.

Example:

    module = SegNet(num_outputs=2, width=16, stage_sizes=(1, 1, 1))
    params, model_state = init_variables(module, jax.random.key(0), (64, 64, 3))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')     # [B, 64, 64, 2]
"""
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Conv, Norm, Normalize, check_size, logits_dtype

Array = jax.Array


def pool_with_places(inputs: Array) -> tuple[Array, Array]:
    """The maximum of every 2x2 window, and where it was.

    Args:
      inputs: `[B, H, W, C]`, H and W even.

    Returns:
      `(pooled [B, H/2, W/2, C], places [B, H/2, W/2, 4, C] bool)`; the first of equal maxima is taken.
    """
    batch, height, width, channels = inputs.shape
    windows = inputs.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    windows = windows.reshape(batch, height // 2, width // 2, 4, channels)
    places = jnp.arange(4)[:, None] == jnp.argmax(windows, axis=3)[..., None, :]
    return jnp.where(places, windows, 0).sum(axis=3), places


def unpool(inputs: Array, places: Array) -> Array:
    """Values `[B, h, w, C]` at their places, zeros elsewhere; `[B, 2h, 2w, C]`."""
    batch, height, width, channels = inputs.shape
    windows = jnp.where(places, inputs[:, :, :, None], 0).reshape(batch, height, width, 2, 2, channels)
    return windows.swapaxes(2, 3).reshape(batch, 2 * height, 2 * width, channels)


class SegNet(nn.Module):
    """VGG-16's convolutions with batch norm, mirrored in a decoder by unpooling.

    Attributes:
      num_outputs: classes, background included.
      stage_sizes: convolutions per size; height and width are divisible by 2^(their number).
      width: channels of the first stage; every later stage doubles them, up to 8 times.
      norm: 'batch' (the paper's), 'group' or 'instance'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation; None follows the images.

    References:
      Badrinarayanan, Kendall, Cipolla, SegNet, IEEE TPAMI 39(12), 2017.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, H, W, C]` in [0, 1] to logits `[B, H, W, num_outputs]`.

        Raises:
          ValueError: height or width not divisible by 2^(number of stages).
        """
        stride = 2 ** len(self.stage_sizes)
        check_size(images, stride)
        if images.shape[1] % stride or images.shape[2] % stride:
            raise ValueError(f'images of {images.shape[1]} x {images.shape[2]} pixels are not divisible by the '
                             f'total stride {stride} of SegNet: resize them, or give fewer stage_sizes')
        widths = [self.width * min(2**stage, 8) for stage in range(len(self.stage_sizes))]

        def convolve(x: Array, width: int, name: str) -> Array:
            x = Conv(width, 3, dtype=self.dtype, name=f'{name}_conv')(x)
            return nn.relu(Norm(self.norm, self.dtype, name=f'{name}_norm')(x, batch_norm=batch_norm))

        x, places = Normalize(self.mean, self.std)(images), []
        for stage, count in enumerate(self.stage_sizes):
            for number in range(count):
                x = convolve(x, widths[stage], f'encoder{stage}_{number}')
            x, place = pool_with_places(x)
            places.append(place)
        self.sow('intermediates', 'features', global_average_pool(x))
        for stage, count in reversed(list(enumerate(self.stage_sizes))):
            x = unpool(x, places[stage])
            for number in reversed(range(count)):
                last = number == 0
                # The last convolution of a stage already has the width of the next.
                x = convolve(x, widths[max(stage - 1, 0)] if last else widths[stage], f'decoder{stage}_{number}')
        return Conv(self.num_outputs, 1, use_bias=True, dtype=self.dtype,
                    name='head')(x).astype(logits_dtype(images))
