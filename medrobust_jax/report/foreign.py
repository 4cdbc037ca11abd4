"""Foreign images that were changed until a model answers as for real ones: tables and pictures.

Contents: `foreign_tables`; `KeptForeign`, `foreign_scenes`, `ForeignScene`, `foreign_figure`; `INTRODUCTION`.

Example:

    page = ''.join(map(to_html, foreign_tables(read_rows(workdir / 'results.jsonl'))))
    for scene in foreign_scenes(kept, title='natural (seed 0)'):
        (workdir / 'foreign.png').write_bytes(to_png(foreign_figure(scene)))
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from medrobust_jax.metrics.agreement import REACHED, agreement_values
from medrobust_jax.report.drawing import RIGHT, STYLE, WRONG, checked_images, draw_image, draw_perturbation
from medrobust_jax.report.naming import OUT_OF_DISTRIBUTION, metric_of
from medrobust_jax.report.overlays import Overlay, color_of, draw_overlay, points_legend
from medrobust_jax.report.summary import WORST, ResultRow, summarize
from medrobust_jax.report.tables import MISSING, Table, brackets, cell_text, system_text

INTRODUCTION = (
    'Here the model is shown what it was never made for: noise, or images of something else. They are changed, '
    'within the L2 radius that is named, until the output becomes the one for a real image. A model that looks at '
    'the anatomy has nothing to find there; where the two outputs agree, it found the anatomy in an image that '
    'does not hold it. At a large radius the change may itself come to look like anatomy: see the changed images. '
    f'An output counts as reached from a Dice of {100 * REACHED:.0f} % on. These numbers say nothing of the '
    'quality on real images.')
_SPOKEN = {'noise': 'noise', 'gaussian': 'Gaussian noise'}


class KeptForeign(NamedTuple):
    """A few images of one attack, with leading axis n everywhere.

    Attributes:
      kind: of the start images: 'noise', 'gaussian' or a data set.
      rho: the L2 ball's radius.
      index: `[n]` rows of the real images.
      start: `[n, H, W, C]` in [0, 1].
      found: likewise.
      real: likewise.
      before: what the model said of the start images: label maps, or a dict of 'mask' and 'points'.
      after: of the images found.
      wanted: of the real images.
    """

    kind: str
    rho: float
    index: Any
    start: Any
    found: Any
    real: Any
    before: Any
    after: Any
    wanted: Any


class ForeignScene(NamedTuple):
    """One foreign image, what became of it, and the real image whose output it was to reach.

    Attributes:
      caption: what is shown.
      start: `[H, W, C]` in [0, 1].
      found: likewise.
      real: likewise.
      said: what the model said of the image found.
      wanted: what it said of the real image.
      start_text: under the start image.
      found_text: under the model's output on the image found.
      reached: whether the output counts as reached.
      names: of the structures, from class 1.
    """

    caption: str
    start: Any
    found: Any
    real: Any
    said: Overlay
    wanted: Overlay
    start_text: str = ''
    found_text: str = ''
    reached: bool = False
    names: tuple[str, ...] = ()


def foreign_tables(rows: Iterable[ResultRow]) -> list[Table]:
    """One table per data set and split: start images down, as they are and attacked, measures across."""
    rows = [row for row in rows if row.metric in OUT_OF_DISTRIBUTION]
    return [_table([row for row in rows if (row.dataset, row.split) == place])
            for place in dict.fromkeys((row.dataset, row.split) for row in rows)]


def _table(rows: list[ResultRow]) -> Table:
    kinds = {row.attack: str(row.attack_options.get('start_images', row.attack)) for row in rows}
    metrics = [name for name in OUT_OF_DISTRIBUTION if any(row.metric == name for row in rows)]
    cells: dict[tuple[str, str, float], dict[str, str]] = {}
    panels = {name: summarize(rows, metric=name) for name in metrics}
    for name, own in panels.items():
        for panel in own:
            for curve in panel.curves:
                for eps, summary in curve.points.items() if curve.attack != WORST else ():
                    place = (system_text(curve.system, panel.runs[curve.system]), kinds[curve.attack], eps)
                    cells.setdefault(place, {})[name] = cell_text(summary, percent=metric_of(name).percent)
    lines, last = [], ('', '')
    for system, kind, eps in cells:
        shown = 'as they are' if eps == 0 else f'attacked, L2 {eps:.3g}'
        head = ['' if system == last[0] else system, '' if (system, kind) == last else kind]
        lines.append([*head, shown, *(cells[system, kind, eps].get(name, MISSING) for name in metrics)])
        last = (system, kind)
    labels = [f'{metric_of(name).label}{", %" if metric_of(name).percent else ""}' for name in metrics]
    counts = ' to '.join(map(str, sorted({row.n for row in rows})))
    caption = (f'{rows[0].dataset} {rows[0].split}: foreign images, and the real ones whose output they were to '
               f'reach; {brackets(panel for own in panels.values() for panel in own)}; n = {counts}')
    return Table(caption, ['defense', 'start images', 'shown', *labels], lines, [])


def foreign_scenes(kept: KeptForeign, *, title: str, names: Sequence[str] = ()) -> list[ForeignScene]:
    """One scene per image.

    Args:
      kept: images and predictions.
      title: of the model.
      names: of the structures, from class 1; numbers where too few.
    """
    before, after = (agreement_values(said, kept.wanted) for said in (kept.before, kept.after))
    spoken = _SPOKEN.get(kept.kind, f'an image of {kept.kind}')
    scenes = []
    for row, index in enumerate(kept.index):
        said, wanted = (_overlay(tree, row) for tree in (kept.after, kept.wanted))
        dice = [100 * values['output_dice'][row] for values in (before, after)]
        caption = (f'{title}, real image {index} of the test set (right). {spoken[0].upper()}{spoken[1:]} (left) '
                   f'was changed, by at most {kept.rho:.3g} in L2, so that the model would draw in it what it '
                   f'draws in the real image. Dice of the two outputs: {dice[0]:.0f} % before the change, '
                   f'{dice[1]:.0f} % after it.')
        text = f'Dice {dice[1]:.0f} %'
        if 'output_point_distance' in after:
            text += f'\npoints {after["output_point_distance"][row]:.1f} px apart'
        start, found, real = (each[row] for each in (kept.start, kept.found, kept.real))
        if wanted.mask.ndim == 3:  # a volume: numbers are of all of it, the drawing is of one slice
            at = int((wanted.mask > 0).sum(axis=(1, 2)).argmax())
            start, found, real = start[at], found[at], real[at]
            said, wanted = (Overlay(mask=each.mask[at]) for each in (said, wanted))
        count = max(int(each.mask.max()) for each in (said, wanted))
        own = ('mask',) if said.points is not None else tuple(names)
        scenes.append(ForeignScene(
            caption, start, found, real, said, wanted, f'its output:\nDice {dice[0]:.0f} %', text,
            bool(after['output_dice'][row] >= REACHED),
            (*own, *(f'class {number + 1}' for number in range(len(own), count)))))
    return scenes


def _overlay(prediction: Any, row: int) -> Overlay:
    if isinstance(prediction, Mapping):
        return Overlay(points=prediction['points'][row], mask=np.asarray(prediction['mask'][row], int))
    return Overlay(mask=np.asarray(prediction[row], int))


def foreign_figure(scene: ForeignScene) -> Figure:
    """Start image, image found, the change, the model's output on the image found, its output on the real image.

    On the image found the outline that the model draws in the real image is dashed white, and a line leads from
    each point there to the point found.

    Args:
      scene: what to draw.

    Returns:
      The figure, 7 inches wide.

    Raises:
      ValueError: the images are not [H, W, C], differ in shape, or leave [0, 1].
    """
    start, found = checked_images(scene.start, scene.found, scene.caption)
    real, _ = checked_images(scene.real, scene.found, scene.caption)
    height = min(7.0 / 5 * 0.95 * start.shape[0] / start.shape[1] + 1.2, 9.5)
    with matplotlib.rc_context({**STYLE, 'axes.grid': False, 'axes.titlesize': 8.5, 'axes.labelsize': 8}):
        figure = Figure(figsize=(7.0, height), layout='constrained')
        axes = list(figure.subplots(1, 5))
        draw_image(axes[0], start)
        axes[0].set(title='start image', xlabel=scene.start_text)
        draw_image(axes[1], found)
        axes[1].set(title='changed image')
        draw_perturbation(axes[2], found - start)
        axes[2].set(title='change', xlabel=f'up to {255 * np.abs(found - start).max():.0f} of 255\ngray levels')
        for one, image, said, title in ((axes[3], found, scene.said, 'model,\nchanged image'),
                                        (axes[4], real, scene.wanted, 'model,\nreal image')):
            draw_image(one, image)
            draw_overlay(one, said, scene.wanted, start.shape[:2])
            one.set_title(title)
        axes[3].set_xlabel(scene.found_text + ('\noutput reached' if scene.reached else '\nnot reached'),
                           color=WRONG if scene.reached else RIGHT, fontweight='bold')
        figure.legend(handles=list(_legend(scene)), loc='outside upper left', frameon=False, ncols=5,
                      handlelength=1.4, columnspacing=1.4, borderaxespad=0.1)
    return figure


def _legend(scene: ForeignScene) -> Iterator[Any]:
    for number, name in enumerate(scene.names):
        yield Patch(facecolor=(color_of(number), 0.5), edgecolor=color_of(number), label=name)
    yield Line2D([], [], color='#888888', linewidth=1, linestyle=(0, (2, 2)), label='outline on the real image')
    if scene.wanted.points is not None:
        yield from points_legend('point on the real image', 'on the changed image')
