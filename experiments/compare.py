"""Compares finished evaluations image by image, or two attacks on the same models, with intervals.

    python -m experiments.compare --workdir=runs/acdc/amat/0 --workdir=runs/acdc/pgd_at/0 \
        --workdir=runs/acdc/pgd_at_half/0 --out=results/acdc/amat.jsonl --table=results/acdc/amat.md
    python -m experiments.compare --workdir=runs/acdc/amat/0 --attacks=smia100_l2,pgd100_clean_l2 --out=...

Each --workdir is one recipe, its seeds separated by commas: `--workdir=runs/amat/0,runs/amat/1`. The first is
compared with every other one, clean and under every attack (or those of --attack) and eps that both were evaluated
with; with --attacks the first attack is compared with the second, on every recipe.

Differences are the first minus the second: of 'robust_accuracy', the share of acceptable outputs, and of
'quality', what the criterion compares with its thresholds (higher is better; a detector's three are minus its
box, objectness and class loss). They are paired by seed and image: an image's difference is its mean over the
seeds, and patients (images where there are none) are resampled, so the interval is of the test set, not of
training; 'by_seed' shows that spread. 'supported' is True where the whole interval is on the claim's side of zero,
the claim being that the first recipe is better or the first attack stronger, False where it is on the other side.
McNemar's exact p stands beside verdicts of single seeds with one image per patient. Where attacks stopped at the
first fooling image (config.eval.stop_when_fooled), quality is that image's, not the worst.

"AMAT keeps clean quality better than SAT at comparable robust quality" is one call, as above: **yes** on the clean
line and no **no** on those below.
"""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from medrobust_jax.evaluate.files import naming, plain, replacing
from medrobust_jax.evaluate.pairs import check_alike, paired_rows
from medrobust_jax.evaluate.provenance import program
from medrobust_jax.evaluate.records import read_rows
from medrobust_jax.evaluate.verdicts import Verdicts, load_verdicts
from medrobust_jax.report.summary import eps_text
from medrobust_jax.report.tables import Table, to_markdown

CLEAN = 'clean'
VERDICTS = {True: '**yes**', False: '**no**', None: ''}  # of 'supported', in tables
Row = dict[str, Any]


class Side(NamedTuple):
    """One recipe: seed to its verdicts by attack, and what tables call it."""

    label: str
    runs: dict[int, dict[str, Verdicts]]


def load_sides(recipes: Sequence[Sequence[str | Path]]) -> list[Side]:
    """Reads the verdicts of recipes, each a list of workdirs that differ in their seed.

    Raises:
      FileNotFoundError: where a workdir holds no verdicts.
      ValueError: a seed that comes twice in a recipe, several defenses in one, or verdicts of several checkpoints
        in a workdir.
    """
    sides = []
    for workdirs in recipes:
        runs: dict[int, dict[str, Verdicts]] = {}
        for workdir in workdirs:
            verdicts = _verdicts_in(Path(workdir))
            about = next(iter(verdicts.values())).about
            if about['seed'] in runs:
                raise ValueError(f'seed {about["seed"]} comes twice in {", ".join(map(str, workdirs))}: runs of '
                                 'one --workdir differ in their seeds; give recipes a --workdir each')
            runs[about['seed']] = verdicts
        defenses = {verdicts.about['defense'] for run in runs.values() for verdicts in run.values()}
        if len(defenses) > 1:
            raise ValueError(f'{", ".join(map(str, workdirs))} hold different defenses '
                             f'({", ".join(sorted(defenses))}): give each a --workdir of its own')
        sides.append(Side(defenses.pop(), dict(sorted(runs.items()))))
    labels = [side.label for side in sides]
    return [side if labels.count(side.label) == 1 else side._replace(label=f'{side.label} ({workdirs[0]})')
            for side, workdirs in zip(sides, recipes, strict=True)]


