"""Data sets by name: direct reading of MedMNIST and BUSI files, suggestions, missing files."""
import numpy as np
import pytest

from medrobust_jax.data import busi, medmnist
from medrobust_jax.data.registry import load
from medrobust_jax.data.source import all_labels, gather


def medmnist_arrays(channels=1, pixels=28, classes=2, column=True):
    """Arrays as an official file holds them, a few images per split."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (('train', 8), ('val', 4), ('test', 6)):
        shape = (count, pixels, pixels, channels) if channels > 1 else (count, pixels, pixels)
        arrays[f'{split}_images'] = generator.integers(0, 256, shape).astype(np.uint8)
        labels = (np.arange(count) % classes).astype(np.uint8)
        arrays[f'{split}_labels'] = labels[:, None] if column else labels
    return arrays


def busi_file(folder):
    """BUSI's layout with one image under two labels, and one image twice under one label."""
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8)).astype(np.uint8)
    labels = np.repeat([0, 1, 2], 20).astype(np.uint8)
    images[45] = images[25]
    images[3] = images[2]
    folder.mkdir()
    np.savez(folder / 'busi_160.npz', images=images, labels=labels)
    return images, labels


@pytest.mark.parametrize('folder', ['medmnist', '.'])
@pytest.mark.parametrize('column', [True, False])
def test_medmnist_reads_both_label_shapes(tmp_path, folder, column):
    (tmp_path / folder).mkdir(exist_ok=True)
    arrays = medmnist_arrays(column=column)
    np.savez(tmp_path / folder / 'pneumoniamnist.npz', **arrays)
    source = load('pneumoniamnist', 'val', data_dir=tmp_path)
    images, labels, groups = gather(source)
    np.testing.assert_array_equal(np.round(images[..., 0] * 255), arrays['val_images'])
    np.testing.assert_array_equal(labels, arrays['val_labels'].reshape(-1))
    assert groups is None
    assert source.info.class_names == ('normal', 'pneumonia')
    assert any('4 images where the official val split has 524' in note for note in source.info.notes)
    assert any('MD5' in note for note in source.info.notes)


