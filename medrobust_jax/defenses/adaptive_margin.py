"""Adversarial training in which every training example has its own radius.

Contents: `adaptive_margin` (AMAT; IMA with `num_bisections`; AME with `delta_decay` too), `landmark_options`,
`QUANTILES`; for other tables of margins `margins_of`, `mark`, `halve_towards`.

Example:

    defense = adaptive_margin(task, delta=0.5, num_steps=20, alpha=4.0)       # AMAT
    ima = adaptive_margin(task, delta=0.5, num_bisections=10)
"""
import math

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.ascent import ascent, bisect, boundary_sides, with_boundary
from medrobust_jax.attacks.looks import pass_keys
from medrobust_jax.attacks.run import advance
from medrobust_jax.core import balls
from medrobust_jax.core.types import Array, Batch, Defense, Forward, PyTree, Task
from medrobust_jax.defenses.standard import victim_of

QUANTILES = np.linspace(0, 1, 21)  # of the margins, kept in the state's 'history' for every epoch


def adaptive_margin(task: Task, *, delta: float, num_steps: int = 20, alpha: float = 4.0, beta: float = 0.5,
                    e_max: float = math.inf, min_margin: float = 0.0, norm: str = 'l2',
                    step_size: float | None = None, num_bisections: int = 0, delta_decay: float = 1.0,
                    num_epochs: int = 0, attack_batch_norm: str = 'batch_stats') -> Defense:
    """AMAT: `(1 - beta) loss(f(x), y) + beta loss(f(x'), y)`, x' in a ball of the example's own radius E_i.

        start of training   E_i = delta
        a draw of i         x_0 = x + noise of norm max(E_i - delta, delta), within E_i;  K steps of alpha E_i / K
                            unfooled_i if x_0 .. x_K all meet the task's criterion
                            next_i <- (next_i + ||x_K - x||) / 2           (next_i = E_i when the epoch begins)
        end of an epoch     E_i <- E_i + delta if any draw was unfooled, else next_i;  clipped to [0, e_max]

    An example that was not drawn keeps its margin. No step asks for more than `task.loss`, `task.acceptable` and
    `task.targets`. With num_bisections > 0 it is IMA: all K steps run, then the segment from the iterate before
    the first failure to the failure (from the clean image where x_0 fails) is halved so often, and its middle
    takes x_K's place in the loss and in the margin's update. With delta_decay < 1 it is AME, whose expansion step
    decays: at the end of epoch k = 1, 2, ... an unfooled margin grows by delta_decay^(k - 1) delta, so that
    margins come to rest, and none exceeds delta (1 + 1 / (1 - delta_decay)). Starts keep to delta itself.

    State: 'margins' [N] and 'next' [N] float32, 'unfooled' [N] bool, 'history' [num_epochs + 1, 21], the margins'
    `QUANTILES` at the end of every epoch (row 0: the start; NaN until reached). Cost beside `pgd_at` with a clean
    share: the criterion at every look, and num_bisections + 1 forward passes for IMA. AMAT's look at x_K is the
    pass that trains on it, where that sees what crafting would: with beta > 0 and 'batch_stats' (under weight
    perturbation that pass is at the perturbed weights).

    BatchNorm: `attack_batch_norm` while crafting; 'train' on the clean, then on the adversarial images.

    Args:
      task: loss and criterion.
      delta: how much a margin grows per epoch, in the norm's units, >= 0; the paper's grids [code]: heart 1 to 9,
        hippocampus .1 to 1.9, prostate 17 to 21, detection 1 to 5, at those input sizes. 0 is natural training.
      num_steps: K >= 1; 20 [code].
      alpha: steps are alpha E / K, > 0; 4 for segmentation, 5 for detection [code].
      beta: adversarial share, in [0, 1]; .5 [code].
      e_max: the largest margin; infinite for segmentation and detection [code].
      min_margin: no update goes below it; delta for landmarks and detection, 0 for segmentation [code].
      norm: 'l2' [code], 'linf' or 'l1' [ours].
      step_size: a fixed step instead of alpha E / K, see `landmark_options`.
      num_bisections: 0 for AMAT, 10 for IMA [code].
      delta_decay: in (0, 1]; 1 for AMAT and IMA. That AME's step decays is known, how it does is not [ours].
      num_epochs: how many epochs 'history' keeps.
      attack_batch_norm: 'batch_stats' or 'eval'.

    Raises:
      ValueError: for values out of range.

    Differs from the published code in: no second condition on the clean output, whose threshold there is always
    met (with a real one, hard examples freeze); iterates after x_0 are in [0, 1] for every task; crafting uses
    batch statistics, as the attack in train mode does there, but does not update the running ones; a row drawn
    twice in a batch counts as two draws in turn, where there the last one won.

    References: Ma and Liang, "Increasing-Margin Adversarial (IMA) training" (2020), and "A general adversarial
    training approach for medical image analysis" (AMAT), arXiv 2206.01736, algorithm 1.
    """
    _check(delta, alpha, beta, e_max, min_margin, step_size, num_bisections, delta_decay)
    attack = ascent(num_steps=num_steps, norm=norm, start='sphere')
    # Where training sees x_K as crafting would, `loss` looks at it for both.
    seen_in_loss = beta > 0 and num_bisections == 0 and attack_batch_norm == 'batch_stats'
    if num_bisections:
        attack = with_boundary(attack)

    def init(num_train: int, example_outputs: PyTree, key: Array) -> dict[str, Array]:
        margins = jnp.full(num_train, min(delta, e_max), jnp.float32)
        history = jnp.full((num_epochs + 1, len(QUANTILES)), jnp.nan).at[0].set(margins[0])
        return {'margins': margins, 'next': margins, 'unfooled': jnp.zeros(num_train, bool), 'history': history}

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> dict[str, Array]:
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        images, targets = jax.lax.stop_gradient(batch['image']), task.targets(batch)
        eps = margins_of(state, batch, padding=delta)
        knobs = {'start_size': jnp.maximum(eps - delta, delta),
                 'step_size': alpha * eps / num_steps if step_size is None else jnp.full_like(eps, step_size)}
        last = advance(attack, victim, keys, images, targets, eps=eps, knobs=knobs)

        def meets(looked_at: Array) -> Array:
            return victim.acceptable(victim.forward(looked_at, pass_keys(last)), targets)

        acceptable, found = last.acceptable, last.images
        if not seen_in_loss:
            acceptable = acceptable & meets(last.images)
        if num_bisections:
            sides = boundary_sides(last, acceptable)
            middle = bisect(meets, sides['ok'], sides['fooling'], num_steps=num_bisections)
            found = jnp.where(acceptable.reshape(-1, *[1] * (images.ndim - 1)), found, middle)
        return jax.lax.stop_gradient({'images': found, 'fooled': ~acceptable, 'margin': eps,
                                      'distance': balls.norm_of(found - images, norm=norm)})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: PyTree, step: Array, keys: Array) -> tuple:
        targets, total = task.targets(batch), 0.0
        metrics = {'margin': crafted['margin'], 'unfooled': ~crafted['fooled']}
        if beta < 1:
            clean, model_state = forward(params, model_state, batch['image'], batch_norm='train')
            total, metrics['accuracy'] = (1 - beta) * task.loss(clean, targets), task.acceptable(clean, targets)
        if beta > 0:
            outputs, model_state = forward(params, model_state, crafted['images'], batch_norm='train')
            total = total + beta * task.loss(outputs, targets)
            metrics['robust_accuracy'] = task.acceptable(outputs, targets)
        if seen_in_loss:
            metrics['unfooled'] &= metrics['robust_accuracy']
        return total, (model_state, metrics)

    def update(state: PyTree, batch: Batch, crafted: PyTree, metrics: dict[str, Array]) -> dict[str, Array]:
        unfooled = mark(state['unfooled'], batch, metrics['unfooled'])
        return {**state, 'unfooled': unfooled,
                'next': jnp.maximum(halve_towards(state['next'], batch, crafted['distance']), min_margin)}

    def end_epoch(state: PyTree, epoch: Array) -> dict[str, Array]:
        growth = delta if delta_decay == 1 else delta * delta_decay ** (epoch - 1)
        grown = jnp.where(state['unfooled'], state['margins'] + growth, state['next'])
        margins = jnp.clip(grown, 0, e_max)
        history = state['history'].at[epoch].set(jnp.quantile(margins, QUANTILES), mode='drop')
        return {'margins': margins, 'next': margins, 'unfooled': jnp.zeros_like(state['unfooled']),
                'history': history}

    return Defense(init=init, craft=craft, loss=loss, update=update, end_epoch=end_epoch)


