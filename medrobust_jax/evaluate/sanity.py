"""Checks that stand beside every robust number, so that none is believed by mistake.

Each check returns sentences, empty where nothing is wrong; they are printed, saved with the rows
and shown in the report.

Contents: `check_gradients`, `check_own_gradients`, `check_randomness`, `check_point`, `check_floor`,
`check_cascade`, `check_order`.

Example:

    warnings = check_gradients(forward, variables, task, examples, layout=layout, seed=0)
    warnings += check_point(point, examples, norm='linf')
"""
from collections.abc import Callable, Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from medrobust_jax.attacks.patch import NORM as PATCH
from medrobust_jax.attacks.patch import changed_share
from medrobust_jax.attacks.registry import BLACK_BOX, CLIMBS_ANOTHER_LOSS
from medrobust_jax.core import balls, rng
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.types import Array, Attack, PyTree, Targets, Task, Victim
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks, make_score, victim_of
from medrobust_jax.evaluate.suite import Examples, GridPoint, Threat, attack_grid

# Within these, every image can become uniform grey, so no model can tell classes apart; d is the number of pixels.
FLOOR_EPS = {'linf': lambda d: 0.5, 'l2': lambda d: 0.5 * d**0.5, 'l1': lambda d: 0.5 * d}


NUM_FEW = 64  # examples for checks that need not see all


@lru_cache(maxsize=64)
def gradient_sizes(forward: ModelForward, task: Task, layout: Layout,
                   adapt: Callable[[Victim], Victim] = Attack._field_defaults['adapt']) -> Callable[..., Array]:
    """The compiled `(variables, keys, images, targets) -> [chunk]` Linf norm of the loss's input gradient.

    `adapt` is an attack's, where the attack climbs a loss of its own.
    """
    def rows(variables: PyTree, keys: Array, images: Array, targets: Targets) -> Array:
        victim = adapt(victim_of(forward, variables, task))

        def block(k: Array, x: Array, y: Targets) -> Array:
            gradient = jax.grad(lambda x: jnp.sum(victim.loss(victim.forward(x, k), y)))(x)
            return balls.norm_of(gradient, norm='linf')

        return in_blocks(block, width=layout.width)(keys, images, targets)

    return jax.jit(on_each_device(rows, layout.mesh, num_shared=1))


def check_gradients(forward: ModelForward, variables: PyTree, task: Task, examples: Examples, *,
                    layout: Layout, seed: int, adapt: Callable[[Victim], Victim] | None = None,
                    what: str = 'input gradients') -> tuple[str, ...]:
    """Whether the loss has a usable gradient at the clean images (masked gradients make attacks blind)."""
    keys = rng.example_keys(seed, examples.index)
    program = gradient_sizes(forward, task, layout, *(() if adapt is None else (adapt,)))
    sizes = in_chunks(program, layout)(variables, keys, examples.images, examples.targets)
    found = []
    if (count := int((~np.isfinite(sizes)).sum())):
        found.append(f'{count} of {len(sizes)} {what} are not finite')
    if (count := int((sizes == 0).sum())):
        found.append(f'{count} of {len(sizes)} {what} are exactly zero: attacks by gradient are blind '
                     f'there, so robust accuracy may be overstated')
    return tuple(found)


def check_own_gradients(forward: ModelForward, variables: PyTree, task: Task, threats: Sequence[Threat],
                        examples: Examples, *, layout: Layout, seed: int) -> tuple[str, ...]:
    """`check_gradients` for the losses that attacks climb in place of the task's (margin, DLR, averages)."""
    found: tuple[str, ...] = ()
    few = jax.tree.map(lambda a: a[:NUM_FEW], examples)
    for threat in threats:
        blind = threat.options.get('attack') in (*BLACK_BOX, *CLIMBS_ANOTHER_LOSS)
        if threat.attack.adapt is not Attack._field_defaults['adapt'] and not blind:
            found += check_gradients(forward, variables, task, few, layout=layout, seed=seed,
                                     adapt=threat.attack.adapt, what=f"gradients of {threat.name}'s loss")
    return found


def check_randomness(forward: ModelForward, variables: PyTree, examples: Examples, *, layout: Layout,
                     seed: int, num_examples: int = 64) -> tuple[str, ...]:
    """Whether two passes with different keys differ: then attacks need `averaged_over`."""
    images = examples.images[:num_examples]
    score = in_chunks(make_score(forward, layout), layout)
    first, second = (score(variables, rng.example_keys(s, examples.index[:num_examples]), images)
                     for s in (seed, seed + 1))
    same = jax.tree.map(np.array_equal, first, second)
    return () if all(jax.tree.leaves(same)) else (
        'two passes over the same images differ: the model is randomized, and attacks that do not average over '
        'its randomness (averaged_over) overstate its robustness',)


