"""Exported forward functions: outputs and gradients survive the file, and what is no such file is refused."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.models.exported import from_exported, load_exported, save_exported
from medrobust_jax.models.forward import eval_forward, init_variables
from medrobust_jax.models.resnet import ResNet
from medrobust_jax.parallel.mesh import data_mesh

SHAPE = (4, 4, 2)
WEIGHTS = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
IMAGES = jnp.asarray(np.random.default_rng(1).uniform(size=(6, *SHAPE)), jnp.float32)


def forward(images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ WEIGHTS)


def gradient(fn):
    return jax.jit(jax.grad(lambda x: jnp.sum(fn(x) ** 3)))


@pytest.fixture
def path(tmp_path):
    """A good file."""
    save_exported(forward, tmp_path / 'made' / 'model.npz', image_shape=SHAPE)
    return tmp_path / 'made' / 'model.npz'


@pytest.mark.parametrize('batch', [None, 4, 6, 8])
def test_outputs_and_gradients_are_the_original_ones(tmp_path, batch):
    save_exported(forward, tmp_path / 'model.npz', image_shape=SHAPE, batch=batch)
    loaded = load_exported(tmp_path / 'model.npz')
    for count in (1, 6):
        x = IMAGES[:count]
        np.testing.assert_allclose(loaded(x), forward(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(gradient(loaded)(x), gradient(forward)(x), rtol=1e-4, atol=1e-6)
    blocked = jax.jit(in_blocks(gradient(loaded), width=2))
    np.testing.assert_allclose(blocked(IMAGES), gradient(forward)(IMAGES), rtol=1e-4, atol=1e-6)
    assert list(tmp_path.iterdir()) == [tmp_path / 'model.npz']


def test_inside_a_loop_on_several_devices(path):
    loaded, mesh = load_exported(path), data_mesh(jax.devices()[:2])

    def climb(fn):
        def rows(x):
            step = lambda x: x + .1 * jax.grad(lambda x: jnp.sum(fn(x)))(x)  # noqa: E731
            return jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, step(c[1])), (0, x))[1]
        return jax.jit(on_each_device(in_blocks(rows, width=2), mesh))(jnp.tile(IMAGES, (2, 1, 1, 1)))

    np.testing.assert_allclose(climb(loaded), climb(forward), rtol=1e-5, atol=1e-6)


def test_a_network_with_convolutions_keeps_its_gradient(tmp_path):
    module = ResNet(num_outputs=3, stage_sizes=(1,), width=8, stem='small')
    victim = eval_forward(module, *init_variables(module, jax.random.key(0), SHAPE))
    save_exported(lambda images: victim(images, None), tmp_path / 'net.npz', image_shape=SHAPE)
    ours = gradient(lambda x: victim(x, None))(IMAGES)
    assert np.abs(ours).max() > 1e-4
    np.testing.assert_allclose(gradient(load_exported(tmp_path / 'net.npz'))(IMAGES), ours, rtol=1e-3, atol=1e-7)


def test_trees_dtypes_and_keys(tmp_path):
    save_exported(lambda x: {'logits': forward(x), 'mean': x.mean(axis=(1, 2, 3))}, tmp_path / 'tree.npz',
                  image_shape=SHAPE, batch=4)
    out = load_exported(tmp_path / 'tree.npz')(IMAGES.astype(jnp.bfloat16), jax.random.split(jax.random.key(0), 6))
    assert out['logits'].shape == (6, 3)
    np.testing.assert_allclose(out['mean'], IMAGES.mean(axis=(1, 2, 3)), rtol=1e-2)


def test_images_of_another_shape_are_refused(path):
    with pytest.raises(ValueError, match=r'takes images \[batch, 4, 4, 2\], not \[6, 4, 4, 1\]'):
        load_exported(path)(IMAGES[..., :1])


def test_a_file_for_another_platform_is_refused(tmp_path):
    save_exported(forward, tmp_path / 'tpu.npz', image_shape=SHAPE, platforms=['tpu'])
    with pytest.raises(ValueError, match=r'exported for platforms.*tpu.*used on'):
        load_exported(tmp_path / 'tpu.npz')(IMAGES)
    save_exported(forward, tmp_path / 'all.npz', image_shape=SHAPE, platforms=['cpu', 'cuda', 'tpu'])
    assert load_exported(tmp_path / 'all.npz')(IMAGES).shape == (6, 3)


@pytest.mark.parametrize('keep', [0, 10, 700, -30])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match='truncated or damaged'):
        load_exported(path)


def test_a_flipped_byte_is_refused(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xff
    path.write_bytes(content)
    with pytest.raises(ValueError, match='truncated or damaged'):
        load_exported(path)


def test_foreign_files_are_refused_and_nothing_is_unpickled(tmp_path):
    (tmp_path / 'text').write_text('not a model')
    np.save(tmp_path / 'array.npy', WEIGHTS)
    np.savez(tmp_path / 'arrays.npz', weights=WEIGHTS)
    np.savez(tmp_path / 'objects.npz', about=np.asarray([print], object), program=np.zeros(3, np.uint8))
    np.savez(tmp_path / 'other.npz', about=np.asarray(json.dumps([1])), program=np.zeros(3, np.uint8))
    for file in tmp_path.iterdir():
        with pytest.raises(ValueError, match='holds no exported forward function'):
            load_exported(file)
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / 'nothing.npz')


def test_other_formats_and_programs_are_refused(path):
    with np.load(path) as file:
        about, program = json.loads(str(file['about'])), file['program']
    np.savez(path, about=np.asarray(json.dumps(about | {'format': 'medrobust_jax forward 9'})), program=program)
    with pytest.raises(ValueError, match="has the format 'medrobust_jax forward 9'"):
        load_exported(path)
    np.savez(path, about=np.asarray(json.dumps(about)), program=program[:200])
    with pytest.raises(ValueError, match='cannot be read by'):
        load_exported(path)


@pytest.mark.parametrize(('options', 'message'), [
    ({'image_shape': (4,)}, 'image_shape'), ({'batch': 0}, 'batch 0'), ({'platforms': ['gpus']}, 'platform'),
    ({'forward': lambda images, keys: forward(images)}, 'take images alone'),
    ({'forward': lambda images: forward(images) / len(images)}, 'batch=8'),
    ({'forward': lambda images: jax.pure_callback(lambda x: x, images, images), 'batch': 2},
     'never call back into Python')])
def test_what_cannot_be_exported(tmp_path, options, message):
    given = {'forward': forward, 'image_shape': SHAPE} | options
    with pytest.raises(ValueError, match=message):
        save_exported(given.pop('forward'), tmp_path / 'model.npz', **given)
    assert not list(tmp_path.iterdir())


def test_an_artifact_made_elsewhere():
    shape = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32)
    made = export.export(jax.jit(forward))(shape)
    loaded = from_exported(export.deserialize(made.serialize(vjp_order=1)))
    np.testing.assert_allclose(gradient(loaded)(IMAGES), gradient(forward)(IMAGES), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match='without its gradient'):
        from_exported(export.deserialize(made.serialize()))
    several = export.export(jax.jit(lambda w, x: x @ w))(WEIGHTS[:2], shape)
    with pytest.raises(ValueError, match='close over the weights'):
        from_exported(several)
    sizes = export.symbolic_shape('b, h, w, 2')
    with pytest.raises(ValueError, match='fix all but the batch'):
        from_exported(export.export(jax.jit(lambda x: x.mean(axis=(1, 2))))(
            jax.ShapeDtypeStruct(sizes, jnp.float32)))
