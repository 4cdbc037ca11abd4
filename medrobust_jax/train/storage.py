"""Errors of a full or read-only disk, said in words that help.

Contents: `writing_to`.

Example:

    with writing_to(workdir):
        (workdir / 'config.json').write_text(text)
"""
import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def writing_to(folder: Path, *errors: type[Exception]) -> Iterator[None]:
    """Turns errors of writing into one OSError that names the folder and the cure.

    Args:
      folder: where the block writes.
      *errors: further types that mean that writing failed (orbax has many); OSError always does.

    Raises:
      OSError: chained to the original error.
    """
    try:
        yield
    except (OSError, *errors) as error:
        raise OSError(f'cannot write under {folder}: {error}. Free space there or make it writable, then run '
                      f'the same command again: it goes on from the newest whole checkpoint.') from error
