"""Minimum-norm attacks against Foolbox, on the same weights in float64.

Where the algorithms are the same and deterministic the images agree to rounding. Where the peer
departs from the paper it is corrected here, in as few lines as possible, and the departure is named.
"""
import math
import warnings
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.carlini import cw_l2
from medrobust_jax.attacks.ddn import ddn
from medrobust_jax.attacks.deepfool import deepfool
from medrobust_jax.attacks.fmn import fmn
from medrobust_jax.attacks.run import run
from medrobust_jax.attacks.wrappers import targeted
from medrobust_jax.core import rng
from medrobust_jax.core.types import Victim
from medrobust_jax.losses.classification import cross_entropy, prediction_is_right

HAS_PEERS = all(find_spec(name) for name in ('torch', 'foolbox'))
if HAS_PEERS:
    import torch

    with warnings.catch_warnings():  # of SciPy, about Foolbox's imports
        warnings.simplefilter('ignore', DeprecationWarning)
        import foolbox
        from foolbox.attacks import carlini_wagner

pytestmark = [pytest.mark.peers,
              pytest.mark.skipif(not HAS_PEERS, reason='PyTorch or Foolbox is missing: run `make test-peers`')]
SHAPE, CLASSES, BATCH = (6, 5, 2), 4, 12
ORDER = {'l1': 1, 'l2': 2, 'linf': np.inf}


@pytest.fixture
def twins():
    """A smooth two-layer network in both libraries, in float64, and images it gets right."""
    with jax.enable_x64(True):
        draws = np.random.default_rng(0)
        size = math.prod(SHAPE)
        w1, w2 = 3 * draws.normal(size=(size, 16)) / math.sqrt(size), 2 * draws.normal(size=(16, CLASSES))
        forward = lambda x, keys: jnp.tanh((x.reshape(len(x), -1) - .5) @ w1) @ w2  # noqa: E731
        peer = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 16), torch.nn.Tanh(),
                                   torch.nn.Linear(16, CLASSES, bias=False)).double()
        with torch.no_grad():
            peer[1].weight.copy_(torch.from_numpy(w1.T))
            peer[1].bias.copy_(torch.from_numpy(-.5 * w1.sum(axis=0)))
            peer[3].weight.copy_(torch.from_numpy(w2.T))
        images = draws.uniform(.05, .95, size=(BATCH, *SHAPE))
        labels = np.asarray(forward(images, None)).argmax(1)
        labels[0] = (labels[0] + 1) % CLASSES  # wrong from the start
        yield SimpleNamespace(
            victim=Victim(forward, cross_entropy, prediction_is_right), images=images, labels=labels,
            wanted=(labels + 1) % CLASSES, keys=rng.example_keys(0, np.arange(BATCH)),
            peer=foolbox.PyTorchModel(peer.eval(), bounds=(0, 1)))


def ours(attack, twins, *, aim=False):
    targets = twins.wanted if aim else twins.labels
    attack = targeted(attack) if aim else attack
    found = jax.jit(lambda k, x, y: run(attack, twins.victim, k, x, y, eps=jnp.inf))(
        twins.keys, twins.images, targets)
    assert found.images.dtype == jnp.float64
    return jax.tree.map(np.asarray, found)


def theirs(attack, twins, *, aim=False):
    criterion = (foolbox.criteria.TargetedMisclassification(torch.from_numpy(twins.wanted)) if aim
                 else foolbox.criteria.Misclassification(torch.from_numpy(twins.labels)))
    found = attack.run(twins.peer, torch.from_numpy(twins.images), criterion)
    assert found.dtype == torch.float64
    return found.numpy()


def norms(images, twins, norm):
    return np.linalg.norm((images - twins.images).reshape(BATCH, -1), ord=ORDER[norm], axis=1)


@pytest.mark.parametrize('aim', [False, True])
def test_ddn_is_foolboxs(twins, aim):
    # A gamma that float32 holds exactly: Foolbox keeps 1 +- gamma in it.
    expected = theirs(foolbox.attacks.DDNAttack(steps=60, gamma=1 / 16), twins, aim=aim)
    found = ours(ddn(num_steps=60, gamma=1 / 16), twins, aim=aim)
    assert not found.acceptable.any()
    np.testing.assert_allclose(found.images, expected, atol=1e-10)


