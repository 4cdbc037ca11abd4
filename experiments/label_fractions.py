"""Robust accuracy against the share of labels: every defense, share and seed trained and attacked, and one table.

    python -m experiments.label_fractions --recipe=pneumoniamnist --defenses=natural,fgsm_at,ssat \
        --fractions=0.01,0.05,0.1,0.25,1 --seeds=0,1,2 --workdir=runs/fractions/pneumoniamnist \
        --tables=results/fractions_pneumoniamnist.md

With one seed all defenses are given the same labels, and the labels of a smaller share are among those of a larger
one. 'rst' takes its pseudo-labels from 'natural' of the same share and seed, so name that before it; with
--from_natural every defense starts from its weights, as the published semi-supervised training does from
pretrained ones: a network that labels images for itself from drawn weights, or at a high learning rate, ends up
calling all of them the same. A run that is finished is not made again: killed and started anew, the command goes
on where it stopped.
"""
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from configs.base import threat
from configs.defenses import ONE_STEP, with_few_labels
from experiments.defenses import needs_helper
from experiments.evaluate import evaluate, is_evaluated
from experiments.train import train_and_evaluate
from medrobust_jax.core.checks import check_eps
from medrobust_jax.data.few_labels import check_fraction
from medrobust_jax.evaluate.records import Row, read_rows
from medrobust_jax.report.summary import eps_text, summary_of
from medrobust_jax.report.tables import Table, cell_text, to_markdown, to_text


def run_config(recipe: str, defense: str, fraction: float, seed: int, *, eps: tuple[float, float] | None = None,
               epochs: float | None = None, natural: str = '', from_natural: bool = False,
               eval_eps: Sequence[float] | None = None, max_examples: int | None = None) -> ConfigDict:
    """The config of one run.

    Args:
      recipe: a module of `configs`.
      defense: one of `configs.defenses.DEFENSES`.
      fraction: of the labels, in (0, 1].
      seed: of everything, the choice of labels included.
      eps: `(low, high)`: one-step defenses draw their radius between them, the others use the high one; None
        leaves what the recipe says.
      epochs: over the whole split; None leaves what the recipe says.
      natural: the workdir of the natural run on the same labels: the helper of defenses that need one.
      from_natural: whether defenses start from that run's weights.
      eval_eps: the radii of the evaluation; None leaves what the recipe says.
      max_examples: test images that are attacked; None leaves what the recipe says.
    """
    config = with_few_labels(importlib.import_module(f'configs.{recipe}').get_config(defense), fraction)
    config.seed = seed
    if eps is not None:
        low, high = eps
        config.defense.eps = config.validation.eps = high
        if defense in ONE_STEP:
            config.defense.eps_low = low
    if epochs is not None:
        config.train.epochs = epochs
    # Validation under attack costs more than training between: three looks at 200 images choose a checkpoint.
    config.validation.max_examples = 200
    config.train.eval_every_epochs = config.train.checkpoint_every_epochs = config.train.epochs / 3
    if needs_helper(config.defense):
        config.defense.helper = natural
    if from_natural and defense != 'natural':
        config.train.init_from = natural
        config.defense.warmup_epochs = 0.0
    if max_examples is not None:
        config.eval.max_examples = max_examples
    if eval_eps is not None:
        config.eval.eps = tuple(eval_eps)
    # Each share is one cell of a table; the four attacks of a full evaluation agree within a point here.
    config.eval.attacks = ConfigDict({'fgsm': threat('fgsm'), 'pgd20': threat('pgd', num_steps=20)})
    config.eval.num_pictures = 0
    return config


def run_all(recipe: str, defenses: Sequence[str], fractions: Sequence[float], seeds: Sequence[int],
            workdir: str | Path, *, eps: tuple[float, float] | None = None, epochs: float | None = None,
            from_natural: bool = False, eval_eps: Sequence[float] | None = None,
            max_examples: int | None = None, data_dir: str | None = None) -> list[Row]:
    """Trains and attacks every combination; returns all rows.

    Raises:
      ValueError: before any training, for shares outside (0, 1], radii that cannot be or are out of order, or
        from_natural without natural runs.
    """
    for fraction in fractions:
        check_fraction(fraction, field='--fractions')
    if eps is not None:
        check_eps(eps, field='--eps')
        if eps[0] > eps[1]:
            raise ValueError(f'--eps={eps[0]:g},{eps[1]:g} must be low,high')
    if eval_eps is not None:
        check_eps(tuple(eval_eps), field='--eval_eps')
    if from_natural and 'natural' not in defenses[:1]:
        raise ValueError(f"defenses that start from natural runs need 'natural' before them, not {list(defenses)}")
    rows: list[Row] = []
    for seed in seeds:
        for fraction in fractions:
            for defense in defenses:
                folder = Path(workdir) / f'{defense}_{100 * fraction:g}' / str(seed)
                natural = str(Path(workdir) / f'natural_{100 * fraction:g}' / str(seed))
                config = run_config(recipe, defense, fraction, seed, eps=eps, epochs=epochs, natural=natural,
                                    from_natural=from_natural, eval_eps=eval_eps, max_examples=max_examples)
                if not is_evaluated(config, folder, data_dir=data_dir):
                    logging.info('%s, %g %% of the labels, seed %d', defense, 100 * fraction, seed)
                    train_and_evaluate(config, folder, data_dir=data_dir)
                    evaluate(config, folder, data_dir=data_dir)
                rows += [row for row in read_rows(folder / 'results.jsonl') if row.eps in (0, *config.eval.eps)]
    return rows