def test_larger_files_and_resizing(tmp_path, monkeypatch):
    np.savez(tmp_path / 'bloodmnist_64.npz', **medmnist_arrays(3, 64, 8))
    monkeypatch.setenv('MEDROBUST_DATA', str(tmp_path))
    native = load('bloodmnist_64')
    assert native.info.image_shape == (64, 64, 3)
    small = load('bloodmnist_64', size=32)
    assert small.info.range_map == 'uint8 / 255, resized from 64x64 to 32x32 (box)'
    blocks = gather(native)[0].reshape(8, 32, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_allclose(gather(small)[0], blocks, atol=1.01 / 255)  # Pillow rounds rows, then columns
    assert small.info.fingerprint != native.info.fingerprint


def test_a_missing_file_says_where_and_how(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'medmnist/pathmnist_64\.npz(.|\n)*https://zenodo\.org'):
        load('pathmnist_64', data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r'busi/busi_160\.npz(.|\n)*labels'):
        load('busi', data_dir=tmp_path)
    monkeypatch.delenv('MEDROBUST_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match='MEDROBUST_DATA'):
        load('retinamnist')


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / 'breastmnist.npz'
    np.savez_compressed(path, **medmnist_arrays())
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], b'', whole[:3000] + bytes(200) + whole[3200:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r'breastmnist\.npz'):
            load('breastmnist', data_dir=tmp_path)
    np.savez(path, **{**medmnist_arrays(), 'train_images': np.array([{'a': 1}], dtype=object)})
    with pytest.raises(ValueError, match='never unpickled'):
        load('breastmnist', data_dir=tmp_path)
    np.savez(path, **medmnist_arrays(channels=3))
    with pytest.raises(ValueError, match=r'expected uint8 \(28, 28, 1\)'):
        load('breastmnist', data_dir=tmp_path)
    np.savez(path, train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(ValueError, match='lacks train_labels'):
        load('breastmnist', data_dir=tmp_path)


def test_busi_drops_conflicts_and_keeps_copies_together(tmp_path):
    images, labels = busi_file(tmp_path / 'busi')
    parts = {split: load('busi', split, data_dir=tmp_path) for split in ('train', 'val', 'test')}
    assert sum(map(len, parts.values())) == 58
    assert any('row 25 (benign) = row 45 (malignant)' in note for note in parts['train'].info.notes)
    where = {}
    for split, part in parts.items():
        pixels, classes, _ = gather(part)
        for image, label in zip(np.round(pixels[..., 0] * 255).astype(np.uint8), classes, strict=True):
            where.setdefault(image.tobytes(), []).append((split, label))
    assert images[25].tobytes() not in where
    assert len(where[images[2].tobytes()]) == 2
    assert len(set(where[images[2].tobytes()])) == 1
    assert all(where[image.tobytes()][0][1] == label for image, label in zip(images, labels, strict=True)
               if image.tobytes() in where)
    again = load('busi', 'val', data_dir=tmp_path)
    assert again.info.fingerprint == parts['val'].info.fingerprint
    assert load('busi', 'val', data_dir=tmp_path, split_seed=1).info.fingerprint != again.info.fingerprint


def test_phantoms_by_name():
    source = load('oct_phantom', 'test', size=48, num_examples=8, seed=3)
    assert source.info.image_shape == (48, 48, 1)
    assert len(source) == 8


@pytest.mark.parametrize(('name', 'message'), [
    ('retinamnst', "did you mean 'retinamnist'"), ('octphantom', "did you mean 'oct_phantom'"),
    ('foldr:x', "did you mean 'folder'"), ('chestmnst', "did you mean 'chestmnist'"),
    ('retinamnist_65', '28, 64, 128, 224')])
def test_unknown_names(name, message):
    with pytest.raises(ValueError, match=message):
        load(name)


def test_unknown_options_and_splits(tmp_path):
    with pytest.raises(ValueError, match=r"option .*'sede'; did you mean 'seed'"):
        load('oct_phantom', sede=1)
    np.savez(tmp_path / 'breastmnist.npz', **medmnist_arrays())
    with pytest.raises(ValueError, match="train, val, test; not 'valid'"):
        load('breastmnist', 'valid', data_dir=tmp_path)


def test_table_is_complete():
    assert len(medmnist.DATASETS) == 12
    for dataset in medmnist.DATASETS.values():
        assert len(dataset.md5) == 32
        assert len(set(dataset.class_names)) == len(dataset.class_names)
    assert len(busi.CLASS_NAMES) == 3


@pytest.mark.realdata
@pytest.mark.parametrize(('name', 'counts', 'shape', 'classes'), [
    ('pneumoniamnist', (4708, 524, 624), (28, 28, 1), 2),
    ('breastmnist', (546, 78, 156), (28, 28, 1), 2),
    ('retinamnist', (1080, 120, 400), (28, 28, 3), 5)])
def test_real_medmnist(data_dir, name, counts, shape, classes):
    for split, count in zip(('train', 'val', 'test'), counts, strict=True):
        source = load(name, split, data_dir=data_dir)
        assert (len(source), source.info.image_shape, source.info.num_classes) == (count, shape, classes)
        assert len(np.unique(all_labels(source))) == classes
        assert 0 <= source[0]['image'].min() < source[0]['image'].max() <= 1


@pytest.mark.realdata
def test_real_retinamnist_is_the_official_file(data_dir):
    assert not any('MD5' in note for note in load('retinamnist', data_dir=data_dir).info.notes)


@pytest.mark.realdata
def test_real_busi(data_dir):
    parts = [load('busi', split, data_dir=data_dir, size=40) for split in ('train', 'val', 'test')]
    assert [len(part) for part in parts] == [544, 78, 156]  # 778 of 780
    counts = sum(np.bincount(all_labels(part), minlength=3) for part in parts)
    np.testing.assert_array_equal(counts, [133, 436, 209])
    assert any('Dropped 2 images' in note for note in parts[0].info.notes)
