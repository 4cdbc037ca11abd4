"""The MedMNIST 2-D family, read from its npz files without a copy on disk.

Contents: `DATASETS` (names, classes, sizes), `SIZES`, `parse_name`, `locate`, `read_split`,
`target_name`, `open_medmnist`.

A file `<name>.npz` (28 px) or `<name>_64.npz`, `_128`, `_224` is looked for in the data directory
and in its folder `medmnist/`. Class names, split sizes and MD5s are those of the `medmnist`
package, https://github.com/MedMNIST/MedMNIST (medmnist/info.py). ChestMNIST has 14 findings per image
and none, one or several of them: its target is 'findings', that of all others 'label'.

Example:

    source = open_medmnist('pneumoniamnist', 'train', data_dir='~/data')
    source = open_medmnist('pathmnist_64', 'test')         # MEDROBUST_DATA says where

References:
  Yang et al., MedMNIST v2, Scientific Data 10:41, 2023, doi:10.1038/s41597-022-01721-8.
"""
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.data import files, resize
from medrobust_jax.data.source import ArraySource
from medrobust_jax.data.splits import SPLITS

SIZES = (28, 64, 128, 224)
URL = 'https://zenodo.org/records/10519652/files/{file}?download=1'
_ORGANS = ('bladder', 'femur-left', 'femur-right', 'heart', 'kidney-left', 'kidney-right', 'liver',
           'lung-left', 'lung-right', 'pancreas', 'spleen')


class MedMNISTSet(NamedTuple):
    """One member of the family.

    Attributes:
      class_names: in label order.
      channels: 1 (grey) or 3 (RGB).
      counts: images in train, val and test.
      md5: of the official 28 px file.
      note: what to know before using it, or ''.
      multi_label: whether an image has any number of the classes, not one.
    """

    class_names: tuple[str, ...]
    channels: int
    counts: tuple[int, int, int]
    md5: str
    note: str = ''
    multi_label: bool = False


DATASETS = {
    'pathmnist': MedMNISTSet(
        ('adipose', 'background', 'debris', 'lymphocytes', 'mucus', 'smooth muscle', 'normal colon mucosa',
         'cancer-associated stroma', 'colorectal adenocarcinoma epithelium'),
        3, (89996, 10004, 7180), 'a8b06965200029087d5bd730944a56c1',
        'The test images come from another clinical center.'),
    'chestmnist': MedMNISTSet(
        ('atelectasis', 'cardiomegaly', 'effusion', 'infiltration', 'mass', 'nodule', 'pneumonia',
         'pneumothorax', 'consolidation', 'edema', 'emphysema', 'fibrosis', 'pleural', 'hernia'),
        1, (78468, 11219, 22433), '02c8a6516a18b556561a56cbdd36c4a8',
        'Made from ChestX-ray14, without its patient ids: intervals treat every image as a patient.', True),
    'dermamnist': MedMNISTSet(
        ('actinic keratoses and intraepithelial carcinoma', 'basal cell carcinoma',
         'benign keratosis-like lesions', 'dermatofibroma', 'melanoma', 'melanocytic nevi',
         'vascular lesions'),
        3, (7007, 1003, 2005), '0744692d530f8e62ec473284d019b0c7'),
    'octmnist': MedMNISTSet(
        ('choroidal neovascularization', 'diabetic macular edema', 'drusen', 'normal'),
        1, (97477, 10832, 1000), 'c68d92d5b585d8d81f7112f81e2d0842'),
    'pneumoniamnist': MedMNISTSet(
        ('normal', 'pneumonia'), 1, (4708, 524, 624), '28209eda62fecd6e6a2d98b1501bb15f',
        'Shuffle before use: copies in circulation have lost the training order.'),
    'retinamnist': MedMNISTSet(
        ('grade 0', 'grade 1', 'grade 2', 'grade 3', 'grade 4'), 3, (1080, 120, 400),
        'bd4c0672f1bba3e3a89f0e4e876791e4', 'The labels are ordinal grades.'),
    'breastmnist': MedMNISTSet(
        ('malignant', 'normal or benign'), 1, (546, 78, 156), '750601b1f35ba3300ea97c75c52ff8f6',
        'Made from the BUSI images: not independent of them.'),
    'bloodmnist': MedMNISTSet(
        ('basophil', 'eosinophil', 'erythroblast', 'immature granulocytes', 'lymphocyte', 'monocyte',
         'neutrophil', 'platelet'),
        3, (11959, 1712, 3421), '7053d0359d879ad8a5505303e11de1dc'),
    'tissuemnist': MedMNISTSet(
        ('collecting duct, connecting tubule', 'distal convoluted tubule', 'glomerular endothelial cells',
         'interstitial endothelial cells', 'leukocytes', 'podocytes', 'proximal tubule segments',
         'thick ascending limb'),
        1, (165466, 23640, 47280), 'ebe78ee8b05294063de985d821c1c34b'),
    'organamnist': MedMNISTSet(_ORGANS, 1, (34581, 6491, 17778), '866b832ed4eeba67bfb9edee1d5544e6'),
    'organcmnist': MedMNISTSet(_ORGANS, 1, (13000, 2392, 8268), '0afa5834fb105f7705a7d93372119a21'),
    'organsmnist': MedMNISTSet(_ORGANS, 1, (13940, 2452, 8829), 'e5c39f1af030238290b9557d9503af9d'),
}