def check_point(point: GridPoint, examples: Examples, *, norm: str) -> tuple[str, ...]:
    """Whether the adversarial images are what they claim: in the box, in the ball, and fooling.

    The ball's tolerance is rounding in the images' dtype: 1e-6 plus 1e-5 of eps.
    """
    images = np.asarray(point.result.images)
    found = []
    outside = ~((images >= 0) & (images <= 1)).reshape(len(images), -1).all(axis=1)
    if outside.any():
        found.append(f'{int(outside.sum())} adversarial images leave [0, 1] or hold NaN')
    size = _size_of(images, examples.images, norm)
    if (count := int((size > point.eps * (1 + 1e-5) + 1e-6).sum())):
        found.append(f'{count} adversarial images leave the {norm} ball of {point.eps:.5g} '
                     f'(largest {size.max():.5g})')
    changed = point.rescored != point.result.acceptable
    if changed.any():
        rows = ', '.join(map(str, examples.index[changed][:10]))
        found.append(f'{int(changed.sum())} verdicts change when the adversarial images are scored again '
                     f'(rows {rows}): decisions at the edge of rounding, or a randomized model')
    return tuple(found)


def _size_of(images: np.ndarray, clean: np.ndarray, norm: str) -> np.ndarray:
    """How large the change is in units of eps; 0 where the unit says nothing of single pixels."""
    if norm == PATCH:
        return np.asarray(changed_share(jnp.asarray(images), jnp.asarray(clean)))
    if norm not in balls.NORMS:  # severities, rotations, standard deviations
        return np.zeros(len(images))
    return np.asarray(balls.norm_of(jnp.asarray(images - clean), norm=norm))


def check_floor(forward: ModelForward, variables: PyTree, task: Task, threat: Threat, examples: Examples, *,
                layout: Layout, seed: int, num_examples: int = 64, limit: float = 0.1) -> tuple[str, ...]:
    """Whether a huge eps breaks nearly everything, as it must; if not, the attack does not work.

    Only for norms in `FLOOR_EPS`, and neither for a single step, which may overshoot on a healthy
    model, nor for attacks without gradients.
    """
    blind = threat.options.get('attack') in (*BLACK_BOX, 'transfer')
    if threat.norm not in FLOOR_EPS or threat.attack.num_steps < 2 or blind:
        return ()
    few = jax.tree.map(lambda a: a[:num_examples], examples)
    eps = FLOOR_EPS[threat.norm](np.prod(examples.images.shape[1:]))
    (point,) = attack_grid(forward, variables, task, threat._replace(num_restarts=1), few, (eps,), layout=layout,
                           seed=seed)
    left = float(point.result.acceptable.mean())
    # Without gradients even a huge ball need not be searched well: that says nothing of masking.
    return () if left <= limit or point.backward_passes == 0 else (
        f'{threat.name} at eps {eps:g} leaves {left:.0%} of {len(few.images)} images standing (at most '
        f'{limit:.0%} expected): its gradients are masked or it needs more steps',)


def check_cascade(members: Sequence[Threat], stages: Sequence[Sequence[GridPoint]]) -> tuple[str, ...]:
    """Whether a black-box member of an ensemble breaks what its members by gradient left standing."""
    found = []
    for before, member, after in zip(stages, members[1:], stages[1:], strict=False):
        if member.options.get('attack') not in BLACK_BOX:
            continue
        for a, b in zip(before, after, strict=True):
            broken = int((a.result.acceptable & ~b.result.acceptable).sum())
            if broken > max(1, 0.01 * len(a.result.acceptable)):
                found.append(f'{member.name} breaks {broken} images at eps {a.eps:.4g} that withstood all attacks '
                             f'by gradient: their gradients are masked or they need more steps')
    return tuple(found)


def check_order(weak: Sequence[GridPoint], strong: Sequence[GridPoint], *, weak_name: str,
                strong_name: str) -> tuple[str, ...]:
    """Whether an attack that should be weaker (fewer steps) breaks more than a stronger one, at any eps.

    Warned of only beyond two standard errors of the paired difference, since equal attacks differ
    by chance.
    """
    found = []
    for a, b in zip(weak, strong, strict=True):
        only_weak = int((~a.result.acceptable & b.result.acceptable).sum())
        only_strong = int((a.result.acceptable & ~b.result.acceptable).sum())
        if only_weak - only_strong > 2 * np.sqrt(only_weak + only_strong):
            found.append(f'{weak_name} breaks {only_weak - only_strong} more images than {strong_name} at eps '
                         f'{a.eps:.4g}: {strong_name} is hampered by masked gradients or a poor step size')
    return tuple(found)
