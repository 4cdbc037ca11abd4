"""Networks for landmarks: a U-Net with a VGG encoder and, per landmark, heat and an offset.

Contents: `LandmarkNet`; `landmark_net`, which a CPU trains in minutes at 64 to 128 pixels, and
`landmark_vgg19`, of the size of the published one.

Example:

    module = landmark_net(num_outputs=3 * 68)
    params, model_state = init_variables(module, jax.random.key(0), (128, 64, 1))
    maps, _ = apply_model(module)(params, model_state, images, batch_norm='eval')    # [B, 128, 64, 204]
"""
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.models.convolution import global_average_pool, max_pool
from medrobust_jax.models.decoder import ConvBlock, Decoder
from medrobust_jax.models.layers import Conv, Normalize, check_size, logits_dtype

Array = jax.Array

_HEAT_PRIOR = -4.  # the logit of 2 % of the pixels


class LandmarkNet(nn.Module):
    """A U-Net whose maps `core.heatmaps.split_maps` reads.

    Attributes:
      num_outputs: 3 P for P landmarks: their heat logits, offsets in x, offsets in y.
      stage_sizes: convolutions per stage of the encoder; a max-pool halves the image between stages.
      width: channels of the first stage; each stage doubles them, up to 8 times the first.
      norm: 'batch' or 'group'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      The published network is a U-Net with VGG19's convolutions as encoder (Simonyan and Zisserman,
      ICLR 2015) and heatmaps and offset maps as heads: Ma et al., arXiv 2206.01736. Differs from it
      in: one 1x1 convolution gives all maps, the encoder has norms and starts from random weights.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...]
    width: int = 64
    norm: str = 'batch'
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.5,)
    dtype: Any = None

    @nn.compact
    def __call__(self, images: Array, *, batch_norm: str) -> Array:
        """Maps images `[B, H, W, C]` in [0, 1] to maps `[B, H, W, num_outputs]`.

        Raises:
          ValueError: outputs that are not three per landmark, images too small, or an unknown norm.
        """
        if self.num_outputs % 3:
            raise ValueError(f'num_outputs = {self.num_outputs} must be 3 per landmark: heat, x and y')
        check_size(images, 2 ** (len(self.stage_sizes) - 1))
        x = Normalize(self.mean, self.std)(images)
        levels = []
        for stage, depth in enumerate(self.stage_sizes):
            x = max_pool(x, window=2, stride=2) if stage else x
            width = self.width * min(2**stage, 8)
            x = ConvBlock(width, depth, self.norm, self.dtype, name=f'stage{stage}')(x, batch_norm=batch_norm)
            levels.append(x)
        self.sow('intermediates', 'features', global_average_pool(x))
        x = Decoder(1, self.norm, self.dtype, name='decoder')(levels, batch_norm=batch_norm)
        maps = Conv(self.num_outputs, 1, use_bias=True, dtype=self.dtype, name='head')(x)
        # Heat begins as rare as it is, or the first steps would only learn that [ours].
        prior = jnp.where(jnp.arange(self.num_outputs) < self.num_outputs // 3, _HEAT_PRIOR, 0)
        return (maps + prior.astype(maps.dtype)).astype(logits_dtype(images))


landmark_net = partial(LandmarkNet, stage_sizes=(1, 1, 1, 1, 1), width=32)
landmark_vgg19 = partial(LandmarkNet, stage_sizes=(2, 2, 4, 4, 4), width=64)
