"""Any npz: both layouts, groups, and files that cannot be used."""
import numpy as np
import pytest

from medrobust_jax.data.registry import load
from medrobust_jax.data.source import all_labels, gather


@pytest.fixture
def arrays():
    generator = np.random.default_rng(0)
    return {'images': generator.integers(0, 256, (40, 6, 6)).astype(np.uint8),
            'labels': np.arange(40) % 2, 'groups': np.array([f'p{row // 4}' for row in range(40)])}


def save(tmp_path, arrays, **changes):
    kept = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(tmp_path / 'mine.npz', **kept)
    return f'npz:{tmp_path}/mine.npz'


def test_one_set_is_split_with_groups_whole(tmp_path, arrays):
    name = save(tmp_path, arrays)
    parts = [gather(load(name, split)) for split in ('train', 'val', 'test')]
    assert sum(len(labels) for _, labels, _ in parts) == 40
    patients = [set(groups) for _, _, groups in parts]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 10
    assert load(name).info.class_names == ('class 0', 'class 1')
    assert load(name, class_names=('healthy', 'ill')).info.class_names == ('healthy', 'ill')


def test_given_splits_are_kept(tmp_path, arrays):
    name = save(tmp_path, {'train_images': arrays['images'], 'train_labels': arrays['labels'][:, None],
                           'test_images': arrays['images'][:4, :, :, None], 'test_labels': np.array([0, 2, 1, 0])})
    with pytest.raises(ValueError, match='no training example of class 2'):
        load(name)
    test = load(name, 'test')
    assert all_labels(test).tolist() == [0, 2, 1, 0]
    np.testing.assert_array_equal(np.round(gather(test)[0] * 255)[..., 0], arrays['images'][:4])
    with pytest.raises(ValueError, match='lacks val_images'):
        load(name, 'val')


def test_depths_and_sizes(tmp_path, arrays):
    name = save(tmp_path, arrays, images=arrays['images'] / 255.)
    assert load(name, size=3).info.range_map == 'floats as they are, resized from 6x6 to 3x3 (box)'
    name = save(tmp_path, arrays, images=arrays['images'].astype(np.uint16) * 16)
    assert load(name, max_value=4080, size=3).info.range_map.startswith('uint16 / 4080, resized')
    with pytest.raises(ValueError, match='max_value'):
        load(name)


@pytest.mark.parametrize(('changes', 'message'), [
    ({'labels': None}, 'lacks labels'), ({'images': None}, 'lacks images'),
    ({'labels': np.arange(40.)}, 'whole numbers'), ({'labels': np.arange(39)}, r'\(39,\) for 40 images'),
    ({'images': np.full((40, 6, 6), np.nan)}, 'NaN'), ({'images': np.full((40, 6, 6), 2.)}, r'\[0, 1\]'),
    ({'labels': np.array([{}] * 40, dtype=object)}, 'never unpickled')])
def test_unusable_files(tmp_path, arrays, changes, message):
    with pytest.raises(ValueError, match=message):
        load(save(tmp_path, arrays, **changes))


def test_damaged_and_foreign_files(tmp_path, arrays):
    name = save(tmp_path, arrays)
    path = tmp_path / 'mine.npz'
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r'mine\.npz is truncated'):
        load(name)
    np.save(tmp_path / 'one.npy', arrays['images'])
    with pytest.raises(ValueError, match='single array'):
        load(f'npz:{tmp_path}/one.npy')
    with pytest.raises(FileNotFoundError, match='absent'):
        load('npz:absent.npz', data_dir=tmp_path)
