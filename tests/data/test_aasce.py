"""The spinal X-rays: both layouts, geometry, splits by patient, refusals, and the real files."""
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.data import aasce
from medrobust_jax.data.builders.aasce import Aasce
from medrobust_jax.data.builders.reading import TfdsSource
from medrobust_jax.metrics.cobb import cobb_angles

GENERATOR = np.random.default_rng(0)
GROUPS = {'train': [1, 1, 2, 3, 3, 4, 5, 6, 7, 8], 'test': [8, 9]}


def write(root, *, public, points=None):
    """A tiny copy of the data set: images 60 high, 20 or 40 wide; landmarks of shape [n, 68, 2]."""
    for split, groups in GROUPS.items():
        count = len(groups)
        folder = root / 'data' / aasce._PUBLIC[split] if public else root / split
        tables = root / 'labels' / aasce._PUBLIC[split] if public else root
        folder.mkdir(parents=True, exist_ok=True)
        tables.mkdir(parents=True, exist_ok=True)
        places = GENERATOR.uniform(.1, .9, size=(count, 68, 2)).round(5)
        if points is not None:
            places[:len(points)] = points[:count]
        letters = 'ABCDEFGHIJ'
        names = [f'sunhl-1th-02-Jan-2017-{group} {letters[n]} AP.jpg' if public else f'{split}_{n:04}.jpg'
                 for n, group in enumerate(groups)]
        for n, name in enumerate(names):
            pixels = GENERATOR.integers(0, 256, (60, 20 + 20 * (n % 2)), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        flat = np.concatenate([places[..., 0], places[..., 1]], axis=1)
        lines = '\n'.join(','.join(map(str, row)) for row in flat.tolist()) + '\n'
        if public:
            (tables / 'landmarks.csv').write_text(lines)
            (tables / 'filenames.csv').write_text('\n'.join(names) + '\n')
        else:
            (tables / f'{split}_landmarks.csv').write_text(lines)
            rows = '\n'.join(f'{name},{group}' for name, group in zip(names, groups, strict=True))
            (tables / f'{split}_files.csv').write_text('file,group\n' + rows + '\n')


@pytest.fixture(params=['boostnet_labeldata', 'aasce_spine'])
def root(request, tmp_path):
    write(tmp_path / request.param, public=request.param == 'boostnet_labeldata')
    return tmp_path


def test_both_layouts_split_by_patient_and_report_the_overlap(root):
    sources = {split: aasce.open_aasce(split, data_dir=root, size=(30, 20), val_fraction=.3)
               for split in ('train', 'val', 'test')}
    groups = {split: {str(source[row]['group']) for row in range(len(source))}
              for split, source in sources.items()}
    assert len(sources['train']) + len(sources['val']) == 10
    assert not groups['train'] & groups['val']
    assert groups['train'] | groups['val'] == {str(group) for group in range(1, 9)}
    assert groups['test'] == {'8', '9'}
    assert any('numbers 8 occur in both official splits (1 training and 1 test' in note
               for note in sources['train'].info.notes)
    kept = [aasce.open_aasce(split, data_dir=root, size=(30, 20), drop_overlap=True) for split in ('train', 'val')]
    assert sum(map(len, kept)) == 9
    assert sources['train'][0]['points'].shape == (68, 2)


def test_frames_keep_proportions_and_points_stay_on_their_pixels(tmp_path):
    image = np.zeros((60, 20), np.uint8)
    image[40:42, 10:12] = 255
    Image.fromarray(image).save(tmp_path / 'x.png')
    points = np.array([[11 / 20, 41 / 60]])
    for size, fit in (((60, 60), 'pad'), ((120, 60), 'pad'), ((30, 40), 'stretch'), ((45, 5), 'pad')):
        canvas, placed = aasce.frame(tmp_path / 'x.png', points, size, fit)
        assert canvas.shape == size
        rows, columns = np.nonzero(canvas > .4 * canvas.max())
        center = np.array([columns.mean() + .5, rows.mean() + .5]) / (size[1], size[0])
        np.testing.assert_allclose(placed[0], center, atol=.6 / min(size))
    narrow, _ = aasce.frame(tmp_path / 'x.png', points, (60, 60), 'pad')
    np.testing.assert_array_equal(narrow[:, 20:40], image)
    assert not narrow[:, :20].any()


def test_masks_are_the_contours(root):
    source = aasce.open_aasce('train', data_dir=root, size=(32, 16), mask=True)
    assert set(np.unique(source[0]['segmentation'])) <= {0, 1}
    assert source[0]['segmentation'].shape == (32, 16)


def test_a_landmark_outside_drops_its_image_and_more_is_refused(tmp_path):
    points = np.full((3, 68, 2), .5)
    points[1, 63, 0] = 1.02
    write(tmp_path / 'aasce_spine', public=False, points=points[:2])
    source = aasce.open_aasce('train', data_dir=tmp_path, size=16)
    assert len(source) + len(aasce.open_aasce('val', data_dir=tmp_path, size=16)) == 9
    assert any('Dropped 1 images with a landmark outside: row 1 (train_0001.jpg)' in note
               for note in source.info.notes)
    points[2, 0, 0] = 300.
    write(tmp_path / 'aasce_spine', public=False, points=points)
    with pytest.raises(ValueError, match=r'train_landmarks.csv, row 2: values in \[0\.5, 300\]; landmarks are'):
        aasce.open_aasce('train', data_dir=tmp_path)


def test_refusals(root):
    with pytest.raises(ValueError, match="fit = 'crop' must be one of pad, stretch"):
        aasce.open_aasce('train', data_dir=root, fit='crop')
    with pytest.raises(ValueError, match="not 'dev'"):
        aasce.open_aasce('dev', data_dir=root)
    with pytest.raises(FileNotFoundError, match='boostnet_labeldata'):
        aasce.open_aasce('train', data_dir=root / 'absent')
    table = next(path for path in root.rglob('*landmarks.csv') if 'test' in str(path.relative_to(root)))
    text = table.read_text()
    table.write_text(text.splitlines()[0] + '\n')
    with pytest.raises(ValueError, match=r'has 1 rows and .* names 2 files'):
        aasce.open_aasce('test', data_dir=root)
    table.write_text(text.replace(',', ',x', 1))
    with pytest.raises(ValueError, match='row 0: expected 136 finite numbers'):
        aasce.open_aasce('test', data_dir=root)
    table.write_text(text)
    image = next(path for path in sorted(root.rglob('*.jpg')) if path.parent.name == 'test')
    image.write_bytes(b'no image')
    with pytest.raises(ValueError, match='is no readable image'):
        aasce.open_aasce('test', data_dir=root)


def test_builder_equals_the_direct_path(root, monkeypatch):
    monkeypatch.setenv('MEDROBUST_DATA', str(root))
    builder = Aasce(data_dir=root / 'prepared')
    builder.download_and_prepare(file_format='array_record')
    for split in ('train', 'val', 'test'):
        data, direct = builder.as_data_source(split=split), aasce.open_aasce(split, size=(256, 128))
        assert len(data) == len(direct)
        last = len(data) - 1
        np.testing.assert_array_equal(data[last]['image'] / np.float32(255), direct[last]['image'])
        np.testing.assert_array_equal(data[last]['points'], direct[last]['points'])
        assert data[last]['group'].decode() == direct[last]['group']
        read = TfdsSource(builder, split)
        assert read.info.class_names == direct.info.class_names
        assert read[last]['group'] == direct[last]['group']
        np.testing.assert_array_equal(read[last]['points'], direct[last]['points'])


@pytest.mark.realdata
def test_real_spines_keep_their_angles(data_dir):
    source = aasce.open_aasce('test', data_dir=data_dir, size=(64, 32), mask=True)
    assert len(source) == 128
    assert any('240' in note for note in source.info.notes)
    points = source.column('points')
    published = np.loadtxt(data_dir / 'aasce_spine' / 'test_angles.csv', delimiter=',')
    got = cobb_angles(points * [32, 64], 64)
    # Sizes are rounded to whole pixels, which squeezes images by up to 2 percent.
    assert np.median(np.abs(got - published)) < .5
    share = source.column('segmentation').mean((1, 2))
    assert share.min() > .02
    assert share.max() < .4
