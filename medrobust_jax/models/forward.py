"""Models as pure functions of their parameters, the only form the rest of the project sees.

Contents: `apply_model`, `init_variables`, `eval_forward`; and what a model computes on its way:
`features`, `evidence`.

Example:

    module = create_model('resnet18', num_outputs=9)
    params, model_state = init_variables(module, jax.random.key(0), (28, 28, 3))
    logits, model_state = apply_model(module)(params, model_state, images, batch_norm='train')
    victim_forward = eval_forward(module, params, model_state)  # (images, keys) -> logits
"""
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medrobust_jax.core.types import Array, Forward, Outputs, PyTree
from medrobust_jax.models.layers import check_batch_norm


def apply_model(module: nn.Module) -> Forward:
    """The module as a function that states how batch normalization behaves at every call.

    Args:
      module: called as `module(images, batch_norm=...)`.

    Returns:
      `(params, model_state, images [B, H, W, C], *, batch_norm) -> (outputs, model_state)` with
      `batch_norm` one of 'train' (batch statistics; the state that comes back is updated),
      'batch_stats' (batch statistics; the state comes back as it was) or 'eval' (running
      statistics). An unknown mode raises ValueError.
    """

    def forward(
        params: PyTree, model_state: PyTree, images: Array, *, batch_norm: str
    ) -> tuple[Outputs, PyTree]:
        check_batch_norm(batch_norm)
        variables = {'params': params, **model_state}
        if batch_norm == 'eval':
            return module.apply(variables, images, batch_norm=batch_norm), model_state
        # Flax writes the new statistics in both modes: it must be allowed to, even to drop them.
        outputs, updated = module.apply(
            variables, images, batch_norm=batch_norm, mutable=list(model_state)
        )
        if batch_norm == 'batch_stats' or not model_state:
            return outputs, model_state
        return outputs, jax.tree.map(lambda new, old: new.astype(old.dtype), updated, model_state)

    return forward


def init_variables(
    module: nn.Module, key: Array, image_shape: tuple[int, ...]
) -> tuple[PyTree, PyTree]:
    """Draws a module's parameters.

    Args:
      module: called as `module(images, batch_norm=...)`.
      key: a typed key.
      image_shape: `(H, W, C)`; the number of channels is fixed from here on.

    Returns:
      `(params, model_state)`, float32. `model_state` holds running statistics and is empty for
      models without batch normalization.
    """
    images = jnp.zeros((1, *image_shape), jnp.float32)
    init = jax.jit(lambda key: module.init(key, images, batch_norm='eval'))
    variables = dict(init(key))
    params = variables.pop('params')
    variables.pop('intermediates', None)
    return params, variables


def eval_forward(
    module: nn.Module, params: PyTree, model_state: PyTree
) -> Callable[[Array, Array], Outputs]:
    """The trained model as attacks see it: `(images [B, H, W, C], keys [B]) -> outputs`.

    Batch normalization uses its running statistics; the keys are ignored.
    """

    def forward(images: Array, keys: Array) -> Outputs:
        del keys
        return apply_model(module)(params, model_state, images, batch_norm='eval')[0]

    return forward


def features(module: nn.Module, params: PyTree, model_state: PyTree, images: Array) -> Array:
    """What the last layer reads: pooled features `[B, D]`, with running statistics.

    Args:
      module: a module that sows 'features' into the collection 'intermediates'.
      params: its parameters.
      model_state: its running statistics.
      images: `[B, H, W, C]` in [0, 1].

    Returns:
      `[B, D]`.
    """
    variables = {'params': params, **model_state}
    sown: Any = module.apply(variables, images, batch_norm='eval', mutable=['intermediates'])[1]
    return sown['intermediates']['features'][0]


def evidence(module: nn.Module, params: PyTree, model_state: PyTree, images: Array) -> dict[str, Any]:
    """What a detector of adversarial images reads, computed in one pass, with running statistics.

    Args:
      module: a module that sows 'features' and, stage by stage, 'layers' into 'intermediates'.
      params: its parameters.
      model_state: its running statistics.
      images: `[B, *spatial, C]` in [0, 1].

    Returns:
      'logits' `[B, C]`; 'features' `[B, D]`, what the last layer reads; 'layers', a tuple of `[B, D_l]`, the
      pooled outputs of every stage, the first one first; and the 'images' themselves.

    Raises:
      ValueError: the module sows no 'features' or no 'layers': only classifiers do.
    """
    variables = {'params': params, **model_state}
    logits, sown = module.apply(variables, images, batch_norm='eval', mutable=['intermediates'])
    sown: Any = sown.get('intermediates', {})
    missing = [name for name in ('features', 'layers') if name not in sown]
    if missing:
        raise ValueError(f'{type(module).__name__} sows no {" and no ".join(missing)} (a linear model has no '
                         f'stages): detectors need a classification model with at least one')
    return {'logits': logits, 'features': sown['features'][0], 'layers': tuple(sown['layers']), 'images': images}
