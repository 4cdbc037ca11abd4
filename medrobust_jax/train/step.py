"""One training step, whole, on one page.

Contents: `make_train_step`, `make_end_epoch`, and their parts `fill_padding`, `augmented`, `step_keys`.

Example:

    train_step = make_train_step(forward, defense, optimizer, augment=augment, seed=0,
                                 ema_decay=0.999, mesh=mesh)
    state, metrics = train_step(state, put_batch(mesh, batch))      # consumes `state`
    loss_sum, count = metrics['loss']
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from medrobust_jax.core import rng
from medrobust_jax.core.averages import moving_average
from medrobust_jax.core.masking import masked_mean, masked_sum
from medrobust_jax.core.types import Array, Batch, Defense, Forward, PyTree
from medrobust_jax.parallel.mesh import batch_sharding, replicated
from medrobust_jax.train.state import TrainState

Augment = Callable[[Array, Batch], Batch]
Metrics = dict[str, tuple[Array, Array]]  # name -> (sum, count)
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
_UNLABELED = 0x0B5E  # keeps the augmentation of unlabeled images apart from that of their neighbors in the batch


def make_train_step(forward: Forward, defense: Defense, optimizer: optax.GradientTransformation, *,
                    augment: Augment | None, seed: int, ema_decay: float | None,
                    mesh: Mesh, replays: int = 1) -> TrainStep:
    """The compiled function of one update.

        x'    = craft(augment(x))                    no gradient with respect to the weights
        loss  = mean over real rows of defense.loss(x, x')
        theta <- optimizer(theta, d loss / d theta)
        ema   <- d_t ema + (1 - d_t) theta           see `moving_average`

    It is one program over the global batch: BatchNorm statistics and the mean are taken over all
    devices' rows. Rows of padding (mask False) influence nothing: whatever they hold is overwritten
    with copies of the batch's real rows, drawn and augmented anew, and the copies are left out of
    the loss, the metrics and the gradient. They do take part in BatchNorm's batch statistics, where
    they stand for the rows they repeat (the last batch of an epoch then has statistics of real
    images only, some of them counted twice, rather than of blank ones).

    Args:
      forward: `(params, model_state, images, batch_norm=...) -> (outputs, model_state)`.
      defense: crafts and scores.
      optimizer: from `create_optimizer`.
      augment: `(keys [B], batch) -> batch`, or None.
      seed: the run's seed; every draw comes from it, the step, and the example's row.
      ema_decay: decay of the moving averages in [0, 1); None where the state keeps none.
      mesh: the batch's rows are split over it; the state is replicated.
      replays: so many steps in turn are given the same batch (`data.loader`) and augment it alike.

    Returns:
      `(state, batch) -> (state, metrics)`; `state` is consumed (its buffers are reused).
      `metrics` maps 'loss', 'gradient_norm' (before clipping) and the defense's own names to
      (sum, count).
    """
    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        augment_keys, craft_keys, loss_keys = rng.split_each(
            step_keys(seed, batch['index'], state.step), 3)
        if replays > 1:
            augment_keys = rng.split_each(step_keys(seed, batch['index'], state.step // replays), 3)[0]
        batch = fill_padding(batch)
        if augment is not None:
            batch = augmented(augment, augment_keys, batch)
        crafted = jax.lax.stop_gradient(defense.craft(
            forward, state.params, state.model_state, state.defense_state, batch, state.step, craft_keys))

        def objective(params: PyTree) -> tuple[Array, tuple[Array, PyTree, dict[str, Array]]]:
            losses, (model_state, metrics) = defense.loss(
                forward, params, state.model_state, state.defense_state, batch, crafted,
                state.step, loss_keys)
            return masked_mean(losses, batch['mask']), (losses, model_state, metrics)

        gradient, (losses, model_state, metrics) = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None and ema_decay is not None:
            ema = moving_average(ema, (params, model_state), step=state.step, decay=ema_decay)
        sums = {name: masked_sum(1.0 * values, batch['mask'])
                for name, values in {**metrics, 'loss': losses}.items()}
        sums['gradient_norm'] = (optax.tree.norm(gradient), jnp.ones(()))
        return TrainState(
            step=state.step + 1, params=params, model_state=model_state, opt_state=opt_state, ema=ema,
            defense_state=defense.follow(defense.update(state.defense_state, batch, crafted, metrics), params,
                                         model_state, state.step)), sums

    whole, rows = replicated(mesh), batch_sharding(mesh)
    return jax.jit(train_step, in_shardings=(whole, rows), out_shardings=whole, donate_argnums=0)


def make_end_epoch(defense: Defense, *, mesh: Mesh) -> Callable[[TrainState, int], TrainState]:
    """The compiled `(state, epoch) -> state` that ends an epoch; `epoch` counts finished ones, from 1."""
    def end_epoch(state: TrainState, epoch: Array) -> TrainState:
        return state.replace(defense_state=defense.end_epoch(state.defense_state, epoch))

    return jax.jit(end_epoch, out_shardings=replicated(mesh), donate_argnums=0)


def step_keys(seed: int, index: Array, step: Array) -> Array:
    """Keys `[B]` from the seed, the step and the example's row `index` `[B]`.

    A row that occurs more than once (class-balanced sampling draws with replacement) gets another
    key each time, so its copies are augmented and attacked differently.
    """
    earlier = jnp.tril(index[:, None] == index[None, :], k=-1)
    return rng.fold(rng.example_keys(seed, index, step), earlier.sum(axis=1))


def fill_padding(batch: Batch) -> dict[str, Array]:
    """Overwrites rows of padding with the real rows in turn.

    'mask' and 'index' stay as they are, and so does 'unlabeled', whose rows are all real.
    """
    mask = batch['mask']
    positions = jnp.arange(len(mask))
    real_first = jnp.argsort(~mask, stable=True)
    copied = real_first[positions % jnp.maximum(mask.sum(), 1)]
    rows = jnp.where(mask, positions, copied)
    stay = ('mask', 'index', 'unlabeled')
    return {name: value if name in stay else value[rows] for name, value in batch.items()}


def augmented(augment: Augment, keys: Array, batch: Batch) -> Batch:
    """The batch augmented; 'unlabeled', where it is there, by the same function with other keys."""
    if 'unlabeled' not in batch:
        return augment(keys, batch)
    labeled = {name: value for name, value in batch.items() if name != 'unlabeled'}
    images = augment(rng.fold(keys, _UNLABELED), {'image': batch['unlabeled']})['image']
    return {**augment(keys, labeled), 'unlabeled': images}
