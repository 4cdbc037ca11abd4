"""Attacks made from attacks.

Contents: `restarts`, `stop_when_fooled`, `averaged_over` (EOT), `with_loss`, `targeted`,
`strongest`, `best_of`.

Example:

    attack = restarts(with_loss(pgd(num_steps=100), margin), 10)
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from medrobust_jax.core import rng
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.transforms import Transform
from medrobust_jax.core.types import Array, Attack, AttackResult, AttackState, Outputs, Targets, Victim


def restarts(attack: Attack, num_restarts: int) -> Attack:
    """Runs `attack` `num_restarts` times from different keys and keeps the strongest image per example.

    Every restart makes `num_steps + 1` looks, or fewer where the attack ends by itself. Restart 0 uses the
    example's own key, so a result can only grow stronger with more restarts. To leave at the first
    fooling image, stop the whole: `stop_when_fooled(restarts(attack, n))`.

    Args:
      attack: the attack to repeat.
      num_restarts: >= 1.

    Raises:
      ValueError: for num_restarts < 1.
    """
    if num_restarts < 1:
        raise ValueError(f'num_restarts = {num_restarts} must be at least 1')
    looks = attack.num_steps + 1

    def begin_again(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        at_start = (state.inner['looks'] == looks) & ~state.done
        restart = state.inner['restart'] + at_start
        keys = rng.fold(state.inner['key'], restart)
        fresh = attack.init(victim, keys, images, targets, state.inner['clean'],
                            {**state.knobs, 'restart': restart})
        pick = lambda new, old: jnp.where(per_example(at_start, new), new, old)  # noqa: E731
        inner = {**state.inner, 'attack': jax.tree.map(pick, fresh.inner, state.inner['attack']),
                 'restart': restart, 'looks': jnp.where(at_start, 0, state.inner['looks'])}
        return state.replace(images=pick(fresh.images, state.images), key=pick(fresh.key, state.key), inner=inner)

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: dict) -> AttackState:
        count = jnp.zeros(images.shape[0], jnp.int32)
        knobs = {**knobs, 'restart': count}
        state = attack.init(victim, keys, images, targets, clean_outputs, knobs)
        inner = {'attack': state.inner, 'restart': count, 'looks': count, 'key': keys, 'clean': clean_outputs}
        return state.replace(knobs=knobs, inner=inner)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        state = jax.lax.cond(jnp.any(state.inner['looks'] == looks),
                             lambda s: begin_again(victim, images, targets, s), lambda s: s, state)
        # The wrapped attack counts its own looks from zero in every restart.
        total = state.step
        inner_state = attack.step(victim, images, targets,
                                  state.replace(inner=state.inner['attack'], step=state.inner['looks']))
        made = inner_state.step - state.inner['looks']
        # An attack that ends by itself begins again too, until its last restart.
        over = inner_state.done & ~state.done & (state.inner['restart'] < num_restarts - 1)
        first = jnp.where(state.first_fooled < 0,
                          jnp.where(inner_state.first_fooled < 0, -1, total), state.first_fooled)
        return inner_state.replace(step=total + made, first_fooled=first, done=inner_state.done & ~over,
                                   inner={**state.inner, 'attack': inner_state.inner,
                                          'looks': jnp.where(over, looks, inner_state.step)})

    return attack._replace(init=init, step=step, num_steps=num_restarts * looks - 1)


def stop_when_fooled(attack: Attack) -> Attack:
    """Leaves an example at the first image that fools the model, also as its last iterate.

    The verdicts are those of the full attack and cost fewer passes; the losses of fooled examples
    are not their largest.
    """
    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        after = attack.step(victim, images, targets, state)
        done = after.done | ~after.acceptable
        stay = per_example(done, images)
        return after.replace(images=jnp.where(stay, state.images, after.images), done=done)
    return attack._replace(step=step)


def averaged_over(attack: Attack, transform: Transform, *, num_samples: int, majority: bool = False) -> Attack:
    """Climbs the loss averaged over random transforms of the input (EOT).

        L(x) = mean_i loss(f(t_i(x)), y),      t_i fresh at every step

    The criterion is judged on one pass of the untransformed image or, with `majority`, on the samples.
    SMIA's stabilization term covers that pass and the samples, with equal weight. With
    `transforms.identity` this averages over the randomness of a randomized model.

    Args:
      attack: any attack that climbs the victim's loss.
      transform: `(keys, images) -> images`.
      num_samples: >= 1; each look costs num_samples + 1 forward and num_samples backward passes.
      majority: an image fools the model once half of the samples or more do. Of a randomized model one pass in
        each of many looks will be wrong by luck; half of many at a time are not.

    References: Athalye et al., Synthesizing Robust Adversarial Examples, ICML 2018.
    """
    if num_samples < 1:
        raise ValueError(f'num_samples = {num_samples} must be at least 1')

    def adapt(victim: Victim) -> Victim:
        victim = attack.adapt(victim)

        def forward(images: Array, keys: Array) -> tuple[Outputs, Outputs]:
            sample_keys = rng.split_each(keys, num_samples).T.reshape(-1)
            repeated = jnp.repeat(images, num_samples, axis=0)
            seen = transform(rng.fold(sample_keys, 1), repeated)
            samples = victim.forward(seen, sample_keys)
            grouped = jax.tree.map(lambda a: a.reshape(-1, num_samples, *a.shape[1:]), samples)
            return victim.forward(images, keys), grouped

        def over_samples(of: Callable[..., Array], outputs: tuple[Outputs, Outputs], targets: Targets) -> Array:
            repeated = jax.tree.map(lambda t: jnp.repeat(t, num_samples, axis=0), targets)
            samples = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), outputs[1])
            return of(samples, repeated).reshape(-1, num_samples)

        def loss(outputs: tuple[Outputs, Outputs], targets: Targets) -> Array:
            return over_samples(victim.loss, outputs, targets).mean(axis=1)

        def acceptable(outputs: tuple[Outputs, Outputs], targets: Targets) -> Array:
            if not majority:
                return victim.acceptable(outputs[0], targets)
            return over_samples(victim.acceptable, outputs, targets).mean(axis=1) > .5

        return Victim(forward, loss, acceptable)

    return attack._replace(adapt=adapt)


def with_loss(attack: Attack, loss: Callable[[Outputs, Targets], Array]) -> Attack:
    """Climbs `loss` instead of the victim's own, e.g. the margin; the criterion stays.

    An attack that names a loss of its own keeps that one (`pgd_margin`, `apgd` unless loss='task', another
    `with_loss`): the inner loss wins.
    """
    return attack._replace(adapt=lambda victim: attack.adapt(victim._replace(loss=loss)))


def targeted(attack: Attack) -> Attack:
    """Drives outputs towards the targets given: pass the wanted class where the truth would stand.

    The loss is minus the victim's, and an output is acceptable until it meets the target.
    """
    def adapt(victim: Victim) -> Victim:
        victim = attack.adapt(victim)  # first, so that a loss of the attack's own is negated too
        return victim._replace(loss=lambda outputs, targets: -victim.loss(outputs, targets),
                               acceptable=lambda outputs, targets: ~victim.acceptable(outputs, targets))
    return attack._replace(adapt=adapt)


def strongest(first: AttackResult, second: AttackResult) -> AttackResult:
    """The per-example stronger of two results: fooled before unfooled, then the higher loss.

    `first_fooled` is the look within the attack that is kept. Losses must be of the same kind.
    """
    take = jnp.where(first.acceptable == second.acceptable, second.loss > first.loss, first.acceptable)
    return jax.tree.map(lambda a, b: jnp.where(per_example(take, a), b, a), first, second)


def best_of(runs: list[Callable[..., AttackResult]]) -> Callable[..., AttackResult]:
    """The strongest result of several ways to attack, e.g. `[partial(run, pgd()), partial(run, smia())]`."""
    if not runs:
        raise ValueError('best_of needs at least one attack')

    def best(*args: object, **kwargs: object) -> AttackResult:
        result = runs[0](*args, **kwargs)
        for other in runs[1:]:
            result = strongest(result, other(*args, **kwargs))
        return result

    return best
