"""ACDC: splits by patient, masks that go with their images, what is refused; the real file where it is."""
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds

from medrobust_jax.data import masks
from medrobust_jax.data.acdc import CLASS_NAMES, open_acdc
from medrobust_jax.data.builders.acdc import Acdc
from medrobust_jax.data.builders.reading import TfdsSource
from medrobust_jax.data.resize import resize_images
from medrobust_jax.data.source import gather

PATIENTS = np.array([1, 1, 70, 71, 80, 81, 100, 100], np.int16)


def arrays(size=160):
    generator = np.random.default_rng(0)
    label = np.zeros((8, size, size), np.uint8)
    label[:, 20:60, 30:80], label[:, 30:50, 40:70], label[4:, 100:120] = 2, 3, 1
    label[1] = 0
    return {'image': generator.integers(0, 256, (8, size, size)).astype(np.uint8), 'label': label,
            'patient': PATIENTS, 'frame': np.ones(8, np.int16)}


def save(path, **changes):
    (path / 'acdc').mkdir(exist_ok=True)
    held = {**arrays(), **changes}
    np.savez(path / 'acdc' / 'acdc_slices_160.npz', **{name: a for name, a in held.items() if a is not None})
    return path


def test_patients_stay_together(tmp_path):
    save(tmp_path)
    for split, rows in (('train', [0, 1, 2]), ('val', [3, 4]), ('test', [5, 6, 7])):
        source = open_acdc(split, data_dir=tmp_path)
        record = source.batch(np.arange(len(source)))
        np.testing.assert_array_equal(record['group'], PATIENTS[rows])
        np.testing.assert_array_equal(record['segmentation'], arrays()['label'][rows])
        assert record['segmentation'].dtype == np.int32
        assert source.info.class_names == CLASS_NAMES
    assert any('1 of 3 slices show none' in note for note in open_acdc('train', data_dir=tmp_path).info.notes)


def test_masks_go_with_their_images(tmp_path):
    source = open_acdc('test', data_dir=save(tmp_path), size=32)
    assert source.info.image_shape == (32, 32, 1)
    # 160 to 32 pixels: blocks of five, of which the majority counts.
    expected = np.zeros((32, 32), int)
    expected[4:12, 6:16], expected[6:10, 8:14], expected[20:24] = 2, 3, 1
    np.testing.assert_array_equal(source[0]['segmentation'], expected)
    assert 'resized from 160x160 to 32x32' in source.info.range_map


@pytest.mark.parametrize('size', [(12, 9), (5, 7), 24], ids=str)
def test_resized_masks_are_the_largest_share(size):
    maps = np.random.default_rng(0).integers(0, 4, (3, 12, 18)).astype(np.uint8)
    maps[0] = 0
    shares = np.stack([resize_images(255 * (maps == c).astype(np.uint8)[..., None], size)[..., 0]
                       for c in range(4)])
    resized = masks.resize_masks(maps, size)
    assert resized.dtype == np.uint8
    np.testing.assert_array_equal(resized, shares.argmax(0))


def test_refusals(tmp_path):
    label = arrays()['label']
    label[5, 3, 3] = 4
    for changes, message in (
            ({'patient': None}, "lacks 'patient', one id per slice"), ({'image': None}, 'lacks image'),
            ({'label': label}, r'row 5 holds the unknown label 4, outside 0..3 \(1 such rows\)'),
            ({'label': label[:, :80]}, r'a mask of its image.s size'),
            ({'patient': PATIENTS[:5]}, '5,. patient ids for 8 slices'),
            ({'patient': PATIENTS + 1}, 'row 6 is of patient 101')):
        with pytest.raises(ValueError, match=message):
            open_acdc('train', data_dir=save(tmp_path, **changes))
    save(tmp_path, patient=np.full(8, 3))
    with pytest.raises(ValueError, match=r"no patient of split 'test' \(81 to 100\)"):
        open_acdc('test', data_dir=tmp_path)
    with pytest.raises(ValueError, match='splits train, val, test'):
        open_acdc('testing', data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match='acdc_slices_160'):
        open_acdc('train', data_dir=tmp_path / 'nowhere')


def test_builder_equals_the_direct_path(tmp_path, monkeypatch):
    tfds.disable_progress_bar()
    monkeypatch.setattr(logging.getLogger('absl'), 'disabled', True)
    monkeypatch.setenv('MEDROBUST_DATA', str(save(tmp_path)))
    builder = Acdc(data_dir=tmp_path / 'tfds')
    builder.download_and_prepare(file_format='array_record')
    assert builder.info.metadata['class_names'] == list(CLASS_NAMES)
    source = open_acdc('val')
    for row, record in enumerate(builder.as_data_source('val')):
        assert record['group'] == source[row]['group']
        np.testing.assert_array_equal(record['segmentation'][..., 0], source[row]['segmentation'])
        np.testing.assert_array_equal(record['image'] / np.float32(255), source[row]['image'])
    for size in (None, 32):
        ours, theirs = gather(TfdsSource(builder, 'val', size=size)), gather(open_acdc('val', size=size))
        for left, right in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(left, right)
        np.testing.assert_array_equal(TfdsSource(builder, 'val', size=size).column('segmentation'), ours[1])


@pytest.mark.realdata
def test_real_slices(data_dir):
    counts = {}
    for split in ('train', 'val', 'test'):
        source = open_acdc(split, data_dir=data_dir, size=64)
        counts[split] = len(source)
        assert set(np.unique(source.column('segmentation'))) == {0, 1, 2, 3}
    assert counts == {'train': 1282, 'val': 172, 'test': 448}
