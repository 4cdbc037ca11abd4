"""Kermany's OCT2017 in its public layout: patients, splits, the resizing."""
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.data.oct2017 import FOLDERS, locate, open_oct2017, resize_and_crop
from medrobust_jax.data.registry import load
from medrobust_jax.data.source import all_labels, gather

TRAIN_PATIENTS = 12


def write(folder, name, seed, shape=(24, 32)):
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name)


@pytest.fixture
def data(tmp_path):
    """Twelve training patients per class with one to three scans; patient 1000 has two diseases and is in test."""
    root = tmp_path / 'OCT2017'
    for number, label in enumerate(FOLDERS):
        for patient in range(TRAIN_PATIENTS):
            identity = 1000 if patient == 0 and number < 2 else 2000 + 100 * number + patient
            for scan in range(1 + patient % 3):
                name = f'{label}-{identity}-{scan + 1}.jpeg'
                write(root / 'train' / label, name, patient, (24, 32 + 4 * number))
        write(root / 'val' / label, f'{label}-9{number}-1.jpeg', 90 + number)
        write(root / 'test' / label, f'{label}-{1000 if number == 0 else 8000 + number}-1.jpeg', 80 + number)
    return tmp_path


def test_splits_keep_patients_together(data):
    sources = {split: open_oct2017(split, data_dir=data, size=8, val_fraction=.25) for split in
               ('train', 'val', 'test')}
    groups = {split: set(gather(source)[2].tolist()) for split, source in sources.items()}
    assert not groups['train'] & groups['val']
    assert len(groups['train'] | groups['val']) == 4 * TRAIN_PATIENTS - 1
    public_val = {f'9{number}' for number in range(4)}
    assert not public_val & (groups['train'] | groups['val'])
    assert groups['test'] == {'1000', '8001', '8002', '8003'}
    assert len(sources['train']) + len(sources['val']) == 4 * sum(1 + patient % 3 for patient in range(12))
    for source in sources.values():
        assert set(all_labels(source)) == {0, 1, 2, 3}
        assert source.info.image_shape == (8, 8, 1)
        assert source.info.class_names[3] == 'normal'
        assert any("1 of 4 patients of 'test' occur in the public 'train'" in note for note in source.info.notes)
    again = open_oct2017('val', data_dir=data, size=8, val_fraction=.25)
    assert again.info.fingerprint == sources['val'].info.fingerprint
    assert open_oct2017('val', data_dir=data, size=8, val_fraction=.25, split_seed=1).info.fingerprint != (
        again.info.fingerprint)


def test_the_registry_and_the_doubled_folder(data):
    inner = data / 'again' / 'OCT2017'
    inner.mkdir(parents=True)
    (data / 'OCT2017').rename(inner / 'OCT2017')
    assert locate(data / 'again') == inner / 'OCT2017'
    source = load('oct2017', 'test', data_dir=data / 'again', size=8, shorter_side=10)
    assert len(source) == 4
    assert source.info.range_map == 'uint8 / 255, shorter side resized to 10, middle 8x8'


def test_the_middle_is_cut_after_resizing():
    image = np.zeros((16, 32, 1), np.uint8)
    image[:, 8:24] = 200  # the middle square
    np.testing.assert_array_equal(resize_and_crop(image, shorter_side=16, size=16), np.full((16, 16, 1), 200))
    small = resize_and_crop(image, shorter_side=8, size=8)  # 8 x 16, boxes of 2 x 2
    np.testing.assert_array_equal(small, np.full((8, 8, 1), 200))
    np.testing.assert_array_equal(resize_and_crop(image, shorter_side=16, size=4), np.full((4, 4, 1), 200))
    tall = np.swapaxes(image, 0, 1)
    np.testing.assert_array_equal(resize_and_crop(tall, shorter_side=8, size=8), small)
    assert resize_and_crop(np.zeros((13, 29, 1), np.uint8), shorter_side=9, size=9).shape == (9, 9, 1)


def test_refusals(data, tmp_path, monkeypatch):
    monkeypatch.delenv('MEDROBUST_DATA', raising=False)
    with pytest.raises(FileNotFoundError, match=r"no data set 'oct2017'.*nowhere.*rscbjbr9sj"):
        open_oct2017()
    with pytest.raises(FileNotFoundError, match=r'looked for the folders train and test in .*OCT2017'):
        open_oct2017(data_dir=tmp_path / 'empty')
    with pytest.raises(ValueError, match='size = 8 must be one number, positive and at most shorter_side = 6'):
        open_oct2017(data_dir=data, size=8, shorter_side=6)
    with pytest.raises(ValueError, match='val_fraction = 0 must lie in'):
        open_oct2017(data_dir=data, size=8, val_fraction=0)
    with pytest.raises(ValueError, match="has the splits train, val, test; not 'tset'"):
        open_oct2017('tset', data_dir=data)
    write(data / 'OCT2017' / 'train' / 'GLAUCOMA', 'GLAUCOMA-7-1.jpeg', 0)
    with pytest.raises(ValueError, match='holds the classes GLAUCOMA; known are CNV, DME'):
        open_oct2017(data_dir=data, size=8)
    (data / 'OCT2017' / 'train' / 'GLAUCOMA' / 'GLAUCOMA-7-1.jpeg').rename(
        data / 'OCT2017' / 'train' / 'CNV' / 'scan.jpeg')
    with pytest.raises(ValueError, match=r'is not found in the file name scan\.jpeg'):
        open_oct2017(data_dir=data, size=8)
