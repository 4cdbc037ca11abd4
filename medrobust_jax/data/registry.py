"""Sources by name: the one place where a config's data set becomes a source.

Contents: `SOURCES`, `PREFIXES`, `load`.

Names are 'oct_phantom', 'organ_phantom', 'busi', the MedMNIST sets ('retinamnist', 'retinamnist_64', ...), or a
prefix and a place: 'folder:PATH', 'npz:PATH', 'dicom:PATH', 'nifti:PATH', 'tfds:NAME'.

Example:

    train = load('oct_phantom', 'train', size=48)
    test = load('retinamnist', 'test', data_dir='~/data')
    mine = load('folder:~/scans', 'val', size=128, channels=1)
"""
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.data import (
    aasce,
    acdc,
    bccd,
    busi,
    cephalometric,
    chest,
    ead,
    image_folder,
    mask_folder,
    medical_files,
    medmnist,
    msd,
    npz_file,
    oct2017,
    phantoms,
    phantoms_cells,
    phantoms_findings,
    phantoms_organs,
    phantoms_segmentation,
    phantoms_spine,
    voc,
)
from medrobust_jax.data.builders.reading import open_tfds
from medrobust_jax.data.resize import Size
from medrobust_jax.data.source import Source

Opener = Callable[..., Source]

# Name -> (split, *, options) -> Source.
SOURCES: dict[str, Opener] = {
    'oct_phantom': phantoms.oct_phantoms,
    'organ_phantom': phantoms_organs.organ_phantoms,
    'busi': busi.open_busi,
    'acdc': acdc.open_acdc,
    'aasce': aasce.open_aasce,
    'bccd': bccd.open_bccd,
    'cephalometric': cephalometric.open_cephalometric,
    'chest': chest.open_chest,
    'ead': ead.open_ead,
    'oct2017': oct2017.open_oct2017,
    'isic2017': mask_folder.open_isic2017,
    'covid_lungs': mask_folder.open_covid_lungs,
    'cardiac_phantom': phantoms_segmentation.cardiac_phantoms,
    'cardiac_volume': phantoms_segmentation.cardiac_volumes,
    'cell_phantom': phantoms_cells.cell_phantoms,
    'chest_phantom': phantoms_findings.chest_phantoms,
    'spine_phantom': phantoms_spine.spine_phantoms,
    **{name: functools.partial(medmnist.open_medmnist, name) for name in medmnist.DATASETS},
}
# Prefix -> (place, split, *, options) -> Source.
PREFIXES: dict[str, Opener] = {
    'folder': image_folder.open_folder,
    'npz': npz_file.open_npz,
    'dicom': medical_files.open_dicom,
    'nifti': medical_files.open_nifti,
    'masks': mask_folder.open_mask_folder,
    'msd': msd.open_msd_slices,
    'msd_volumes': msd.open_msd_volumes,
    'voc': voc.open_voc,
    'tfds': open_tfds,
}


def load(name: str, split: str = 'train', *, data_dir: str | os.PathLike[str] | None = None,
         size: Size | None = None, **options: Any) -> Source:
    """Opens a data set by name.

    Args:
      name: see the module's docstring.
      split: 'train', 'val' or 'test'; for 'tfds:NAME' any split that TFDS knows.
      data_dir: where files are looked for; None reads the environment variable MEDROBUST_DATA.
        Relative places after a prefix are looked for there too.
      size: height and width to resize to, a number or a pair; recorded in the source's range map
        and fingerprint. The phantoms are drawn at that size.
      **options: what the named opener takes beside these, e.g. `num_examples`, `split_seed`,
        `channels`, `window`.

    Raises:
      ValueError: for an unknown name, split or option (with the nearest known one), or data that
        break the contract.
      FileNotFoundError: where the data are absent, with the places looked at.
    """
    opener = _opener(name)
    known = inspect.signature(opener).parameters
    given: dict[str, Any] = dict(options)
    if size is not None:
        given['size'] = size
    if 'data_dir' in known:
        given['data_dir'] = data_dir
    for option in given:
        if option not in known:
            did_you_mean(option, [each for each in known if each != 'split'], f"option of '{name}':")
    return opener(split, **given)


def _opener(name: str) -> Opener:
    prefix, colon, place = name.partition(':')
    if colon:
        if prefix not in PREFIXES:
            did_you_mean(prefix, PREFIXES, 'data set prefix')
        return functools.partial(PREFIXES[prefix], place)
    if name in SOURCES:
        return SOURCES[name]
    if name.partition('_')[0] in (*medmnist.DATASETS, 'chestmnist'):
        return functools.partial(medmnist.open_medmnist, name)
    did_you_mean(name, [*SOURCES, *(f'{each}:' for each in PREFIXES)], 'data set')
