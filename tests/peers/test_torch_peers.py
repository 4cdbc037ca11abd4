"""The same weights, attacks and losses in PyTorch: networks, iterates, verdicts, training losses.

Arithmetic is in float64 wherever iterates are compared, so that signs of tiny gradients agree.
Without PyTorch every test here is skipped; `make test-peers` installs it.
"""
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks import pgd as attacks
from medrobust_jax.attacks.run import perturb, run
from medrobust_jax.core import balls, rng
from medrobust_jax.core.types import Victim
from medrobust_jax.defenses.radius import constant
from medrobust_jax.defenses.trades import trades
from medrobust_jax.losses.classification import cross_entropy, kl_divergence, prediction_is_right
from medrobust_jax.models.forward import apply_model, eval_forward, init_variables
from medrobust_jax.models.resnet import ResNet
from medrobust_jax.tasks.classification import classification

HAS_PEERS = all(find_spec(name) for name in ('torch', 'torchattacks', 'art'))
if HAS_PEERS:
    import torch
    import torchattacks
    from art.utils import projection as art_projection
    from torch.nn import functional

    from benchmarks import torch_attacks, torch_resnet

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(not HAS_PEERS, reason='PyTorch, torchattacks or ART is missing: run `make test-peers`')]
NUM_CLASSES = 4


@pytest.fixture
def float64():
    """JAX in double precision."""
    with jax.enable_x64(True):
        yield


def make_twins(*, stem='small', size=12, channels=3, batch=6, dtype=np.float64, seed=0):
    """A small ResNet with lively weights and statistics, its PyTorch twin, and a batch for both."""
    module = ResNet(num_outputs=NUM_CLASSES, stage_sizes=(1, 1), width=8, stem=stem)
    draws = np.random.default_rng(seed)
    variables = init_variables(module, jax.random.key(seed), (size, size, channels))
    # Away from the initial zeros and ones, which would hide a statistic put in the wrong place.
    params, model_state = jax.tree.map(
        lambda a: (np.asarray(a) + .2 * draws.uniform(size=a.shape)).astype(dtype) if a.ndim == 1
        else np.asarray(a).astype(dtype), variables)
    peer = torch_resnet.ResNet(num_outputs=NUM_CLASSES, num_channels=channels, stage_sizes=(1, 1), width=8,
                               stem=stem)
    peer = torch_resnet.carry_over(peer.double() if dtype == np.float64 else peer, params, model_state)
    images = draws.uniform(size=(batch, size, size, channels)).astype(dtype)
    labels = draws.integers(NUM_CLASSES, size=batch).astype(np.int32)
    return SimpleNamespace(
        module=module, params=params, model_state=model_state, peer=peer, images=images, labels=labels,
        victim=Victim(eval_forward(module, params, model_state), cross_entropy, prediction_is_right),
        keys=rng.example_keys(seed, np.arange(batch)), torch_images=torch_resnet.to_torch(images),
        torch_labels=torch.from_numpy(labels).long())


def last_of(attack, twins, eps):
    """Our last iterate."""
    attacked = jax.jit(lambda keys, images, labels: perturb(attack, twins.victim, keys, images, labels, eps=eps))
    return np.asarray(attacked(twins.keys, twins.images, twins.labels))


