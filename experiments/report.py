"""Tables and one self-contained page.

    python -m experiments.report --workdir=runs/a --workdir=runs/b --out=report.html

Reads results.jsonl and pictures.npz of every workdir given; needs neither data nor a device.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, softmax

from medrobust_jax.evaluate.records import Row, read_rows
from medrobust_jax.report.figures import Picture
from medrobust_jax.report.html import build_report
from medrobust_jax.report.summary import eps_text, summarize
from medrobust_jax.report.tables import robustness_table, to_markdown, to_text


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
    """The robustness tables of all data sets and norms in `rows`; robust accuracy unless `metric` is named."""
    tables = [robustness_table(panel, compact=True) for panel in summarize(rows, metric=metric)]
    return '\n\n'.join(to_markdown(table) if markdown else to_text(table) for table in tables)


def pictures_of(workdir: str | Path, *, title: str, class_names: Sequence[str] = (), eps: float | None = None,
                attacks: Sequence[str] | None = None) -> list[Picture]:
    """The pictures that an evaluation kept, one per image and attack, at one eps.

    Args:
      workdir: an evaluated run.
      title: of the model, for the captions.
      class_names: by label; numbers where empty.
      eps: the radius; None takes the grid's middle, rounded up.
      attacks: names to show; None shows all.
    """
    path = Path(workdir) / 'pictures.npz'
    if not path.is_file():
        return []
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    names = [name.removesuffix('/eps') for name in arrays if name.endswith('/eps')]
    task = str(arrays.get('task', 'classification'))

    def call(label: Any) -> str:
        return class_names[int(label)] if class_names else f'class {int(label)}'

    found = []
    for name in names:
        if attacks is not None and name not in attacks:
            continue
        grid, norm = arrays[f'{name}/eps'], str(arrays.get(f'{name}/norm', 'linf'))
        at = len(grid) // 2 if eps is None else int(np.argmin(abs(grid - eps)))
        for i, index in enumerate(arrays['index']):
            clean, attacked = arrays['clean/prediction'][0, i], arrays[f'{name}/prediction'][at, i]
            found.append(Picture(
                caption=f'{title}, {name}, eps {eps_text(grid[at], norm)}, image {index}',
                clean=arrays['clean'][i], adversarial=arrays[f'{name}/images'][at, i],
                label=call(arrays['target'][i]), clean_prediction=call(clean),
                adversarial_prediction=call(attacked),
                clean_confidence=confidence(arrays['clean/outputs'][0, i], int(clean), task),
                adversarial_confidence=confidence(arrays[f'{name}/outputs'][at, i], int(attacked), task)))
    return found


def confidence(outputs: np.ndarray, prediction: int, task: str) -> float | None:
    """The probability that outputs give to the predicted class: softmax, or cumulative logits of grades."""
    if outputs.ndim != 1:
        return None
    if task == 'ordinal':
        above = np.concatenate([[1.0], np.minimum.accumulate(expit(outputs)), [0.0]])
        return float(above[prediction] - above[prediction + 1])
    return float(softmax(outputs)[prediction])


def write_report(workdirs: Sequence[str | Path], out: str | Path, *, title: str, commands: Sequence[str] = (),
                 notes: Sequence[str] = (), class_names: Sequence[str] = (), attacks: Sequence[str] | None = None,
                 eps: float | None = None) -> list[Row]:
    """Writes report.html over several evaluated runs and returns their rows."""
    rows = gather_rows(workdirs)
    pictures = []
    for workdir in workdirs:
        mine = read_rows(Path(workdir) / 'results.jsonl')[0]
        pictures += pictures_of(workdir, title=f'{mine.defense} (seed {mine.seed})', class_names=class_names,
                                attacks=attacks, eps=eps)
    page = build_report(rows, pictures, title=title, commands=commands, notes=notes)
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')
    return rows


if __name__ == '__main__':
    from absl import app, flags

    from experiments import main

    flags.DEFINE_multi_string('workdir', None, 'An evaluated run; give the flag once for each.')
    flags.DEFINE_string('out', 'report.html', 'The page to write.')
    flags.DEFINE_string('title', 'Adversarial robustness', "The page's title.")
    flags.DEFINE_string('tables', None, 'A Markdown file to write tables to as well, one per metric.')
    flags.DEFINE_list('metrics', ['robust_accuracy'], 'What the Markdown tables show.')
    flags.mark_flag_as_required('workdir')
    main.define_debug_flag()

    def report(argv: list[str]) -> None:
        """Prints the tables and writes the page."""
        chosen = flags.FLAGS
        command = ' '.join(['python -m experiments.report', *(f'--workdir={each}' for each in chosen.workdir),
                            f'--out={chosen.out}'])

        def work() -> None:
            rows = write_report(chosen.workdir, chosen.out, title=chosen.title, commands=[command])
            if chosen.tables:
                tables = [text_tables(rows, markdown=True, metric=metric) for metric in chosen.metrics]
                Path(chosen.tables).write_text('\n\n'.join(tables) + '\n', encoding='utf-8')
            print(text_tables(rows))

        main.guarded(work)

    app.run(report, flags_parser=main.parse_flags)
