"""Text that users bring: every reader names the file whose encoding it cannot read."""
from pathlib import Path

import pytest

from medrobust_jax.data import aasce, chest, ead, files, listing, msd, voc

LATIN = 'Über,file,label\n'.encode('latin-1')  # Ü is 0xdc, and no start of a character in UTF-8
READERS = {
    'a.txt': lambda path: ead.read_boxes(path, 7),
    'b.csv': listing.from_table,
    'c.csv': chest.read_table,
    'd.txt': lambda path: chest.read_list(path, {}),
    'ImageSets/Main/train.txt': lambda path: voc.read_names(path.parents[2], 'train'),
    'train_files.csv': lambda path: aasce.read_tables(path.parent, 'train'),
    'labels/training/filenames.csv': lambda path: aasce.read_tables(path.parents[2], 'train'),
    'dataset.json': lambda path: msd.read_task(path.parent),
}


@pytest.mark.parametrize('name', READERS)
def test_readers_name_the_file_that_is_not_utf8(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(LATIN)
    with pytest.raises(ValueError, match=rf'{Path(name).name} is no text in UTF-8 \(byte 0 is 0xdc\)'):
        READERS[name](path)


def test_text_with_a_byte_order_mark(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'\xef\xbb\xbf0 .5 .5 .2 .2\r\n')
    assert files.read_text(tmp_path / 'a.txt') == '0 .5 .5 .2 .2\n'
    assert len(ead.read_boxes(tmp_path / 'a.txt', 7)[0].labels) == 1
