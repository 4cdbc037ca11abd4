"""Finding and reading files that a user brings, with errors that say what to do.

Contents: `DATA_VARIABLE`, `data_directory`, `find_file`, `check_split`, `read_text`, `read_npz`, `md5`.

Nothing is ever unpickled: an npz with object arrays is refused.

Example:

    path = find_file('retinamnist', ['medmnist/retinamnist.npz'], data_dir=None, how_to_get='...')
    arrays = read_npz(path, ['train_images', 'train_labels'])
"""
import hashlib
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

DATA_VARIABLE = 'MEDROBUST_DATA'  # the environment variable that names the data directory


def data_directory(data_dir: str | os.PathLike[str] | None) -> Path | None:
    """The directory to look in: the argument, else the environment's, else None."""
    chosen = data_dir or os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else None


def find_file(name: str, candidates: Iterable[str], *, data_dir: str | os.PathLike[str] | None,
              how_to_get: str) -> Path:
    """The first of `candidates`, paths inside the data directory, that exists.

    Raises:
      FileNotFoundError: saying where the data set was looked for and how to get it.
    """
    directory = data_directory(data_dir)
    if directory is None:
        raise FileNotFoundError(f"'{name}' needs a data directory: give data_dir or set the environment "
                                f'variable {DATA_VARIABLE}. {how_to_get}')
    paths = [directory / candidate for candidate in candidates]
    for path in paths:
        if path.is_file():
            return path
    looked = '\n  '.join(str(path) for path in paths)
    raise FileNotFoundError(f"no data set '{name}'; looked for\n  {looked}\n{how_to_get}")


def check_split(split: str, splits: Sequence[str], what: str) -> None:
    """Raises ValueError unless `split` is one of `splits`."""
    if split not in splits:
        raise ValueError(f"{what} has the splits {', '.join(splits)}; not '{split}'")


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
      FileNotFoundError: for a missing file.
      ValueError: naming the file, where it is in another encoding.
    """
    try:
        return Path(path).read_text(encoding='utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{path} is no text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): '
                         'save it in UTF-8, or fetch it again if it is damaged') from error


def read_npz(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an npz file; only those named, or all.

    Raises:
      FileNotFoundError: for a missing file.
      ValueError: for a file that is truncated, not an npz, lacks a named array or holds pickled
        objects.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no file {path}')
    try:
        # Opened here: np.load leaves the file open when it is damaged.
        with open(path, 'rb') as stream:
            archive = np.load(stream, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError(f'{path} holds a single array, not named ones; save it with np.savez')
            missing = [name for name in names or () if name not in archive.files]
            if missing:
                raise ValueError(f"{path} lacks {', '.join(missing)}; it holds {', '.join(archive.files)}")
            return {name: archive[name] for name in (archive.files if names is None else names)}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, KeyError) as error:
        raise ValueError(f'{path} is truncated or damaged ({error}); fetch it again') from error
    except ValueError as error:
        if 'pickle' in str(error):
            raise ValueError(f'{path} is no npz of plain arrays: it is damaged or holds Python objects, '
                             'which are never unpickled') from error
        raise


def md5(path: str | os.PathLike[str]) -> str:
    """The MD5 of a file, as hexadecimal digits."""
    with open(path, 'rb') as stream:
        return hashlib.file_digest(stream, 'md5').hexdigest()
