"""DICOM and NIfTI slices: windows by hand, inversion, patients, files that cannot be read."""
import csv

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset

from medrobust_jax.data.medical_files import apply_window, read_dicom
from medrobust_jax.data.registry import load
from medrobust_jax.data.source import all_labels, gather


def write_dicom(path, stored, *, syntax=pydicom.uid.ExplicitVRLittleEndian, **fields):
    """A single-frame 12-bit CT slice."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = '1.2.3'
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b'\0' * 128)
    stored = np.asarray(stored, np.uint16)
    values = {'Rows': stored.shape[0], 'Columns': stored.shape[1], 'SamplesPerPixel': 1, 'BitsAllocated': 16,
              'BitsStored': 12, 'HighBit': 11, 'PixelRepresentation': 0, 'RescaleSlope': 2,
              'RescaleIntercept': -1000, 'PhotometricInterpretation': 'MONOCHROME2', 'PatientID': 'one', **fields}
    for name, value in values.items():
        if value is not None:
            setattr(dataset, name, value)
    data = stored.tobytes()
    compressed = syntax.is_compressed
    dataset.PixelData = pydicom.encaps.encapsulate([data]) if compressed else data
    dataset['PixelData'].VR = 'OB' if compressed else 'OW'
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def test_window_by_hand():
    np.testing.assert_allclose(apply_window(np.array([-200., -160, 40, 240, 300]), (40, 400)), [0, 0, .5, 1, 1])


def test_dicom_windows_and_inversion(tmp_path):
    path = tmp_path / 'a.dcm'
    stored = [[0, 500, 520], [1000, 4095, 600]]
    units = 2 * np.array(stored) - 1000  # -1000, 0, 40, 1000, 7190, 200
    write_dicom(path, stored, WindowCenter=[100, 0], WindowWidth=[400, 1])
    expected = np.clip((units - 40) / 400 + .5, 0, 1)
    np.testing.assert_allclose(read_dicom(path, (40, 400))[..., 0], expected, atol=1e-6)
    np.testing.assert_allclose(read_dicom(path, 'full')[..., 0], np.array(stored) / 4095, atol=1e-6)
    expected = np.clip((units - 100) / 400 + .5, 0, 1)
    np.testing.assert_allclose(read_dicom(path, 'file')[..., 0], expected, atol=1e-6)
    upright = read_dicom(path, (40, 400))
    write_dicom(path, stored, PhotometricInterpretation='MONOCHROME1')
    np.testing.assert_allclose(read_dicom(path, (40, 400)), 1 - upright, atol=1e-6)
    with pytest.raises(ValueError, match='states no window'):
        read_dicom(path, 'file')
    write_dicom(path, stored, RescaleSlope=None, RescaleIntercept=None)
    expected = np.clip(np.array(stored) / 1000, 0, 1)
    np.testing.assert_allclose(read_dicom(path, (500, 1000))[..., 0], expected, atol=1e-6)


def test_signed_dicom_pixels(tmp_path):
    write_dicom(tmp_path / 'a.dcm', np.array([[-2048, 0, 2047]], np.int16).view(np.uint16), PixelRepresentation=1,
                RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_allclose(read_dicom(tmp_path / 'a.dcm', 'full')[0, :, 0], [0, 2048 / 4095, 1], atol=1e-6)


def test_dicom_folder_keeps_patients_together(tmp_path):
    for number in range(40):
        write_dicom(tmp_path / ('ill' if number % 2 else 'well') / f'{number:02d}.dcm', np.full((4, 6), number),
                    PatientID=f'p{number // 2 % 10}-{number % 2}')
    parts = {split: load(f'dicom:{tmp_path}', split, window=(0, 4000)) for split in ('train', 'val', 'test')}
    assert sum(map(len, parts.values())) == 40
    patients = [set(gather(part)[2]) for part in parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    info = parts['train'].info
    assert (info.has_groups, info.class_names, info.image_shape) == (True, ('ill', 'well'), (4, 6, 1))
    assert 'window (0, 4000)' in info.range_map
    assert load(f'dicom:{tmp_path}', size=4).info.image_shape == (4, 4, 1)


def test_unreadable_dicom_files_are_named(tmp_path):
    path = tmp_path / 'a' / 'bad.dcm'
    write_dicom(path, np.zeros((4, 4)), syntax=pydicom.uid.JPEG2000)
    with pytest.raises(ValueError, match=r'bad\.dcm: pixels cannot be decoded \(JPEG 2000'):
        load(f'dicom:{tmp_path}')
    write_dicom(path, np.zeros((4, 4)), NumberOfFrames=2)
    with pytest.raises(ValueError, match='2 frames'):
        load(f'dicom:{tmp_path}')
    write_dicom(path, np.zeros((4, 4)), PhotometricInterpretation='PALETTE COLOR')
    with pytest.raises(ValueError, match='PALETTE COLOR'):
        load(f'dicom:{tmp_path}')
    write_dicom(path, np.zeros((64, 64)))
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match=r'bad\.dcm'):
        load(f'dicom:{tmp_path}')
    path.write_bytes(b'no dicom at all')
    with pytest.raises(ValueError, match=r'bad\.dcm'):
        load(f'dicom:{tmp_path}')


@pytest.mark.parametrize('window', [(40, 0), (40, -5), 'lung', (1, 2, 3), (np.nan, 4)])
def test_bad_windows(window, tmp_path):
    for name in ('dicom', 'nifti'):
        with pytest.raises(ValueError, match='window'):
            load(f'{name}:{tmp_path}', window=window)


def write_table(path, rows):
    with open(path, 'w', newline='') as stream:
        writer = csv.DictWriter(stream, ['file', 'label', 'slice', 'split', 'group'])
        writer.writeheader()
        writer.writerows(rows)
    return f'nifti:{path}'


@pytest.fixture
def volumes(tmp_path):
    """Ten volumes 4x5x3 with slope and intercept; slice k of volume v holds 100 v + k at its start."""
    made = []
    for number in range(10):
        values = np.random.default_rng(number).integers(0, 90, (4, 5, 3)).astype(np.int16)
        values[0, 0] = 100 * number + np.arange(3)
        image = nibabel.Nifti1Image(values, np.eye(4))
        image.header.set_slope_inter(2, -10)
        nibabel.save(image, tmp_path / f'v{number}.nii.gz')
        made.append(2. * values - 10)
    return made


def test_nifti_slices(tmp_path, volumes):
    name = write_table(tmp_path / 'labels.csv', [
        {'file': f'v{number}.nii.gz', 'label': number % 2, 'split': 'train' if number < 8 else 'test'}
        for number in range(10)])
    train = load(name, window=(500, 1000))
    images, labels, groups = gather(train)
    assert images.shape == (24, 4, 5, 1)
    expected = np.concatenate([np.moveaxis(volume, 2, 0) for volume in volumes[:8]])
    np.testing.assert_allclose(images[..., 0], np.clip(expected / 1000, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(labels, np.repeat(np.arange(8) % 2, 3))
    assert groups[3] == 'v1.nii.gz'
    test = load(name, 'test', axis=0)
    assert test.info.image_shape == (5, 3, 1)
    assert gather(test)[0].max() == 1  # of each volume
    assert 'axis 0' in test.info.range_map


def test_nifti_single_slices_and_split_by_volume(tmp_path, volumes):
    rows = [{'file': f'v{number}.nii.gz', 'label': 'ab'[number % 2], 'slice': which}
            for number in range(10) for which in (0, 2)]
    name = write_table(tmp_path / 'labels.csv', rows)
    parts = [gather(load(name, split))[2] for split in ('train', 'val', 'test')]
    assert sum(map(len, parts)) == 20
    assert sum(len(set(part)) for part in parts) == 10
    assert load(name).info.class_names == ('a', 'b')
    assert len(np.unique(all_labels(load(name)))) == 2


@pytest.mark.parametrize(('rows', 'message'), [
    ([{'file': 'v0.nii.gz', 'label': 0, 'slice': 3, 'split': 'train'}], 'slice 3 of 3'),
    ([{'file': 'v0.nii.gz', 'label': '', 'split': 'train'}], 'line 2'),
    ([{'file': 'v0.nii.gz', 'label': 1, 'split': 'valid'}], 'line 2'),
    ([], 'no rows'),
    ([{'file': 'flat.nii', 'label': 0, 'split': 'train'}], 'constant'),
    ([{'file': 'nan.nii', 'label': 0, 'split': 'train'}], 'NaN or inf'),
    ([{'file': 'four.nii', 'label': 0, 'split': 'train'}], '3-D'),
    ([{'file': 'cut.nii.gz', 'label': 0, 'split': 'train'}], r'cut\.nii\.gz'),
    ([{'file': 'text.nii', 'label': 0, 'split': 'train'}], r'text\.nii')])
def test_unusable_nifti(tmp_path, volumes, rows, message):
    for name, values in (('flat', np.ones((2, 2, 2))), ('nan', np.full((2, 2, 2), np.nan)),
                         ('four', np.ones((2, 2, 2, 2)))):
        nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), tmp_path / f'{name}.nii')
    whole = (tmp_path / 'v0.nii.gz').read_bytes()
    (tmp_path / 'cut.nii.gz').write_bytes(whole[:len(whole) // 2])
    (tmp_path / 'text.nii').write_text('not a volume')
    with pytest.raises(ValueError, match=message):
        load(write_table(tmp_path / 'labels.csv', rows))


def test_absent_tables_volumes_and_columns(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.csv'):
        load('nifti:nowhere.csv', data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match=r'gone\.nii'):
        load(write_table(tmp_path / 'labels.csv', [{'file': 'gone.nii', 'label': 0, 'split': 'train'}]))
    (tmp_path / 'labels.csv').write_text('path,class\n')
    with pytest.raises(ValueError, match='needs file and label'):
        load(f'nifti:{tmp_path}/labels.csv')
