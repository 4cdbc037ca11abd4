"""Figures: quality over eps with its intervals, and what an attacked image looks like.

Contents: `Picture`, `curve_figure`, `picture_figure`, `to_png`, `to_svg`.

Marker shapes tell systems apart in print without color. Masks, points and boxes are drawn in `overlays`, margins
of training in `margins`; nothing needs a screen.

Example:

    panel, = summarize(rows)
    (workdir / 'curves.png').write_bytes(to_png(curve_figure(panel)))
    picture = Picture('PGD on scan 12', clean, adversarial, 'drusen', 'drusen', 'normal', .98, .71)
    (workdir / 'scan.png').write_bytes(to_png(picture_figure(picture)))
"""
import io
import math
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from medrobust_jax.report.drawing import COLORS, RIGHT, STYLE, WRONG, checked_images, draw_image, draw_perturbation
from medrobust_jax.report.summary import CLEAN, WORST, WORST_PER_IMAGE, Panel

_MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
_DASHES = ('-', '--', ':')  # once the colors are used up
_NORMS = {'linf': 'L∞', 'l2': 'L2', 'l1': 'L1'}
_COLUMNS = {1: 1, 2: 2, 4: 2}  # by number of charts; 3 otherwise


class Picture(NamedTuple):
    """One image before and after an attack.

    Attributes:
      caption: what is shown: data set and index, model, attack, eps.
      clean: [H, W, C] in [0, 1], C = 1 or 3 (others: the first channel is shown).
      adversarial: same shape, in [0, 1].
      label: the true class's name.
      clean_prediction: the name of the class predicted for the clean image.
      adversarial_prediction: the name of the class predicted for the attacked image.
      clean_confidence: the model's probability of its prediction, or None.
      adversarial_confidence: same for the attacked image.
    """

    caption: str
    clean: Any
    adversarial: Any
    label: str
    clean_prediction: str
    adversarial_prediction: str
    clean_confidence: float | None = None
    adversarial_confidence: float | None = None


def curve_figure(panel: Panel) -> Figure:
    """Quality over eps: one chart for the worst attack, then one per attack, a line per system.

    Bands are 95 % intervals, or the range over runs where there are several.

    Args:
      panel: from `summarize`, with attacked results.

    Returns:
      The figure, 7 inches wide at most.

    Raises:
      ValueError: the panel holds clean results only.
    """
    attacks = list(dict.fromkeys(curve.attack for curve in panel.curves if curve.attack != CLEAN))
    if not attacks:
        raise ValueError(f'no attacked results to draw for {panel.dataset} {panel.split}')
    attacks.sort(key=lambda attack: attack not in (WORST, WORST_PER_IMAGE))  # stable: the worst first
    columns = _COLUMNS.get(len(attacks), 3)
    rows = math.ceil(len(attacks) / columns)
    width = 4.8 if columns == 1 else 7.0
    names = [_legend(panel, system) for system in panel.systems]
    fitting = max(1, int(width / (0.5 + 0.07 * max(map(len, names)))))  # of the legend's columns
    beside = min(len(names), fitting)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 0.4 + 2.4 * rows + 0.2 * math.ceil(len(names) / beside)),
                        layout='constrained')
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, attack in zip(grid.flat, attacks, strict=False):
            _draw_attack(axes, panel, attack)
        for axes in grid.flat[len(attacks):]:
            axes.set_visible(False)
        _label_axes(grid, panel, len(attacks))
        handles = {line.get_label(): line for axes in grid.flat for line in axes.lines}
        figure.legend(handles.values(), handles.keys(), loc='outside upper left', frameon=False,
                      ncols=beside, handlelength=1.8, columnspacing=1.4, borderaxespad=0.2)
    return figure


