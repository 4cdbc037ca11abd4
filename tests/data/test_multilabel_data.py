"""Multi-label data: ChestX-ray14's layout, ChestMNIST, phantoms; what is refused, with file and line."""
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import chest, medmnist
from medrobust_jax.data.builders.medmnist import Medmnist
from medrobust_jax.data.builders.reading import TfdsSource
from medrobust_jax.data.chest import FINDINGS, open_chest
from medrobust_jax.data.phantoms_findings import chest_phantoms
from medrobust_jax.data.source import all_of, gather

HEADER = 'Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age\n'


@pytest.fixture
def chest_dir(tmp_path):
    """Ten patients with two images each in the training list, two patients in the test list."""
    root = tmp_path / 'chestxray14'
    (root / 'images_001' / 'images').mkdir(parents=True)
    (root / 'images').mkdir()
    lines, generator = [], np.random.default_rng(0)
    for number in range(24):
        name, patient = f'{number // 2:08d}_{number % 2:03d}.png', number // 2
        labels = 'No Finding' if patient % 2 else 'Effusion|Hernia' if number % 2 else 'Pleural_Thickening'
        lines.append(f'{name},{labels},0,{patient},50\n')
        folder = root / 'images' if patient == 3 else root / 'images_001' / 'images'
        pixels = generator.integers(0, 256, (16, 16)).astype(np.uint8)
        pixels[0, 0] = number  # to recognize it
        image = Image.fromarray(pixels)
        (image.convert('RGBA') if number == 4 else image).save(folder / name)
    (root / 'Data_Entry_2017.csv').write_text(HEADER + ''.join(lines))
    names = [line.split(',')[0] + '\n' for line in lines]
    (root / 'train_val_list.txt').write_text(''.join(names[:20]))
    (root / 'test_list.txt').write_text(''.join(names[20:]))
    return tmp_path


