"""Verdicts per example: whole or not at all, and nothing is unpickled."""
import os

import numpy as np
import pytest

from medrobust_jax.evaluate.verdicts import Verdicts, breaking_eps, load_verdicts, save_verdicts


def verdicts(**changes):
    rng = np.random.default_rng(0)
    fields = Verdicts(
        index=np.arange(5), label=np.array([0, 1, 1, 0, 2]), eps=np.array([0.01, 0.02]),
        acceptable=rng.random((2, 5)) < 0.5, prediction=rng.integers(0, 3, (2, 5)),
        loss=rng.random((2, 5)).astype(np.float32), first_fooled=rng.integers(-1, 4, (2, 5)),
        attacked=np.ones((2, 5), bool), withstood_clean=np.ones(5, bool),
        groups=np.array(['p1', 'p1', 'p2', 'p3', 'p3']), about={'attack': 'pgd', 'norm': 'linf'})
    return fields._replace(**changes)


@pytest.mark.parametrize('groups', [None, np.arange(5) // 2, np.array(['a', 'bb', 'a', 'c', 'c'])])
def test_verdicts_come_back_as_written(tmp_path, groups):
    path = tmp_path / 'verdicts' / 'pgd.npz'
    written = verdicts(groups=groups)
    save_verdicts(path, written)
    back = load_verdicts(path)
    assert back.about == written.about
    for name in Verdicts._fields[:-1]:
        np.testing.assert_array_equal(getattr(back, name), getattr(written, name), err_msg=name)
    assert os.listdir(path.parent) == ['pgd.npz']


def test_verdicts_of_other_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'loss must have shape \(2, 5\)'):
        save_verdicts(tmp_path / 'a.npz', verdicts(loss=np.zeros((5, 2))))
    with pytest.raises(ValueError, match='numbers or strings'):
        save_verdicts(tmp_path / 'a.npz', verdicts(groups=np.array([1, 'a', None, 2, 3], object)))
    assert not os.listdir(tmp_path)


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / 'exploded'),))

    arrays = {**verdicts()._asdict(), 'about': '{}', 'loss': np.array([Bomb()], object)}
    np.savez(tmp_path / 'a.npz', **arrays)
    with pytest.raises(ValueError, match='holds no verdicts'):
        load_verdicts(tmp_path / 'a.npz')
    assert not (tmp_path / 'exploded').exists()


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / 'a.npz'
    save_verdicts(path, verdicts())
    whole = path.read_bytes()
    for content in (b'', whole[:100], whole[:-30], b'not an npz'):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r'a\.npz holds no verdicts or is damaged'):
            load_verdicts(path)
    np.savez(path, images=np.zeros(3))
    with pytest.raises(ValueError, match=r'a\.npz'):
        load_verdicts(path)
    with pytest.raises(FileNotFoundError):
        load_verdicts(tmp_path / 'none.npz')


def test_a_failed_save_keeps_the_old_verdicts(tmp_path, monkeypatch):
    path = tmp_path / 'a.npz'
    save_verdicts(path, verdicts())

    def full(*_, **__):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match=r'cannot write a\.npz: No space left'):
        save_verdicts(path, verdicts(loss=np.ones((2, 5))))
    np.testing.assert_array_equal(load_verdicts(path).loss, verdicts().loss)
    assert os.listdir(tmp_path) == ['a.npz']


def test_breaking_eps_is_the_first_that_broke():
    """In turn: wrong at once, broken at the first, at the second radius, never, and at the second again."""
    seen = verdicts(acceptable=np.array([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]], bool),
                    withstood_clean=np.array([0, 1, 1, 1, 1], bool))
    np.testing.assert_array_equal(breaking_eps(seen), [0, .01, .02, np.inf, .02])


def test_qualities_may_have_columns_and_older_files_have_none_of_clean_images(tmp_path):
    path = tmp_path / 'pgd.npz'
    written = verdicts(quality=np.ones((2, 5, 3)), clean_quality=np.ones((5, 3)))
    save_verdicts(path, written)
    np.testing.assert_array_equal(load_verdicts(path).clean_quality, written.clean_quality)
    with np.load(path) as file:
        np.savez(path, **{name: file[name] for name in file.files if name != 'clean_quality'})
    assert load_verdicts(path).clean_quality is None
    with pytest.raises(ValueError, match=r'clean_quality must have shape \(5,\)'):
        save_verdicts(path, verdicts(clean_quality=np.ones((2, 5))))
    with pytest.raises(ValueError, match=r'label must have shape \(5,\)'):
        save_verdicts(path, verdicts(label=np.ones((5, 2), int)))
