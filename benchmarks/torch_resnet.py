"""A plain PyTorch ResNet, and this project's weights carried over to it.

Written as a PyTorch user would: `nn.Conv2d`, `nn.BatchNorm2d`, activations in place. Submodules have
the names of `medrobust_jax.models.resnet`, so that carrying weights over is a walk along both.

Contents: `ResNet`, `carry_over`, `to_torch`, `to_numpy`.

Example:

    model = carry_over(ResNet(num_outputs=4, num_channels=3, stem='large'), params, model_state)
    logits = model(to_torch(images))        # images [B, H, W, C] in [0, 1]
"""
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional


class Stem(nn.Module):
    """The first layers, see `medrobust_jax.models.resnet.Stem`."""

    def __init__(self, num_channels: int, width: int, stem: str) -> None:
        super().__init__()
        self.pooled = stem == 'large'
        size = 7 if self.pooled else 3
        stride = 1 if stem == 'small' else 2
        self.conv = nn.Conv2d(num_channels, width, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.conv(images)), inplace=True)
        return functional.max_pool2d(x, 3, 2, 1) if self.pooled else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, num_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_channels, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.changes_shape = stride != 1 or num_channels != width
        if self.changes_shape:
            self.shortcut_conv = nn.Conv2d(num_channels, width, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(width)

    def forward(self, inputs: Tensor) -> Tensor:
        x = functional.relu(self.norm1(self.conv1(inputs)), inplace=True)
        x = self.norm2(self.conv2(x))
        x += self.shortcut_norm(self.shortcut_conv(inputs)) if self.changes_shape else inputs
        return functional.relu(x, inplace=True)


class ResNet(nn.Module):
    """A residual network of basic blocks; ResNet-18 by default.

    Args:
      num_outputs: size of the logits.
      num_channels: of the images.
      stage_sizes: blocks per stage.
      width: channels of the first stage.
      stem: 'small', 'strided' or 'large'.
    """

    def __init__(self, *, num_outputs: int, num_channels: int, stage_sizes: Sequence[int] = (2, 2, 2, 2),
                 width: int = 64, stem: str = 'small') -> None:
        super().__init__()
        self.stem = Stem(num_channels, width, stem)
        self.blocks = []
        channels = width
        for stage, num_blocks in enumerate(stage_sizes):
            for index in range(num_blocks):
                block = BasicBlock(channels, width * 2**stage, 2 if stage and not index else 1)
                channels = width * 2**stage
                self.add_module(f'stage{stage}_block{index}', block)
                self.blocks.append(f'stage{stage}_block{index}')
        self.head = nn.Linear(channels, num_outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `[B, C, H, W]` in [0, 1] to logits `[B, num_outputs]`."""
        x = self.stem((images - 0.5) / 0.5)
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.head(x.mean((2, 3)))


def carry_over(model: nn.Module, params: Mapping[str, Any], model_state: Mapping[str, Any]) -> nn.Module:
    """Copies Flax variables into a PyTorch model whose submodules have the same names.

    Args:
      model: overwritten.
      params: of the model's twin, from `init_variables`.
      model_state: likewise, with 'batch_stats'.

    Returns:
      The model in evaluation mode, its weights needing no gradient.
    """
    def at(tree: Mapping[str, Any], path: str) -> Any:
        return reduce(lambda node, name: node[name], path.split('.'), tree)

    def put(tensor: Tensor, array: Any) -> None:
        tensor.copy_(torch.from_numpy(np.array(array)))

    with torch.no_grad():
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d):
                put(layer.weight, np.transpose(at(params, path)['kernel'], (3, 2, 0, 1)))
            elif isinstance(layer, nn.BatchNorm2d):
                learned, running = at(params, path)['norm'], at(model_state['batch_stats'], path)['norm']
                put(layer.weight, learned['scale'])
                put(layer.bias, learned['bias'])
                put(layer.running_mean, running['mean'])
                put(layer.running_var, running['var'])
            elif isinstance(layer, nn.Linear):
                put(layer.weight, np.transpose(at(params, path)['dense']['kernel']))
                put(layer.bias, at(params, path)['dense']['bias'])
    return model.eval().requires_grad_(False)


def to_torch(images: Any) -> Tensor:
    """`[B, H, W, C]` to a contiguous `[B, C, H, W]`."""
    return torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())


def to_numpy(images: Tensor) -> np.ndarray:
    """`[B, C, H, W]` to `[B, H, W, C]`."""
    return images.detach().numpy().transpose(0, 2, 3, 1)
