"""MPAdvT: half of the batches replaced by perturbed ones of random strength and length.

Contents: `mpadvt`.

Example:

    defense = mpadvt(task, eps_low=0.01, eps_high=0.04, l1_weight=0.01)
"""
import jax
import jax.numpy as jnp

from medrobust_jax.attacks.ascent import ascent
from medrobust_jax.attacks.run import perturb
from medrobust_jax.core.checks import check_eps
from medrobust_jax.core.types import (
    Array,
    Attack,
    AttackState,
    Batch,
    Defense,
    Forward,
    PyTree,
    Targets,
    Task,
    Victim,
)
from medrobust_jax.defenses.standard import stateless, victim_of


def mpadvt(task: Task, *, eps_low: float = 0.01, eps_high: float = 0.04, max_steps: int = 9,
           step_size: float = 1 / 255, probability: float = 0.5, l1_weight: float = 0.01, norm: str = 'linf',
           attack_batch_norm: str = 'eval') -> Defense:
    """`min E [loss(f(x'), y)] + l1_weight mean|theta|`, where the whole batch x' is, by chance, perturbed or not.

    With `probability` a batch is replaced by PGD at `eps ~ U(eps_low, eps_high)` with a number of steps drawn
    uniformly from 1 to `max_steps`; both are drawn once per batch. Batches that are left alone cost no attack
    steps.

    The mean is over the entries of all parameters with more than one axis [ours]: the published constant is known,
    what it multiplies is not, and .01 times the sum drove every weight of a small network to 0.

    BatchNorm: `attack_batch_norm` while crafting, 'train' on the batch.

    Args:
      task: loss and criterion.
      eps_low: least radius; .01 [code].
      eps_high: largest radius; .04 [code].
      max_steps: 9, i.e. floor(U(1, 10)) [code].
      step_size: 1/255 whatever eps [code].
      probability: .5 [code].
      l1_weight: .01 [code].
      norm: 'linf' [code], 'l2' or 'l1'.
      attack_batch_norm: 'eval' [ours] or 'batch_stats'.

    Raises:
      ValueError: for values out of range.

    Differs from the published code in: the attack's start is random in the ball [ours; not known].

    References: Xu et al., Towards Evaluating the Robustness of Deep Diagnostic Models by Adversarial Attack,
    Medical Image Analysis 2021.
    """
    check_eps((eps_low, eps_high), field='eps_low, eps_high')
    if eps_low > eps_high or not 0 <= probability <= 1 or l1_weight < 0 or step_size <= 0 or max_steps < 1:
        raise ValueError(f'mpadvt: eps_low = {eps_low} must not exceed eps_high = {eps_high}, probability = '
                         f'{probability} must be in [0, 1], l1_weight = {l1_weight}, step_size = {step_size} and '
                         f'max_steps = {max_steps} positive')
    attack = _with_own_length(ascent(num_steps=max_steps, norm=norm, start='ball'))

    def craft(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch, step: Array,
              keys: Array) -> Array:
        attacked_key, eps_key, length_key = jax.random.split(jax.random.fold_in(keys[0], 0x3AD7), 3)
        attacked = jax.random.uniform(attacked_key) < probability
        eps = jnp.where(attacked, jax.random.uniform(eps_key, minval=eps_low, maxval=eps_high), 0.0)
        length = jnp.where(attacked, jax.random.randint(length_key, (), 1, max_steps + 1), 0)
        rows = batch['mask'].shape
        victim = victim_of(task, forward, params, model_state, batch_norm=attack_batch_norm)
        return perturb(attack, victim, keys, batch['image'], task.targets(batch), eps=eps,
                       knobs={'step_size': jnp.full(rows, step_size), 'length': jnp.broadcast_to(length, rows)})

    def loss(forward: Forward, params: PyTree, model_state: PyTree, state: PyTree, batch: Batch,
             crafted: Array, step: Array, keys: Array) -> tuple:
        targets = task.targets(batch)
        outputs, model_state = forward(params, model_state, crafted, batch_norm='train')
        weights = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
        size = sum(jnp.abs(leaf).sum() for leaf in weights) / max(sum(leaf.size for leaf in weights), 1)
        return (task.loss(outputs, targets) + l1_weight * size,
                (model_state, {'accuracy': task.acceptable(outputs, targets)}))

    return stateless(craft, loss)


def _with_own_length(attack: Attack) -> Attack:
    """Ends after the number of moves in the knob 'length' `[B]`."""
    def init(*args: PyTree) -> AttackState:
        state = attack.init(*args)
        return state.replace(done=state.knobs['length'] <= 0)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        state = attack.step(victim, images, targets, state)
        return state.replace(done=state.done | (state.step >= state.knobs['length']))

    return attack._replace(init=init, step=step)
