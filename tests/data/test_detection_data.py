"""Boxes from files: VOC, BCCD, EAD-2019 and phantoms; what is dropped, clipped or refused, with its file."""
import logging

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from medrobust_jax.data import bccd
from medrobust_jax.data.boxes import clean, pack
from medrobust_jax.data.builders.bccd import Bccd
from medrobust_jax.data.builders.reading import TfdsSource
from medrobust_jax.data.ead import CLASS_NAMES as ARTIFACTS
from medrobust_jax.data.ead import open_ead
from medrobust_jax.data.phantoms_cells import cell_phantoms, render
from medrobust_jax.data.voc import open_voc

OBJECT = ('<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>'
          '</object>')


def write_voc(root, name, objects, size=(12, 16), stated=None):
    """One image and its annotation; objects are (class, xmin, ymin, xmax, ymax)."""
    for folder in ('Annotations', 'JPEGImages', 'ImageSets/Main'):
        (root / folder).mkdir(parents=True, exist_ok=True)
    height, width = stated or size
    text = f'<annotation><size><width>{width}</width><height>{height}</height><depth>3</depth></size>'
    text += ''.join(OBJECT.format(*each) for each in objects) + '</annotation>'
    (root / 'Annotations' / f'{name}.xml').write_text(text)
    pixels = np.random.default_rng(len(name)).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(root / 'JPEGImages' / f'{name}.png')
    with open(root / 'ImageSets' / 'Main' / 'train.txt', 'a') as stream:
        stream.write(f'{name}\n')


@pytest.fixture
def voc(tmp_path):
    """Three images: two objects, none, and one that reaches over the edge."""
    root = tmp_path / 'cells'
    write_voc(root, 'a', [('RBC', 4, 3, 8, 9), ('WBC', 0, 0, 16, 12)])
    write_voc(root, 'b', [])
    write_voc(root, 'c', [('RBC', 12, 6, 18, 12)])
    return root


def test_voc_reads_fractions_pads_and_counts(voc):
    source = open_voc('cells', data_dir=voc.parent)
    record = source[0]
    np.testing.assert_allclose(record['boxes'], [[.25, .25, .5, .75], [0, 0, 1, 1]])
    np.testing.assert_array_equal(record['box_labels'], [0, 1])
    np.testing.assert_array_equal(source.column('box_mask'), [[1, 1], [0, 0], [1, 0]])
    np.testing.assert_allclose(source[2]['boxes'][0], [.75, .5, 1, 1])
    assert source.info.class_names == ('RBC', 'WBC')
    assert set(source.info.notes) == {'1 images have no object: b.',
                                      '1 boxes that reached over the edge were clipped: c.'}
    small = open_voc(str(voc), size=(6, 8), class_names=('WBC', 'RBC'))
    assert small.info.image_shape == (6, 8, 3)
    np.testing.assert_allclose(small[0]['boxes'], record['boxes'])
    np.testing.assert_array_equal(small[0]['box_labels'], [1, 0])


@pytest.mark.parametrize(('box', 'message'), [
    ((4, 3, 4, 9), r'bad\.xml, object 2: box .* has zero area or is inverted; drop_empty=True'),
    ((8, 3, 4, 9), 'inverted'), ((17, 3, 20, 9), 'object 2.*outside of the image'),
    (('nan', 3, 4, 9), 'object 2.*not finite'), ((4, 3, 'x', 9), "object 2: xmax is 'x', not a number")])
def test_unusable_boxes_are_refused_with_file_and_object(voc, box, message):
    write_voc(voc, 'bad', [('RBC', 0, 0, 8, 9), ('RBC', *box)])
    with pytest.raises(ValueError, match=message):
        open_voc(str(voc))


def test_boxes_without_area_are_dropped_on_request(voc):
    write_voc(voc, 'flat', [('RBC', 4, 3, 4, 9), ('WBC', 9, 3, 4, 9), ('RBC', 1, 1, 3, 3)])
    source = open_voc(str(voc), drop_empty=True)
    np.testing.assert_array_equal(source[3]['box_mask'], [True, False])
    assert '2 boxes of zero area or inverted were dropped: flat, flat.' in source.info.notes


