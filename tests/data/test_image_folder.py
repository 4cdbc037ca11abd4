"""Folders of images: layouts, depths, color, damaged files, patients kept together."""
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.data.image_folder import read_image
from medrobust_jax.data.mask_folder import read_mask
from medrobust_jax.data.registry import load
from medrobust_jax.data.source import all_labels, gather


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels)).save(path)


def grey(value, shape=(6, 8), dtype=np.uint8):
    return np.full(shape, value, dtype)


@pytest.fixture
def folder(tmp_path):
    """20 images of each of two classes; the value of the pixels is the image's number."""
    for number in range(20):
        write(tmp_path / 'ill' / f'p{number // 4}_{number:02d}.png', grey(number))
        write(tmp_path / 'healthy' / f'q{number // 4}_{number:02d}.png', grey(100 + number))
    (tmp_path / 'ill' / 'notes.txt').write_text('not an image')
    return tmp_path


def test_flat_folder_is_split_by_class(folder):
    parts = {split: load(f'folder:{folder}', split) for split in ('train', 'val', 'test')}
    assert [np.bincount(all_labels(part)).tolist() for part in parts.values()] == [[14, 14], [2, 2], [4, 4]]
    values = np.concatenate([gather(part)[0][:, 0, 0, 0] for part in parts.values()])
    np.testing.assert_array_equal(np.sort(np.round(values * 255)), [*range(20), *range(100, 120)])
    info = parts['train'].info
    assert (info.class_names, info.image_shape, info.range_map) == (('healthy', 'ill'), (6, 8, 1), 'uint8 / 255')
    images, labels, _ = gather(parts['train'])
    np.testing.assert_array_equal(labels, np.round(images[:, 0, 0, 0] * 255) < 100)  # healthy is 0
    assert load(f'folder:{folder}', 'val').info.fingerprint == parts['val'].info.fingerprint
    other = load(f'folder:{folder}', 'val', split_seed=1)
    assert other.info.fingerprint != parts['val'].info.fingerprint


def test_patients_stay_together(folder):
    groups = [set(load(f'folder:{folder}', split, group_pattern=r'^([pq]\d+)_')._groups)
              for split in ('train', 'val', 'test')]
    assert set.union(*groups) == {f'{letter}{number}' for letter in 'pq' for number in range(5)}
    assert sum(map(len, groups)) == 10
    with pytest.raises(ValueError, match="splits train, val, test; not 'valid'"):
        load(f'folder:{folder}', 'valid')
    with pytest.raises(ValueError, match='group_pattern'):
        load(f'folder:{folder}', group_pattern='patient')


def test_splits_by_folder(tmp_path, monkeypatch):
    for split, count in (('train', 20), ('test', 2)):
        for label in ('a', 'b'):
            for number in range(count):
                write(tmp_path / 'set' / split / label / f'{number}.png', grey(number))
    monkeypatch.setenv('MEDROBUST_DATA', str(tmp_path))
    assert [len(load('folder:set', split)) for split in ('train', 'test')] == [40, 4]
    with pytest.raises(ValueError, match='val_fraction'):
        load('folder:set', 'val')
    assert [len(load('folder:set', split, val_fraction=.1)) for split in ('train', 'val', 'test')] == [36, 4, 4]


def test_sixteen_bits_and_their_maximum(tmp_path):
    for label in ('a', 'b'):
        for number in range(10):
            write(tmp_path / label / f'{number}.png', grey(400 * number, dtype=np.uint16))
    source = load(f'folder:{tmp_path}', max_value=4000)
    images = gather(source)[0]
    assert source.info.range_map == 'uint16 / 4000'
    np.testing.assert_allclose(images[:, 0, 0, 0] * 10, np.round(images[:, 0, 0, 0] * 10), atol=1e-5)
    with pytest.raises(ValueError, match='above max_value'):
        load(f'folder:{tmp_path}', max_value=300)


def test_color_and_grey(tmp_path):
    for label in ('a', 'b'):
        for number in range(10):
            write(tmp_path / label / f'{number}.png', grey(50))
    assert load(f'folder:{tmp_path}', channels=3).info.image_shape == (6, 8, 3)
    write(tmp_path / 'a' / '3.png', np.stack([grey(10), grey(20), grey(30)], -1))
    assert load(f'folder:{tmp_path}').info.image_shape == (6, 8, 3)  # one image in color: all RGB
    assert load(f'folder:{tmp_path}', channels=1).info.image_shape == (6, 8, 1)
    with pytest.raises(ValueError, match='channels = 2'):
        load(f'folder:{tmp_path}', channels=2)


# What Exif's eight orientations say was done to the upright image, whose inverse shows it upright again.
STORED = {1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: np.transpose,
          6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1)}


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('dtype', [np.uint8, np.uint16])
def test_images_and_masks_with_an_orientation_are_turned_upright(tmp_path, orientation, dtype):
    upright = np.arange(48).reshape(6, 8).astype(dtype)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / 'photograph.png'
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path, 1)[..., 0], upright)
    np.testing.assert_array_equal(read_mask(path), upright)


def test_a_photograph_of_a_telephone_is_turned_upright(tmp_path):
    """A JPEG as cameras store them: the sensor's rows, and a tag that says how it was held."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.repeat(np.repeat(grey(0, (2, 3)) + np.uint8([[0, 100, 200]]), 8, 0), 8, 1)
    for label in 'ab':
        for number in range(10):
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / label / f'{number}.jpg', exif=exif, quality=100)
    images = gather(load(f'folder:{tmp_path}'))[0]
    assert images.shape[1:] == (24, 16, 1)
    np.testing.assert_allclose(images[0, 4::8, 4, 0] * 255, [0, 100, 200], atol=2)


def test_several_sizes_need_a_size(tmp_path):
    for label in ('a', 'b'):
        for number in range(10):
            write(tmp_path / label / f'{number}.png', grey(50, (6 + number, 8)))
    with pytest.raises(ValueError, match='give size='):
        load(f'folder:{tmp_path}')
    source = load(f'folder:{tmp_path}', size=(4, 4))
    assert source.info.image_shape == (4, 4, 1)
    assert 'resized' in source.info.range_map


@pytest.mark.parametrize('suffix', ['jpg', 'png'])
def test_a_truncated_image_is_named(folder, suffix):
    path = folder / 'ill' / f'p9_broken.{suffix}'
    for other in folder.glob('ill/*.png'):
        other.unlink()  # a class of one file is all training
    write(path, np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ValueError, match=rf'broken\.{suffix}'):
        load(f'folder:{folder}', size=8)
    path.write_bytes(b'nothing')
    with pytest.raises(ValueError, match=rf'broken\.{suffix}'):
        load(f'folder:{folder}')


def test_mixed_depths_are_refused(folder):
    for number in range(20):
        write(folder / 'ill' / f'p9_{number}.png', grey(500, dtype=np.uint16))
    with pytest.raises(ValueError, match='one depth'):
        load(f'folder:{folder}')


def test_absent_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load('folder:nowhere', data_dir=tmp_path)
    with pytest.raises(ValueError, match='class/'):
        load(f'folder:{tmp_path}')