def margins_of(state: PyTree, batch: Batch, *, padding: float) -> Array:
    """The margins `[B]` of a batch's rows; `padding` where the index is beyond the table."""
    return state['margins'].at[batch['index']].get(mode='fill', fill_value=padding)


def mark(table: Array, batch: Batch, values: Array) -> Array:
    """`table` `[N]` bool with True entered where `values` `[B]`, never for rows of padding."""
    return table.at[jnp.where(values & batch['mask'], batch['index'], len(table))].set(True, mode='drop')


def halve_towards(table: Array, batch: Batch, values: Array) -> Array:
    """`table[i] <- (table[i] + v) / 2` for every row of the batch, in turn where i occurs more than once."""
    index = jnp.where(batch['mask'], batch['index'], len(table))
    later = jnp.triu(index[:, None] == index[None, :], k=1).sum(axis=1)
    # m halvings of the old value, and of each draw one more than there are draws after it: exact, in any order.
    halved = table.at[index].multiply(0.5, mode='drop')
    return halved.at[index].add(values * 0.5 ** (later + 1), mode='drop')


def landmark_options(e_max: float, *, num_epochs: float) -> dict[str, float]:
    """The landmark script's settings: step 5 e_max / 20, delta 23 e_max / epochs, margins at least delta [code].

    Example: `adaptive_margin(task, **landmark_options(2.0, num_epochs=500), num_bisections=10)`.

    Raises:
      ValueError: unless both are positive.
    """
    if e_max <= 0 or num_epochs <= 0:
        raise ValueError(f'e_max = {e_max} and num_epochs = {num_epochs} must be positive')
    delta = min(23 * e_max / num_epochs, e_max)
    return {'e_max': e_max, 'delta': delta, 'min_margin': delta, 'step_size': 5 * e_max / 20}


def _check(delta: float, alpha: float, beta: float, e_max: float, min_margin: float, step_size: float | None,
           num_bisections: int, delta_decay: float) -> None:
    if not 0 <= beta <= 1:
        raise ValueError(f'beta = {beta} must be in [0, 1]')
    if not 0 <= delta < math.inf or not e_max > 0:
        raise ValueError(f'delta = {delta} must not be negative, and e_max = {e_max} must be positive')
    if alpha <= 0 or (step_size is not None and step_size <= 0):
        raise ValueError(f'alpha = {alpha} and step_size = {step_size} must be positive')
    if not 0 <= min_margin <= min(delta, e_max):
        raise ValueError(f'min_margin = {min_margin} must be in [0, {min(delta, e_max)}]: margins start at delta')
    if num_bisections < 0:
        raise ValueError(f'num_bisections = {num_bisections} must not be negative')
    if not 0 < delta_decay <= 1:
        raise ValueError(f'delta_decay = {delta_decay} must be in (0, 1]')
