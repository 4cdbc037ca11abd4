"""Every model by the name that configs use.

Contents: `MODELS`, `create_model`, `options_of`.

Example:

    module = create_model('resnet18', 9, stem='strided', norm='group')
    create_model('densnet121', 9)  # ValueError: unknown model 'densnet121'; did you mean 'densenet121'?
"""
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn

from medrobust_jax.core.checks import check_options, did_you_mean
from medrobust_jax.models import (
    densenet,
    detector,
    dncnn,
    landmark_net,
    mobilenet,
    perceptron,
    resnet,
    segnet,
    shape_net,
    unet,
    vision_transformer,
    wide_resnet,
)

# name -> constructor(num_outputs, **options) -> module(images, batch_norm=...) -> outputs
MODELS: dict[str, Callable[..., nn.Module]] = {
    'resnet': resnet.ResNet,
    'resnet8': resnet.resnet8,
    'resnet10': resnet.resnet10,
    'resnet18': resnet.resnet18,
    'resnet34': resnet.resnet34,
    'resnet50': resnet.resnet50,
    'wide_resnet': wide_resnet.WideResNet,
    'wide_resnet_28_10': wide_resnet.wide_resnet_28_10,
    'wide_resnet_34_10': wide_resnet.wide_resnet_34_10,
    'densenet': densenet.DenseNet,
    'densenet121': densenet.densenet121,
    'mobilenet_v2': mobilenet.MobileNetV2,
    'vision_transformer': vision_transformer.VisionTransformer,
    'perceptron': perceptron.Perceptron,
    'unet': unet.UNet,
    'segnet': segnet.SegNet,
    'landmark_net': landmark_net.landmark_net,
    'landmark_vgg19': landmark_net.landmark_vgg19,
    'detector': detector.Detector,
    'dncnn': dncnn.DnCNN,
    'shape_net': shape_net.shape_net,
    'shape_net_small': shape_net.shape_net_small,
}


def options_of(name: str) -> list[str]:
    """The options that a model takes besides `num_outputs`.

    Raises:
      ValueError: unknown model, with the nearest name.
    """
    if name not in MODELS:
        did_you_mean(name, MODELS, 'model')
    constructor = MODELS[name]
    cls: Any = constructor.func if isinstance(constructor, partial) else constructor
    inherited = {'parent', 'name', 'num_outputs'}
    return [field.name for field in dataclasses.fields(cls) if field.name not in inherited]


def create_model(name: str, num_outputs: int, **options: Any) -> nn.Module:
    """Builds a model.

    Args:
      name: a key of `MODELS`.
      num_outputs: size of the logits.
      **options: the model's attributes, see its class; lists are taken for tuples.

    Returns:
      A module `(images [B, H, W, C] in [0, 1], *, batch_norm) -> logits [B, num_outputs]`.

    Raises:
      ValueError: unknown model or option, with the nearest name; or an option without default
        that is missing.
    """
    check_options(options, options_of(name), f'option of model {name}')
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        return MODELS[name](num_outputs, **given)
    except TypeError as error:
        raise ValueError(f'model {name} with options {sorted(options)}: {error}') from error
