"""What an attack did to masks, points, boxes and findings: drawn on the image, before and after.

Contents: `Overlay` (what one drawing shows), `Scene` (an image before and after), `scene_figure`;
`draw_overlay`, `points_legend`, `color_of`.

Example:

    scene = Scene('PGD on slice 12', clean, adversarial, names=('RV', 'myocardium', 'LV'),
                  target=Overlay(mask=true), before=Overlay(mask=predicted), after=Overlay(mask=attacked),
                  before_text='Dice 91 %', after_text='Dice 23 %')
    (workdir / 'slice.png').write_bytes(to_png(scene_figure(scene)))
"""
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from medrobust_jax.report.drawing import (
    RIGHT,
    STRUCTURE_COLORS,
    STYLE,
    WRONG,
    checked_images,
    draw_image,
    draw_perturbation,
)

_TRUE, _FOUND = '#56B4E9', '#D55E00'  # points: where they are, where the model says
_HALO: list[patheffects.AbstractPathEffect] = [
    patheffects.withStroke(linewidth=2.2, foreground='black', alpha=0.75)]


class Overlay(NamedTuple):
    """What is drawn on an image; any of these may be missing.

    Attributes:
      mask: `[H, W]` int, the class of each pixel, 0 for the background.
      points: `[P, 2]`, (x, y) as fractions of width and height.
      boxes: `[M, 4]`, (x_min, y_min, x_max, y_max) as fractions.
      classes: `[M]` int, of the boxes, from 0.
      scores: `[M]`, of the boxes; None for true ones.
    """

    mask: Any = None
    points: Any = None
    boxes: Any = None
    classes: Any = None
    scores: Any = None


class Scene(NamedTuple):
    """One image before and after an attack, with what is there and what a model said both times.

    Attributes:
      caption: what is shown: data set and index, model, attack, eps.
      clean: `[H, W, C]` in [0, 1], C = 1 or 3 (others: the first channel is shown).
      adversarial: same shape, in [0, 1].
      target: what is there.
      before: what the model said of the clean image.
      after: what it said of the attacked image.
      names: of the structures, from class 1; of box classes from 0.
      target_text: under the drawing of the target, e.g. the findings that are there.
      before_text: under the clean image: the number that matters.
      after_text: under the attacked image.
      before_holds: whether the clean output is acceptable; None where it is not known.
      after_holds: same for the attacked one.
    """

    caption: str
    clean: Any
    adversarial: Any
    target: Overlay = Overlay()
    before: Overlay = Overlay()
    after: Overlay = Overlay()
    names: tuple[str, ...] = ()
    target_text: str = ''
    before_text: str = ''
    after_text: str = ''
    before_holds: bool | None = None
    after_holds: bool | None = None


