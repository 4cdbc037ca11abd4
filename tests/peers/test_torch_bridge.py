"""A PyTorch module through the bridge next to its twin in JAX: outputs, gradients, transformations, verdicts.

Without PyTorch every test here is skipped.
"""
import threading
from importlib.util import find_spec
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medrobust_jax.attacks.apgd import apgd_targeted
from medrobust_jax.attacks.fab import fab
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.evaluate.own_model import judge_model
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import Threat
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.models.torch_bridge import from_torch
from medrobust_jax.parallel.mesh import data_mesh

HAS_PEERS = find_spec('torch')
if HAS_PEERS:
    import torch
    from torch import nn

pytestmark = [pytest.mark.peers,
              pytest.mark.skipif(not HAS_PEERS, reason='PyTorch is missing: run `make test-peers`')]
CLASSES, SHAPE = 5, (8, 6, 2)
WHEN_COMPUTED = (ValueError, jax.errors.JaxRuntimeError)  # JAX's own paths differ in which


@pytest.fixture(autouse=True)
def one_thread():
    """PyTorch's threads cost more than they gain on networks this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_twins(*, batch=6, dtype=np.float32):
    """One convolutional network in both frameworks, a counter of PyTorch's passes, and images."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 7, 3, padding=1), nn.BatchNorm2d(7), nn.Tanh(), nn.Dropout(.5),
                           nn.Flatten(), nn.Linear(7 * 48, CLASSES))
    module[1].running_mean.uniform_(-.2, .2)
    module[1].running_var.uniform_(.5, 1.5)
    module = module.to(torch.float64 if dtype == np.float64 else torch.float32).eval()
    kernel, bias, mean, var, linear, offset = (t.detach().numpy() for t in (
        module[0].weight, module[0].bias, module[1].running_mean, module[1].running_var, module[5].weight,
        module[5].bias))

    def twin(images):
        x = jax.lax.conv_general_dilated(images, kernel.transpose(2, 3, 1, 0), (1, 1), 'SAME',
                                         dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + bias
        x = jnp.tanh((x - mean) / np.sqrt(var + 1e-5))
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1) @ linear.T + offset

    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    images = np.random.default_rng(0).uniform(size=(batch, *SHAPE)).astype(dtype)
    return SimpleNamespace(module=module, forward=from_torch(module), twin=twin, images=images, calls=calls)


def gradient(fn):
    return jax.grad(lambda x: jnp.sum(jnp.sin(fn(x))))


def test_outputs_and_gradients_are_the_twins_in_double_precision():
    with jax.enable_x64(True):
        twins = make_twins(dtype=np.float64)
        outputs = jax.jit(twins.forward)(twins.images)
        assert outputs.dtype == jnp.float64
        np.testing.assert_allclose(outputs, twins.twin(twins.images), rtol=1e-12)
        ours = jax.jit(gradient(twins.forward))(twins.images)
        np.testing.assert_allclose(ours, gradient(twins.twin)(twins.images), rtol=1e-10, atol=1e-13)


def test_under_every_transformation():
    twins = make_twins(batch=8)

    def climb(fn):
        def step(carry):
            return carry[0] + 1, carry[1] + gradient(fn)(carry[1])
        return lambda x: jax.lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]

    expected = climb(twins.twin)(twins.images)
    same = {'rtol': 1e-4, 'atol': 1e-5}
    np.testing.assert_allclose(climb(twins.forward)(twins.images), expected, **same)
    np.testing.assert_allclose(jax.jit(climb(twins.forward))(twins.images), expected, **same)
    for devices in (1, 2):
        mesh = data_mesh(jax.devices()[:devices])
        program = jax.jit(on_each_device(in_blocks(climb(twins.forward), width=2), mesh))
        np.testing.assert_allclose(program(twins.images), expected, **same)
    apart = jax.vmap(lambda x: climb(twins.forward)(x[None])[0])(twins.images)
    np.testing.assert_allclose(apart, expected, **same)
    wide = twins.forward(jnp.asarray(twins.images, jnp.bfloat16))
    assert wide.dtype == jnp.float32
    np.testing.assert_allclose(wide, twins.twin(twins.images), atol=.1)


def test_a_jacobian_and_a_gradient_make_one_pass_forward():
    twins = make_twins()
    pulled = lambda fn, x, rows: jax.vmap(jax.vjp(fn, x)[1])(rows)[0]  # noqa: E731
    rows = np.random.default_rng(1).normal(size=(4, 6, CLASSES)).astype(np.float32)
    expected = pulled(twins.twin, twins.images, rows)
    twins.forward(twins.images)
    twins.calls.clear()
    ours = pulled(twins.forward, jnp.asarray(twins.images), rows)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)
    assert len(twins.calls) == 1
    jax.block_until_ready(jax.jit(gradient(twins.forward))(twins.images))
    assert len(twins.calls) == 2
    several = np.stack([twins.images, twins.images[::-1]])
    twice = jax.vmap(lambda x: pulled(twins.forward, x, rows))(several)
    np.testing.assert_allclose(twice[1], pulled(twins.twin, several[1], rows), rtol=1e-4, atol=1e-6)


