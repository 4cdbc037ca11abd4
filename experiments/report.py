"""Tables and one self-contained page.

    python -m experiments.report --workdir=runs/a --workdir=runs/b --out=report.html

Reads results.jsonl, verdicts/ and what there is of system.jsonl, pictures.npz, ood.npz and explanations.npz of
every workdir given, and the margins of adaptive training from its checkpoint where there is one; needs neither
data nor a device.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from medrobust_jax.data.files import read_npz
from medrobust_jax.evaluate.records import Row, read_rows
from medrobust_jax.evaluate.verdicts import load_verdicts
from medrobust_jax.report import gallery
from medrobust_jax.report.explanations import load_explanations
from medrobust_jax.report.figures import Picture
from medrobust_jax.report.foreign import ForeignScene, KeptForeign, foreign_scenes, foreign_tables
from medrobust_jax.report.html import build_report
from medrobust_jax.report.margins import Margins
from medrobust_jax.report.naming import split_structure
from medrobust_jax.report.overlays import Scene
from medrobust_jax.report.risk import risk_tables
from medrobust_jax.report.summary import eps_text, headline_panels, summarize
from medrobust_jax.report.tables import robustness_table, to_markdown, to_text
from medrobust_jax.train.checkpoint import load_defense_state, load_for_evaluation


def gather_rows(workdirs: Sequence[str | Path]) -> list[Row]:
    """The rows of several evaluations, in the order given.

    Raises:
      FileNotFoundError: where a workdir holds no results.jsonl, saying how to make it.
      ValueError: where it is empty or damaged.
    """
    rows: list[Row] = []
    for workdir in workdirs:
        path = Path(workdir) / 'results.jsonl'
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist: run experiments.evaluate with --workdir={workdir} '
                                    f'first')
        found = read_rows(path)
        if not found:
            raise ValueError(f'{path} holds no results: run experiments.evaluate with --workdir={workdir} again')
        rows += found
    return rows


def text_tables(rows: Sequence[Row], *, markdown: bool = False, metric: str | None = None) -> str:
    """The robustness tables of all data sets and norms in `rows`.

    Of the metric named; of None those that lead each data set: robust accuracy, or for masks, points, boxes and
    findings the task's own and the share within the criterion, and what was found out of distribution.
    """
    panels = headline_panels(rows) if metric is None else summarize(rows, metric=metric)
    tables = [robustness_table(panel, compact=True) for panel in panels]
    tables += [] if metric else foreign_tables(rows)
    return '\n\n'.join(to_markdown(table) if markdown else to_text(table) for table in tables)


def pictures_of(workdir: str | Path, *, title: str, class_names: Sequence[str] = (), eps: float | None = None,
                attacks: Sequence[str] | None = None) -> list[Picture | Scene]:
    """The pictures that an evaluation kept, one per image and attack, at one eps.

    Args:
      workdir: an evaluated run.
      title: of the model, for the captions.
      class_names: by label; of structures without the background. Where empty: the names that the rows' metrics
        carry, else numbers.
      eps: the radius; None takes the grid's middle, rounded up.
      attacks: names to show; None shows all.
    """
    path = Path(workdir) / 'pictures.npz'
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    task = str(arrays.get('task', 'classification'))
    if task in gallery.TASKS and not class_names and (Path(workdir) / 'results.jsonl').is_file():
        class_names = structure_names(read_rows(Path(workdir) / 'results.jsonl'))
    found: list[Picture | Scene] = []
    for name in [name.removesuffix('/eps') for name in arrays if name.endswith('/eps')]:
        if attacks is not None and name not in attacks:
            continue
        grid, norm = arrays[f'{name}/eps'], str(arrays.get(f'{name}/norm', 'linf'))
        at = len(grid) // 2 if eps is None else int(np.argmin(abs(grid - eps)))
        caption = f'{title}, {name}, eps {eps_text(grid[at], norm)}'
        if task in gallery.TASKS:
            holds = holding(workdir, name, grid[at], arrays['index'])
            kept = gallery.Kept(task, arrays['clean'], arrays[f'{name}/images'][at], _tree(arrays, 'target'),
                                _tree(arrays, 'clean/prediction', 0), _tree(arrays, f'{name}/prediction', at),
                                arrays['index'], *holds)
            found += gallery.scenes(kept, title=caption, names=class_names)
        else:
            found += _classified(arrays, name, at, caption, class_names, task)
    return found


def _classified(arrays: Mapping[str, np.ndarray], name: str, at: int, caption: str, class_names: Sequence[str],
                task: str) -> list[Picture]:
    """Pictures of classes and grades under the attack `name` at the grid's entry `at`."""
    def call(label: Any) -> str:
        return class_names[int(label)] if class_names else f'class {int(label)}'

    found = []
    for i, index in enumerate(arrays['index']):
        clean, attacked = arrays['clean/prediction'][0, i], arrays[f'{name}/prediction'][at, i]
        found.append(Picture(
            caption=f'{caption}, image {index}', clean=arrays['clean'][i],
            adversarial=arrays[f'{name}/images'][at, i], label=call(arrays['target'][i]),
            clean_prediction=call(clean), adversarial_prediction=call(attacked),
            clean_confidence=confidence(arrays['clean/outputs'][0, i], int(clean), task),
            adversarial_confidence=confidence(arrays[f'{name}/outputs'][at, i], int(attacked), task)))
    return found