def _verdicts_in(workdir: Path) -> dict[str, Verdicts]:
    paths = sorted((workdir / 'verdicts').glob('*.npz'))
    if not paths:
        raise FileNotFoundError(f'{workdir}/verdicts holds nothing: run experiments.evaluate with '
                                f'--workdir={workdir} first')
    found = {path.stem: load_verdicts(path) for path in paths}
    checkpoints = {verdicts.about['checkpoint_fingerprint'] for verdicts in found.values()}
    if len(checkpoints) > 1:
        raise ValueError(f'{workdir}/verdicts are of {len(checkpoints)} checkpoints: run experiments.evaluate '
                         'again, or remove those of the older')
    if any('criterion' not in verdicts.about for verdicts in found.values()):
        rows = {row.attack: row for row in read_rows(workdir / 'results.jsonl')
                if row.provenance.get('checkpoint_fingerprint') in checkpoints}
        for name, verdicts in found.items():
            if name in rows:
                said = {'criterion': list(rows[name].provenance.get('criterion', ())),
                        'stop_when_fooled': rows[name].attack_options.get('stop_when_fooled')}
                found[name] = verdicts._replace(about={**said, **verdicts.about})
    return found


def compare_recipes(first: Side, second: Side, *, attacks: Sequence[str] = ()) -> list[Row]:
    """The first recipe against the second: clean, and under every attack and eps that both have.

    Raises:
      ValueError: seeds, images, criteria or settings that differ, or nothing in common.
    """
    if first.runs.keys() != second.runs.keys():
        raise ValueError(f'{first.label} has the seeds {list(first.runs)}, {second.label} {list(second.runs)}: '
                         'comparisons are paired by seed')
    evaluated = [set(run) for side in (first, second) for run in side.runs.values()]
    common = [name for name in sorted(set.intersection(*evaluated)) if not attacks or name in attacks]
    if left := sorted(set.union(*evaluated) - set(common)):
        logging.info('%s against %s: without %s', first.label, second.label, ', '.join(left))
    if not common:
        raise ValueError(f'{first.label} and {second.label} were evaluated with no attack in common'
                         + (f' of {", ".join(attacks)}' if attacks else ''))
    rows, clean = [], False
    for name in common:
        ours, theirs = ([run[name] for run in side.runs.values()] for side in (first, second))
        check_alike(ours + theirs, f'{first.label} and {second.label}, {name}')
        has_control = 0. in ours[0].eps  # foreign images as they are: no clean images
        radii = ([] if clean or has_control else [None]) + _common_eps(ours + theirs)
        clean = clean or not has_control
        about = {'claim': 'first is better', 'first': first.label, 'second': second.label}
        for eps in radii:
            rows += [{**about, 'attack': CLEAN if eps is None else name, **row}
                     for row in paired_rows(ours, theirs, eps, lower_is_claimed=False)]
    return rows


def compare_attacks(side: Side, first: str, second: str) -> list[Row]:
    """The first attack against the second on the same models: is what it leaves lower?

    Raises:
      ValueError: an attack that was not run, or evaluations of other images, criteria or balls.
    """
    for name in (first, second):
        if missing := [seed for seed, run in side.runs.items() if name not in run]:
            known = ', '.join(sorted(set.intersection(*(set(run) for run in side.runs.values()))))
            raise ValueError(f'{side.label} was not evaluated with {name} (seeds {missing}); there are {known}')
    ours, theirs = ([run[name] for run in side.runs.values()] for name in (first, second))
    check_alike(ours + theirs, f'{side.label}, {first} and {second}', settings=False)
    about = {'claim': 'first is stronger', 'first': first, 'second': second, 'model': side.label}
    return [{**about, 'attack': first, **row} for eps in _common_eps(ours + theirs)
            for row in paired_rows(ours, theirs, eps, lower_is_claimed=True)]


def _common_eps(verdicts: Sequence[Verdicts]) -> list[float]:
    return [float(eps) for eps in verdicts[0].eps if all(eps in other.eps for other in verdicts)]


def tables_of(rows: Sequence[Row]) -> list[Table]:
    """One table per comparison, in their order: attacks and eps down."""
    pairs: dict[tuple, list[Row]] = {}
    for row in rows:
        pairs.setdefault((row['dataset'], row['first'], row['second'], row.get('model')), []).append(row)
    return [_table(own) for own in pairs.values()]


