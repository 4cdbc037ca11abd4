"""Random noise, the baseline of every attack: the worst of n draws, without a gradient.

A model that noise breaks is not robust in any sense; and where noise breaks more images than a
gradient attack in the same ball, that attack is broken or the model masks its gradients.

Contents: `noise`.

Example:

    attack = noise(num_draws=100)
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
from medrobust_jax.attacks import looks
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

_DRAWS = 0xD4A3  # keeps the keys of draws apart from those of passes and restarts


def noise(*, num_draws: int = 100, norm: str = 'linf') -> Attack:
    """The worst of `num_draws` independent random perturbations.

        x_i = clip_{[0,1]}(x + d_i),    d_i as `balls.random_start`: for 'linf' U(-eps, eps) per pixel

    Draw i depends on the example's key and i alone, so more draws are never weaker.

    Args:
      num_draws: n >= 1; each costs one forward pass, and there are no backward passes.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'.

    Returns:
      The attack. Its last iterate, which training would use, is the last draw and not the worst.

    Raises:
      ValueError: for num_draws < 1 or an unknown norm.

    References:
      Athalye et al., Obfuscated Gradients Give a False Sense of Security, ICML 2018, section 3.1
      (random search as a test for masked gradients).
    """
    if num_draws < 1:
        raise ValueError(f'num_draws = {num_draws} must be at least 1')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')

    def draw(keys: Array, images: Array, eps: Array, number: int | Array) -> Array:
        own = rng.fold(rng.fold(keys, _DRAWS), number)
        return balls.to_box(images + balls.random_start(own, images, eps, norm=norm))

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        return looks.start_state(keys, draw(keys, images, knobs['eps'], 0), knobs)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs = victim.forward(state.images, looks.pass_keys(state))
        state = looks.record(state, victim.loss(outputs, targets), victim.acceptable(outputs, targets))
        return looks.move_to(state, draw(state.key, images, state.knobs['eps'], state.step), state.inner)

    return Attack(init, step, num_draws - 1)  # the runner's last look is at the last draw