def test_voc_refusals(voc):
    with pytest.raises(ValueError, match=r"class in .*a\.xml, object 2: 'WBC'; did you mean 'WBCs'"):
        open_voc(str(voc), class_names=('RBC', 'WBCs'))
    with pytest.raises(ValueError, match=r"no split 'val'.*the lists train"):
        open_voc(str(voc), 'val')
    write_voc(voc, 'wide', [], stated=(12, 20))
    with pytest.raises(ValueError, match=r'wide\.png is \(12, 16\) pixels .*annotation says \(12, 20\)'):
        open_voc(str(voc))
    (voc / 'Annotations' / 'wide.xml').write_text('<annotation>')
    with pytest.raises(ValueError, match=r'wide\.xml is truncated or no XML'):
        open_voc(str(voc), class_names=('RBC', 'WBC'))
    (voc / 'Annotations' / 'wide.xml').unlink()
    with pytest.raises(FileNotFoundError, match=r'no annotation .*wide\.xml'):
        open_voc(str(voc))
    write_voc(voc, 'wide', [], size=(10, 10))  # listed twice now
    with pytest.raises(ValueError, match="names 'wide' more than once"):
        open_voc(str(voc))
    (voc / 'ImageSets' / 'Main' / 'train.txt').write_text('a\nwide\n')
    with pytest.raises(ValueError, match=r'wide is .* give size='):
        open_voc(str(voc))
    (voc / 'JPEGImages' / 'wide.png').unlink()
    with pytest.raises(FileNotFoundError, match="no image 'wide'"):
        open_voc(str(voc))


def test_cleaning_keeps_order_and_packing_needs_no_object():
    objects, dropped, clipped = clean(np.array([[.1, .1, .2, .2], [.3, .3, .3, .4], [-.1, .5, .4, 1.00001]]),
                                      np.array([2, 1, 0]), where='x', drop_empty=True)
    np.testing.assert_allclose(objects.boxes, [[.1, .1, .2, .2], [0, .5, .4, 1]])
    np.testing.assert_array_equal(objects.labels, [2, 0])
    assert (dropped, clipped) == (1, 1)
    nothing, _, _ = clean(np.zeros((0, 4)), np.zeros(0), where='x')
    packed = pack([nothing, nothing])
    assert packed['boxes'].shape == (2, 1, 4)
    assert not packed['box_mask'].any()


def test_bccd_by_its_builder_and_directly(tmp_path, monkeypatch):
    root = tmp_path / 'manual' / 'bccd' / 'BCCD'
    write_voc(root, 'BloodImage_00000', [('RBC', 64, 48, 128, 96), ('Platelets', 0, 0, 640, 480)], size=(480, 640))
    write_voc(root, 'BloodImage_00338', [('RBC', 504, 337, 504, 337), ('WBC', 64, 48, 128, 96)], size=(480, 640))
    for split in ('val', 'test'):
        (root / 'ImageSets' / 'Main' / f'{split}.txt').write_text('BloodImage_00000\n')
    source = bccd.open_bccd('train', data_dir=tmp_path / 'manual', size=(48, 64))
    assert source.info.class_names == ('RBC', 'WBC', 'Platelets')
    np.testing.assert_array_equal(source.column('box_labels')[source.column('box_mask')], [0, 2, 1])
    assert source.info.notes == ('1 boxes of zero area or inverted were dropped: BloodImage_00338.',)
    tfds.disable_progress_bar()
    monkeypatch.setattr(logging.getLogger('absl'), 'disabled', True)
    builder = Bccd(data_dir=tmp_path)
    builder.download_and_prepare(file_format='array_record',
                                 download_config=tfds.download.DownloadConfig(manual_dir=tmp_path / 'manual'))
    data = builder.as_data_source('train')
    assert data[0]['image'].shape == (480, 640, 3)
    direct = bccd.open_bccd('train', data_dir=tmp_path / 'manual')
    for row in range(2):
        for name in ('boxes', 'box_labels', 'box_mask'):
            np.testing.assert_array_equal(data[row][name][:2], direct[row][name])
            assert not np.asarray(data[row][name][2:]).any()
    read = TfdsSource(builder, 'train', size=(48, 64))
    assert read.info.class_names == source.info.class_names
    np.testing.assert_array_equal(read[1]['boxes'][:2], source[1]['boxes'])
    for name in ('boxes', 'box_labels', 'box_mask'):
        np.testing.assert_array_equal(read.column(name)[1], read[1][name])
    np.testing.assert_array_equal(read[1]['image'], source[1]['image'])
    with pytest.raises(FileNotFoundError, match='Copy the folder BCCD'):
        bccd.open_bccd(data_dir=tmp_path / 'nowhere')