def picture_figure(picture: Picture) -> Figure:
    """Clean image, enlarged perturbation with its scale, attacked image; with the model's verdicts.

    Args:
      picture: what to draw.

    Returns:
      The figure, 7 inches wide.

    Raises:
      ValueError: the images are not [H, W, C], differ in shape, or leave [0, 1].
    """
    clean, adversarial = checked_images(picture.clean, picture.adversarial, picture.caption)
    height, width = clean.shape[:2]
    with matplotlib.rc_context({**STYLE, 'axes.grid': False}):
        figure = Figure(figsize=(7.0, min(0.8 + 2.25 * height / width, 8.0)), layout='constrained')
        axes = figure.subplots(1, 3)
        draw_image(axes[0], clean)
        draw_perturbation(axes[1], adversarial - clean)
        draw_image(axes[2], adversarial)
        axes[0].set_title(f'clean: {picture.label}')
        axes[2].set_title('attacked')
        _draw_verdict(axes[0], picture.clean_prediction, picture.clean_confidence, picture.label)
        _draw_verdict(axes[2], picture.adversarial_prediction, picture.adversarial_confidence,
                      picture.label)
    return figure


def to_png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as PNG; the same bytes for the same figure."""
    return _save(figure, 'png', dpi=dpi, metadata={'Software': None})


def to_svg(figure: Figure) -> bytes:
    """The figure as SVG with text as outlines; the same bytes for the same figure."""
    with matplotlib.rc_context(STYLE):
        return _save(figure, 'svg', metadata={'Date': None, 'Creator': None})


def _save(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, facecolor='white', **options)
    return buffer.getvalue()


def _draw_attack(axes: Axes, panel: Panel, attack: str) -> None:
    scale = 255 if panel.norm == 'linf' else 1
    for number, system in enumerate(panel.systems):
        of_system = {curve.attack: curve for curve in panel.curves if curve.system == system}
        if attack not in of_system:
            continue
        clean = of_system[CLEAN].points if CLEAN in of_system else {}
        points = sorted({**clean, **of_system[attack].points}.items())
        x = [eps * scale for eps, _ in points]
        color = COLORS[number % len(COLORS)]
        low, high = ([getattr(summary, end) for _, summary in points] for end in ('low', 'high'))
        axes.fill_between(x, low, high, color=color, alpha=0.16, linewidth=0)
        axes.plot(x, [summary.value for _, summary in points], color=color, linewidth=1.5,
                  linestyle=_DASHES[number // len(COLORS) % len(_DASHES)],
                  marker=_MARKERS[number % len(_MARKERS)], markersize=4, label=_legend(panel, system),
                  clip_on=False)
    axes.set_title(attack, loc='left', fontweight='bold' if attack in (WORST, WORST_PER_IMAGE) else 'normal')


def _legend(panel: Panel, system: str) -> str:
    return f'{system} ({panel.runs[system]} runs)' if panel.runs[system] > 1 else system


def _label_axes(grid: np.ndarray, panel: Panel, count: int) -> None:
    metric, norm = panel.shown, _NORMS.get(panel.norm, panel.norm)
    unit = ', 1/255 of the full range' if panel.norm == 'linf' else ', pixels in [0, 1]'
    grid[0, 0].set_xlim(left=0)
    if len(panel.eps) <= 6:
        scale = 255 if panel.norm == 'linf' else 1
        grid[0, 0].set_xticks([0, *(eps * scale for eps in panel.eps)],
                              ['0', *(f'{eps * scale:.3g}' for eps in panel.eps)])
    if metric.percent:
        grid[0, 0].set_ylim(0, 1)
        grid[0, 0].yaxis.set_major_formatter(PercentFormatter(1, symbol=' %'))
    elif not metric.more_is_better:
        grid[0, 0].set_ylim(bottom=0)
    for axes in grid[:, 0]:
        axes.set_ylabel(metric.label if metric.more_is_better else f'{metric.label}\n(lower is better)')
    # Where the last row is not full, the charts above its gaps carry the tick labels.
    for axes in grid.flat[max(0, count - grid.shape[1]):count]:
        axes.tick_params(labelbottom=True)
    grid[0, 0].figure.supxlabel(f'eps ({norm}{unit})', fontsize=9)


def _draw_verdict(axes: Axes, prediction: str, confidence: float | None, label: str) -> None:
    right = prediction == label
    verdict = 'right' if right else 'wrong'
    sure = '' if confidence is None else f', confidence {100 * confidence:.0f} %'
    axes.set_xlabel(f'model: {prediction}\n{verdict}{sure}', color=RIGHT if right else WRONG,
                    fontweight='bold')
