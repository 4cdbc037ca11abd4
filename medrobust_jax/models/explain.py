"""A network cut in two at its last feature maps, which is what Grad-CAM asks of a model.

Contents: `maps_and_head`.

Example:

    maps, head = maps_and_head(module, params, model_state, images)      # [B, h, w, K], and maps -> logits
    gradients = jax.grad(lambda a: head(a)[:, 0].sum())(maps)            # of class 0's logits
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.models.convolution import global_average_pool
from medrobust_jax.models.layers import Dense, logits_dtype


def maps_and_head(module: nn.Module, params: PyTree, model_state: PyTree, images: Array
                  ) -> tuple[Array, Callable[[Array], Array]]:
    """The last feature maps before the global average, and the rest of the network as a function of them.

        logits = head(maps),        head(a) = W mean over pixels of a + b

    Args:
      module: a convolutional classifier that sows 'maps' into the collection 'intermediates' before it averages
        them over all pixels, and whose last layer is a `Dense` called 'head': the families resnet, wide_resnet,
        densenet and mobilenet_v2. The plain forward pass computes nothing more for it.
      params: its parameters.
      model_state: its running statistics.
      images: `[B, H, W, C]` in [0, 1].

    Returns:
      The maps `[B, h, w, K]`, with running statistics, and `maps -> logits [B, num_outputs]`.

    Raises:
      ValueError: the module has no such maps.
    """
    variables = {'params': params, **model_state}
    sown: Any = module.apply(variables, images, batch_norm='eval', mutable=['intermediates'])[1]
    found = sown.get('intermediates', {})
    if 'maps' not in found or 'head' not in params:
        raise ValueError(
            f'Grad-CAM reads feature maps that are averaged over all pixels before the last layer, and '
            f'{type(module).__name__} has none: use integrated gradients, which need the gradient alone'
        )

    def head(maps: Array) -> Array:
        last = Dense(module.num_outputs, module.dtype)  # pyright: ignore[reportAttributeAccessIssue]
        logits: Any = last.apply({'params': params['head']}, global_average_pool(maps))
        return logits.astype(logits_dtype(images))

    return found['maps'][0], head
