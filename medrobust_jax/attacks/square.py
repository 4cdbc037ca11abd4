r"""The Square attack: random search with square windows, by scores alone.

    x_0     = x + stripes (linf) or a tiling of bumps (l2, l1), on the ball's surface
    x'      = x_best changed in windows of side round(sqrt(p H W)), p falling with the queries
    x_best  = x'    where x' is misclassified or has the higher loss

Contents: `square`, `LOSSES`.

Example:

    attack = stop_when_fooled(square(num_steps=5000, norm='linf'))      # as published
    result = run(attack, victim, keys, images, labels, eps=8 / 255)
    queries = result.first_fooled + 1                                   # 0 where the model withstood all
"""
import jax.numpy as jnp

from medrobust_jax.attacks import looks
from medrobust_jax.attacks import square_moves as moves
from medrobust_jax.attacks.wrappers import with_loss
from medrobust_jax.core import balls, rng
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.core.masking import per_example
from medrobust_jax.core.types import Array, Attack, AttackState, Knobs, Outputs, Targets, Victim
from medrobust_jax.losses.classification import margin

LOSSES = ('margin', 'task')
_DRAWS = 0x59A2E  # keeps the keys of draws apart from those of passes and restarts


def square(*, num_steps: int = 5000, norm: str = 'linf', p: float = .8, rescale: bool = False,
           loss: str = 'margin') -> Attack:
    """The Square attack in Linf, L2 and L1, for 2-D images. It asks for no gradient.

    One query per look: `num_steps` moves and the start. It goes on after the model is fooled, to a
    higher loss, unless the runner stops fooled examples, as the authors do.

    Args:
      num_steps: queries after the start, >= 1; 5000 in AutoAttack.
      norm: 'linf', 'l2' or 'l1'; the ball's radius is the knob 'eps'.
      p: the share of the image that the first windows cover, in (0, 1]; .8. It is halved after 10, 50,
        200, 500, 1000, 2000, 4000, 6000 and 8000 queries.
      rescale: stretches these numbers by num_steps / 10000, as in the paper; AutoAttack does not.
      loss: 'margin' (for logits; the published one) or 'task' (the victim's own, for any task).

    Returns:
      The attack.

    Raises:
      ValueError: for an option out of range or unknown; while attacking, for images that are not
        `[B, H, W, C]`.

    Differs from the paper in: nothing that is meant; from AutoAttack's code in: windows, signs (linf) and
      orientations (l2, l1) are drawn per example instead of per batch, and a window may touch the last
      row and column, which the code never reaches. Being misclassified is judged by the victim's criterion
      instead of by margin <= 0, so that ties do not end the search. Windows are at most as large as the
      image's shorter side, as in AutoAttack; where the start's tiles, whose side is a fifth of the
      height, do not fit, fewer are laid.

    References:
      Andriushchenko et al., Square Attack: a Query-efficient Black-box Adversarial Attack via Random
      Search, ECCV 2020, algorithms 1 to 3. L1 and the constants: AutoAttack (Croce and Hein, ICML 2020).
    """
    if num_steps < 1 or not 0 < p <= 1:
        raise ValueError(f'square needs num_steps >= 1 and p in (0, 1], not {num_steps}, {p}')
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if loss not in LOSSES:
        did_you_mean(loss, LOSSES, 'loss of square')

    def init(victim: Victim, keys: Array, images: Array, targets: Targets, clean_outputs: Outputs | None,
             knobs: Knobs) -> AttackState:
        if images.ndim != 4:
            raise ValueError(f'square moves windows in 2-D images [batch, height, width, channels], '
                             f'not in images shaped {images.shape}; simba takes any number of axes')
        draws = draw_start(keys, images.shape, norm=norm)
        first = (moves.linf_start(images, knobs['eps'], *draws) if norm == 'linf'
                 else moves.bump_start(images, knobs['eps'], *draws, norm=norm))
        best = {'image': first, 'loss': jnp.full(len(images), -jnp.inf, images.dtype),
                'wrong': jnp.zeros(len(images), bool)}
        return looks.start_state(keys, first, knobs, best)

    def step(victim: Victim, images: Array, targets: Targets, state: AttackState) -> AttackState:
        outputs = victim.forward(state.images, looks.pass_keys(state))
        found, wrong = victim.loss(outputs, targets), ~victim.acceptable(outputs, targets)
        state = looks.record(state, found, ~wrong)
        best = _accept(state, found.astype(images.dtype), wrong)
        level = moves.level_of(state.step - 1, num_steps if rescale else 10000)
        side_list = moves.sides(*images.shape[1:3], p=p, norm=norm)
        side = jnp.asarray(side_list, jnp.int32)[level]
        eps = state.knobs['eps']
        if norm == 'linf':
            window, signs = draw_linf(state.key, state.step, side, images.shape)
            moved = moves.linf_move(images, best['image'], eps, window, signs)
        else:
            bumps = moves.make_bumps(side_list, norm=norm)
            draws = draw_bumps(state.key, state.step, side, images.shape)
            moved = moves.bump_move(images, best['image'], eps, bumps, level, draws, norm=norm)
        return looks.move_to(state, moved, best)

    attack = Attack(init, step, num_steps)
    return with_loss(attack, margin) if loss == 'margin' else attack


