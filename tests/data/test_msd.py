"""Decathlon tasks: resampling by hand, slices and volumes, odd files."""
import json

import nibabel
import numpy as np
import pytest

from medrobust_jax.data.msd import open_msd_slices, open_msd_volumes, resample


def nifti(path, values, spacing):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(values, np.diag([*np.abs(spacing), 1.]))
    image.header['pixdim'][1:4] = spacing
    nibabel.save(image, path)


def write_task(root, *, cases=10, shape=(12, 10, 6), spacing=(1., 1., 3.), modality='MRI', **changes):
    """A task whose images are ramps and whose label is a block; `changes` replace parts of the first case."""
    training = []
    for number in range(cases):
        first = changes if number == 0 else {}
        values = np.add.outer(np.add.outer(np.arange(shape[0]), np.arange(shape[1])), np.arange(shape[2]))
        label = np.zeros(shape, np.uint8)
        label[2:8, 2:8, 2:4], label[5:7, 4:6, 2:4] = 1, 2
        label = np.asarray(first.get('label', label))
        name = f'case_{number:03}.nii.gz'
        nifti(root / 'imagesTr' / name, values.astype(np.int16), first.get('spacing', spacing))
        nifti(root / 'labelsTr' / name, label, first.get('label_spacing', first.get('spacing', spacing)))
        training.append({'image': f'./imagesTr/{name}', 'label': f'./labelsTr/{name}'})
    content = {'labels': {'0': 'background', '1': 'whole', '2': 'core'}, 'modality': {'0': modality},
               'training': training}
    (root / 'dataset.json').write_text(json.dumps(content))
    return root


def test_slices_along_the_coarsest_axis(tmp_path):
    write_task(tmp_path / 'Task99_Block')
    sources = [open_msd_slices('Task99_Block', split, size=12, data_dir=tmp_path, keep_empty=True)
               for split in ('train', 'val', 'test')]
    assert [len(source) for source in sources] == [42, 6, 12]  # six slices of 7, 1 and 2 cases
    record = sources[0].batch(np.arange(6))
    assert record['image'].shape == (6, 12, 12, 1)
    assert len(set(record['group'].tolist())) == 1
    # 12 x 10 pixels were filled up to 12 x 12; the volume's own range is [0, 25].
    ramp = np.add.outer(np.arange(12), np.arange(10))
    np.testing.assert_allclose(record['image'][2, :, 1:11, 0], (ramp + 2) / 25, atol=1e-6)
    assert (record['image'][:, :, [0, 11]] == 0).all()
    expected = np.zeros((12, 12), int)
    expected[2:8, 3:9], expected[5:7, 5:7] = 1, 2
    np.testing.assert_array_equal(record['segmentation'][2], expected)
    assert record['segmentation'][0].max() == 0
    labeled = open_msd_slices('Task99_Block', size=12, data_dir=tmp_path)
    assert len(labeled) == 14
    assert labeled.info.class_names == ('background', 'whole', 'core')
    assert 'resampled to 1 mm' in labeled.info.notes[0]


def test_coarser_spacing_and_cutting(tmp_path):
    write_task(tmp_path / 'Task99_Block', cases=4)
    half = open_msd_slices('Task99_Block', size=6, spacing=2., data_dir=tmp_path)
    maps = half.column('segmentation')
    assert half.info.image_shape == (6, 6, 1)
    # A block of 6 x 6 pixels from (2, 2) on is one of 3 x 3 from (1, 1) on at twice the spacing.
    np.testing.assert_array_equal(np.argwhere(maps[0] > 0), [(i, j) for i in (1, 2, 3) for j in (1, 2, 3)])
    cut = open_msd_slices('Task99_Block', size=4, data_dir=tmp_path)
    assert 'labeled pixels lay outside' in cut.info.notes[1]
    assert not cut.info.notes[1].startswith('0 ')
    assert half.info.notes[1].startswith('0 ')


def test_volumes_get_equal_spacing(tmp_path):
    write_task(tmp_path / 'Task99_Block')
    source = open_msd_volumes('Task99_Block', 'train', size=18, spacing=1., data_dir=tmp_path)
    assert source.info.image_shape == (18, 18, 18, 1)
    volume = source[0]
    # Six slices 3 mm apart are eighteen of 1 mm; the two that hold the block become about six.
    depth = (volume['segmentation'] > 0).any(axis=(0, 1))
    np.testing.assert_array_equal(np.flatnonzero(depth), np.arange(6, 12))
    assert (np.diff(volume['image'][9, 9, 2:16, 0]) > 0).all()
    assert 'resampled to 1 mm' in source.info.notes[0]


def test_resampling_by_hand():
    line = np.arange(8.)
    np.testing.assert_array_equal(resample(line, (1.,)), line)
    finer = resample(line, (2.,))
    # Pixels are areas: the centers of halves lie a quarter to either side.
    np.testing.assert_allclose(finer[2:-2], np.arange(.75, 6.5, .5), atol=1e-5)
    coarser = resample(np.r_[np.zeros(8), np.ones(8)], (.5,))
    assert len(coarser) == 8
    np.testing.assert_allclose(coarser + coarser[::-1], 1, atol=1e-5)
    assert (np.diff(coarser) >= 0).all()


LABEL = np.zeros((12, 10, 6), np.uint8)
LABEL[5, 5, 3] = 3


@pytest.mark.parametrize(('changes', 'message'), [
    ({'spacing': (1., 1., 60.)}, r'case_000.nii.gz: spacing \(1.0, 1.0, 60.0\) mm; expected three positive'),
    ({'spacing': (.1, 1., 3.)}, 'at most 20 times the smallest'),
    ({'label': LABEL}, r'labelsTr.case_000.nii.gz: the mask holds the unknown label 3 \(1 pixels\)'),
    ({'label': LABEL[:, :9]}, 'labelsTr.case_000.nii.gz is 12x9x6 and its image .* 12x10x6'),
    ({'label': LABEL.astype(np.float32) / 2}, 'fractions'),
    ({'label_spacing': (1., 2., 3.)}, 'but its image'),
    ({'modality': 'CT'}, r'holds CT: give window=\(center, width\)')],
    ids=['thick', 'anisotropic', 'unknown', 'size', 'fractions', 'other spacing', 'CT'])
def test_refusals(changes, message, tmp_path):
    root = write_task(tmp_path / 'Task99_Block', cases=1, **changes)
    with pytest.raises(ValueError, match=message):
        open_msd_slices(str(root), 'train', size=12)  # where a single case goes


def test_a_split_without_cases(tmp_path):
    root = write_task(tmp_path / 'Task99_Block', cases=1)
    with pytest.raises(ValueError, match="split 'test' of 1 cases holds no slices with labels"):
        open_msd_slices(str(root), 'test', size=12)


def test_damaged_tasks(tmp_path):
    root = write_task(tmp_path / 'Task99_Block', cases=3)
    (root / 'imagesTr' / 'case_001.nii.gz').unlink()
    with pytest.raises(FileNotFoundError, match=r'case_001.nii.gz'):
        open_msd_slices(str(root), size=12)
    with pytest.raises(ValueError, match='no channel 1; there are MRI'):
        open_msd_slices(str(root), size=12, channel=1)
    (root / 'dataset.json').write_text('{"labels": {"0": "a", "2": "b"}, "modality": {}, "training": [1]}')
    with pytest.raises(ValueError, match=r'dataset.json is damaged'):
        open_msd_slices(str(root), size=12)
    (root / 'dataset.json').unlink()
    with pytest.raises(FileNotFoundError, match='no folder of a Decathlon task'):
        open_msd_slices(str(root), size=12)
