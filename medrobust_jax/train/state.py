"""Everything that training carries from one step to the next.

No random keys: a step derives its keys from the run's seed and `step`, so a restored state goes on
exactly as if it had never stopped.

Contents: `TrainState`, `create_state`.

Example:

    params, model_state = init_variables(module, key, source.info.image_shape)
    state = create_state(forward, params, model_state, defense, optimizer, num_train=len(source),
                         image_shape=source.info.image_shape, seed=0, mesh=mesh, ema_decay=0.999)
    logits = eval_forward(module, *state.evaluation_variables())(images, keys)
"""
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from medrobust_jax.core.types import Array, Defense, Forward, PyTree
from medrobust_jax.parallel.mesh import replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of a run after `step` steps; all of it is saved.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: the model's parameters.
      model_state: what the model carries besides (BatchNorm statistics); `{}` for none.
      opt_state: the optimizer's.
      ema: moving averages `(params, model_state)` of the two, or None where none are kept.
      defense_state: the defense's own tables, see `Defense.init`.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    ema: tuple[PyTree, PyTree] | None
    defense_state: PyTree

    def replace(self, **changes: Any) -> 'TrainState':
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)

    def evaluation_variables(self) -> tuple[PyTree, PyTree]:
        """`(params, model_state)` to evaluate: the moving averages where they are kept."""
        return (self.params, self.model_state) if self.ema is None else self.ema


def example_outputs(forward: Forward, params: PyTree, model_state: PyTree,
                    image_shape: tuple[int, ...]) -> PyTree:
    """Zeros in the shape and dtype of the model's outputs for one image, leading axis 1."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    outputs, _ = jax.eval_shape(
        lambda *args: forward(*args, batch_norm='eval'), params, model_state, image)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), outputs)


def create_state(forward: Forward, params: PyTree, model_state: PyTree, defense: Defense,
                 optimizer: optax.GradientTransformation, *, num_train: int,
                 image_shape: tuple[int, ...], seed: int, mesh: Mesh,
                 ema_decay: float | None = None) -> TrainState:
    """The state at step 0, on every device of the mesh.

    Args:
      forward: the model as training sees it; only the shape of its outputs is asked for.
      params: initial parameters; copied, because a training step consumes the state's buffers.
      model_state: initial model state; copied.
      defense: its `init` sees `num_train`, zeros shaped as the outputs for one image, and a key.
      optimizer: from `create_optimizer`.
      num_train: the number of training examples.
      image_shape: `[*spatial, C]`.
      seed: the run's seed.
      mesh: from `data_mesh`.
      ema_decay: not None where moving averages are to be kept; they start at the initial values.

    Returns:
      A `TrainState` replicated over the mesh. All processes must pass equal values.
    """
    outputs = example_outputs(forward, params, model_state, image_shape)
    # Row num_train belongs to padding, so no example's key is used twice.
    key = jax.random.fold_in(jax.random.key(seed), num_train)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        model_state=model_state,
        opt_state=optimizer.init(params),
        ema=None if ema_decay is None else (params, model_state),
        defense_state=defense.start(defense.init(num_train, outputs, key), params, model_state, image_shape),
    )
    # Through fresh host copies: buffers shared between fields could not be donated.
    return jax.device_put(jax.tree.map(lambda leaf: np.array(leaf), state), replicated(mesh))