def fraction_tables(rows: Sequence[Row], fractions: Sequence[float], *, metric: str = 'robust_accuracy'
                    ) -> list[Table]:
    """One table per eps, clean images first: defenses down, shares of the labels across.

    'robust_accuracy' is under the worst attack per image, any other metric under PGD-20.
    """
    tables = []
    for eps in sorted({row.eps for row in rows}):
        attack = 'clean' if not eps else 'worst_case' if metric == 'robust_accuracy' else 'pgd20'
        here = [row for row in rows if (row.eps, row.attack, row.metric) == (eps, attack, metric)]
        if not here:  # a metric that the task lacks
            continue
        lines = []
        for defense in dict.fromkeys(name_and_share(row.defense)[0] for row in here):
            cells = [[row for row in here if _is_of(row.defense, defense, fraction)] for fraction in fractions]
            lines.append([defense, *(cell_text(summary_of(cell) if cell else None, percent=True, compact=True)
                                     for cell in cells)])
        count = len({row.seed for row in here})
        seeds = f'{count} seeds, (lowest to highest)' if count > 1 else 'one seed, [95 % interval]'
        who = 'the worst attack per image' if attack == 'worst_case' else 'PGD-20'
        what = f'under {who} at eps {eps_text(eps, "linf")}' if eps else 'on clean images'
        caption = (f'{here[0].dataset} {here[0].split}: {metric.replace("_", " ")} in % {what}; '
                   f'{seeds}; n = {here[0].n}')
        tables.append(Table(caption, ['defense', *(f'{100 * each:g} % labels' for each in fractions)], lines, []))
    return tables


def _is_of(name: str, defense: str, fraction: float) -> bool:
    own, share = name_and_share(name)
    return own == defense and math.isclose(share, fraction, rel_tol=1e-4)


def name_and_share(name: str) -> tuple[str, float]:
    """'ssat, 5 % of labels' as ('ssat', .05), see `training_data.defense_title`; without a share: all labels."""
    defense, _, share = name.partition(', ')
    return defense, float(share.removesuffix(' % of labels')) / 100 if share else 1.0


def numbers_of(texts: Sequence[str], flag: str, *, count: int | None = None, kind: type = float) -> list[Any]:
    """A flag's comma-separated values as numbers.

    Args:
      texts: the values.
      flag: its name, for the message.
      count: how many there must be; None for at least one.
      kind: float or int.

    Raises:
      ValueError: for another count, or what is no number.
    """
    try:
        numbers = [kind(text) for text in texts]
    except ValueError:
        numbers = []
    if len(numbers) != (count or max(1, len(texts))):
        raise ValueError(f'--{flag}={",".join(texts)} must be {count or "one or more"} '
                         f'{"whole " if kind is int else ""}numbers, separated by commas')
    return numbers


if __name__ == '__main__':
    from absl import app, flags

    from experiments import main, runtime

    flags.DEFINE_string('recipe', 'pneumoniamnist', 'A module of configs.')
    flags.DEFINE_list('defenses', ['natural', 'fgsm_at', 'ssat'], 'What is compared.')
    flags.DEFINE_list('fractions', ['0.01', '0.05', '0.1', '0.25', '1'], 'Shares of the labels.')
    flags.DEFINE_list('seeds', ['0', '1', '2'], 'Seeds.')
    flags.DEFINE_list('eps', None, 'The training radius: low,high.')
    flags.DEFINE_float('epochs', None, 'Over the whole split.')
    flags.DEFINE_bool('from_natural', False, "Defenses start from the natural runs' weights.")
    flags.DEFINE_list('eval_eps', None, 'The radii of the evaluation.')
    flags.DEFINE_integer('max_examples', None, 'Test images that are attacked.')
    flags.DEFINE_string('workdir', None, 'Where the runs go.')
    flags.DEFINE_string('data_dir', None, 'Where data sets are looked for; default: MEDROBUST_DATA.')
    flags.DEFINE_string('tables', None, 'A Markdown file to write.')
    flags.mark_flag_as_required('workdir')
    main.define_debug_flag()

    def _main(argv: list[str]) -> None:
        chosen = flags.FLAGS
        runtime.start(device_per_core=True)
        logging.set_verbosity(logging.INFO)

        def work() -> None:
            fractions = numbers_of(chosen.fractions, 'fractions')
            seeds = numbers_of(chosen.seeds, 'seeds', kind=int)
            low_high = None if chosen.eps is None else numbers_of(chosen.eps, 'eps', count=2)
            eval_eps = None if chosen.eval_eps is None else numbers_of(chosen.eval_eps, 'eval_eps')
            rows = run_all(chosen.recipe, chosen.defenses, fractions, seeds, chosen.workdir,
                           eps=None if low_high is None else (low_high[0], low_high[1]), epochs=chosen.epochs,
                           from_natural=chosen.from_natural, eval_eps=eval_eps, max_examples=chosen.max_examples,
                           data_dir=chosen.data_dir)
            tables = [table for metric in ('robust_accuracy', 'balanced_accuracy')
                      for table in fraction_tables(rows, fractions, metric=metric)]
            if chosen.tables:
                Path(chosen.tables).write_text('\n\n'.join(map(to_markdown, tables)) + '\n', encoding='utf-8')
            print('\n\n'.join(map(to_text, tables)))

        main.guarded(work)

    app.run(_main, flags_parser=main.parse_flags)
