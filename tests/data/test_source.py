"""Sources: the range contract, clear refusals, fingerprints, subsets."""
import numpy as np
import pytest

from medrobust_jax.data.source import ArraySource, Source, Subset, all_labels, all_of, gather, read_batch

CLASSES = ('a', 'b', 'c')


def images(dtype=np.uint8, count=6, high=256, channels=1):
    return np.random.default_rng(0).integers(0, high, (count, 5, 4, channels)).astype(dtype)


def source(pixels=None, labels=(0, 1, 2, 0, 1, 2), **options):
    pixels = images() if pixels is None else pixels
    return ArraySource(pixels, labels, **{'name': 'tiny', 'class_names': CLASSES, **options})


def test_eight_bit_images_become_floats_in_range():
    pixels = images()
    pixels[0, 0, 0, 0], pixels[0, 0, 1, 0] = 0, 255
    made = source(pixels)
    record = made[0]
    assert isinstance(made, Source)
    assert record['image'].dtype == np.float32
    assert record['label'].dtype == np.int32
    assert record['image'][0, 0, 0] == 0
    assert record['image'][0, 1, 0] == 1  # exactly: attacks test for <= 1
    np.testing.assert_array_equal(np.round(record['image'] * 255), pixels[0])
    assert made.info.range_map == 'uint8 / 255'
    assert (made.info.image_shape, made.info.num_classes) == ((5, 4, 1), 3)


def test_sixteen_bit_images_need_their_maximum():
    pixels = images(np.uint16, high=4096)
    pixels[2, 0, 0, 0] = 4095
    made = source(pixels, max_value=4095)
    assert made[2]['image'].max() == 1
    assert '4095' in made.info.range_map
    with pytest.raises(ValueError, match='max_value'):
        source(pixels)
    with pytest.raises(ValueError, match='image 2 holds 4095, above max_value = 4000'):
        source(np.minimum(pixels, np.where(np.arange(6) == 2, 4095, 4000)[:, None, None, None]).astype(np.uint16),
               max_value=4000)
    with pytest.raises(ValueError, match='uint16'):
        source(max_value=255)


def test_floats_are_taken_as_they_are():
    pixels = images(np.float64) / 255
    np.testing.assert_allclose(gather(source(pixels))[0], pixels, atol=1e-7)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf, -.01, 1.5])
def test_floats_outside_the_contract_name_the_image(value):
    pixels = images(np.float32) / 255
    pixels[4, 1, 2, 0] = value
    with pytest.raises(ValueError, match='tiny/train: image 4'):
        source(pixels)


