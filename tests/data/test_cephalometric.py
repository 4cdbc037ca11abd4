"""The cephalometric X-rays, on a tiny copy of the public layout."""
import numpy as np
import pytest
from PIL import Image

from medrobust_jax.data import cephalometric
from medrobust_jax.data.cephalometric import open_cephalometric


@pytest.fixture
def root(tmp_path):
    generator = np.random.default_rng(0)
    number = 0
    for folder, count in (('TrainingData', 6), ('Test1Data', 2), ('Test2Data', 1)):
        (tmp_path / 'cephalometric/RawImage' / folder).mkdir(parents=True)
        for _ in range(count):
            number += 1
            pixels = generator.integers(0, 256, (24, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'cephalometric/RawImage/{folder}/{number:03}.bmp')
            for shift, doctor in enumerate(cephalometric.DOCTORS):
                file = tmp_path / f'cephalometric/AnnotationsByMD/{doctor}/{number:03}.txt'
                file.parent.mkdir(parents=True, exist_ok=True)
                lines = [f'{number + shift},{row + 2 * shift}' for row in range(19)]
                file.write_text('\n'.join([*lines, '1', '2', '1', '3']) + '\n')
    return tmp_path


def test_points_are_the_doctors_mean(root):
    sources = {split: open_cephalometric(split, data_dir=root, size=(12, 10), val_fraction=.34)
               for split in ('train', 'val', 'test', 'test2')}
    assert [len(source) for source in sources.values()] == [4, 2, 2, 1]
    record = sources['test'][1]
    assert record['image'].shape == (12, 10, 1)
    assert record['group'] == '008'
    expected = np.stack([np.full(19, 8.5 + .5), np.arange(19) + 1 + .5], 1) / [20, 24]
    np.testing.assert_allclose(record['points'], expected, rtol=1e-6)
    both = [{str(source[row]['group']) for row in range(len(source))} for source in sources.values()]
    assert not both[0] & both[1]


def test_pixel_sizes():
    np.testing.assert_allclose(cephalometric.pixel_size((240, 387)), (1, .5))


def test_refusals(root):
    annotation = root / 'cephalometric/AnnotationsByMD/400_senior/007.txt'
    for text, message in (('1,2\n' * 5, 'has 5 landmarks; 19 are needed'),
                          ('1;2\n' * 19, "line 1: '1;2' is not 'x,y'"),
                          ('90,2\n' * 19, r'landmark 0 \(sella\) at .* lies outside the 20 x 24 image')):
        annotation.write_text(text)
        with pytest.raises(ValueError, match=message):
            open_cephalometric('test', data_dir=root)
    annotation.unlink()
    with pytest.raises(FileNotFoundError, match='no annotation'):
        open_cephalometric('test', data_dir=root)
    with pytest.raises(FileNotFoundError, match='no folder RawImage'):
        open_cephalometric('test', data_dir=root / 'absent')
    with pytest.raises(ValueError, match="not 'dev'"):
        open_cephalometric('dev', data_dir=root)