@pytest.mark.parametrize(('stem', 'size', 'channels'), [('small', 11, 3), ('strided', 14, 1), ('large', 33, 3)])
def test_logits_and_input_gradients(float64, stem, size, channels):
    twins = make_twins(stem=stem, size=size, channels=channels)

    @jax.jit
    def ours(images):
        logits, pull = jax.vjp(lambda x: twins.victim.forward(x, None), images)
        return logits, pull(jnp.sin(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape))[0]

    logits, gradient = ours(twins.images)
    theirs = twins.torch_images.requires_grad_()
    torch_logits = twins.peer(theirs)
    weights = torch.sin(torch.arange(torch_logits.numel(), dtype=torch.float64)).reshape(torch_logits.shape)
    torch_gradient, = torch.autograd.grad((torch_logits * weights).sum(), theirs)
    assert logits.dtype == jnp.float64
    np.testing.assert_allclose(logits, torch_logits.detach().numpy(), rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(gradient, torch_resnet.to_numpy(torch_gradient), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(('norm', 'start', 'eps'), [
    ('linf', 'clean', .03), ('l2', 'clean', .5), ('linf', 'ball', .03), ('l2', 'ball', .5)])
def test_pgd_iterates_are_a_plain_loops(float64, norm, start, eps):
    twins = make_twins()
    radius = np.full(len(twins.images), eps)
    noise = attacks.start_noise(twins.keys, jnp.asarray(twins.images), radius, start=start, norm=norm)
    ours = last_of(attacks.pgd(num_steps=20, norm=norm, start=start, relative_step_size=.2), twins, eps)
    theirs = torch_attacks.pgd(twins.peer, twins.torch_images, twins.torch_labels, eps=eps, step_size=.2 * eps,
                               num_steps=20, norm=norm, start=torch_resnet.to_torch(noise))
    np.testing.assert_allclose(ours, torch_resnet.to_numpy(theirs), atol=1e-9)
    assert balls.norm_of(jnp.asarray(ours - twins.images), norm=norm).min() > .5 * eps


@pytest.mark.parametrize('name', ['FGSM', 'MIFGSM', 'BIM'])
def test_iterates_are_torchattacks(float64, name):
    twins, eps = make_twins(), .04
    ours, theirs = {
        'FGSM': (attacks.fgsm(), partial(torchattacks.FGSM, eps=eps)),
        'MIFGSM': (attacks.mi_fgsm(num_steps=8, decay=.9),
                   partial(torchattacks.MIFGSM, eps=eps, alpha=eps / 8, steps=8, decay=.9)),
        'BIM': (attacks.ifgsm(num_steps=8), partial(torchattacks.BIM, eps=eps, alpha=eps / 8, steps=8)),
    }[name]
    expected = torch_resnet.to_numpy(theirs(twins.peer)(twins.torch_images, twins.torch_labels))
    assert expected.dtype == np.float64
    assert abs(expected - twins.images).max() > .9 * eps
    np.testing.assert_allclose(last_of(ours, twins, eps), expected, atol=1e-9)


def test_robust_accuracy_is_within_torchattacks_spread():
    twins = make_twins(batch=200, dtype=np.float32)
    eps = 1.2 * torch_attacks.median_margin(twins.peer, twins.torch_images)
    labels = twins.peer(twins.torch_images).argmax(1)
    attack = attacks.pgd(num_steps=10, relative_step_size=.25)
    attacked = jax.jit(lambda keys: run(attack, twins.victim, keys, twins.images, labels.numpy(), eps=eps))
    theirs, ours = [], []
    for seed in range(5):
        torch.manual_seed(seed)
        found = torchattacks.PGD(twins.peer, eps=eps, alpha=.25 * eps, steps=10)(twins.torch_images, labels)
        theirs.append(float((twins.peer(found).argmax(1) == labels).float().mean()))
        ours.append(float(attacked(rng.example_keys(seed, np.arange(200))).acceptable.mean()))
    one_image = 1 / 200
    assert .1 < np.mean(theirs) < .9
    assert min(theirs) - one_image <= np.mean(ours) <= max(theirs) + one_image


@pytest.mark.parametrize('eps', [.5, 5., 100.])
def test_l1_projection_is_arts(float64, eps):
    delta = np.random.default_rng(0).normal(size=(7, 4, 5, 2))
    ours = np.asarray(balls.project(jnp.asarray(delta), jnp.full(7, eps), norm='l1'))
    np.testing.assert_allclose(ours, art_projection(delta, eps, 1, suboptimal=False), atol=1e-10)


@pytest.mark.parametrize('label_smoothing', [0., .1])
def test_cross_entropy_is_pytorchs(float64, label_smoothing):
    draws = np.random.default_rng(0)
    logits, labels = 5 * draws.normal(size=(9, 4)), draws.integers(4, size=9)
    expected = functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(labels), reduction='none',
                                        label_smoothing=label_smoothing)
    np.testing.assert_allclose(cross_entropy(jnp.asarray(logits), labels, label_smoothing=label_smoothing),
                               expected.numpy(), rtol=1e-12)


def test_kl_divergence_is_pytorchs(float64):
    reference, logits = 5 * np.random.default_rng(0).normal(size=(2, 9, 4))
    log_q, log_p = (torch.from_numpy(z).log_softmax(1) for z in (logits, reference))
    expected = functional.kl_div(log_q, log_p, reduction='none', log_target=True).sum(1)
    np.testing.assert_allclose(kl_divergence(jnp.asarray(reference), jnp.asarray(logits)), expected.numpy(),
                               rtol=1e-11)


@pytest.fixture
def trades_setting(float64):
    """TRADES on the twins, ours jitted: `craft()` and `loss(params, crafted)`."""
    twins = make_twins()
    attack = attacks.pgd(num_steps=10, relative_step_size=.25, start='gaussian')
    defense = trades(classification(NUM_CLASSES), attack, radius=constant(.03), beta=6.0)
    batch, forward = {'image': jnp.asarray(twins.images), 'label': twins.labels}, apply_model(twins.module)

    def craft():
        return jax.jit(partial(defense.craft, forward))(
            twins.params, twins.model_state, (), batch, jnp.zeros((), int), twins.keys)

    def loss(params, crafted):
        losses, (model_state, _) = defense.loss(forward, params, twins.model_state, (), batch, crafted, 0,
                                                twins.keys)
        return losses.mean(), model_state

    return twins, craft, loss


def test_trades_loss_and_gradient_are_pytorchs(trades_setting):
    twins, _, loss = trades_setting
    crafted = np.clip(twins.images + np.random.default_rng(1).uniform(-.03, .03, twins.images.shape), 0, 1)
    (ours, model_state), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(twins.params, crafted)
    peer = twins.peer.train().requires_grad_()
    clean, attacked = peer(twins.torch_images), peer(torch_resnet.to_torch(crafted))
    divergence = functional.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction='batchmean')
    theirs = functional.cross_entropy(clean, twins.torch_labels) + 6.0 * divergence
    theirs.backward()
    np.testing.assert_allclose(ours, theirs.item(), rtol=1e-10)
    np.testing.assert_allclose(gradient['stem']['conv']['kernel'],
                               peer.stem.conv.weight.grad.numpy().transpose(2, 3, 1, 0), rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(gradient['head']['dense']['bias'], peer.head.bias.grad.numpy(), atol=1e-11)
    np.testing.assert_allclose(model_state['batch_stats']['stem']['norm']['norm']['mean'],
                               peer.stem.norm.running_mean.numpy(), rtol=1e-10)


def test_trades_crafts_what_its_authors_loop_does(trades_setting):
    twins, craft, _ = trades_setting
    eps, images = np.float32(.03).item(), twins.torch_images
    noise = attacks.start_noise(twins.keys, jnp.asarray(twins.images), np.full(len(images), eps), start='gaussian',
                                norm='linf')
    reference = twins.peer(images).softmax(1)
    adversarial = (images + torch_resnet.to_torch(noise)).clamp(0, 1)
    for _ in range(10):
        adversarial.requires_grad_()
        divergence = functional.kl_div(twins.peer(adversarial).log_softmax(1), reference, reduction='sum')
        gradient, = torch.autograd.grad(divergence, adversarial)
        moved = adversarial.detach() + .25 * eps * gradient.sign()
        adversarial = torch.min(torch.max(moved, images - eps), images + eps).clamp(0, 1)
    np.testing.assert_allclose(craft(), torch_resnet.to_numpy(adversarial), atol=1e-9)
