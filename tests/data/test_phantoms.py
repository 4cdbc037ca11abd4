"""The OCT phantoms: deterministic per image, in range, and of four classes that can be told apart."""
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from medrobust_jax.data import phantoms
from medrobust_jax.data.source import gather


def test_source_and_contract():
    source = phantoms.oct_phantoms('val', num_examples=42, size=40)
    images, labels, _ = gather(source)
    assert images.shape == (42, 40, 40, 1)
    assert 0 <= images.min() < .1 < .9 < images.max() <= 1
    assert np.ptp(np.bincount(labels)) <= 1
    assert source.info.class_names == ('normal', 'dme', 'drusen', 'cnv')
    assert {split: len(phantoms.oct_phantoms(split)) for split in ('val', 'test')} == {'val': 400, 'test': 600}


def test_an_image_depends_on_its_own_number_only():
    labels = np.arange(300) % 4
    many = phantoms.render(labels, seed=1)
    np.testing.assert_array_equal(many[:20], phantoms.render(labels[:20], seed=1))
    np.testing.assert_array_equal(many, phantoms.render(labels, seed=1))
    assert len({image.tobytes() for image in many}) == 300
    for other in ({'seed': 2}, {'seed': 1, 'stream': 1}):
        assert (phantoms.render(labels[:4], **other) != many[:4]).any((1, 2, 3)).all()


def test_pinned_content():
    # Published numbers refer to these pixels: drawing them differently is a new data set.
    assert phantoms.oct_phantoms('val', num_examples=8).info.fingerprint[:16] == '5e6e7577f4b76845'


def test_classes_differ_by_more_than_small_perturbations():
    # The same scan under different labels: lesions move many pixels by more than 2 * 8/255.
    scans = {label: phantoms.render(np.full(64, label), seed=3).astype(float) / 255 for label in range(4)}
    for label in (1, 2, 3):
        strong = (np.abs(scans[label] - scans[0]) > 16 / 255).mean((1, 2, 3))
        assert np.median(strong) > .05, phantoms.CLASS_NAMES[label]


def test_a_linear_model_does_not_solve_them():
    train, labels, _ = gather(phantoms.oct_phantoms('train', num_examples=400))
    test, truth, _ = gather(phantoms.oct_phantoms('test', num_examples=200))
    model = LogisticRegression(C=.01, max_iter=60, tol=1e-2).fit(train.reshape(400, -1), labels)
    assert .3 < model.score(test.reshape(200, -1), truth) < .9


@pytest.mark.parametrize('options', [{'split': 'all'}, {'num_examples': 3}, {'size': 8}, {'size': (32, 32)}])
def test_refusals(options):
    with pytest.raises(ValueError, match='oct_phantom'):
        phantoms.oct_phantoms(**options)
