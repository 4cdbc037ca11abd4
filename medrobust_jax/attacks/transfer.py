r"""Transfer attacks: crafted on a surrogate model, judged by the victim.

    x_{t+1} = one step of the attack at x_t on the surrogate,      verdict = the victim's at what is submitted

The surrogate is a forward function. Loss and criterion are the victim's, also where a wrapper has
replaced them, so `targeted` and `with_loss` mean the same inside and outside of `transfer`.

Contents: `transfer`.

Example, weights as arguments of the compiled program:

    @jax.jit
    def attack_block(surrogate_params, victim_params, keys, images, labels):
        attack = transfer(pgd(num_steps=20), lambda x, k: surrogate.apply(surrogate_params, x))
        victim = Victim(lambda x, k: model.apply(victim_params, x), task.loss, task.acceptable)
        return run(attack, victim, keys, images, labels, eps=8 / 255)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.core import rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim

SUBMISSIONS = ('best', 'every')
_VICTIM = 0x7A5F  # keeps the victim's randomness apart from the surrogate's


def transfer(attack: Attack, surrogate: Callable[[Array, Array], Outputs], *, submit: str = 'best') -> Attack:
    """Crafts with `attack` on `surrogate` and judges by the victim.

    Args:
      attack: any attack. All its passes go through the surrogate.
      surrogate: `(images [B, *spatial, C], keys [B]) -> outputs`, in the form of the victim's outputs. To
        keep large weights out of the compiled program call `transfer` where they are traced, as in the
        module's example; arrays it closes over otherwise are held by the program.
      submit: 'best': the victim judges one image per example, the strongest on the surrogate: transfer in
        the usual sense, with a single attempt. 'every': it judges each iterate and the strongest counts,
        an attacker with num_steps + 1 attempts; not for minimum-norm attacks, whose iterates leave
        the ball.

    Returns:
      The attack. One forward pass of the victim per look, none backward, also for 'best', where all but
      the last are left unused; `evaluate.passes` counts the victim's passes, not the surrogate's. It
      makes one step more than `attack`, in which the surrogate looks at its last iterate. The keys
      that the surrogate sees are those of `attack` run alone.

    Raises:
      ValueError: for an unknown `submit`; when run, where the surrogate's outputs have another form than
        the victim's, as they do for `averaged_over` around `transfer` instead of inside it.

    Note: `clean_outputs`, if given, reach `attack` as they are. An attack that ranks classes by them then
    aims by the victim's ranking; hand over the surrogate's outputs where that would be a query too many.

    References:
      Papernot, McDaniel and Goodfellow, Transferability in Machine Learning, arXiv 1605.07277.
    """
    if submit not in SUBMISSIONS:
        did_you_mean(submit, SUBMISSIONS, 'submit')
    num_steps = attack.num_steps + 1

    def crafting(victim: Victim) -> Victim:
        # The victim's loss and criterion have been through all wrappers. A wrapper inside `transfer` that
        # changes how a model is run has yet to do so to the surrogate.
        return victim._replace(forward=attack.adapt(victim._replace(forward=surrogate)).forward)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        own = crafting(victim)
        _check_forms(own, victim, images, keys)
        crafted = attack.init(own, keys, images, targets, clean_outputs, knobs)
        return looks.start_state(rng.fold(keys, _VICTIM), crafted.images, knobs, crafted)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        before: AttackState = state.inner
        judged = before.done | (state.step >= num_steps) | (submit == 'every')
        outputs = victim.forward(state.images, looks.pass_keys(state))
        after = attack.step(crafting(victim), images, targets, before)
        state = _record_where(judged, state, victim.loss(outputs, targets), victim.acceptable(outputs, targets))
        ended = per_example(after.done | (state.step >= num_steps), images)
        state = looks.move_to(state, jnp.where(ended, after.best_images, after.images), after)
        return state.replace(done=state.done | before.done)

    return attack._replace(init=init, step=step, num_steps=num_steps)


def _record_where(judged: Array, state: AttackState, loss: Array, acceptable: Array) -> AttackState:
    """Records the look where it is a submission, and merely counts it elsewhere."""
    recorded = looks.record(state, loss, acceptable)
    counted = state.replace(step=recorded.step)
    return jax.tree.map(lambda new, old: jnp.where(per_example(judged, new), new, old), recorded, counted)


def _check_forms(surrogate: Victim, victim: Victim, images: Array, keys: Array) -> None:
    """Raises where outputs differ in structure or shape."""
    forms = [jax.tree.map(lambda s: s.shape, jax.eval_shape(model.forward, images, keys))
             for model in (surrogate, victim)]
    if forms[0] != forms[1]:
        raise ValueError(f"transfer: the surrogate's outputs have the form {forms[0]}, the victim's {forms[1]}; "
                         f'they must agree (averaged_over belongs inside: transfer(averaged_over(...), ...))')
