"""Scores saved adversarial images again, by one fixed program, and compares two evaluations.

    python -m experiments.rescore --config=configs/x.py:trades --workdir=runs/x [--against=runs/y]

Needs an evaluation with --config.eval.save_images. Prints, for every attack and eps, how many images leave
the box or their ball, how many verdicts change, and which. With `--against`, another evaluation of the same
checkpoint (on another number of devices, say), it lists the examples whose verdicts differ and scores both
evaluations' images: what is left then differs in the images found, not in how they were judged.

The program is one device and blocks of the config's width, however many devices the attack ran on.
"""
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import subject_of
from experiments.preprocessing import folder_of
from medrobust_jax.core import rng
from medrobust_jax.core.types import AttackResult
from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.programs import in_chunks, make_layout, make_score, row_by_row
from medrobust_jax.evaluate.sanity import check_point
from medrobust_jax.evaluate.suite import Examples, GridPoint
from medrobust_jax.evaluate.writing import Subject
from medrobust_jax.parallel.mesh import data_mesh


class Rescored(NamedTuple):
    """One attack at one eps: `[N]` verdicts as the attack saw them and as the fixed program sees them."""

    attack: str
    eps: float
    index: np.ndarray
    found: np.ndarray
    again: np.ndarray
    warnings: tuple[str, ...]


def rescore(config: ConfigDict, workdir: str | Path, *, data_dir: str | None = None) -> list[Rescored]:
    """Scores every file of `workdir/adversarial` again.

    Raises:
      FileNotFoundError: where no images were saved, saying how to save them.
      ValueError: where they belong to another checkpoint or data set.
    """
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    folder = folder_of(subject, workdir) / 'adversarial'
    files = sorted(folder.glob('*.npz'))
    if not files:
        raise FileNotFoundError(f'{folder} holds no images: run experiments.evaluate with '
                                f'--config.eval.save_images=True first')
    layout = make_layout(data_mesh(jax.devices()[:1]), width=config.eval.block_width, chunk=config.eval.chunk)
    score = in_chunks(make_score(subject.forward, layout), layout)
    keys = rng.example_keys(config.eval.seed, examples.index)
    found = []
    for path in files:
        saved = saved_images(path, subject, examples)
        for eps, images, acceptable in zip(saved['eps'], saved['images'], saved['acceptable'], strict=True):
            outputs = score(subject.variables, keys, images)
            again = row_by_row(task.acceptable)(outputs, examples.targets)
            result = AttackResult(images, np.zeros(len(again)), acceptable, np.zeros(len(again), np.int32))
            point = GridPoint(float(eps), result, outputs, acceptable, again, 0.0, 0.0, 0.0)
            found.append(Rescored(path.stem, float(eps), examples.index, acceptable, again,
                                  check_point(point, examples, norm=str(saved['norm']))))
    return found


def saved_images(path: Path, subject: Subject, examples: Examples) -> dict[str, Any]:
    """The arrays of one file of `adversarial/`.

    Raises:
      ValueError: it is damaged, or belongs to another checkpoint or to other examples.
    """
    try:
        saved = read_npz(path)
    except ValueError as error:
        raise ValueError(f'{path} is damaged ({error}): run experiments.evaluate again') from error
    if str(saved['checkpoint_fingerprint']) != subject.fingerprints['checkpoint_fingerprint']:
        raise ValueError(f'{path} was made for another checkpoint: run experiments.evaluate again')
    if not np.array_equal(saved['index'], examples.index):
        raise ValueError(f'{path} holds other examples than config.eval names')
    return saved


def compare(first: list[Rescored], second: list[Rescored]) -> Iterator[str]:
    """One line per attack and eps that both evaluations hold, with the examples that differ."""
    others = {(r.attack, r.eps): r for r in second}
    for a in first:
        b = others.get((a.attack, a.eps))
        if b is None:
            continue
        differ = a.index[a.found != b.found]
        remain = int((a.again != b.again).sum())
        rows = f' (rows {", ".join(map(str, differ[:20]))})' if len(differ) else ''
        yield (f'{a.attack} at {a.eps:.5g}: {len(differ)} of {len(a.index)} verdicts differ{rows}; '
               f'{remain} still do when scored again by one program')


def describe(found: list[Rescored]) -> Iterator[str]:
    """One line per attack and eps."""
    for r in found:
        yield (f'{r.attack} at {r.eps:.5g}: {int((r.found != r.again).sum())} of {len(r.index)} verdicts change'
               + ''.join(f'; {sentence}' for sentence in r.warnings))


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_string('against', None, 'The workdir of another evaluation of the same checkpoint.')

    def work(config: ConfigDict, workdir: str) -> None:
        """Prints what became of every verdict."""
        found = rescore(config, workdir, data_dir=flags.FLAGS.data_dir)
        print('\n'.join(describe(found)))
        if flags.FLAGS.against:
            print('\n'.join(compare(found, rescore(config, flags.FLAGS.against, data_dir=flags.FLAGS.data_dir))))

    main.launch(work)