def projected_l2(x, x0, epsilon):
    """What Foolbox 3.3's L2 projection should be: it multiplies by `minimum(1, norms / norms)`, that is by 1."""
    sizes = (x - x0).flatten(1).norms.l2(axis=-1)
    factor = (epsilon / sizes.maximum(1e-12)).minimum(1)
    return x0 + (x - x0) * factor.reshape((-1, 1, 1, 1))


def peer_fmn(norm, **options):
    attack = {'l1': foolbox.attacks.L1FMNAttack, 'l2': foolbox.attacks.L2FMNAttack,
              'linf': foolbox.attacks.LInfFMNAttack}[norm](**options)
    if norm == 'l2':
        attack.project = projected_l2
    return attack


@pytest.mark.parametrize('norm', ORDER)
def test_fmn_without_insisting_is_foolboxs(twins, norm):
    # Few steps: later, iterates on the boundary let rounding decide the path (and who fools, so no verdicts here).
    expected = theirs(peer_fmn(norm, steps=10), twins)
    found = ours(fmn(num_steps=10, norm=norm, insist=False), twins)
    # Where the peer finds nothing it returns the clean image, we the image nearest to fooling.
    compared = norms(expected, twins, norm) > 0
    assert compared.mean() > .6
    np.testing.assert_allclose(found.images[compared], expected[compared], atol=1e-10)


@pytest.mark.parametrize(('norm', 'aim'), [('l1', False), ('l2', True), ('linf', False)])
def test_fmn_finds_at_least_as_near_images_as_foolbox_and_more_of_them(twins, norm, aim):
    expected = norms(theirs(peer_fmn(norm, steps=100), twins, aim=aim), twins, norm)
    found = ours(fmn(num_steps=100, norm=norm), twins, aim=aim)
    assert not found.acceptable.any()
    ratio = (norms(found.images, twins, norm) / np.where(expected > 0, expected, np.inf))[expected > 0]
    assert np.median(ratio) <= 1.001
    assert ratio.max() <= 1.02


@pytest.mark.parametrize('norm', ['l2', 'linf'])
def test_deepfool_is_foolboxs(twins, norm):
    peer = foolbox.attacks.L2DeepFoolAttack() if norm == 'l2' else foolbox.attacks.LinfDeepFoolAttack()
    found = ours(deepfool(norm=norm), twins)
    assert not found.acceptable.any()
    # The peer adds 1e-8 to the norms that it divides by.
    np.testing.assert_allclose(found.images, theirs(peer, twins), atol=1e-9)


@pytest.mark.parametrize(('aim', 'confidence'), [(False, 0.5), (True, 0.0)])
def test_carlini_wagner_is_foolboxs(twins, aim, confidence, monkeypatch):
    # The peer shrinks images by a millionth before it enters tanh space, which we need at the ends of
    # the box only; its constants are float32, so powers of two; it aborts by the batch's sum.
    monkeypatch.setattr(carlini_wagner, '_to_attack_space', lambda x, *, bounds: (2 * x - 1).arctanh())
    options = {'abort_early': False, 'confidence': confidence}
    expected = theirs(foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=40, initial_const=2**-4,
                                                            **options), twins, aim=aim)
    found = ours(cw_l2(search_steps=6, num_steps=40, initial_constant=2**-4, **options), twins, aim=aim)
    assert not found.acceptable.any()
    rows = slice(0 if aim else 1, None)  # wrong from the start, but not by the confidence: both may move it
    np.testing.assert_allclose(found.images[rows], expected[rows], atol=1e-10)


def test_carlini_wagner_aborting_early_finds_about_as_near_images(twins):
    expected = theirs(foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=6, steps=100, initial_const=.1),
                      twins)
    found = ours(cw_l2(search_steps=6, num_steps=100, initial_constant=.1), twins)
    assert not found.acceptable.any()
    ratio = norms(found.images, twins, 'l2')[1:] / norms(expected, twins, 'l2')[1:]
    assert np.median(ratio) <= 1.01
    assert ratio.max() <= 1.05
