"""A model judged: clean quality, every threat over its grid, checks, rows, verdicts and pictures.

Contents: `judge`.

Example:

    rows = judge(subject, examples, [Threat('pgd100', pgd(num_steps=100), num_restarts=5)],
                 (1/255, 8/255), layout=layout, seed=0, workdir=workdir)
"""
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from absl import logging

from medrobust_jax.attacks.registry import BLACK_BOX
from medrobust_jax.evaluate import records, sanity
from medrobust_jax.evaluate.programs import Layout
from medrobust_jax.evaluate.provenance import program
from medrobust_jax.evaluate.resume import Snapshots
from medrobust_jax.evaluate.suite import (
    Ensemble,
    Examples,
    GridPoint,
    Threat,
    attack_grid,
    attack_in_turn,
    check_threat,
    clean_point,
    without_images,
)
from medrobust_jax.evaluate.writing import AnyThreat, ResultWriter, Subject

RESERVED = ('clean', 'worst_case', 'target')  # names of rows, and of pictures, that are no threat's
# Pairs in which the first attack should not beat the second, by the name of the method.
WEAKER = (('fgsm', 'pgd'), ('fgsm', 'smia'), ('ifgsm', 'pgd'), ('noise', 'fgsm'), ('noise', 'ifgsm'))
# What black-box attacks and transfer should not beat.
WHITE_BOX = ('pgd', 'pgd_margin', 'smia', 'apgd', 'apgd_targeted', 'cw_linf', 'cw_l2', 'ddn', 'fmn', 'fab',
             'fab_targeted', 'autoattack', 'medical_ensemble')


def judge(subject: Subject, examples: Examples, threats: Sequence[AnyThreat], eps_grid: Sequence[float], *,
          layout: Layout, seed: int, workdir: str | Path, stop_when_fooled: bool = True, order: str = 'ascending',
          num_pictures: int = 4, save_images: bool = False,
          progress: Callable[[str, int, int], None] = lambda name, done, total: None) -> list[records.Row]:
    """Evaluates everything and writes `results.jsonl`, `verdicts/*.npz` and `pictures.npz` in `workdir`.

    Killed and started again with the same arguments, it continues: what is in flight is kept in
    `workdir/unfinished`, at most a minute old.

    Args:
      subject: the model.
      examples: the test images.
      threats: the attacks.
      eps_grid: radii > 0, in units of [0, 1].
      layout: block width, chunk and devices.
      seed: of the attacks' draws.
      workdir: where the results go; rows of an earlier evaluation of the same checkpoint by the
        same attack, eps and metric are replaced.
      stop_when_fooled: see `suite.attack_grid`. If False, attacked rows also hold score-based
        metrics (AUROC, ...), which need every example attacked to the end.
      order: of the eps grid, see `suite.attack_grid`.
      num_pictures: attacked images to keep for the report.
      save_images: keep every adversarial image in `workdir/adversarial/<attack>.npz`, see `rescore`.
      progress: called with the threat's name, the examples finished, and their number.

    Returns:
      The rows of this evaluation. They are in the file as soon as their attack has ended.

    Raises:
      ValueError: for two threats of one name, or one named as in `RESERVED`; for what `check_threat` refuses,
        before anything is run.
    """
    _check_names(threats)
    for threat in threats:
        for member in members_of(threat):
            check_threat(member, subject.task, examples, threat.eps or eps_grid, forward=subject.forward,
                         variables=subject.variables, order=order)
    started, workdir = time.monotonic(), Path(workdir)
    results = workdir / 'results.jsonl'
    shared = {'layout': layout, 'seed': seed}
    model = (subject.forward, subject.variables, subject.task)
    clean = clean_point(*model, examples, **shared)
    general = (*sanity.check_gradients(*model, examples, **shared),
               *sanity.check_randomness(subject.forward, subject.variables, examples, **shared))
    write = ResultWriter(subject, examples, layout, workdir, seed, stop_when_fooled)
    write.clean(clean, started, general)
    if threats and num_pictures:
        write.choose_pictures(clean, num_pictures)
    records.update_rows(results, write.rows)
    grids: dict[str, list[GridPoint]] = {}
    unfinished = workdir / 'unfinished'
    asked = {**subject.identity, **subject.fingerprints, 'criterion': subject.criterion, **subject.setting,
             **program()}
    for threat in threats:
        members = members_of(threat)
        warnings = (*general, *sanity.check_own_gradients(*model, members, examples, **shared),
                    *sanity.check_floor(*model, members[0], examples, **shared))

        def attack(member: Threat, previous: list[GridPoint] | None, threat: AnyThreat = threat
                   ) -> list[GridPoint]:
            name = threat.name if member is threat else f'{threat.name}.{member.name}'
            radii = tuple(threat.eps or eps_grid)
            return attack_grid(*model, member, examples, radii, clean=clean, stop_when_fooled=stop_when_fooled,
                               order=order, previous=previous, progress=partial(progress, name),
                               snapshots=Snapshots(unfinished / f'{name}.npz', asked), **shared)

        stages = attack_in_turn(members, attack)
        points = stages[-1]
        for point in points:
            logging.info('%s %s eps %.5g: robust accuracy %.4f', subject.identity['defense'], threat.name,
                         point.eps, point.result.acceptable.mean())
        grids[threat.name] = points
        warnings += _order_warnings(threat, threats, grids) + sanity.check_cascade(members, stages)
        write.threat(threat, members, stages, warnings, save_images=save_images)
        grids[threat.name] = [without_images(point) for point in points]
        records.update_rows(results, write.rows)
    write.worst_case(threats, grids, general)
    write.save_pictures()
    records.update_rows(results, write.rows)
    shutil.rmtree(unfinished, ignore_errors=True)
    for sentence in sorted({s for row in write.rows for s in row.warnings}):
        logging.warning('Check: %s', sentence)
    return write.rows


