r"""Gradient ascent with gradients estimated from queries: NES and SPSA.

    g      = 1 / n  sum_{i=1}^{n/2} (L(x + sigma u_i) - L(x - sigma u_i)) / sigma  u_i,     L(x) = loss(f(x), y)
    x_next = clip_{[0,1]}(x_0 + P_eps(x + step * direction(g) - x_0))

with u_i normal for NES and of random signs for SPSA. Queries are clipped to [0, 1], where images live;
what is left of each displacement takes the place of `sigma u_i`.

Contents: `estimated_gradient_ascent` (the general form), `nes`, `spsa`, `estimate`.

Example:

    attack = nes(num_steps=100, num_samples=50)
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks import directions, looks
from medrobust_jax.attacks.pgd import check_options, climb, start_noise
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

NOISES = ('normal', 'signs')
_SAMPLES = 0x4E45  # keeps the keys of samples apart from those of passes and restarts


def estimate(victim: Victim, keys: Array, images: Array, targets: Targets, *, num_pairs: int, sigma: float,
             noise: str) -> Array:
    """An estimate of the loss's gradient at `images` from antithetic pairs of queries.

    Args:
      victim: whose forward function is called once, on `2 * num_pairs * B` images.
      keys: `[B]`; a pair's two queries share the model's randomness, so that it cancels.
      images: `[B, *spatial, C]` in [0, 1].
      targets: the truth.
      num_pairs: >= 1.
      sigma: > 0, in units of [0, 1] pixels.
      noise: 'normal' (NES) or 'signs' (SPSA).

    Returns:
      `[B, *spatial, C]`, the mean over the pairs. A pair with a loss that is not finite counts as 0.
    """
    pair_keys, model_keys = (k.reshape(-1) for k in rng.split_each(keys, 2 * num_pairs).reshape(2, num_pairs, -1))
    shape, dtype = images.shape[1:], jnp.promote_types(images.dtype, jnp.float32)
    if noise == 'normal':
        drawn = rng.normal(pair_keys, shape, dtype)
    else:
        drawn = jax.vmap(lambda key: jax.random.rademacher(key, shape, dtype))(pair_keys)
    reach = (sigma * drawn).astype(images.dtype).reshape(num_pairs, *images.shape)
    queries = balls.to_box(jnp.stack([images + reach, images - reach]))
    copies = jax.tree.map(lambda t: jnp.tile(t, (2 * num_pairs,) + (1,) * (t.ndim - 1)), targets)
    outputs = victim.forward(queries.reshape(-1, *shape), jnp.concatenate([model_keys, model_keys]))
    losses = victim.loss(outputs, copies).reshape(2, num_pairs, images.shape[0])
    slope = losses[0] - losses[1]
    slope = jnp.where(jnp.isfinite(slope), slope, 0).astype(images.dtype)
    ways = (queries[0] - queries[1]) / 2
    return jnp.einsum('pb,pb...->b...', slope, ways) / (2 * num_pairs * sigma**2)


def estimated_gradient_ascent(*, num_steps: int, num_samples: int, sigma: float, noise: str, norm: str = 'linf',
                              relative_step_size: float | None = None, start: str = 'clean',
                              direction: directions.Direction | None = None,
                              samples_per_look: int | None = None) -> Attack:
    """Projected gradient ascent on estimated gradients, the general form.

    Args:
      num_steps: K >= 1, steps of ascent.
      num_samples: n >= 2, even: queries per step, in antithetic pairs.
      sigma: > 0, the smoothing radius, in units of [0, 1] pixels.
      noise: 'normal' or 'signs'.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'.
      relative_step_size: step / eps, > 0; default 2.5 / K, as `pgd`.
      start: 'clean', 'ball' or 'gaussian'.
      direction: how gradients become directions; default the norm's steepest ascent.
      samples_per_look: even, divides n: at most so many queries are in memory (times the batch). The
        attack then takes n / samples_per_look looks per step, all but the last without moving.
        Default n.

    Returns:
      The attack; `1 + samples_per_look` forward passes per look and no backward passes.

    Raises:
      ValueError: for an option out of range or an unknown name.
    """
    check_options(num_steps=num_steps, norm=norm, relative_step_size=relative_step_size, start=start)
    share = num_samples if samples_per_look is None else samples_per_look
    if num_samples < 2 or share < 2 or share % 2 or num_samples % share or sigma <= 0:
        raise ValueError(f'gradient estimates need an even num_samples >= 2, an even samples_per_look that '
                         f'divides it, and sigma > 0, not {num_samples}, {samples_per_look}, {sigma}')
    if noise not in NOISES:
        did_you_mean(noise, NOISES, 'noise')
    ratio = 2.5 / num_steps if relative_step_size is None else relative_step_size
    rule = directions.steepest(norm=norm) if direction is None else direction
    parts = num_samples // share

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        first = balls.to_box(images + start_noise(keys, images, knobs['eps'], start=start, norm=norm))
        return looks.start_state(keys, first, knobs, (jnp.zeros_like(images), rule.init(images)))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        sum_so_far, memory = state.inner
        part, round_ = state.step % parts, state.step // parts
        keys = rng.fold(rng.fold(state.key, _SAMPLES), state.step)
        estimated = estimate(victim, keys, state.images, targets, num_pairs=share // 2, sigma=sigma, noise=noise)
        outputs = victim.forward(state.images, looks.pass_keys(state))
        state = looks.record(state, victim.loss(outputs, targets), victim.acceptable(outputs, targets))
        gradient = estimated / parts + jnp.where(per_example(part > 0, images), sum_so_far, 0)
        room = balls.room_of(state.images, ratio * state.knobs['eps'])
        move, new_memory = rule.update(gradient, memory, round_ + 1, room)
        moves = part == parts - 1

        def pick(new: Array, old: Array) -> Array:
            return jnp.where(per_example(moves, new), new, old)

        climbed = climb(images, state, move, ratio=ratio, norm=norm)
        memory = jax.tree.map(pick, new_memory, memory)
        return looks.move_to(state, pick(climbed, state.images), (gradient, memory))

    return Attack(init, step, num_steps * parts)


def nes(*, num_steps: int = 100, num_samples: int = 50, sigma: float = 0.001, norm: str = 'linf',
        relative_step_size: float | None = None, start: str = 'clean',
        samples_per_look: int | None = None) -> Attack:
    """Projected ascent along gradients estimated by natural evolution strategies.

    Arguments as `estimated_gradient_ascent`. n = 50 and sigma = .001 [code]. Costs
    `num_steps * num_samples` queries, plus the looks.

    Differs from the paper in: steps scale with eps and do not decay on a plateau; no momentum (.9 in
    the published code: pass `directions.momentum` to the general form); queries stay in the box.

    References:
      Ilyas et al., Black-box Adversarial Attacks with Limited Queries and Information, ICML 2018,
      section 2.1 and algorithm 1.
    """
    return estimated_gradient_ascent(
        num_steps=num_steps, num_samples=num_samples, sigma=sigma, noise='normal', norm=norm,
        relative_step_size=relative_step_size, start=start, samples_per_look=samples_per_look)


def spsa(*, num_steps: int = 100, num_samples: int = 128, sigma: float = 0.01, norm: str = 'linf',
         relative_step_size: float | None = None, start: str = 'clean',
         samples_per_look: int | None = None) -> Attack:
    """Ascent by Adam on gradients estimated by simultaneous perturbation.

    Arguments as `estimated_gradient_ascent`. Adam, sigma = .01 and n = 128 as in CleverHans's version of
    the attack; the paper's loss is the margin [mem]: `wrappers.with_loss(spsa(), margin)`.

    Differs from the paper in: steps scale with eps; queries stay in the box.

    References:
      Uesato et al., Adversarial Risk and the Dangers of Evaluating Against Weak Attacks, ICML 2018,
      section 4.1; Spall, IEEE Transactions on Automatic Control, 1992.
    """
    return estimated_gradient_ascent(
        num_steps=num_steps, num_samples=num_samples, sigma=sigma, noise='signs', norm=norm,
        relative_step_size=relative_step_size, start=start, direction=directions.adam(norm=norm),
        samples_per_look=samples_per_look)