def parse_name(name: str) -> tuple[str, int]:
    """`'pathmnist_64'` to `('pathmnist', 64)`; no suffix means 28.

    Raises:
      ValueError: for a name or size outside the family.
    """
    base, _, suffix = name.partition('_')
    if base not in DATASETS:
        did_you_mean(base, DATASETS, 'MedMNIST data set')
    if suffix and (not suffix.isdigit() or int(suffix) not in SIZES):
        raise ValueError(f"'{name}': MedMNIST files have the sizes {', '.join(map(str, SIZES))}; "
                         f'another one is reached by resizing, with size=')
    return base, int(suffix or 28)


def file_name(name: str) -> str:
    """The npz of `name`: the 28 px files carry no size."""
    base, pixels = parse_name(name)
    return f'{base}.npz' if pixels == 28 else f'{base}_{pixels}.npz'


def locate(name: str, data_dir: str | os.PathLike[str] | None) -> Path:
    """The npz file of `name`; raises FileNotFoundError that says where to get it."""
    file = file_name(name)
    how = (f'Download {URL.format(file=file)} (MedMNIST, CC BY 4.0 except DermaMNIST, CC BY-NC 4.0) '
           f'and save it as DATA_DIR/medmnist/{file}.')
    return files.find_file(name, [f'medmnist/{file}', file], data_dir=data_dir, how_to_get=how)


def read_split(path: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Raw images uint8 `[N, H, W, C]` of one split of a file, and labels `[N]` or findings `[N, L]`."""
    base, pixels = parse_name(name)
    files.check_split(split, SPLITS, name)
    arrays = files.read_npz(path, [f'{split}_images', f'{split}_labels'])
    images, labels = arrays[f'{split}_images'], arrays[f'{split}_labels']
    if images.ndim == 3:  # grey images are stored without a channel axis
        images = images[..., None]
    expected = (pixels, pixels, DATASETS[base].channels)
    if images.dtype != np.uint8 or images.shape[1:] != expected:
        raise ValueError(f'{path}: {split}_images are {images.dtype} {images.shape[1:]}, '
                         f'expected uint8 {expected}')
    if DATASETS[base].multi_label:
        if labels.shape != (len(images), len(DATASETS[base].class_names)):
            raise ValueError(f'{path}: {split}_labels of shape {labels.shape} for {len(images)} images, expected '
                             f'one column for each of {len(DATASETS[base].class_names)} findings')
        return images, labels
    if labels.shape not in ((len(images),), (len(images), 1)):  # both are in circulation
        raise ValueError(f'{path}: {split}_labels of shape {labels.shape} for {len(images)} images')
    return images, labels.reshape(-1)


def target_name(name: str) -> str:
    """What the set's target is called in a record: 'findings' where images have several classes, else 'label'."""
    return 'findings' if DATASETS[parse_name(name)[0]].multi_label else 'label'


def open_medmnist(name: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
                  size: resize.Size | None = None) -> ArraySource:
    """One split of a MedMNIST set, with the official split and class order.

    Args:
      name: e.g. 'retinamnist' or 'retinamnist_64'.
      split: 'train', 'val' or 'test'.
      data_dir: where the files are; None reads the environment.
      size: resize to this; None keeps the file's size.

    Raises:
      FileNotFoundError: when the file is absent.
      ValueError: for an unknown name or split, or a damaged file.
    """
    path = locate(name, data_dir)
    images, labels = read_split(path, name, split)
    base, pixels = parse_name(name)
    dataset = DATASETS[base]
    notes = [dataset.note] if dataset.note else []
    official = dataset.counts[SPLITS.index(split)]
    if len(images) != official:
        notes.append(f'{len(images)} images where the official {split} split has {official}.')
    if pixels == 28 and files.md5(path) != dataset.md5:
        notes.append("The file's MD5 is not that of the official archive.")
    range_map = 'uint8 / 255' + resize.describe(images.shape[1:], size)
    images = images if size is None else resize.resize_images(images, size)
    return ArraySource(images, {target_name(name): labels}, name=name, split=split,
                       class_names=dataset.class_names, channels=dataset.channels, range_map=range_map,
                       notes=notes)