def scene_figure(scene: Scene) -> Figure:
    """The truth, the model on the clean image, the perturbation, the model on the attacked image.

    Masks: the truth stands beside the model's; on the model's, the true outline is dashed white. Boxes: colors are
    classes, numbers are scores, true boxes are dashed. Points: a line leads from the true place to the model's.

    Args:
      scene: what to draw.

    Returns:
      The figure, 7 inches wide.

    Raises:
      ValueError: the images are not [H, W, C], differ in shape, or leave [0, 1].
    """
    clean, adversarial = checked_images(scene.clean, scene.adversarial, scene.caption)
    aspect = clean.shape[0] / clean.shape[1]
    # Points and findings need no drawing of the truth alone; large scenes of boxes get two rows.
    panels = 4 if scene.target.mask is not None or scene.target.boxes is not None else 3
    columns = 2 if scene.target.boxes is not None else panels
    width = 7.0 / columns
    letters = int(width / 0.083)  # of a line that is no wider than its drawing
    said = [_said(text, holds, letters) for text, holds in ((scene.before_text, scene.before_holds),
                                                            (scene.after_text, scene.after_holds))]
    lines = max(2, *(text.count('\n') + 1 for text in said))
    height = min((width * aspect + 0.35) * panels / columns + 0.13 * lines + 0.3, 9.5)
    with matplotlib.rc_context({**STYLE, 'axes.grid': False, 'axes.titlesize': 9, 'axes.labelsize': 8}):
        figure = Figure(figsize=(7.0, height), layout='constrained')
        axes = list(figure.subplots(panels // columns, columns, squeeze=False).flat)
        if panels == 4:
            draw_image(axes[0], clean)
            axes[0].set(title='truth', xlabel=scene.target_text)
            draw_overlay(axes[0], scene.target, scene.target, clean.shape[:2])
        first, change, second = axes[panels - 3:]
        draw_image(first, clean)
        draw_perturbation(change, adversarial - clean)
        change.set_xlabel(_wrapped(change.get_xlabel(), letters))
        draw_image(second, adversarial)
        for one, title, found, text, holds in (
                (first, 'clean', scene.before, said[0], scene.before_holds),
                (second, 'attacked', scene.after, said[1], scene.after_holds)):
            draw_overlay(one, found, scene.target, clean.shape[:2])
            one.set_title(f'model, {title} image')
            one.set_xlabel(text, color={True: RIGHT, False: WRONG, None: '#222222'}[holds], fontweight='bold')
        handles = list(_legend(scene))
        if handles:
            figure.legend(handles=handles, loc='outside upper left', frameon=False, ncols=min(len(handles), 5),
                          handlelength=1.4, columnspacing=1.4, borderaxespad=0.1)
    return figure


def color_of(number: int) -> str:
    """The color of a structure or a class, from 0."""
    return STRUCTURE_COLORS[number % len(STRUCTURE_COLORS)]


def _said(text: str, holds: bool | None, letters: int) -> str:
    verdict = {True: 'within criterion', False: 'outside criterion', None: ''}[holds]
    return '\n'.join(filter(None, [_wrapped(text, letters), verdict]))


def _wrapped(text: str, letters: int) -> str:
    """Every line of a text in lines of at most so many letters."""
    return '\n'.join(part for line in text.split('\n') for part in textwrap.wrap(line, letters))


def draw_overlay(axes: Axes, found: Overlay, target: Overlay, shape: tuple[int, ...]) -> None:
    """Draws `found` against the target: its outline dashed, lines from its points, its boxes faint.

    Args:
      axes: with the image already drawn.
      found: what to draw; of the target itself, nothing is compared.
      target: with points wherever `found` has them.
      shape: (height, width) of the image.
    """
    is_truth = found is target
    if found.mask is not None:
        _draw_mask(axes, np.asarray(found.mask))
        if not is_truth and target.mask is not None:
            _outline(axes, np.asarray(target.mask), dashed=True)
    size = (shape[1], shape[0])
    if found.points is not None:
        true = np.asarray(target.points, float)
        _draw_points(axes, true if is_truth else np.asarray(found.points, float), true, size)
    if found.boxes is not None:
        if not is_truth:
            _draw_boxes(axes, target, size, faint=True)
        _draw_boxes(axes, found, size)


def _draw_mask(axes: Axes, mask: np.ndarray) -> None:
    """Every class as a translucent area with its outline."""
    shown = np.zeros((*mask.shape, 4))
    for number in np.unique(mask[mask > 0]):
        shown[mask == number] = to_rgba(color_of(int(number) - 1), 0.38)
    axes.imshow(shown, interpolation='nearest')
    _outline(axes, mask, dashed=False)


def _outline(axes: Axes, mask: np.ndarray, *, dashed: bool) -> None:
    """The outlines of all classes in their colors, or dashed and white."""
    height, width = mask.shape
    framed = np.pad(mask, 1)  # so that an outline closes at the image's border
    for number in np.unique(mask[mask > 0]):
        axes.contour(np.arange(-1, width + 1), np.arange(-1, height + 1), framed == number, levels=[0.5],
                     colors=['white' if dashed else color_of(int(number) - 1)],
                     linewidths=[0.8 if dashed else 1.3], linestyles=[(0, (2, 2)) if dashed else '-'])
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_points(axes: Axes, points: np.ndarray, true: np.ndarray, size: tuple[int, int]) -> None:
    """A line from each true place to the model's, and a cross where the model says; outside of the image too."""
    found, there = points * size - 0.5, true * size - 0.5
    for a, b in zip(there, found, strict=True):
        axes.plot([a[0], b[0]], [a[1], b[1]], color=_FOUND, linewidth=0.7, alpha=0.9)
    axes.plot(there[:, 0], there[:, 1], '.', color=_TRUE, markersize=3)
    if points is not true:
        axes.plot(found[:, 0], found[:, 1], 'x', color=_FOUND, markersize=3.5, markeredgewidth=0.9)
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))


def _draw_boxes(axes: Axes, overlay: Overlay, size: tuple[int, int], *, faint: bool = False) -> None:
    boxes = np.asarray(overlay.boxes, float).reshape(-1, 4) * (*size, *size) - 0.5
    scores = overlay.scores
    for row, (left, top, right, bottom) in enumerate(boxes):
        color = color_of(int(overlay.classes[row]))
        edge = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color,
                         linewidth=0.9 if faint else 1.3, linestyle=(0, (3, 2)) if scores is None else '-')
        if not faint:
            edge.set_path_effects(_HALO)
        axes.add_patch(edge)
        if scores is not None:
            text = axes.text(left + 1, top + 1, f'{100 * scores[row]:.0f}', color=color, fontsize=5.5,
                             va='top', ha='left', clip_on=True)
            text.set_path_effects(_HALO)
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))


def points_legend(there: str, found: str) -> Iterator[Line2D]:
    """What dots and crosses mean, as `draw_overlay` draws points."""
    yield Line2D([], [], linestyle='', marker='.', color=_TRUE, label=there)
    yield Line2D([], [], marker='x', markersize=4, linewidth=0.8, color=_FOUND, label=found)


def _legend(scene: Scene) -> Iterator[Any]:
    if scene.target.points is not None:
        yield from points_legend('true place', "model's place")
    if scene.target.mask is not None:
        for number, name in enumerate(scene.names):
            yield Patch(facecolor=to_rgba(color_of(number), 0.5), edgecolor=color_of(number), label=name)
        yield Line2D([], [], color='#888888', linewidth=1, linestyle=(0, (2, 2)), label='true outline')
    if scene.target.boxes is not None:
        for number, name in enumerate(scene.names):
            yield Line2D([], [], color=color_of(number), linewidth=1.6, label=name)
        yield Line2D([], [], color='#888888', linewidth=1, linestyle=(0, (3, 2)), label='true box')
        yield Line2D([], [], linestyle='', marker='$87$', color='#555555', markersize=9, label='score, %')
