"""HopSkipJump and the boundary attack against foolbox: the same weights, starts and number of queries.

Both are random walks, so what is compared is the median distance over images; foolbox's queries are
counted as the rows that its model is given.

Without PyTorch and foolbox every test here is skipped; `make test-peers` installs them.
"""
import warnings
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.boundary import boundary_attack
from medrobust_jax.attacks.hopskipjump import hopskipjump
from medrobust_jax.attacks.run import run
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

HAS_PEERS = all(find_spec(name) for name in ('torch', 'foolbox'))
if HAS_PEERS:
    import torch
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it imports from a SciPy namespace that is going away
        import foolbox

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not HAS_PEERS, reason='PyTorch or foolbox is missing: run `make test-peers`'),
    pytest.mark.filterwarnings('default')]
BATCH, SIDE = 24, 10


@pytest.fixture(scope='module')
def twins():
    """A tanh network in both libraries, images with their labels, and a fooling start for each."""
    draws = np.random.default_rng(0)
    size = SIDE * SIDE
    weights = [w.astype(np.float32) for w in (draws.normal(size=(size, 24)) / np.sqrt(size) * 3,
                                              draws.normal(size=(24, 3)))]
    images = draws.uniform(.2, .8, size=(BATCH, SIDE, SIDE, 1)).astype(np.float32)

    def forward(x, keys):
        return jnp.tanh((x.reshape(len(x), -1) - .5) @ weights[0]) @ weights[1]

    class Net(torch.nn.Module):
        """Counts the rows it is given."""

        rows = 0

        def forward(self, x):
            Net.rows += len(x)
            hidden = torch.tanh((x.reshape(len(x), -1) - .5) @ torch.from_numpy(weights[0]))
            return hidden @ torch.from_numpy(weights[1])

    labels = np.asarray(forward(images, None)).argmax(1)
    noise = draws.uniform(size=(BATCH, 200, SIDE, SIDE, 1)).astype(np.float32)
    classes = np.asarray(forward(noise.reshape(-1, SIDE, SIDE, 1), None)).argmax(1).reshape(BATCH, 200)
    fooling = classes != labels[:, None]
    assert fooling.any(axis=1).all()
    starts = noise[np.arange(BATCH), fooling.argmax(axis=1)]
    return SimpleNamespace(victim=Victim(forward, cross_entropy, prediction_is_right), images=images,
                           labels=labels, starts=starts, net=Net)


def theirs(twins, attack, norm, *, rows):
    """Foolbox's distances `[B]` and the fewest queries it spent on an image, in batches of `rows`."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = foolbox.PyTorchModel(twins.net().eval(), bounds=(0, 1), device='cpu')
    images, starts = (torch.from_numpy(np.moveaxis(a, -1, 1).copy()) for a in (twins.images, twins.starts))
    labels, distances, queries = torch.from_numpy(twins.labels), [], []
    for part in torch.arange(BATCH).split(rows):
        twins.net.rows = 0
        found = attack.run(model, images[part], foolbox.criteria.Misclassification(labels[part]),
                           starting_points=starts[part])
        queries.append(twins.net.rows // len(part))
        distances += [np.linalg.norm(d.numpy().ravel(), ord=norm) for d in found - images[part]]
    return np.array(distances), min(queries)


def ours(twins, attack):
    found = jax.jit(partial(run, attack, twins.victim, eps=jnp.inf, knobs={'start_image': twins.starts}))(
        rng.example_keys(0, np.arange(BATCH)), twins.images, twins.labels)
    assert not found.acceptable.any()
    return -np.asarray(found.loss)


@pytest.mark.parametrize(('constraint', 'norm'), [('l2', 2), ('linf', np.inf)])
def test_hopskipjump_is_as_near_as_foolbox(constraint, norm, twins):
    # One image at a time: foolbox 3.3 scales L2 steps by the norm of the whole batch's gradients.
    attack = foolbox.attacks.HopSkipJumpAttack(steps=8, constraint=constraint)
    reference, queries = theirs(twins, attack, norm, rows=1)
    distance = ours(twins, hopskipjump(num_queries=queries, norm=constraint))
    ratio = np.median(distance) / np.median(reference)
    print(f'{constraint}: {queries} queries, median distance {np.median(distance):.4f}, foolbox '
          f'{np.median(reference):.4f}, ratio {ratio:.3f}')
    assert 1000 < queries < 5000
    assert .8 < ratio < 1.1


def test_boundary_attack_is_as_near_as_foolbox(twins):
    reference, queries = theirs(twins, foolbox.attacks.BoundaryAttack(steps=2500), 2, rows=BATCH)
    # Foolbox adapts from the last 100 sphere points and 30 proposals, looking at every tenth of them.
    slow = ours(twins, boundary_attack(num_queries=queries, sphere_window=100, proposal_window=300))
    distance = ours(twins, boundary_attack(num_queries=queries))
    ratios = [np.median(d) / np.median(reference) for d in (slow, distance)]
    print(f'boundary: {queries} queries, median distance {np.median(distance):.4f}, foolbox '
          f'{np.median(reference):.4f}, ratio {ratios[1]:.3f}, with windows like foolbox {ratios[0]:.3f}')
    assert .8 < ratios[0] < 1.15
    assert ratios[1] < .9
