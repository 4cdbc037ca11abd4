"""TFDS builders without TensorFlow: prepared copies equal the direct path, and their errors are clear."""
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from medrobust_jax.data import medmnist, phantoms
from medrobust_jax.data.builders.medmnist import Medmnist
from medrobust_jax.data.builders.oct_phantom import OctPhantom, OctPhantomConfig
from medrobust_jax.data.builders.reading import TfdsSource
from medrobust_jax.data.loader import eval_batches, train_batches
from medrobust_jax.data.registry import load
from medrobust_jax.data.source import ArraySource, Source, all_labels, gather


@pytest.fixture(autouse=True)
def quiet(monkeypatch, tmp_path):
    """No progress bars, and TFDS's default directory out of reach."""
    tfds.disable_progress_bar()
    monkeypatch.setattr(logging.getLogger('absl'), 'disabled', True)
    monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path / 'default'))


def assert_same(ours: Source, theirs: Source):
    for left, right in zip(gather(ours)[:2], gather(theirs)[:2], strict=True):
        np.testing.assert_array_equal(left, right)
    assert ours.info.class_names == theirs.info.class_names
    assert ours.info.image_shape == theirs.info.image_shape


def medmnist_file(path, channels, classes):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (('train', 16), ('val', 8), ('test', 9)):
        shape = (count, 28, 28, channels) if channels > 1 else (count, 28, 28)
        arrays[f'{split}_images'] = generator.integers(0, 256, shape).astype(np.uint8)
        arrays[f'{split}_labels'] = (np.arange(count) % classes).astype(np.uint8)[:, None]
    path.parent.mkdir(exist_ok=True)
    np.savez(path, **arrays)


@pytest.mark.parametrize(('name', 'channels', 'classes'), [('pneumoniamnist', 1, 2), ('bloodmnist', 3, 8)])
def test_medmnist_equals_the_direct_path(tmp_path, monkeypatch, name, channels, classes):
    monkeypatch.setenv('MEDROBUST_DATA', str(tmp_path))
    medmnist_file(tmp_path / 'medmnist' / f'{name}.npz', channels, classes)
    for split in ('train', 'val', 'test'):
        assert_same(load(f'tfds:medmnist/{name}', split, prepare=True), load(name, split))
    source = load(f'tfds:medmnist/{name}', 'train[:50%]')  # prepared before
    assert len(source) == 8
    assert source.info.fingerprint != load(f'tfds:medmnist/{name}').info.fingerprint
    builder = tfds.builder(f'medmnist/{name}', data_dir=tmp_path / 'tensorflow_datasets')
    assert builder.info.file_format.value == 'array_record'
    assert builder.info.features['label'].names == list(medmnist.DATASETS[name].class_names)


def test_medmnist_manual_directory(tmp_path, monkeypatch):
    monkeypatch.delenv('MEDROBUST_DATA', raising=False)
    medmnist_file(tmp_path / 'manual' / 'breastmnist.npz', 1, 2)
    builder = Medmnist(config='breastmnist', data_dir=tmp_path)
    builder.download_and_prepare(file_format='array_record',
                                 download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual'))
    source = TfdsSource(builder, 'test')
    assert_same(source, load('breastmnist', 'test', data_dir=tmp_path / 'manual'))
    monkeypatch.setattr(tfds.features.Image, 'decode_example_np', None)  # labels alone need no image
    np.testing.assert_array_equal(all_labels(source), np.arange(9) % 2)
    assert source.column('points') is None


def test_medmnist_downloads_the_official_file_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setenv('MEDROBUST_DATA', str(tmp_path))
    medmnist_file(tmp_path / 'elsewhere' / 'fetched.npz', 1, 2)
    asked = []

    def download(self, url):
        asked.append(url)
        return tmp_path / 'elsewhere' / 'fetched.npz'

    monkeypatch.setattr(tfds.download.DownloadManager, 'download', download)
    assert len(load('tfds:medmnist/pneumoniamnist', 'val', prepare=True)) == 8
    assert asked == ['https://zenodo.org/records/10519652/files/pneumoniamnist.npz?download=1']


def test_configs_name_every_set_and_size():
    assert len(Medmnist.builder_configs) == 12 * 4
    assert {'pathmnist', 'pathmnist_64', 'organsmnist_224'} <= set(Medmnist.builder_configs)


def test_busi_equals_the_direct_path(tmp_path, monkeypatch):
    monkeypatch.setenv('MEDROBUST_DATA', str(tmp_path))
    images = np.random.default_rng(0).integers(0, 256, (30, 160, 160)).astype(np.uint8)
    images[15] = images[25]
    np.savez(tmp_path / 'busi.npz', images=images, labels=np.repeat([0, 1, 2], 10).astype(np.uint8))
    sizes = []
    for split in ('train', 'val', 'test'):
        source = load('tfds:busi', split, prepare=True)
        assert_same(source, load('busi', split))
        sizes.append(len(source))
    assert sum(sizes) == 28


@pytest.fixture
def phantom(tmp_path):
    """A small prepared copy of the phantoms."""
    builder = OctPhantom(config=OctPhantomConfig(name='tiny', size=16, num_examples=10, seed=4), data_dir=tmp_path)
    builder.download_and_prepare(file_format='array_record')
    return builder


def test_phantoms_equal_the_drawn_ones(phantom):
    for split in phantoms.SPLITS:
        assert_same(TfdsSource(phantom, split), phantoms.oct_phantoms(split, num_examples=10, size=16, seed=4))


def test_tfds_sources_feed_the_loader(phantom):
    source = TfdsSource(phantom, 'train')
    direct = phantoms.oct_phantoms('train', num_examples=10, size=16, seed=4)
    np.testing.assert_array_equal(all_labels(source), all_labels(direct))
    for make in (lambda data: [next(train_batches(data, batch_size=4, seed=0))],
                 lambda data: [next(train_batches(data, batch_size=4, seed=0, class_balanced=True))],
                 lambda data: list(eval_batches(data, batch_size=4))):
        for ours, theirs in zip(make(source), make(direct), strict=True):
            for name in theirs:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_tfds_resizing_and_splits(phantom):
    source = TfdsSource(phantom, 'val', size=8)
    assert source.info.image_shape == source[0]['image'].shape == (8, 8, 1)
    assert source.info.range_map == 'uint8 / 255, resized from 16x16 to 8x8 (box)'
    assert source.info.fingerprint != TfdsSource(phantom, 'val').info.fingerprint
    assert isinstance(source, Source)
    assert not isinstance(source, ArraySource)


@pytest.mark.parametrize(('options', 'message'), [
    ({'split': 'valid'}, 'train, val, test'), ({'split': 'val', 'image_key': 'imago'}, "did you mean 'image'"),
    ({'split': 'val', 'label_key': 'image'}, 'not a class')])
def test_tfds_refusals(phantom, options, message):
    with pytest.raises(ValueError, match=message):
        TfdsSource(phantom, **options)


def test_unknown_and_unprepared_names(tmp_path):
    with pytest.raises(ValueError, match="TFDS knows no data set 'nothing_like_it'"):
        load('tfds:nothing_like_it', data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r'(?s)oct_phantom/32.*prepare=True'):
        load('tfds:oct_phantom/32', data_dir=tmp_path)
