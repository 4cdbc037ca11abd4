"""Adversarial weight perturbation: training at the worst nearby weights.

Contents: `with_weight_perturbation`.

Example:

    defense = with_weight_perturbation(pgd_at(task, attack, radius=radius), gamma=0.005)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.core.masking import masked_mean
from medrobust_jax.core.types import Array, Batch, Defense, Forward, PyTree


def with_weight_perturbation(defense: Defense, *, gamma: float = 0.005, start_step: int = 0) -> Defense:
    """Replaces the loss at weights w with the loss at w + v, v one normalized ascent step.

        v_l = gamma ||w_l|| g_l / ||g_l||,      g_l the gradient of the mean loss, per weight array l

    Arrays with one axis or none (biases, normalization) are left alone. v is a constant to the
    gradient. Costs one more forward and backward pass per step; BatchNorm's running statistics are
    updated by the pass at w + v alone.

    Args:
      defense: what is trained; its images are crafted at the unperturbed weights, as in the paper.
      gamma: relative size, >= 0; the paper's is .005 to .01. 0 leaves the defense as it is.
      start_step: steps before the perturbation sets in.

    Raises:
      ValueError: for gamma < 0.

    References: Wu et al., Adversarial Weight Perturbation Helps Robust Generalization, NeurIPS 2020,
    eq. (8) and (9).
    """
    if gamma < 0:
        raise ValueError(f'gamma = {gamma} must not be negative')
    if gamma == 0:
        return defense

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        def mean_loss(weights: PyTree) -> Array:
            losses, _ = defense.loss(forward, weights, model_state, state, batch, crafted, step, keys)
            return masked_mean(losses, batch['mask'])

        fixed = jax.lax.stop_gradient(params)
        size = jnp.where(step >= start_step, gamma, 0.0)
        ascent = jax.tree.map(lambda w, g: size * _relative_step(w, g), fixed, jax.grad(mean_loss)(fixed))
        perturbed = jax.tree.map(jnp.add, params, jax.lax.stop_gradient(ascent))
        return defense.loss(forward, perturbed, model_state, state, batch, crafted, step, keys)

    return defense._replace(loss=loss)


def _relative_step(weights: Array, gradient: Array) -> Array:
    if weights.ndim <= 1:
        return jnp.zeros_like(weights)
    return jnp.linalg.norm(weights) * gradient / (jnp.linalg.norm(gradient) + 1e-12)
