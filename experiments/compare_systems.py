"""Compares judged systems with one that is claimed to be the best: paired differences in the system's risk.

    python -m experiments.compare_systems --workdir=runs/natural --workdir=runs/at --workdir=runs/ssat \
        --claimed='ssat, 10 % of labels+gaussian' --out=results/systems.jsonl --table=results/systems.md

Every system in the workdirs, or only those of --against, was judged by `experiments.system`, with the same attacks
on the same images. The claimed system is compared with every other one at every eps: R_sys of the claimed minus
R_sys of the other under the worst of all attacks, the aware one included, paired over patients or images. **yes**
where the whole interval is below zero, the claim being that the claimed system has the lower risk, **no** where it
is above.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.compare import VERDICTS, write
from medrobust_jax.core.checks import did_you_mean
from medrobust_jax.evaluate.system_outcomes import check_comparable, compared, load_outcomes
from medrobust_jax.report.summary import eps_text
from medrobust_jax.report.tables import Table, to_markdown, to_text


def compare_systems(workdirs: Sequence[str | Path], claimed: str, *, against: Sequence[str] = ()
                    ) -> list[dict[str, Any]]:
    """The claimed system against all others, or those named in `against`: one row per system and eps.

    Raises:
      FileNotFoundError: a workdir without judged systems.
      ValueError: a label that comes twice, an unknown one, none but the claimed, or systems judged differently.
    """
    systems: dict[str, Any] = {}
    for workdir in workdirs:
        for label, system in load_outcomes(workdir).items():
            if label in systems:
                raise ValueError(f'{label} comes twice: judge one of the runs under another config.eval.label')
            systems[label] = system
    for label in (claimed, *against):
        if label not in systems:
            did_you_mean(label, systems, 'system')
    others = [systems[label] for label in against or systems if label != claimed]
    if not others:
        raise ValueError(f'{claimed} is the only system: there is nothing to compare it with')
    check_comparable([systems[claimed], *others])
    return [row for other in others for row in compared(systems[claimed], other)]


def table_of(rows: Sequence[dict[str, Any]]) -> Table:
    """Systems down, eps across: R_sys of the system, and the claimed one's difference to it."""
    radii = list(dict.fromkeys(row['eps'] for row in rows))
    lines = [[rows[0]['first'], *(f'{100 * row["first_value"]:.1f}' for row in rows[:len(radii)])]]
    for label in dict.fromkeys(row['second'] for row in rows):
        own = {row['eps']: row for row in rows if row['second'] == label}
        lines.append([label, *(_cell(own[eps]) for eps in radii)])
    caption = (f'R_sys in % under the worst of all attacks, n = {rows[0]["n"]}, and in brackets what '
               f'{rows[0]["first"]} changes: its R_sys minus this one, in points, with the paired 95 % interval; '
               '**yes** and **no** where that is on one side of zero, the claim being that it lowers the risk.')
    return Table(caption, ['system', *(f'eps {eps_text(eps, "linf")}' for eps in radii)], lines, [])


def _cell(row: dict[str, Any]) -> str:
    if row['difference'] is None:
        return f'{100 * row["second_value"]:.1f} (undefined)'
    points = '{:+.1f} [{:+.1f}, {:+.1f}]'.format(*(100 * row[name] for name in ('difference', 'low', 'high')))
    said = f'{points} {VERDICTS[row["supported"]]}'.rstrip()
    return f'{100 * row["second_value"]:.1f} ({said})'


if __name__ == '__main__':
    from absl import flags

    from experiments import main

    flags.DEFINE_multi_string('workdir', None, 'A run that experiments.system judged; may be given several times.')
    flags.DEFINE_string('claimed', None, 'The label of the system that is claimed to be the best.')
    flags.DEFINE_multi_string('against', [], 'The label of a system to compare it with; all others if not given.')
    flags.DEFINE_string('out', None, 'The file of rows to write.')
    flags.DEFINE_string('table', None, 'A Markdown file to write.')
    flags.mark_flags_as_required(['workdir', 'claimed', 'out'])

    def work() -> None:
        """Compares, writes and prints."""
        chosen = flags.FLAGS
        rows = compare_systems(chosen.workdir, chosen.claimed, against=chosen.against)
        write(rows, chosen.out)
        table = table_of(rows)
        if chosen.table:
            Path(chosen.table).write_text(to_markdown(table) + '\n', encoding='utf-8')
        print(to_text(table))

    main.launch_on_files(work)