def _tree(arrays: Mapping[str, np.ndarray], name: str, at: int | None = None) -> Any:
    """The array of this name, or a dict of those under it; of predictions the grid's entry `at`."""
    def pick(array: np.ndarray) -> np.ndarray:
        return array if at is None else array[at]

    if name in arrays:
        return pick(arrays[name])
    return {key.removeprefix(f'{name}/'): pick(array) for key, array in arrays.items()
            if key.startswith(f'{name}/')}


def structure_names(rows: Sequence[Row]) -> tuple[str, ...]:
    """The structures, classes or findings that metrics of the rows are of, in the order of the classes."""
    pairs = [split_structure(row.metric) for row in rows]
    base = next((base for base, structure in pairs if structure), None)
    return tuple(dict.fromkeys(structure for own, structure in pairs if structure and own == base))


def holding(workdir: str | Path, attack: str, eps: float, index: np.ndarray
            ) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """Whether the outputs for these rows of the data set met the criterion before and after; None if not known."""
    path = Path(workdir) / 'verdicts' / f'{attack}.npz'
    if not path.is_file():
        return None, None
    verdicts = load_verdicts(path)
    places = {int(row): place for place, row in enumerate(verdicts.index)}
    at = [place for row in index if (place := places.get(int(row))) is not None]
    if len(at) != len(index):
        return None, None
    return verdicts.withstood_clean[at], verdicts.acceptable[int(np.argmin(abs(verdicts.eps - eps))), at]


def foreign_of(workdir: str | Path, *, title: str, class_names: Sequence[str] = ()) -> list[ForeignScene]:
    """The foreign images that `experiments.ood` kept; arguments as `pictures_of`."""
    path = Path(workdir) / 'ood.npz'
    if not path.is_file():
        return []
    arrays = read_npz(path)
    if not class_names and (Path(workdir) / 'results.jsonl').is_file():
        class_names = structure_names(read_rows(Path(workdir) / 'results.jsonl'))
    found: list[ForeignScene] = []
    for name in [key.removesuffix('/rho') for key in arrays if key.endswith('/rho')]:
        images = [arrays[f'{name}/{what}'] for what in ('start', 'found', 'real')]
        said = [_tree(arrays, f'{name}/{what}_prediction') for what in ('start', 'found', 'real')]
        kept = KeptForeign(str(arrays[f'{name}/start_images']), float(arrays[f'{name}/rho']),
                           arrays[f'{name}/index'], *images, *said)
        found += foreign_scenes(kept, title=title, names=class_names)
    return found


def systems_of(workdirs: Sequence[str | Path]) -> list[Row]:
    """The rows of all systems with a detector that `experiments.system` judged."""
    paths = [Path(workdir) / 'system.jsonl' for workdir in workdirs]
    return [row for path in paths if path.is_file() for row in read_rows(path)]