@pytest.mark.parametrize('dtype', [np.int32, np.int64, np.bool_, np.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(TypeError, match='dtype'):
        source(images(dtype))


def test_shapes_and_channels_are_checked():
    with pytest.raises(ValueError, match='channel axis'):
        source(images()[..., 0])
    with pytest.raises(ValueError, match='2 channels'):
        source(images(channels=2))
    with pytest.raises(ValueError, match=r'1 channels .* expected 3'):
        source(channels=3)
    assert source(images(channels=2), channels=2).info.image_shape == (5, 4, 2)
    with pytest.raises(ValueError, match='empty'):
        source(images()[:0], [])
    with pytest.raises(ValueError, match=r'labels of shape \(5,\) for 6 images'):
        source(labels=[0, 1, 2, 0, 1])
    with pytest.raises(ValueError, match='groups'):
        source(groups=['p', 'q'])


def test_labels_are_checked():
    with pytest.raises(ValueError, match='row 3 holds 3'):
        source(labels=[0, 1, 2, 3, 1, 2])
    with pytest.raises(ValueError, match='row 1 holds -1'):
        source(labels=[0, -1, 2, 0, 1, 2])
    with pytest.raises(TypeError, match='integer'):
        source(labels=[0., 1., 2., 0., 1., 2.])
    with pytest.raises(ValueError, match='several labels'):
        source(labels=np.zeros((6, 3), int))
    np.testing.assert_array_equal(all_labels(source(labels=[[0], [1], [2], [0], [1], [2]])), [0, 1, 2, 0, 1, 2])


def test_a_class_may_be_absent_from_test_but_not_from_training():
    with pytest.raises(ValueError, match=r'no training example of class 2 \(c\)'):
        source(labels=[0, 1, 0, 0, 1, 1])
    assert len(source(labels=[0, 1, 0, 0, 1, 1], split='test')) == 6


def test_fingerprint_follows_content():
    marks = {source().info.fingerprint}
    changed = images()
    changed[5, 4, 3, 0] ^= 1
    marks |= {source(changed).info.fingerprint, source(labels=[1, 0, 2, 0, 1, 2]).info.fingerprint,
              source(groups=list('ppqqrr')).info.fingerprint, source(range_map='x').info.fingerprint,
              source(images().reshape(6, 4, 5, 1)).info.fingerprint}
    assert len(marks) == 6
    assert source().info.fingerprint == source(name='other').info.fingerprint


def test_batches_and_single_records_agree():
    made = source(groups=list('ppqqrr'))
    rows = [4, 0, 4]
    batch = read_batch(made, rows)
    for place, row in enumerate(rows):
        for name, value in made[row].items():
            np.testing.assert_array_equal(batch[name][place], value)
    assert batch['group'].tolist() == ['r', 'p', 'r']
    np.testing.assert_array_equal(made[-1]['image'], made[5]['image'])
    with pytest.raises(IndexError):
        made[6]


class Plain:
    """A source with the bare protocol, as a user might write."""

    def __init__(self, inner):
        self._inner, self.info = inner, inner.info

    def __len__(self):
        return len(self._inner)

    def __getitem__(self, row):
        return self._inner[row]


def test_a_plain_source_reads_the_same():
    made = source(groups=list('ppqqrr'))
    assert isinstance(Plain(made), Source)
    for ours, theirs in zip(gather(made), gather(Plain(made)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(all_labels(made), all_labels(Plain(made)))


def test_subset():
    made = source(groups=list('ppqqrr'))
    part = Subset(made, [5, 1], split='val')
    assert (len(part), part.info.split) == (2, 'val')
    assert part.info.fingerprint not in (made.info.fingerprint, Subset(made, [1, 5]).info.fingerprint)
    pixels, labels, groups = gather(part)
    np.testing.assert_array_equal(pixels, gather(made)[0][[5, 1]])
    assert (labels.tolist(), all_labels(part).tolist(), groups.tolist()) == ([2, 1], [2, 1], ['r', 'p'])
    np.testing.assert_array_equal(part[1]['image'], made[1]['image'])
    with pytest.raises(ValueError, match='empty'):
        Subset(made, [])
    with pytest.raises(ValueError, match='row 6 of 6'):
        Subset(made, [0, 6])


@pytest.mark.parametrize('missing', [None, float('nan'), ''])
def test_rows_without_a_patient_are_refused(missing):
    with pytest.raises(ValueError, match=r'tiny/train: groups: row 2 holds .*\(2 such rows\).* leave groups out'):
        source(groups=['p', 'p', missing, missing, 'q', 'q'])
    with pytest.raises(ValueError, match='row 5 holds'):
        source(groups=np.asarray([1, 1, 2, 2, 3, missing], float if missing != '' else object))


def test_patients_may_be_a_column_of_objects():
    made, texts = (source(groups=np.asarray(list('ppqqrr'), kind)) for kind in (object, str))
    assert made.info.fingerprint == texts.info.fingerprint
    assert made[2]['group'] == 'q'


def dense(**changes):
    """Six images of 4 x 3 pixels with masks and two points."""
    pixels = np.linspace(0, 255, 6 * 12).astype(np.uint8).reshape(6, 4, 3, 1)
    targets = {'segmentation': (pixels[..., 0] > 99).astype(np.int64) * 2, 'points': np.full((6, 2, 2), .5)}
    return ArraySource(pixels, {**targets, **changes}, name='masks', class_names='abc', groups=np.arange(6) // 2)


def test_targets_other_than_labels():
    made = dense()
    record = made[5]
    assert (record['segmentation'].dtype, record['points'].dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(record['segmentation'], 2)
    images, targets, groups = gather(Subset(made, [0, 5]))
    assert images.shape == (2, 4, 3, 1)
    assert (targets['segmentation'].shape, targets['points'].shape) == ((2, 4, 3), (2, 2, 2))
    assert groups.tolist() == [0, 2]
    np.testing.assert_array_equal(all_of(Subset(made, [5]), 'points'), made[5]['points'][None])
    for ours, theirs in zip(targets.items(), gather(Plain(Subset(made, [0, 5])))[1].items(), strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
    moved = dense(points=np.full((6, 2, 2), .25))
    assert moved.info.fingerprint != made.info.fingerprint
    with pytest.raises(ValueError, match='no label per image'):
        all_labels(made)


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(segmentation=np.zeros((6, 4, 4), int)), r'segmentation of shape \(6, 4, 4\)'),
    (dict(segmentation=np.eye(6, 12).reshape(6, 4, 3) * 3), 'of row 0 holds 3.0; expected classes 0 to 2'),
    (dict(points=np.where(np.arange(6) == 4, np.nan, 0.)[:, None, None] + np.zeros((6, 2, 2))),
     'points of row 4 holds nan'),
    (dict(points=np.zeros((5, 2, 2))), r'expected \[n points xy\]'),
    (dict(findings=np.full((6, 2), 2)), 'findings of row 0 holds 2; expected 0 or 1'),
    (dict(segmentaton=np.zeros((6, 4, 3))), "did you mean 'segmentation'"),
])
def test_targets_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        dense(**changes)
