"""FAB and Square against torchattacks and AutoAttack's own code (pyautoattack), on the same weights.

The references' images are read off from what they show to the model. FAB's first restart draws nothing; Square
is given the draws that its reference made. Arithmetic is in float64, to which the references, which cast to
float32, are moved by replacing that cast.
"""
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import square as square_module
from medrobust_jax.attacks import square_moves as moves
from medrobust_jax.attacks.fab import fab
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.attacks.square import square
from medrobust_jax.attacks.wrappers import stop_when_fooled
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

HAS_PEERS = all(find_spec(name) for name in ('torch', 'torchattacks', 'pyautoattack'))
if HAS_PEERS:
    import torch
    import torchattacks
    from pyautoattack.fab_pt import FABAttack_PT
    from pyautoattack.square import SquareAttack

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not HAS_PEERS, reason='PyTorch, torchattacks or pyautoattack is missing')]
NAMES = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
NUM_CLASSES = 4


@pytest.fixture(autouse=True)
def one_thread():
    """Threads that wait for each other cost more than these networks do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def float64(monkeypatch):
    """Both libraries in double precision, PyTorch's casts to single precision included."""
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def make_twins(*, size=11, channels=2, batch=6, seed=0, dtype=np.float64, confident=False):
    """A small smooth network in both libraries, and images on which it is right; `shown` is what the peer saw.

    With `confident`, the images of largest margin among ten times as many.
    """
    draws = np.random.default_rng(seed)
    w1 = (draws.normal(size=(size * size * channels, 16)) / size).astype(dtype)
    w2 = draws.normal(size=(16, NUM_CLASSES)).astype(dtype)
    images = draws.uniform(size=(10 * batch if confident else batch, size, size, channels)).astype(dtype)
    shown = []

    def forward(images, keys):
        return jnp.tanh((images.reshape(len(images), -1) - .5) @ w1) @ w2

    class Peer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (torch.nn.Parameter(torch.from_numpy(w)) for w in (w1, w2))

        def forward(self, images):
            images = images.permute(0, 2, 3, 1)
            shown.append(images.detach().numpy().copy())
            return torch.tanh((images.flatten(1) - .5) @ self.first) @ self.second

    logits = np.asarray(forward(jnp.asarray(images), None))
    kept = np.argsort(np.subtract(*np.sort(logits, axis=1)[:, -2:].T))[:batch]  # runner-up minus first
    images, labels = images[kept], logits[kept].argmax(1)
    victim = Victim(forward, cross_entropy, prediction_is_right)
    return SimpleNamespace(victim=victim, images=images, labels=labels, peer=Peer().eval(), shown=shown,
                           keys=rng.example_keys(seed, np.arange(batch)),
                           torch_images=torch.from_numpy(images.transpose(0, 3, 1, 2).copy()),
                           torch_labels=torch.from_numpy(labels).long())


def looks_of(attack, twins, *, eps, num_looks):
    """The images that our attack looks at, `[looks, B, ...]`."""
    victim = attack.adapt(twins.victim)
    images, labels = jnp.asarray(twins.images), jnp.asarray(twins.labels)
    clean = victim.forward(images, None)
    start = jax.jit(lambda eps: begin(attack, victim, twins.keys, images, labels, eps=eps, clean_outputs=clean))
    step, seen, state = jax.jit(lambda state: attack.step(victim, images, labels, state)), [], start(eps)
    for _ in range(num_looks):
        seen.append(np.asarray(state.images))
        state = step(state)
    return np.stack(seen), state


def reference_fab(library, twins, *, norm, targeted, num_steps, eps):
    """What the reference found."""
    options = {'norm': NAMES[norm], 'eps': eps}
    if library == 'torchattacks':
        attack = torchattacks.FAB(twins.peer, steps=num_steps, **options)
        attack.target_class, attack.multi_targeted = 2, True
        single = attack.attack_single_run_targeted if targeted else attack.attack_single_run
        found = single(twins.torch_images, twins.torch_labels)
    else:
        attack = FABAttack_PT(twins.peer, n_iter=num_steps, device='cpu', **options)
        attack.target_class = 2
        found = attack.attack_single_run(twins.torch_images, twins.torch_labels, is_targeted=targeted)
    return found.numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize('library', ['torchattacks', 'pyautoattack'])