def test_gradients_asked_for_out_of_order():
    twins = make_twins()
    other = twins.images[::-1].copy()
    _, first = jax.vjp(twins.forward, jnp.asarray(twins.images))
    _, second = jax.vjp(twins.forward, jnp.asarray(other))
    ones = jnp.ones((6, CLASSES))
    expected = jax.vjp(twins.twin, jnp.asarray(twins.images))[1](ones)[0]
    np.testing.assert_allclose(first(ones)[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(first(ones)[0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second(ones)[0], expected[::-1], rtol=1e-4, atol=1e-6)


def test_large_arrays_do_not_lock_up():
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    images = np.random.default_rng(0).uniform(size=(16, 224, 224, 3)).astype(np.float32)
    step, found = gradient(from_torch(module)), []

    def loop(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x + step(x), x)

    def run():  # on more devices than cores, with several programs in flight
        for devices in (1, len(jax.devices())):
            program = jax.jit(on_each_device(in_blocks(loop, width=2), data_mesh(jax.devices()[:devices])))
            found.extend([program(images) for _ in range(3)])
        found.append(jax.jit(jax.vmap(loop))(images[:, None]))
        found[:] = map(np.asarray, found)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), 'callbacks wait for each other'
    for other in found[1:]:
        np.testing.assert_allclose(other.reshape(images.shape), found[0], atol=1e-5)


def test_verdicts_are_the_twins(tmp_path):
    twins = make_twins(batch=40)
    labels = np.asarray(twins.twin(twins.images)).argmax(axis=-1)
    threats = [Threat('pgd', pgd(num_steps=10), options={'attack': 'pgd'}),
               Threat('apgd_t', apgd_targeted(num_steps=8), num_targets=2),
               Threat('fab_t', fab(num_steps=8, targeted=True), num_targets=2)]
    layout = make_layout(data_mesh(jax.devices()[:1]), width=8, chunk=16)
    for name, forward in (('torch', twins.forward), ('jax', twins.twin)):
        judge_model(forward, twins.images, labels, workdir=tmp_path / name, attacks=threats, layout=layout,
                    eps_grid=(.005, .01, .02), num_pictures=0)
    for threat in threats:
        ours, theirs = (load_verdicts(tmp_path / name / 'verdicts' / f'{threat.name}.npz')
                        for name in ('torch', 'jax'))
        np.testing.assert_array_equal(ours.acceptable, theirs.acceptable)
        assert .05 < ours.acceptable.mean() < .95, threat.name
        np.testing.assert_allclose(ours.loss, theirs.loss, rtol=.01, atol=1e-4)


def test_axes_of_inputs_and_dense_outputs():
    images = np.random.default_rng(0).uniform(size=(2, 5, 4, 3)).astype(np.float32)
    doubled = from_torch(nn.Identity().eval())(images)
    np.testing.assert_array_equal(doubled, images)
    last = from_torch(nn.Linear(3, 4).eval(), channels_first=False)
    assert last(images).shape == (2, 5, 4, 4)
    volume = from_torch(nn.Sequential(nn.Conv3d(2, 3, 3), nn.Flatten()).eval())
    assert volume(np.ones((2, 4, 3, 3, 2), np.float32)).shape == (2, 6)


class InPlace(nn.Module if HAS_PEERS else object):
    """Works in place on what it is given, as many do in their first line."""

    def forward(self, x):
        return x.sub_(.5).flatten(1)


def test_a_module_may_work_in_place():
    images = np.full((2, 3, 3, 1), .75, np.float32)
    forward = from_torch(InPlace().eval())
    np.testing.assert_array_equal(forward(images), np.full((2, 9), .25))
    np.testing.assert_allclose(gradient(forward)(images), np.full_like(images, np.cos(.25)), rtol=1e-6)
    with torch.no_grad():
        np.testing.assert_allclose(gradient(forward)(images[:, :2])[0], np.cos(.25), rtol=1e-6)


@pytest.mark.parametrize(('make', 'message'), [
    (lambda: nn.Sequential(nn.Flatten(), nn.Dropout()), 'training mode'),
    (lambda: nn.Conv2d(5, 2, 3).eval(), r'shape \(2, 2, 8, 6\), made of \(2, 8, 6, 2\)'),
    (lambda: Returning(lambda x: {'out': x}), 'returns a dict'),
    (lambda: Returning(lambda x: x.mean(dim=(1, 2, 3))), r'shape \(2,\) for 2'),
    (lambda: Returning(lambda x: x[:1]), r'shape \(1, 2, 8, 6\) for 2'),
    (lambda: Returning(lambda x: torch.log(x - 1)), 'not finite')])
def test_refused_modules(make, message):
    with pytest.raises(ValueError, match=message):
        from_torch(make())(np.full((4, *SHAPE), .5, np.float32))


class Returning(nn.Module if HAS_PEERS else object):
    """A module that computes a given function."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x):
        return self.function(x)


def test_outputs_without_a_gradient_are_refused_where_one_is_asked_for():
    forward = from_torch(Returning(lambda x: x.detach().flatten(1)))
    images = np.full((2, *SHAPE), .5, np.float32)
    assert forward(images).shape == (2, 96)
    with pytest.raises(ValueError, match='carry no gradient'):
        jax.jit(gradient(forward))(images)


def test_what_goes_wrong_later_is_said():
    images = np.full((2, *SHAPE), .5, np.float32)
    forward = from_torch(Returning(lambda x: torch.log(x - .25).flatten(1)))
    assert np.isfinite(jax.jit(forward)(images)).all()
    with pytest.raises(WHEN_COMPUTED, match='not finite'):
        jax.block_until_ready(jax.jit(forward)(0 * images))
    twins = make_twins()
    twins.forward(twins.images)
    twins.module[3].train()
    with pytest.raises(WHEN_COMPUTED, match=r'training mode \(3\)'):
        jax.block_until_ready(jax.jit(twins.forward)(twins.images))