def margins_of(workdir: str | Path, *, title: str) -> Margins | None:
    """The margins of a run trained with one radius per example, from its newest checkpoint; None without any."""
    if not (Path(workdir) / 'checkpoints' / 'latest').is_dir():
        return None
    state = load_defense_state(workdir)
    if not isinstance(state, Mapping) or 'margins' not in state:
        return None
    options = load_for_evaluation(workdir, 'latest')[2]['config']['defense']['attack']['options']
    return Margins(f'{title}: the radius that training gave to each example.', state['margins'],
                   state.get('history'), str(options.get('norm', '')))


def confidence(outputs: np.ndarray, prediction: int, task: str) -> float | None:
    """The probability that outputs give to the predicted class: softmax, or cumulative logits of grades."""
    if outputs.ndim != 1:
        return None
    if task == 'ordinal':
        above = np.concatenate([[1.0], np.minimum.accumulate(expit(outputs)), [0.0]])
        return float(above[prediction] - above[prediction + 1])
    return float(softmax(outputs)[prediction])


def notes_on_criteria(rows: Sequence[Row]) -> list[str]:
    """A sentence for every data set whose rows were judged by different thresholds."""
    found = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        criteria = {tuple(row.provenance.get('criterion', ())) for row in rows if row.dataset == dataset}
        if len(criteria) > 1:
            named = ', '.join(str(tuple(round(t, 4) for t in each)) if each else 'the default'
                              for each in sorted(criteria))
            found.append(f"{dataset}: outputs were judged by different criteria ({named}), so the shares within "
                         'criterion do not compare; evaluate all with one --config.eval.calibrated_on.')
    return found


def write_report(workdirs: Sequence[str | Path], out: str | Path, *, title: str, commands: Sequence[str] = (),
                 notes: Sequence[str] = (), class_names: Sequence[str] = (), attacks: Sequence[str] | None = None,
                 eps: float | None = None) -> list[Row]:
    """Writes report.html over several evaluated runs and returns their rows."""
    rows = gather_rows(workdirs)
    pictures, margins, foreign, explanations = [], [], [], []
    for workdir in workdirs:
        mine = read_rows(Path(workdir) / 'results.jsonl')[0]
        name = f'{mine.defense} (seed {mine.seed})'
        pictures += pictures_of(workdir, title=name, class_names=class_names, attacks=attacks, eps=eps)
        foreign += foreign_of(workdir, title=name, class_names=class_names)
        if (path := Path(workdir) / 'explanations.npz').is_file():
            explanations += load_explanations(path, title=name, class_names=class_names)
        margins += [found] if (found := margins_of(workdir, title=f'{mine.dataset}, {name}')) else []
    notes = [*notes, *notes_on_criteria(rows)]
    page = build_report(rows, pictures, title=title, commands=commands, notes=notes, margins=margins,
                        systems=systems_of(workdirs), foreign=foreign, explanations=explanations)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')
    return rows


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_multi_string('workdir', None, 'An evaluated run; give the flag once for each.')
    flags.DEFINE_string('out', 'report.html', 'The page to write.')
    flags.DEFINE_string('title', 'Adversarial robustness', "The page's title.")
    flags.DEFINE_string('tables', None, 'A Markdown file to write tables to as well, one per metric.')
    flags.DEFINE_list('metrics', None, 'What the Markdown tables show; what leads each task if not given.')
    flags.mark_flag_as_required('workdir')

    def work() -> None:
        """Prints the tables and writes the page."""
        chosen = flags.FLAGS
        command = ' '.join(['python -m experiments.report', *(f'--workdir={each}' for each in chosen.workdir),
                            f'--out={chosen.out}'])
        rows = write_report(chosen.workdir, chosen.out, title=chosen.title, commands=[command])
        if chosen.tables:
            tables = [text_tables(rows, markdown=True, metric=metric) for metric in chosen.metrics or [None]]
            tables += map(to_markdown, risk_tables(systems_of(chosen.workdir)))
            Path(chosen.tables).write_text('\n\n'.join(tables) + '\n', encoding='utf-8')
        print(text_tables(rows))

    main.launch_on_files(work)