def test_chest_splits_by_patient_and_reads_findings(chest_dir):
    sources = {split: open_chest(split, data_dir=chest_dir, size=None, val_fraction=.2)
               for split in ('train', 'val', 'test')}
    patients = {split: set(gather(source)[2]) for split, source in sources.items()}
    assert patients['test'] == {'10', '11'}
    assert len(patients['val']) == 2
    assert not patients['train'] & patients['val']
    assert patients['train'] | patients['val'] == {str(number) for number in range(10)}
    for source in sources.values():
        assert source.info.class_names == FINDINGS
        for row in range(len(source)):
            record = source[row]
            number = round(float(record['image'][0, 0, 0]) * 255)
            assert record['group'] == str(number // 2)
            names = [FINDINGS[column] for column in np.flatnonzero(record['findings'])]
            assert names == ([] if number // 2 % 2 else
                             ['Effusion', 'Hernia'] if number % 2 else ['Pleural_Thickening'])
    assert any('whole patients' in note for note in sources['val'].info.notes)
    small = open_chest('test', data_dir=chest_dir, size=8)
    assert small.info.image_shape == (8, 8, 1)
    assert 'resized from 16x16 to 8x8' in small.info.range_map


def test_patients_in_both_lists_are_reported(chest_dir):
    root = chest_dir / 'chestxray14'
    with open(root / 'test_list.txt', 'a') as stream:
        stream.write('00000003_001.png\n')
    assert '1 patients occur in both official lists.' in open_chest('test', data_dir=chest_dir).info.notes


@pytest.mark.parametrize(('line', 'message'), [
    ('x.png,Effusoin,0,7,50', r"finding in .*Data_Entry_2017\.csv, line 26: 'Effusoin'; did you mean 'Effusion'"),
    ('x.png,No Finding|Mass,0,7,50', r'line 26: .*says both'),
    ('x.png,Mass,0,,50', r"line 26: file 'x\.png' of patient ''"),
    ('00000000_000.png,Mass,0,0,50', 'line 26.*a file once')])
def test_bad_lines_of_the_table(chest_dir, line, message):
    with open(chest_dir / 'chestxray14' / 'Data_Entry_2017.csv', 'a') as stream:
        stream.write(line + '\n')
    with pytest.raises(ValueError, match=message):
        open_chest('test', data_dir=chest_dir)


def test_missing_and_damaged_files(chest_dir):
    root = chest_dir / 'chestxray14'
    with pytest.raises(ValueError, match="not 'valid'"):
        open_chest('valid', data_dir=chest_dir)
    with pytest.raises(ValueError, match='val_fraction'):
        open_chest('val', data_dir=chest_dir, val_fraction=0)
    path = root / 'images_001' / 'images' / '00000010_000.png'
    pixels = path.read_bytes()
    path.write_bytes(pixels[:40])
    with pytest.raises(ValueError, match=r'00000010_000\.png is truncated'):
        open_chest('test', data_dir=chest_dir)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image '00000010_000\.png' of patient 10"):
        open_chest('test', data_dir=chest_dir)
    (root / 'test_list.txt').write_text('\nnobody.png\n')
    with pytest.raises(ValueError, match=r"test_list\.txt, line 2: 'nobody\.png' is not in the table"):
        open_chest('test', data_dir=chest_dir)
    (root / 'Data_Entry_2017.csv').write_text('a,b\n')
    with pytest.raises(ValueError, match='lacks the columns Image Index, Finding Labels, Patient ID'):
        open_chest('test', data_dir=chest_dir)
    with pytest.raises(FileNotFoundError, match='ChestX-ray14 archives'):
        open_chest('test', data_dir=chest_dir / 'nowhere')
    assert chest.FINDINGS == FINDINGS


def chestmnist_file(folder, findings=14):
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (('train', 12), ('val', 5), ('test', 7)):
        arrays[f'{split}_images'] = generator.integers(0, 256, (count, 28, 28)).astype(np.uint8)
        arrays[f'{split}_labels'] = generator.integers(0, 2, (count, findings)).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    np.savez(folder / 'chestmnist.npz', **arrays)
    return arrays


def test_chestmnist_has_findings(tmp_path):
    arrays = chestmnist_file(tmp_path)
    source = medmnist.open_medmnist('chestmnist', 'val', data_dir=tmp_path)
    np.testing.assert_array_equal(all_of(source, 'findings'), arrays['val_labels'])
    assert 'label' not in source[0]
    assert len(source.info.class_names) == 14
    chestmnist_file(tmp_path, findings=13)
    with pytest.raises(ValueError, match='one column for each of 14 findings'):
        medmnist.open_medmnist('chestmnist', data_dir=tmp_path)
    arrays['train_labels'] = arrays['train_labels'] + 1
    np.savez(tmp_path / 'chestmnist.npz', **arrays)
    with pytest.raises(ValueError, match='expected 0 or 1'):
        medmnist.open_medmnist('chestmnist', data_dir=tmp_path)


def test_chestmnist_by_its_builder(tmp_path):
    tfds.disable_progress_bar()
    arrays = chestmnist_file(tmp_path / 'manual')
    builder = Medmnist(config='chestmnist', data_dir=tmp_path)
    builder.download_and_prepare(file_format='array_record',
                                 download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual'))
    data = builder.as_data_source('test')
    np.testing.assert_array_equal([record['findings'] for record in data], arrays['test_labels'])
    read = TfdsSource(builder, 'test')
    np.testing.assert_array_equal(read[0]['findings'], arrays['test_labels'][0])
    assert read.info.num_classes == 14


def test_phantoms_depend_on_their_index_alone():
    few, many = (chest_phantoms('val', num_examples=count, seed=3, size=24) for count in (6, 10))
    for left, right in zip(gather(few)[0], gather(many)[0], strict=False):
        np.testing.assert_array_equal(left, right)
    images, _, groups = gather(many)
    assert images.shape == (10, 24, 24, 1)
    np.testing.assert_array_equal(groups, np.arange(10) // 2)
    assert not np.array_equal(images[:6], gather(chest_phantoms('test', num_examples=6, seed=3, size=24))[0])
    share = all_of(chest_phantoms('train', num_examples=400, size=16), 'findings').mean(0)
    np.testing.assert_allclose(share, .35, atol=.08)
    with pytest.raises(ValueError, match='size >= 16'):
        chest_phantoms('val', size=8)
    with pytest.raises(ValueError, match="not 'all'"):
        chest_phantoms('all')
