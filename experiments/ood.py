"""Shows a trained model images of nothing of its kind, changed until it answers as for real ones.

    python -m experiments.ood --config=configs/aasce_shape.py:natural --workdir=runs/aasce_shape/natural/0 \
        --starts=noise,acdc [--num_steps=2000] [--rho=7.07] [--max_examples=60]

For every test image one foreign image (noise, or one of another data set) is changed inside an L2 ball until the
model's output becomes the test image's (attacks/ood.py). results.jsonl gets rows of the images found, at eps =
rho, and as a control of the unchanged foreign ones, at eps = 0: 'output_dice' and 'output_point_distance' between
the two outputs, 'reached' (the share with a Dice of .9 or more) and, of networks that reconstruct their input,
'reconstruction_auroc': how well the reconstruction error tells the foreign images from the real ones. Verdicts go
to verdicts/ood_<start>.npz (quality: 1 - Dice), a few images to ood.npz; the report shows both.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from experiments.evaluate import Bars, subject_of
from medrobust_jax.core import rng
from medrobust_jax.core.checks import check_eps
from medrobust_jax.data.files import read_npz
from medrobust_jax.data.foreign import NOISES, foreign_images
from medrobust_jax.evaluate import records
from medrobust_jax.evaluate.files import save_arrays
from medrobust_jax.evaluate.outside import (
    Distance,
    pictures_of,
    rebuilds,
    rows_of_search,
    search,
    verdicts_of,
)
from medrobust_jax.evaluate.programs import make_layout
from medrobust_jax.evaluate.suite import clean_point
from medrobust_jax.evaluate.verdicts import save_verdicts
from medrobust_jax.losses.reaching import segmentation_distance
from medrobust_jax.losses.shape import output_distance
from medrobust_jax.parallel.mesh import data_mesh

DISTANCES: dict[str, Distance] = {'shape': output_distance, 'segmentation': segmentation_distance}
# Of the shape paper's code, for plain networks and those that reconstruct their input; rho at 128 x 128 pixels.
STEPS, RHO, PAPER_VALUES = (2000, 4000), (20., 40.), 128 * 128


def attack_from_outside(config: ConfigDict, workdir: str | Path, *, starts: Sequence[str],
                        num_steps: int | None = None, rho: float | None = None, num_pictures: int = 4,
                        data_dir: str | None = None, progress: bool | None = None) -> list[records.Row]:
    """Runs the attack from every kind of start image; writes rows, verdicts and pictures into the workdir.

    Args:
      config: the config that the workdir was trained with; `config.eval` names split, examples and seed.
      workdir: a trained run.
      starts: kinds of start images, see `data.foreign.foreign_images`.
      num_steps: None for the paper's.
      rho: the ball's radius; None for the paper's, times the root of an image's values over 128 x 128.
      num_pictures: images to keep for the report.
      data_dir: where data sets are looked for; None reads MEDROBUST_DATA.
      progress: True for bars, False for silence, None to decide by the terminal.

    Returns:
      The rows that were written.

    Raises:
      ValueError: a task whose outputs have no distance, no start image, or the model's own data as one.
    """
    check_starts(starts, own=config.data.name)
    subject, examples, task = subject_of(config, workdir, data_dir=data_dir)
    if task.name not in DISTANCES:
        raise ValueError(f"outputs of the task '{task.name}' have no distance to be closed; those of "
                         f"{', '.join(DISTANCES)} have")
    seed, count, shape = config.eval.seed, len(examples.images), examples.images.shape[1:]
    # A chunk is computed whole, however few its examples are.
    layout = make_layout(data_mesh(), width=config.eval.block_width, chunk=min(config.eval.chunk, count))
    real = clean_point(subject.forward, subject.variables, task, examples, layout=layout, seed=seed).outputs
    num_steps = STEPS[rebuilds(real)] if num_steps is None else num_steps
    radius = RHO[rebuilds(real)] * float(np.prod(shape) / PAPER_VALUES)**.5 if rho is None else rho
    check_eps(radius, field='rho')
    rows: list[records.Row] = []
    with Bars(shown=progress) as bars:
        for kind in starts:
            foreign, origin = foreign_images(kind, rng.example_keys(seed, examples.index), image_shape=shape,
                                             data_dir=data_dir)
            options = {'start_images': kind, 'start_fingerprint': origin}
            found = search(subject, examples, real, foreign, options, distance=DISTANCES[task.name], rho=radius,
                           num_steps=num_steps, layout=layout, seed=seed, progress=_counting(bars, kind, count))
            new = rows_of_search(found, subject, layout)
            records.update_rows(Path(workdir) / 'results.jsonl', new)
            save_verdicts(Path(workdir) / 'verdicts' / f'{found.name}.npz', verdicts_of(found, subject))
            add_pictures(Path(workdir) / 'ood.npz', pictures_of(found, subject, num_pictures))
            rows += new
    return rows


def check_starts(starts: Sequence[str], *, own: str) -> None:
    """Raises ValueError for no start, one named twice, or the data set `own` that the model was made for."""
    if not starts or len(set(starts)) < len(starts):
        raise ValueError(f'--starts={",".join(starts)} must name at least one kind of image, each once: '
                         f'{", ".join(NOISES)}, or a data set')
    if own in starts:
        raise ValueError(f"the model was made for images of '{own}': --starts must name others")


def _counting(bars: Bars, name: str, total: int) -> Callable[[int], None]:
    """Adds up the examples that are finished."""
    done = 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        bars.advance(name, done, total)

    return advance


def add_pictures(path: Path, pictures: dict[str, np.ndarray]) -> None:
    """Puts one attack's pictures into the file, in the place of its older ones; drops those of other weights."""
    name = next(iter(pictures)).partition('/')[0]
    checkpoint = str(pictures[f'{name}/checkpoint'])
    old = read_npz(path) if path.is_file() else {}
    kept = {key: array for key, array in old.items() if not key.startswith(f'{name}/')
            and str(old.get(f'{key.partition("/")[0]}/checkpoint')) == checkpoint}
    save_arrays(path, {**kept, **pictures})


if __name__ == '__main__':
    from absl import flags

    from experiments import main
    from medrobust_jax.report.foreign import foreign_tables
    from medrobust_jax.report.tables import to_text

    flags.DEFINE_list('starts', ['noise'], 'Kinds of start images: noise, gaussian, or names of data sets.')
    flags.DEFINE_integer('num_steps', None, 'Of the attack; 2000, or 4000 for networks that reconstruct.')
    flags.DEFINE_float('rho', None, "The ball's L2 radius; 20, or 40 for networks that reconstruct, at 128 x 128.")
    flags.DEFINE_integer('max_examples', None, 'Of the test images; config.eval.max_examples if not given.')
    flags.DEFINE_integer('num_pictures', 4, 'Images to keep for the report.')

    def work(config: ConfigDict, workdir: str) -> None:
        """Runs the attack and prints its table."""
        chosen = flags.FLAGS
        config = config.copy_and_resolve_references()
        if chosen.max_examples is not None:
            config.eval.max_examples = chosen.max_examples
        rows = attack_from_outside(config, workdir, starts=chosen.starts, num_steps=chosen.num_steps,
                                   rho=chosen.rho, num_pictures=chosen.num_pictures, data_dir=chosen.data_dir)
        print('\n'.join(map(to_text, foreign_tables(rows))))

    main.launch(work, device_per_core=True)
