"""APGD next to its authors' code and torchattacks': every iterate in float64, verdicts over five seeds.

Without PyTorch, torchattacks or pyautoattack (the authors' code) every test here is skipped.
"""
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.apgd import apgd, apgd_targeted
from medrobust_jax.attacks.apgd_l1 import project_to_ball_and_box
from medrobust_jax.attacks.run import begin, run
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses import classification as losses

HAS_PEERS = all(find_spec(name) for name in ('torch', 'torchattacks', 'pyautoattack'))
if HAS_PEERS:
    import torch
    import torchattacks
    from pyautoattack import autopgd_base

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not HAS_PEERS, reason='PyTorch, torchattacks or pyautoattack is missing')]
SHAPE = (8, 8, 2)  # a power of two entries, so that the reference's share of them is exact


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads cost more than they gain on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def float64(monkeypatch):
    """Double precision in JAX and PyTorch, also where the reference casts to single."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(torch.float32)


def make_twins(*, batch=6, classes=6, hidden=16, dtype=np.float64, seed=0, low=-.2, high=1.2):
    """One two-layer network in both frameworks, on channels-last images, and a batch that it gets right."""
    draws = np.random.default_rng(seed)
    size = int(np.prod(SHAPE))
    w1 = (4 * draws.normal(size=(size, hidden)) / np.sqrt(size)).astype(dtype)
    w2 = draws.normal(size=(hidden, classes)).astype(dtype)
    images = np.round(draws.uniform(low, high, size=(batch, *SHAPE)).clip(0, 1) * 255).astype(dtype) / dtype(255)
    t1, t2 = torch.from_numpy(w1), torch.from_numpy(w2)

    def peer(x):
        return torch.nn.functional.softplus((x.reshape(len(x), -1) - .5) @ t1) @ t2

    def forward(x, keys):
        return jax.nn.softplus((x.reshape(len(x), -1) - .5) @ w1) @ w2

    return SimpleNamespace(
        peer=peer, images=images, torch_images=torch.from_numpy(images),
        labels=np.asarray(peer(torch.from_numpy(images)).argmax(1)).astype(np.int32),
        victim=Victim(forward, losses.cross_entropy, losses.prediction_is_right),
        keys=rng.example_keys(seed, np.arange(batch)))


def our_iterates(attack, twins, *, eps, **knobs):
    """What the model is shown, `[looks, B, ...]`, and whether it withstood all counted looks."""
    victim = attack.adapt(twins.victim)
    images, labels = jnp.asarray(twins.images), jnp.asarray(twins.labels)
    knobs = {name: jnp.full(len(images), value) for name, value in knobs.items()}

    @jax.jit
    def go(keys, images, labels):
        state = begin(attack, victim, keys, images, labels, eps=eps, knobs=knobs,
                      clean_outputs=victim.forward(images, keys))

        def step(state, _):
            return attack.step(victim, images, labels, state), state.images
        return jax.lax.scan(step, state, length=attack.num_steps + 1)

    state, seen = go(twins.keys, images, labels)
    return np.asarray(seen), np.asarray(state.acceptable)


def their_iterates(twins, start, *, norm, loss, eps, num_steps, rho=.75, rank=None, monkeypatch=None,
                   larger_radii=True):
    """What the authors' attack shows the model from the same start, and its verdicts."""
    seen = []

    def model(x):
        seen.append(x.detach().numpy().copy())
        return twins.peer(x)

    names = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}
    x, y = twins.torch_images, torch.from_numpy(twins.labels).long()
    options = {'n_iter': num_steps, 'norm': names[norm], 'eps': eps, 'rho': rho, 'device': 'cpu'}
    if rank is None:
        attack = autopgd_base.APGDAttack(model, loss=loss, **options)
    else:
        attack = autopgd_base.APGDAttack_targeted(model, **options)
        attack.loss = {'dlr': 'dlr-targeted', 'ce': 'ce-targeted', 'margin': 'dlr-targeted'}[loss]
        if loss == 'margin':
            attack.dlr_loss_targeted = lambda z, y: (z.gather(1, attack.y_target[:, None])
                                                     - z.gather(1, y[:, None]))[:, 0]
        attack.y_target = twins.peer(x).sort(dim=1)[1][:, -rank - 1]
    attack.init_hyperparam(x)
    if norm != 'l1':
        _, acceptable, _, _ = attack.attack_single_run(x, y, x_init=torch.tensor(start))
        return np.stack(seen), acceptable.numpy()
    noise = torch.tensor(start) - x
    monkeypatch.setattr(torch, 'randn_like' if larger_radii else 'randn', lambda *_, **__: noise.clone())
    # Without the pixels that differ from the clean image's by rounding alone.
    monkeypatch.setattr(autopgd_base, 'L0_norm', lambda d: (d.abs() > 1e-12).flatten(1).sum(1))
    if larger_radii:
        lengths = [int(np.ceil(.3 * num_steps))] * 2
        _, acceptable, _, _ = attack.decr_eps_pgd(x, y, [3 * eps, 2 * eps, eps],
                                                  [*lengths, num_steps - sum(lengths)])
    else:
        _, acceptable, _, _ = attack.attack_single_run(x, y)
    return np.stack(seen), acceptable.numpy()