def members_of(threat: AnyThreat) -> tuple[Threat, ...]:
    """The attacks that are run for a threat."""
    return threat.members if isinstance(threat, Ensemble) else (threat,)


def _check_names(threats: Sequence[AnyThreat]) -> None:
    names = [threat.name for threat in threats]
    if len({*names, *RESERVED}) < len(names) + len(RESERVED):
        raise ValueError(f'attacks are called {names}: each needs a name of its own, other than {RESERVED}')
    for threat in threats:
        members = [member.name for member in members_of(threat)]
        if len(set(members)) < len(members) or any(m.norm != threat.norm for m in members_of(threat)):
            raise ValueError(f'the members of {threat.name}, {members}, need names of their own and its norm')


def _order_warnings(threat: AnyThreat, threats: Sequence[AnyThreat],
                    grids: Mapping[str, list[GridPoint]]) -> tuple[str, ...]:
    """Compares a threat with the weaker and stronger ones that have been run already."""
    found: tuple[str, ...] = ()
    for other in threats:
        if other.name in grids:
            for weak, strong in ((other, threat), (threat, other)):
                if _is_weaker(weak, strong):
                    found += sanity.check_order(grids[weak.name], grids[strong.name], weak_name=weak.name,
                                                strong_name=strong.name)
    return found


def _is_weaker(weak: AnyThreat, strong: AnyThreat) -> bool:
    """Whether `weak` should not beat `strong`: an older method, or the same with fewer steps or restarts."""
    methods = (weak.options.get('attack'), strong.options.get('attack'))
    blind = methods[0] in (*BLACK_BOX, 'transfer') and methods[1] in WHITE_BOX
    same = methods[0] is not None and methods[0] == methods[1]
    fewer = False
    if isinstance(weak, Threat) and isinstance(strong, Threat):
        efforts = [(threat.attack.num_steps, threat.num_restarts) for threat in (weak, strong)]
        fewer = efforts[0] != efforts[1] and all(a <= b for a, b in zip(*efforts, strict=True))
    alike = weak.norm == strong.norm and weak.eps == strong.eps
    return alike and (methods in WEAKER or blind or (same and fewer))