@pytest.mark.parametrize('targeted', [False, True])
@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_fab_iterates_are_the_references(norm, targeted, library, float64):
    twins, num_steps = make_twins(), 30
    found = reference_fab(library, twins, norm=norm, targeted=targeted, num_steps=num_steps, eps=.3)
    # Per iteration: the point of linearization, then the candidate.
    candidates = np.stack(twins.shown[-2 * num_steps:][1::2])
    ours, state = looks_of(fab(num_steps=num_steps, norm=norm, targeted=targeted), twins, eps=np.inf,
                           num_looks=num_steps + 1)
    assert candidates.dtype == ours.dtype == np.float64
    assert abs(candidates - twins.images).max() > .01
    np.testing.assert_allclose(ours[1:], candidates, atol=1e-9)
    np.testing.assert_allclose(state.best_images, found, atol=1e-9)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_fab_from_a_random_start_is_the_references(norm, float64, monkeypatch):
    twins, num_steps = make_twins(), 15
    attack = FABAttack_PT(twins.peer, n_iter=num_steps, device='cpu', norm=NAMES[norm], eps=.2)
    attack.attack_single_run(twins.torch_images, twins.torch_labels, use_rand_start=True)
    start = twins.shown[-2 * num_steps]
    candidates = np.stack(twins.shown[-2 * num_steps:][1::2])
    monkeypatch.setattr('medrobust_jax.attacks.fab._start', lambda keys, images, knobs, norm: jnp.asarray(start))
    ours, _ = looks_of(fab(num_steps=num_steps, norm=norm), twins, eps=np.inf, num_looks=num_steps + 1)
    np.testing.assert_allclose(ours[1:], candidates, atol=1e-9)


def replayed(drawn, *, norm, shape, num_steps):
    """Our draws for every move, from the reference's uniform draws in their order."""
    uniform = iter(drawn)
    side_list = moves.sides(*shape[1:3], p=.8, norm=norm)
    side = np.asarray(side_list)[np.asarray(moves.level_of(jnp.arange(num_steps)))]

    def signs():
        return np.sign(2 * next(uniform) - 1)

    def corner(step):
        return [int(float(next(uniform)[0]) * (size - side[step])) for size in shape[1:3]]

    if norm == 'linf':
        start = (signs().transpose(0, 2, 3, 1),)
        made = [(corner(step), signs().reshape(-1)) for step in range(num_steps)]
        return start, side, made
    _, _, rows, columns = moves.tiling(*shape[1:3])
    tiles = [(float(next(uniform)[0]) > .5, signs()[:, :, 0, 0]) for _ in range(rows * columns)]
    turned = np.broadcast_to([t for t, _ in tiles], (shape[0], len(tiles))).reshape(-1, rows, columns)
    start = (turned, np.stack([s for _, s in tiles], axis=1).reshape(shape[0], rows, columns, -1))
    made = [(corner(step), corner(step), float(next(uniform)[0]) > .5, signs()[:, :, 0, 0])
            for step in range(num_steps)]
    return start, side, made


def replay(monkeypatch, drawn, *, norm, shape, num_steps):
    """Lets our Square make the reference's draws; the move after the last look is its first again."""
    start, side, made = replayed(drawn, norm=norm, shape=shape, num_steps=num_steps)
    start, table = jax.tree.map(jnp.asarray, start), [jnp.asarray(np.stack(a)) for a in zip(*made, strict=True)]
    side = jnp.asarray(side)

    def window(corners, number):
        return moves.Window(corners[number - 1, 0], corners[number - 1, 1], side[number - 1])

    def draw_linf(keys, number, _, shape):
        signs = table[1][number - 1]
        return window(table[0], number), signs

    def draw_bumps(keys, number, _, shape):
        rows = jnp.arange(shape[0])
        return moves.BumpDraws(window(table[0], number), window(table[1], number), table[2][number - 1],
                               table[3][number - 1, rows])

    monkeypatch.setattr(square_module, 'draw_start', lambda keys, shape, norm: start)
    monkeypatch.setattr(square_module, 'draw_linf', draw_linf)
    monkeypatch.setattr(square_module, 'draw_bumps', draw_bumps)