@pytest.fixture
def ead(tmp_path):
    root = tmp_path / 'ead2019' / 'training'
    root.mkdir(parents=True)
    for number in range(10):
        Image.fromarray(np.full((10, 12 + number % 2, 3), 20 * number, np.uint8)).save(root / f'{number:05d}.png')
        text = '' if number == 0 else f'{number % 2} 0.5 0.5 0.5 0.25\n6 0.9 0.9 0.4 0.1\n'
        (root / f'{number:05d}.txt').write_text(text)
    return tmp_path


def test_ead_reads_centers_and_sides(ead):
    sources = [open_ead(split, data_dir=ead, size=8) for split in ('train', 'val', 'test')]
    assert sum(map(len, sources)) == 10
    assert all(source.info.class_names == ARTIFACTS for source in sources)
    records = [source[row] for source in sources for row in range(len(source))]
    with_objects = next(record for record in records if record['box_mask'].any())
    np.testing.assert_allclose(with_objects['boxes'], [[.25, .375, .75, .625], [.7, .85, 1, .95]], atol=1e-6)
    assert any('reached over the edge' in note for note in sources[0].info.notes)
    assert any('1 images have no object.' in source.info.notes for source in sources)
    (ead / 'ead2019' / 'class_list.txt').write_text(' '.join(f'kind{number}' for number in range(7)))
    assert open_ead('train', data_dir=ead).info.class_names[6] == 'kind6'


@pytest.mark.parametrize(('line', 'message'), [
    ('1 .5 .5 .1', r"00003\.txt, line 2: '1 \.5 \.5 \.1' is not 'class x y width height'"),
    ('7 .5 .5 .1 .1', r'00003\.txt, line 2: class 7 outside 0\.\.6'), ('1 .5 .5 0 .1', 'object 2.*zero area'),
    ('1 2 .5 .1 .1', 'object 2.*outside')])
def test_bad_lines_of_ead(ead, line, message):
    (ead / 'ead2019' / 'training' / '00003.txt').write_text(f'1 .5 .5 .2 .2\n{line}\n')
    with pytest.raises(ValueError, match=message):
        open_ead('train', data_dir=ead)


def test_ead_absences(ead):
    (ead / 'ead2019' / 'training' / '00003.txt').unlink()
    with pytest.raises(ValueError, match=r'00003\.png has no text file beside it \(1 such'):
        open_ead('train', data_dir=ead)
    with pytest.raises(FileNotFoundError, match='Register at the EAD-2019'):
        open_ead('train', data_dir=ead / 'nowhere')


def test_cell_phantoms_depend_on_their_index_alone_and_boxes_hold_the_cells():
    few, many = (cell_phantoms('val', num_examples=count, seed=3, size=32) for count in (4, 7))
    for row in range(4):
        np.testing.assert_array_equal(few[row]['image'], many[row]['image'])
        assert few[row]['box_mask'].sum() == many[row]['box_mask'].sum()
    source = cell_phantoms('train', num_examples=120, size=32)
    boxes, mask, labels = (source.column(name) for name in ('boxes', 'box_mask', 'box_labels'))
    assert set(labels[mask]) == {0, 1, 2}
    assert (boxes[mask][:, 2:] > boxes[mask][:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= 1).all()
    without = int((~mask.any(1)).sum())
    assert 0 < without < 30
    assert source.info.notes == (f'{without} images have no object.',)
    image, objects = render(1, size=64)
    whites = objects.boxes[objects.labels == 1]
    assert len(whites)  # nuclei are the darkest red channel there is, and lie in a white cell's box
    y, x = np.unravel_index(image[..., 0].astype(int).argmin(), (64, 64))
    inside = (whites[:, 0] * 64 <= x + 1) & (x <= whites[:, 2] * 64) & (whites[:, 1] * 64 <= y + 1) & (
        y <= whites[:, 3] * 64)
    assert inside.any()
    with pytest.raises(ValueError, match='size >= 32'):
        cell_phantoms('val', size=16)


@pytest.mark.realdata
def test_real_bccd(data_dir):
    counts = {}
    for split, count in (('train', 205), ('val', 87), ('test', 72)):
        source = bccd.open_bccd(split, data_dir=data_dir, size=(60, 80))
        assert len(source) == count
        mask, labels = source.column('box_mask'), source.column('box_labels')
        counts[split] = np.bincount(labels[mask], minlength=3)
        if split != 'test':
            assert any('1 boxes of zero area' in note for note in source.info.notes)
    np.testing.assert_array_equal(sum(counts.values()), [4155 - 2, 372, 361])
