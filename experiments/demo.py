"""The main job, end to end, on generated scans: `python -m experiments.demo --workdir=demo` (or `make demo`).

Trains a natural and an adversarially trained model, attacks both, prints the table, writes
report.html and picture.png. Run again, it goes on where it stopped; with finished models it only attacks again.
"""
import time
from pathlib import Path

from absl import app, flags

from configs import oct_phantom
from experiments import main, runtime
from experiments.evaluate import evaluate
from experiments.report import pictures_of, text_tables, write_report
from experiments.train import train_and_evaluate
from medrobust_jax.data.registry import load
from medrobust_jax.report.figures import picture_figure, to_png

COMMANDS = ('make demo',
            'python -m experiments.train --config=configs/oct_phantom.py:pgd_at --workdir=demo/pgd_at',
            'python -m experiments.evaluate --config=configs/oct_phantom.py:pgd_at --workdir=demo/pgd_at')
NOTES = ('The scans are generated, not taken from patients: they show how the software works, '
         'and say nothing about any clinical model.',)


def demo(workdir: str | Path) -> Path:
    """Trains, attacks and reports; returns the report's path."""
    workdirs = []
    for defense in ('natural', 'pgd_at'):
        config = oct_phantom.get_config(defense)
        folder = Path(workdir) / defense
        print(f'\nTraining: {defense}', flush=True)
        train_and_evaluate(config, folder)
        print(f'Attacking: {defense}', flush=True)
        evaluate(config, folder)
        workdirs.append(folder)
    names = load('oct_phantom', 'test').info.class_names
    out = Path(workdir) / 'report.html'
    rows = write_report(workdirs, out, title='OCT-like phantoms: natural and adversarial training',
                        commands=COMMANDS, notes=NOTES, class_names=names, attacks=('pgd20', 'smia20'),
                        eps=4 / 255)
    (picture, *_) = pictures_of(workdirs[0], title='natural', class_names=names, attacks=('pgd20',), eps=4 / 255)
    (Path(workdir) / 'picture.png').write_bytes(to_png(picture_figure(picture)))
    print('\n' + text_tables(rows))
    return out


def _main(argv: list[str]) -> None:
    del argv
    started = time.monotonic()
    runtime.start()

    def work() -> None:
        out = demo(flags.FLAGS.workdir)
        print(f'\nReport: {out}   ({time.monotonic() - started:.0f} s)')

    main.guarded(work)


if __name__ == '__main__':
    flags.DEFINE_string('workdir', 'demo', 'Where models, results and the report go.')
    main.define_debug_flag()
    app.run(_main)
