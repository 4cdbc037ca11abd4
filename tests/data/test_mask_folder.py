"""Folders of images and masks: layouts, what a mask may hold, refusals by file name."""
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.data.mask_folder import open_covid_lungs, open_isic2017, open_mask_folder

GENERATOR = np.random.default_rng(0)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


def write_pair(root, stem, *, size=(8, 10), suffix='', images='images', masks='masks', value=255, color=True):
    mask = np.zeros(size, np.uint8)
    mask[2:6, 3:7] = value
    shape = (*size, 3) if color else size
    write(root / images / f'{stem}.png', GENERATOR.integers(0, 256, shape))
    write(root / masks / f'{stem}{suffix}.png', mask)
    return mask > 0


@pytest.mark.parametrize('value', [1, 255])
def test_split_by_a_seed_with_patients_together(tmp_path, value):
    for patient in range(10):
        for scan in 'ab':
            inside = write_pair(tmp_path / 'mine', f'p{patient}_{scan}', value=value)
    seen = []
    for split in ('train', 'val', 'test'):
        source = open_mask_folder('mine', split, data_dir=tmp_path, group_pattern=r'p(\d+)_')
        record = source.batch(np.arange(len(source)))
        assert (record['segmentation'] == inside).all()
        assert record['image'].shape[1:] == (8, 10, 3)
        seen += sorted(set(record['group'].tolist()))
    assert sorted(seen) == sorted(str(patient) for patient in range(10))


def test_folders_for_splits_sizes_and_several_classes(tmp_path):
    for split, size in (('train', (8, 8)), ('test', (16, 12))):
        for stem in 'ab':
            write_pair(tmp_path / split, stem, size=size, value=2, color=False)
    names = ('background', 'a', 'b')
    source = open_mask_folder(str(tmp_path), 'test', size=8, class_names=names, channels=1)
    assert source.info.image_shape == (8, 8, 1)
    assert set(np.unique(source.column('segmentation'))) == {0, 2}
    mapped = open_mask_folder(str(tmp_path), 'train', class_values={0: 0, 2: 1}, channels=1)
    assert mapped[0]['segmentation'].max() == 1
    write_pair(tmp_path / 'test', 'c', size=(9, 9), value=2)
    with pytest.raises(ValueError, match=r'c.png is \(9, 9\) and .*a.png \(16, 12\) pixels; give size='):
        open_mask_folder(str(tmp_path), 'test', class_names=names)


def test_isic_layout(tmp_path):
    for part, count in (('Training', 3), ('Validation', 1), ('Test_v2', 2)):
        folders = {'images': f'ISIC-2017_{part}_Data', 'masks': f'ISIC-2017_{part}_Part1_GroundTruth'}
        for number in range(count):
            stem = f'ISIC_000000{number}'
            write_pair(tmp_path / 'isic2017', stem, suffix='_segmentation', **folders)
            write(tmp_path / 'isic2017' / folders['images'] / f'{stem}_superpixels.png', np.zeros((8, 10, 3)))
    counts = [len(open_isic2017(split, data_dir=tmp_path, size=4)) for split in ('train', 'val', 'test')]
    assert counts == [3, 1, 2]
    assert open_isic2017('test', data_dir=tmp_path).info.class_names == ('background', 'lesion')


def test_covid_layout(tmp_path):
    for split in ('Train', 'Val', 'Test'):
        for kind in ('COVID-19', 'Normal'):
            folder = tmp_path / 'covid_qu_ex' / 'Lung Segmentation Data' / 'Lung Segmentation Data' / split / kind
            write_pair(folder, f'{kind}_1', masks='lung masks', color=False)
    source = open_covid_lungs('val', data_dir=tmp_path)
    assert len(source) == 2
    assert source.info.image_shape == (8, 10, 1)
    with pytest.raises(FileNotFoundError, match='folder of COVID-QU-Ex'):
        open_covid_lungs('val', data_dir=tmp_path / 'nowhere')


def damage(root, kind):
    """Breaks one file of a good folder, in the way of `kind`."""
    if kind == 'unknown label':
        write(root / 'masks' / 'b.png', np.pad(np.full((1, 2), 7), ((0, 7), (0, 8))))
    if kind == 'other size':
        write(root / 'masks' / 'b.png', np.zeros((8, 9)))
    if kind == 'no mask':
        (root / 'masks' / 'b.png').unlink()
    if kind == 'no image':
        write(root / 'masks' / 'z.png', np.zeros((8, 10)))
    if kind == 'color':
        write(root / 'masks' / 'b.png', GENERATOR.integers(0, 2, (8, 10, 3)))
    if kind == 'truncated':
        data = (root / 'masks' / 'b.png').read_bytes()
        (root / 'masks' / 'b.png').write_bytes(data[:40])


@pytest.mark.parametrize(('kind', 'message'), [
    ('unknown label', r'b.png: the mask holds the unknown label 7 \(2 pixels\); known are 0, 1, 255'),
    ('other size', r'masks/b.png is 8x9 and its image .*images/b.png 8x10'),
    ('no mask', r'images/b.png has no mask b\.\*'), ('no image', 'masks/z.png has no image'),
    ('color', 'b.png: a mask in color'), ('truncated', 'b.png is truncated, damaged')])
def test_refusals(kind, message, tmp_path):
    for stem in 'abcd':
        write_pair(tmp_path / 'train', stem)
    damage(tmp_path / 'train', kind)
    with pytest.raises(ValueError, match=message):
        open_mask_folder(str(tmp_path), 'train')


def test_a_name_without_its_patient_is_refused(tmp_path):
    write_pair(tmp_path, 'p1_a')
    write_pair(tmp_path, 'unknown')
    with pytest.raises(ValueError, match=r'is not found in the file name unknown\.png'):
        open_mask_folder(str(tmp_path), 'train', group_pattern=r'p(\d+)_')


def test_masks_without_an_object_are_counted(tmp_path):
    for number in range(3):
        write_pair(tmp_path / 'train', f'{number}', value=255)
    write_pair(tmp_path / 'train', 'empty', value=0)
    assert open_mask_folder(str(tmp_path), 'train').info.notes == ('1 of 4 masks hold background alone',)