# Where the label has the third largest logit the DLR is constant, and its gradient mere rounding: L2 stays nearer.
@pytest.mark.parametrize(('norm', 'loss', 'rank', 'eps', 'num_steps', 'rho'), [
    ('linf', 'ce', None, .04, 100, .75), ('linf', 'dlr', 4, .04, 100, .75), ('linf', 'dlr', None, .04, 7, .5),
    ('l2', 'dlr', None, .1, 100, .75), ('l2', 'ce', 3, .4, 41, .6),
    ('l1', 'ce', None, 2., 100, .75), ('l1', 'dlr', 1, 2., 60, .75)])
def test_every_iterate_is_the_authors(norm, loss, rank, eps, num_steps, rho, float64, monkeypatch):
    twins = make_twins()
    if rank is None:
        ours, acceptable = our_iterates(apgd(num_steps=num_steps, norm=norm, loss=loss, rho=rho), twins, eps=eps)
    else:
        ours, acceptable = our_iterates(apgd_targeted(num_steps=num_steps, norm=norm, loss=loss, rho=rho), twins,
                                        eps=eps, target_rank=rank)
    theirs, their_acceptable = their_iterates(twins, ours[0], norm=norm, loss=loss, eps=eps, num_steps=num_steps,
                                              rho=rho, rank=rank, monkeypatch=monkeypatch)
    assert ours.dtype == theirs.dtype == np.float64
    assert len(ours) == num_steps + (3 if norm == 'l1' else 1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(acceptable, their_acceptable)
    assert 0 < acceptable.mean() < 1


def test_one_phase_of_l1_is_the_authors(float64, monkeypatch):
    twins, eps = make_twins(), 5.
    ours, acceptable = our_iterates(apgd(num_steps=60, norm='l1', larger_radii=False), twins, eps=eps)
    theirs, expected = their_iterates(twins, ours[0], norm='l1', loss='ce', eps=eps, num_steps=60,
                                      monkeypatch=monkeypatch, larger_radii=False)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(acceptable, expected)


@pytest.mark.parametrize('radius', [.5, 5., 30., 500.])
def test_l1_projection_is_the_authors(radius, float64):
    draws = np.random.default_rng(0)
    images = draws.uniform(-.3, 1.3, size=(7, 6, 5, 2)).clip(0, 1)
    delta = draws.normal(size=images.shape) * draws.integers(0, 2, images.shape)
    ours = project_to_ball_and_box(jnp.asarray(images), jnp.asarray(delta), jnp.full(7, radius))
    x, d = torch.from_numpy(images), torch.from_numpy(delta)
    theirs = d + autopgd_base.L1_projection(x, d, radius)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize(('name', 'loss'), [('APGD', 'ce'), ('APGDT', 'dlr')])
def test_every_iterate_is_torchattacks(name, loss, float64, monkeypatch):
    """Linf; in L2 its targeted attack moves all images by the first image's step size."""
    twins, eps, seen = make_twins(low=.1, high=.9), .04, []
    ours, _ = our_iterates(apgd(loss=loss) if name == 'APGD' else apgd_targeted(), twins, eps=eps)

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append(x.detach().numpy().copy())
            return twins.peer(x)

    options = {'eps': eps, 'steps': 100}
    peer = (torchattacks.APGD(Model().eval(), loss=loss, **options) if name == 'APGD'
            else torchattacks.APGDT(Model().eval(), n_classes=6, **options))
    peer.target_class = 2
    # A start on the surface, which clipping to the box does not undo.
    noise = torch.tensor(ours[0]) - twins.torch_images
    monkeypatch.setattr(torch, 'rand', lambda *_: (noise / noise.abs().amax((1, 2, 3), keepdim=True) + 1) / 2)
    peer.attack_single_run(twins.torch_images, torch.from_numpy(twins.labels).long())
    np.testing.assert_allclose(ours, np.stack(seen[len(seen) - len(ours):]), rtol=0, atol=1e-9)


@pytest.mark.parametrize('norm', ['linf', 'l2', 'l1'])
def test_robust_accuracy_is_within_the_authors_spread(norm):
    """Single precision, both as published."""
    twins = make_twins(batch=200, dtype=np.float32)
    eps = {'linf': .015, 'l2': .15, 'l1': 1.}[norm]
    attack = apgd(num_steps=30, norm=norm)
    attacked = jax.jit(lambda keys: run(attack, twins.victim, keys, twins.images, twins.labels, eps=eps))
    peer_norm = {'linf': 'Linf', 'l2': 'L2', 'l1': 'L1'}[norm]
    theirs, ours = [], []
    for seed in range(5):
        peer = autopgd_base.APGDAttack(twins.peer, n_iter=30, norm=peer_norm, eps=eps, seed=seed,
                                       use_largereps=norm == 'l1', device='cpu')
        y = torch.from_numpy(twins.labels).long()
        found = peer.perturb(twins.torch_images, y)
        theirs.append(float((twins.peer(found).argmax(1) == y).float().mean()))
        ours.append(float(attacked(rng.example_keys(seed, np.arange(200))).acceptable.mean()))
    assert .1 < np.mean(theirs) < .9
    one_image = 1 / 200
    assert min(theirs) - one_image <= np.mean(ours) <= max(theirs) + one_image