def _table(rows: Sequence[Row]) -> Table:
    row, verb = rows[0], rows[0]['claim'].removeprefix('first is ')
    lines, with_p = [], any(row['mcnemar_p'] is not None for row in rows)
    for each in rows:
        cells = (each['difference'], each['low'], each['high'])
        line = [each['attack'], eps_text(each['eps'], each['norm']) if each['eps'] else '', each['measure'],
                f'{each["first_value"]:.3f}', f'{each["second_value"]:.3f}',
                'undefined' if np.isnan(cells[0]) else '{:+.3f} [{:+.3f}, {:+.3f}]'.format(*cells),
                VERDICTS[each['supported']]]
        p = '' if each['mcnemar_p'] is None else f'{each["mcnemar_p"]:.3g}'
        lines.append([*line, *([p] if with_p else [])])
    who = f' on {row["model"]}' if 'model' in row else ''
    patients = f' of {row["patients"]} patients' if row['patients'] else ''
    kinds = 'bootstrap' + (" or, where these have no width, Newcombe's" if any(
        each['interval'].startswith('newcombe') for each in rows) else '')
    unit, seeds = 'patients' if patients else 'images', ', '.join(map(str, row['seeds']))
    caption = (f'{row["dataset"]} {row["split"]}: {row["first"]} against {row["second"]}{who}, paired over '
               f'{row["n"]} images{patients}, seeds {seeds}. Differences are the first minus the second with 95 % '
               f'{kinds} intervals over {unit}; **yes** and **no** where the whole interval is on one side of '
               f'zero, the claim being that the first is {verb}.')
    return Table(caption, ['attack', 'eps', 'measure', row['first'], row['second'], 'difference', f'first {verb}',
                           *(['McNemar p'] if with_p else [])], lines, [])


def write(rows: Sequence[Row], out: str | Path) -> None:
    """Writes the rows, with what computed them, as lines of JSON, in the place of the file."""
    computed = program()
    with naming(out, 'write comparisons'):
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as partial:
            partial.write_text(''.join(json.dumps(plain({**row, 'provenance': computed}), allow_nan=False) + '\n'
                                       for row in rows), encoding='utf-8')


def compare(recipes: Sequence[Sequence[str | Path]], *, attacks: Sequence[str] = (), pair: Sequence[str] = ()
            ) -> list[Row]:
    """All comparisons of one call.

    Args:
      recipes: lists of workdirs, each of one recipe.
      attacks: names to keep; empty for all.
      pair: two attacks to compare on every recipe, in place of recipes.

    Raises:
      ValueError: nothing to compare, or what the comparisons refuse.
    """
    if pair and (len(pair) != 2 or pair[0] == pair[1]):
        raise ValueError(f'--attacks={",".join(pair)} must name two attacks')
    if not pair and len(recipes) < 2:
        raise ValueError('nothing to compare: give --workdir twice, or two attacks as --attacks=A,B')
    first, *others = sides = load_sides(recipes)
    if pair:
        return [row for side in sides for row in compare_attacks(side, *pair)]
    return [row for other in others for row in compare_recipes(first, other, attacks=attacks)]


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_multi_string('workdir', None, 'A recipe: its evaluated runs, one per seed, separated by commas.')
    flags.DEFINE_list('attack', [], 'Compare under these attacks alone.')
    flags.DEFINE_list('attacks', [], 'Two attacks to compare with each other, in place of recipes.')
    flags.DEFINE_string('out', None, 'The file of rows to write.')
    flags.DEFINE_string('table', None, 'A Markdown file to write the tables to.')
    flags.mark_flags_as_required(['workdir', 'out'])

    def work() -> None:
        """Compares, writes and prints."""
        chosen = flags.FLAGS
        recipes = [each.split(',') for each in chosen.workdir]
        rows = compare(recipes, attacks=chosen.attack, pair=chosen.attacks)
        text = '\n'.join(map(to_markdown, tables_of(rows)))
        write(rows, chosen.out)
        if chosen.table:
            Path(chosen.table).write_text(text, encoding='utf-8')
        print(text)

    main.launch_on_files(work)
