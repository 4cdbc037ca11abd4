r"""APGD: projected gradient ascent that sets its own step size, untargeted and targeted.

    x_0 random on the ball's surface;  x_{t+1} = ascent(x_t, grad_x L(f(x_t), y))

The ascent and its constants are in `apgd_ascent` (Linf and L2: momentum, halved steps) and `apgd_l1`
(sparse steps in three shrinking balls). AutoAttack's first two attacks are `apgd(loss='ce')` and
`apgd_targeted(loss='dlr')` with 100 steps, the latter once per target rank.

Contents: `apgd`, `apgd_targeted`, `ranked_target`, `LOSSES`, `TARGETED_LOSSES`.

Example:

    attack = apgd(num_steps=100, norm='linf', loss='ce')
    result = run(attack, victim, keys, images, labels, eps=8 / 255)

    attack = apgd_targeted(norm='linf')                          # the class that is second at the clean image
    logits = victim.forward(images, keys)
    third = {'target_rank': jnp.full(len(images), 2)}            # the class that is third
    result = run(attack, victim, keys, images, labels, eps=8 / 255, clean_outputs=logits, knobs=third)
"""
from collections.abc import Callable

import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.attacks.apgd_ascent import Ascent, momentum_ascent
from medrobust_jax.attacks.apgd_l1 import sparse_ascent
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses import classification

STARTS = ('ball', 'clean')
LOSSES = {'ce': classification.cross_entropy, 'dlr': classification.dlr, 'margin': classification.margin,
          'task': None}
TARGETED_LOSSES = {'dlr': classification.targeted_dlr, 'margin': classification.targeted_margin,
                   'ce': classification.targeted_cross_entropy}
_RANKS = 0x7A26E7  # keeps the keys of target ranks apart from those of restarts and passes


def apgd(*, num_steps: int = 100, norm: str = 'linf', loss: str | Callable[[Outputs, Targets], Array] = 'ce',
         rho: float = 0.75, start: str = 'ball', larger_radii: bool = True) -> Attack:
    """Auto-PGD.

    Args:
      num_steps: moves, >= 1 (>= 3 for 'l1' with larger radii); the authors' 100. Each look costs one
        forward and one backward pass; there are `num_steps + 1` looks, for 'l1' one more per phase.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'.
      loss: what is climbed and recorded: 'ce', 'dlr' (three classes and more), 'margin' (two and
        more), 'task' (the victim's own, which `wrappers.with_loss` may replace: the way to attack
        other tasks than classification), or any `(outputs, targets) -> [B]`.
      rho: in [0, 1]; the step is halved where the loss rose in at most this share of a window's
        moves. Not used by 'l1'.
      start: 'ball', random on the ball's surface, as the authors; or 'clean'.
      larger_radii: for 'l1', the authors' three phases; False for one phase with radius eps.

    Returns:
      The attack. Reads the knob 'restart' `[B]`, which changes the random start. During the first
      phases of 'l1' `AttackState.images` lie outside the ball, and nothing is recorded.

    Raises:
      ValueError: for an option out of range or an unknown name; when the attack meets logits, for
        'dlr' with fewer than three classes.

    Differs from the authors' code in: what is kept, which there is the last misclassified iterate
    and here the misclassified one with the highest loss (whether there is one is the same); gradients
    are normalized without adding 1e-12 to their norm, so that tiny ones still point somewhere;
    non-finite gradients count as zero; and for 'l1' see `apgd_l1.sparse_ascent`.

    References:
      Croce and Hein, Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
      Parameter-free Attacks, ICML 2020, section 3; for 'l1': Croce and Hein, Mind the Box: l1-APGD
      for Sparse Adversarial Attacks on Image Classifiers, ICML 2021.
    """
    ascent = _ascent(num_steps=num_steps, norm=norm, rho=rho, start=start, larger_radii=larger_radii)
    if isinstance(loss, str) and loss not in LOSSES:
        did_you_mean(loss, LOSSES, 'loss')
    climbed = LOSSES[loss] if isinstance(loss, str) else loss

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        return _begin(ascent, _of_restart(keys, knobs), images, knobs, start=start)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs, value, gradient = looks.loss_and_gradient(victim, state, targets)
        return _record_and_move(ascent, images, state, acceptable=victim.acceptable(outputs, targets),
                                loss=value, climbed=value, gradient=gradient)

    def adapt(victim: Victim) -> Victim:
        return victim if climbed is None else victim._replace(loss=climbed)

    return Attack(init, step, ascent.num_moves, adapt)