@pytest.mark.parametrize(('library', 'norm', 'channels'), [
    ('torchattacks', 'linf', 2), ('torchattacks', 'l2', 1), ('pyautoattack', 'linf', 2), ('pyautoattack', 'l2', 2),
    ('pyautoattack', 'l1', 2)])
def test_square_with_the_references_draws_is_the_reference(library, norm, channels, float64, monkeypatch):
    twins, num_steps = make_twins(size=15, channels=channels, confident=True), 60
    eps = {'linf': .01, 'l2': .05, 'l1': .2}[norm]  # too little to fool, or the reference's batch would shrink
    drawn, rand = [], torch.rand
    monkeypatch.setattr(torch, 'rand', lambda *a: drawn.append(rand(*a)) or drawn[-1])
    options = {'norm': NAMES[norm], 'eps': eps, 'n_queries': num_steps, 'resc_schedule': False}
    attack = torchattacks.Square(twins.peer, **options) if library == 'torchattacks' else (
        SquareAttack(twins.peer, device='cpu', **options))
    (attack if library == 'torchattacks' else attack.perturb)(twins.torch_images, twins.torch_labels)
    theirs = np.stack(twins.shown[1:num_steps + 2])  # after the clean images: the start and every query
    replay(monkeypatch, [d.numpy() for d in drawn], norm=norm, shape=twins.images.shape, num_steps=num_steps)
    ours, state = looks_of(square(num_steps=num_steps, norm=norm), twins, eps=eps, num_looks=num_steps + 1)
    assert state.acceptable.all()
    # In l1 the reference divides what a window holds by its size plus 1e-12, also where that is rounding alone;
    # ours holds exact zeros there.
    np.testing.assert_allclose(ours, theirs, atol=1e-5 if norm == 'l1' else 1e-9)
    assert np.mean(abs(ours - theirs) < 1e-9) > .999
    last = twins.shown[-1]  # the reference's best images, looked at once more
    np.testing.assert_allclose(state.inner['image'], last, atol=1e-9)


def spread(values):
    return max(values) - min(values)


@pytest.mark.parametrize(('name', 'norm', 'eps'), [
    ('fab', 'linf', .02), ('fab', 'l2', .25), ('square', 'linf', .06), ('square', 'l2', .6), ('square', 'l1', 3.)])
def test_robust_accuracy_is_not_above_the_references(name, norm, eps):
    twins = make_twins(batch=100, dtype=np.float32, size=10)
    num_steps = {'fab': 20, 'square': 150}[name]
    attack = fab(num_steps=num_steps, norm=norm) if name == 'fab' else stop_when_fooled(
        square(num_steps=num_steps, norm=norm))
    attacked = jax.jit(lambda keys, knobs: run(attack, twins.victim, keys, twins.images, twins.labels, eps=eps,
                                               knobs=knobs))
    theirs, ours = [], []
    for seed in range(5):
        if name == 'fab':  # the second restart, which starts at random
            torch.manual_seed(seed)
            peer = FABAttack_PT(twins.peer, n_iter=num_steps, device='cpu', norm=NAMES[norm], eps=eps)
            found = peer.attack_single_run(twins.torch_images, twins.torch_labels, use_rand_start=True)
        else:
            peer = SquareAttack(twins.peer, n_queries=num_steps, device='cpu', norm=NAMES[norm], eps=eps,
                                seed=seed, resc_schedule=False)
            found = peer.perturb(twins.torch_images, twins.torch_labels)
        found = found.numpy().transpose(0, 2, 3, 1)
        size = np.linalg.norm((found - twins.images).reshape(100, -1),
                              ord={'linf': np.inf, 'l2': 2, 'l1': 1}[norm], axis=1)
        right = np.asarray(twins.victim.forward(found, None)).argmax(1) == twins.labels
        theirs.append(np.mean(right | (size > eps * (1 + 1e-5))))
        knobs = {'restart': jnp.ones(100, jnp.int32)}
        ours.append(float(attacked(rng.example_keys(seed, np.arange(100)), knobs).acceptable.mean()))
    print(f'{name} {norm}: robust accuracy {np.mean(ours):.3f} (ours), {np.mean(theirs):.3f} (reference), '
          f'spreads {spread(ours):.3f}, {spread(theirs):.3f}')
    assert .1 < np.mean(theirs) < .9
    assert np.mean(ours) <= np.mean(theirs) + max(spread(theirs), .01)
