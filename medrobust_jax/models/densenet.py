"""Densely connected networks; DenseNet-121 is the customary network for chest radiographs.

Contents: `DenseNet`; `densenet121`.

Example:

    module = densenet121(num_outputs=14, stem='large')
    params, model_state = init_variables(module, jax.random.key(0), (224, 224, 1))
    logits, _ = apply_model(module)(params, model_state, images, batch_norm='eval')
"""
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.models.convolution import average_pool, global_average_pool
from medrobust_jax.models.layers import Conv, Dense, Norm, Normalize, check_size, logits_dtype, sow_stage
from medrobust_jax.models.resnet import Stem, stem_stride

Array = jax.Array


class DenseLayer(nn.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3; appends `growth` channels to its input."""

    growth: int
    norm: str
    dtype: Any

    @nn.compact
    def __call__(self, inputs: Array, *, batch_norm: str) -> Array:
        """Maps `[B, H, W, C]` to `[B, H, W, C + growth]`."""
        norm = partial(Norm, self.norm, self.dtype)
        x = nn.relu(norm(name='norm1')(inputs, batch_norm=batch_norm))
        x = Conv(4 * self.growth, 1, dtype=self.dtype, name='conv1')(x)
        x = nn.relu(norm(name='norm2')(x, batch_norm=batch_norm))
        x = Conv(self.growth, 3, dtype=self.dtype, name='conv2')(x)
        return jnp.concatenate([inputs.astype(x.dtype), x], axis=-1)


class DenseNet(nn.Module):
    """A DenseNet-BC with compression 0.5: dense blocks between halving transitions.

    Attributes:
      num_outputs: size of the logits.
      stage_sizes: layers per dense block.
      growth: channels that every layer adds.
      width: channels of the stem.
      stem: 'small' (3x3, stride 1), 'strided' (3x3, stride 2) or 'large' (7x7, stride 2, max-pool).
      norm: 'batch' or 'group'.
      mean: subtracted from the images, one value or one per channel.
      std: divides the images, likewise.
      dtype: dtype of the computation, e.g. 'bfloat16'; None follows the images.

    References:
      Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017,
      table 1.
    """

    num_outputs: int
    stage_sizes: tuple[int, ...] = (6, 12, 24, 16)
    growth: int = 32
    width: int = 64
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
        x = Normalize(self.mean, self.std)(images)
        x = Stem(self.width, self.stem, self.norm, self.dtype, name='stem')(x, batch_norm=batch_norm)
        for stage, num_layers in enumerate(self.stage_sizes):
            if stage:
                name = f'transition{stage}'
                x = nn.relu(Norm(self.norm, self.dtype, name=f'{name}_norm')(x, batch_norm=batch_norm))
                x = Conv(x.shape[-1] // 2, 1, dtype=self.dtype, name=f'{name}_conv')(x)
                x = average_pool(x, window=2)
            for index in range(num_layers):
                layer = DenseLayer(self.growth, self.norm, self.dtype, name=f'stage{stage}_layer{index}')
                x = layer(x, batch_norm=batch_norm)
            sow_stage(self, x)
        x = nn.relu(Norm(self.norm, self.dtype, name='norm')(x, batch_norm=batch_norm))
        self.sow('intermediates', 'maps', x)
        x = global_average_pool(x)
        self.sow('intermediates', 'features', x)
        return Dense(self.num_outputs, self.dtype, name='head')(x).astype(logits_dtype(images))


densenet121 = partial(DenseNet, stage_sizes=(6, 12, 24, 16))