def apgd_targeted(*, num_steps: int = 100, norm: str = 'linf',
                  loss: str | Callable[[Array, Array, Array], Array] = 'dlr', rho: float = 0.75,
                  start: str = 'ball', larger_radii: bool = True) -> Attack:
    """Auto-PGD towards one wrong class, which the clean logits and the knob 'target_rank' choose.

    The class is that of `ranked_target`, fixed during the attack; any wrong class counts as success.

    Args:
      num_steps: as `apgd`.
      norm: as `apgd`.
      loss: what is climbed: 'dlr', the targeted DLR (four classes and more, the authors' choice);
        'margin', z_t - z_y (two and more), which equals the cross-entropy to y minus the one to t;
        'ce', minus the cross-entropy to t; or any `(logits, labels, target) -> [B]`. Recorded is the
        victim's own loss, which can be compared between targets.
      rho: as `apgd`.
      start: as `apgd`.
      larger_radii: as `apgd`.

    Returns:
      The attack. Needs `clean_outputs`; reads the knobs 'target_rank' `[B]` (default 1) and
      'restart' `[B]`, both of which change the random start. Not for `averaged_over`.

    Raises:
      ValueError: for an option out of range or an unknown name; without `clean_outputs` or where
        outputs are not logits `[B, C]`; for 'dlr' with fewer than four classes.

    Differs from the authors' code in: as `apgd`; and an image that is misclassified without an
    attack is aimed at its best wrong class, while there it is not attacked.

    References: as `apgd`; the targeted attack is in the paper's section 5, 'ce' among the losses of
    the authors' code.
    """
    ascent = _ascent(num_steps=num_steps, norm=norm, rho=rho, start=start, larger_radii=larger_radii)
    if isinstance(loss, str) and loss not in TARGETED_LOSSES:
        did_you_mean(loss, TARGETED_LOSSES, 'targeted loss')
    climbed = TARGETED_LOSSES[loss] if isinstance(loss, str) else loss

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        if clean_outputs is None:
            raise ValueError('apgd_targeted needs clean_outputs, the logits at the clean images: pass them to run')
        rank = jnp.broadcast_to(jnp.asarray(knobs.get('target_rank', 1)), keys.shape)
        state = _begin(ascent, rng.fold(_of_restart(keys, knobs), _RANKS + rank), images, knobs, start=start)
        return state.replace(inner=(ranked_target(clean_outputs, targets, rank), state.inner))

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        target, inner = state.inner

        def objective(outputs: Array, _: Array) -> Array:
            return climbed(outputs, targets, target)

        outputs, value, gradient = looks.loss_and_gradient(victim, state, targets, objective)
        after = _record_and_move(ascent, images, state.replace(inner=inner), loss=value, gradient=gradient,
                                 acceptable=victim.acceptable(outputs, targets), climbed=objective(outputs, value))
        return after.replace(inner=(target, after.inner))

    return Attack(init, step, ascent.num_moves)


def ranked_target(logits: Array, labels: Array, rank: Array) -> Array:
    """The wrong class whose logit is the `rank`-th largest among the wrong classes; `[B]` int32.

    For a right prediction rank 1 is the runner-up, the second largest of all. Ranks above C - 1
    mean C - 1.

    Args:
      logits: `[B, C]`, C >= 2.
      labels: `[B]` int, the truth.
      rank: `[B]` int, >= 1.

    Raises:
      ValueError: where `logits` are not `[B, C]` with C >= 2.
    """
    if getattr(logits, 'ndim', 0) != 2 or logits.shape[1] < 2:
        raise ValueError(f'targets need logits [B, C] of two classes and more, not {jnp.shape(logits)}')
    is_label = jnp.arange(logits.shape[1]) == labels[:, None]
    order = jnp.argsort(jnp.where(is_label, jnp.nan, -logits), axis=1)  # NaN, and so the label, comes last
    place = jnp.clip(rank, 1, logits.shape[1] - 1) - 1
    return jnp.take_along_axis(order, place[:, None], axis=1)[:, 0].astype(jnp.int32)


def _ascent(*, num_steps: int, norm: str, rho: float, start: str, larger_radii: bool) -> Ascent:
    if num_steps < 1:
        raise ValueError(f'num_steps = {num_steps} must be at least 1')
    if not 0 <= rho <= 1:
        raise ValueError(f'rho = {rho} must be in [0, 1]')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if start not in STARTS:
        did_you_mean(start, STARTS, 'start')
    if norm == 'l1':
        return sparse_ascent(num_steps=num_steps, larger_radii=larger_radii, random_start=start == 'ball')
    return momentum_ascent(num_steps=num_steps, norm=norm, rho=rho)


def _of_restart(keys: Array, knobs: Knobs) -> Array:
    """Keys of the knob 'restart': the example's own for 0, as `wrappers.restarts`."""
    restart = knobs.get('restart')
    return keys if restart is None else jnp.where(restart > 0, rng.fold(keys, restart), keys)


def _begin(ascent: Ascent, keys: Array, images: Array, knobs: Knobs, *, start: str) -> AttackState:
    first = images if start == 'clean' else ascent.start(keys, images, knobs['eps'])
    # The clean image is the best so far: the first looks may lie outside the ball.
    return looks.start_state(keys, first, knobs, ascent.init(images)).replace(best_images=images)


def _record_and_move(ascent: Ascent, images: Array, state: AttackState, *, loss: Array, acceptable: Array,
                     climbed: Array, gradient: Array) -> AttackState:
    counts = ascent.counts(state.step)
    recorded = looks.record(state, jnp.where(counts, loss, -jnp.inf), acceptable | ~counts)
    return looks.move_to(recorded, *ascent.move(images, state, climbed, gradient))
