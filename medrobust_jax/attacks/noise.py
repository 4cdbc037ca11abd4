"""Random noise, the baseline of every attack: the worst of n draws, without a gradient.

A model that noise breaks is not robust in any sense; and where noise breaks more images than a
gradient attack in the same ball, that attack is broken or the model masks its gradients.

Contents: `noise`, `DISTRIBUTIONS`.

Example:

    attack = noise(num_draws=100)
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
from medrobust_jax.attacks.sampling import worst_of
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack

DISTRIBUTIONS = ('uniform', 'gaussian')


def noise(*, num_draws: int = 100, norm: str = 'linf', distribution: str = 'uniform') -> Attack:
    """The worst of `num_draws` independent random perturbations.

        x_i = clip_{[0,1]}(x + d_i)

    with 'uniform' d_i as `balls.random_start`: for 'linf' U(-eps, eps) per pixel; with 'gaussian'
    N(0, eps^2) per pixel, which is not projected: eps is the standard deviation and bounds nothing,
    so that such a result belongs to no ball and beside no attack in one.

    Draw i depends on the example's key and i alone, so more draws are never weaker.

    Args:
      num_draws: n >= 1; each costs one forward pass, and there are no backward passes.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'. Not read with 'gaussian'.
      distribution: 'uniform' (in the ball) or 'gaussian'.

    Returns:
      The attack. Its last iterate, which training would use, is the last draw and not the worst.

    Raises:
      ValueError: for num_draws < 1, or an unknown norm or distribution.

    References:
      Athalye et al., Obfuscated Gradients Give a False Sense of Security, ICML 2018, section 3.1
      (random search as a test for masked gradients).
    """
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if distribution not in DISTRIBUTIONS:
        did_you_mean(distribution, DISTRIBUTIONS, 'distribution')

    def uniform(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        return balls.to_box(images + balls.random_start(keys, images, eps, norm=norm))

    def gaussian(keys: Array, images: Array, eps: Array, number: Array) -> Array:
        normal = rng.normal(keys, images.shape[1:]).astype(images.dtype)
        return balls.to_box(images + per_example(eps, images) * normal)

    return worst_of(gaussian if distribution == 'gaussian' else uniform, num_draws=num_draws)
