"""A small residual network that removes noise from images.

Contents: `DnCNN`.

Example:

    module = DnCNN(num_outputs=1)                                    # as many outputs as channels
    params, model_state = init_variables(module, jax.random.key(0), (28, 28, 1))
    clean, _ = apply_model(module)(params, model_state, noisy, batch_norm='eval')    # [B, 28, 28, 1]
"""
from typing import Any

import flax.linen as nn
import jax

from medrobust_jax.models.layers import Conv, Norm, Normalize, check_batch_norm

Array = jax.Array


class DnCNN(nn.Module):
    """Convolutions that estimate the noise, which is subtracted: `x - R(x)`.

        R: 3x3 convolution, ReLU;  depth - 2 times (3x3 convolution, norm, ReLU);  3x3 convolution

    The last convolution starts at zero, so that training starts from the image as it is.

    Attributes:
      num_outputs: the images' channels.
      depth: convolutions, >= 2. The paper's network for unknown noise has 20; 6 and the width of 32 are ours, for
        small images on a CPU.
      width: channels between them; the paper's are 64.
      norm: 'batch', 'group' or 'instance'.
      mean: subtracted from what R reads, one value or one per channel.
      std: divides it, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    Differs from the paper in that start, and in what R reads: the image normalized.

    References:
      Zhang, Zuo, Chen, Meng, Zhang, "Beyond a Gaussian denoiser", IEEE TIP 2017, section III.
    """

    num_outputs: int
    depth: int = 6
    width: int = 32
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, *spatial, C]` to images of the same shape, which may leave [0, 1].

        Raises:
          ValueError: another number of outputs than channels, fewer than two convolutions, or an unknown norm.
        """
        check_batch_norm(batch_norm)
        if self.num_outputs != images.shape[-1] or self.depth < 2:
            raise ValueError(f'a denoiser needs num_outputs equal to the {images.shape[-1]} channels of its '
                             f'images and depth >= 2, not {self.num_outputs} and {self.depth}')
        x = Normalize(self.mean, self.std)(images)
        x = nn.relu(Conv(self.width, 3, use_bias=True, dtype=self.dtype, name='conv0')(x))
        for index in range(1, self.depth - 1):
            x = Conv(self.width, 3, dtype=self.dtype, name=f'conv{index}')(x)
            x = nn.relu(Norm(self.norm, self.dtype, name=f'norm{index}')(x, batch_norm=batch_norm))
        last = Conv(self.num_outputs, 3, use_bias=True, kernel_init=nn.initializers.zeros, dtype=self.dtype,
                    name=f'conv{self.depth - 1}')
        return images - last(x).astype(images.dtype)