def _accept(state: AttackState, loss: Array, wrong: Array) -> dict[str, Array]:
    """The best point after a look: a misclassified one beats a right one, then the higher loss."""
    best = state.inner
    accept = jnp.where(wrong == best['wrong'], loss > best['loss'], wrong)
    return {'image': jnp.where(per_example(accept, state.images), state.images, best['image']),
            'loss': jnp.where(accept, loss, best['loss']), 'wrong': best['wrong'] | wrong}


def _uniform(keys: Array, number: int | Array, count: int) -> Array:
    """The draws `[B, count]` of move `number`; 0 is the start."""
    return rng.uniform(rng.fold(rng.fold(keys, _DRAWS), number), (count,))


def _signs(uniform: Array) -> Array:
    return jnp.where(uniform < .5, -1, 1)


def _window(uniform: Array, side: Array, shape: tuple[int, ...]) -> moves.Window:
    """A window anywhere in the image, from two draws `[B, 2]`."""
    room = jnp.stack([shape[1] - side, shape[2] - side], axis=1)
    corner = jnp.minimum(jnp.floor(uniform * (room + 1)).astype(jnp.int32), room)
    return moves.Window(corner[:, 0], corner[:, 1], side)


def draw_start(keys: Array, shape: tuple[int, ...], *, norm: str) -> tuple[Array, ...]:
    """What the start draws: the stripes' signs; or which tiles are transposed, and their signs."""
    batch, height, width, channels = shape
    if norm == 'linf':
        return (_signs(_uniform(keys, 0, width * channels)).reshape(batch, 1, width, channels),)
    _, _, rows, columns = moves.tiling(height, width)
    uniform = _uniform(keys, 0, rows * columns * (1 + channels)).reshape(batch, rows, columns, 1 + channels)
    return uniform[..., 0] < .5, _signs(uniform[..., 1:])


def draw_linf(keys: Array, number: Array, side: Array, shape: tuple[int, ...]) -> tuple[moves.Window, Array]:
    """What move `number` `[B]`, 1 or more, draws in linf: a window and a sign per channel."""
    uniform = _uniform(keys, number, 2 + shape[3])
    return _window(uniform[:, :2], side, shape), _signs(uniform[:, 2:])


def draw_bumps(keys: Array, number: Array, side: Array, shape: tuple[int, ...]) -> moves.BumpDraws:
    """What move `number` `[B]`, 1 or more, draws in l2 and l1."""
    uniform = _uniform(keys, number, 5 + shape[3])
    return moves.BumpDraws(_window(uniform[:, :2], side, shape), _window(uniform[:, 2:4], side, shape),
                           uniform[:, 4] < .5, _signs(uniform[:, 5:]))
