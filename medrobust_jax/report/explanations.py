"""Where a model looked before and after an attack: pictures of a few images.

Contents: `Explanation` (one image), `load_explanations`, `explanation_figure`.

Example:

    for explanation in load_explanations(workdir / 'explanations.npz', title='natural'):
        page_pictures.append(to_png(explanation_figure(explanation)))
"""
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from medrobust_jax.data.files import read_npz
from medrobust_jax.report.drawing import RIGHT, STYLE, WRONG, checked_images, draw_image
from medrobust_jax.report.naming import EXPLANATIONS
from medrobust_jax.report.summary import eps_text

# Both told apart by the color-blind; of the signed map purple is against, orange for the class.
_HEAT, _SIGNED = 'inferno', LinearSegmentedColormap.from_list('signed', ['#5D3A9B', '#FFFFFF', '#E66100'])
_METHODS = {'gradcam': 'Grad-CAM', 'ig': 'int. gradients'}  # as short as a title must be
_LETTERS = 20  # of a line under a panel



class Explanation(NamedTuple):
    """One image and its maps, before and after an attack; pairs are (clean, attacked).

    Attributes:
      caption: what is shown: model, attack, eps, the image's index, what is there.
      images: two `[H, W, C]` in [0, 1].
      answers: what the model says of them; of several findings, whether the strongest is there.
      confidences: the model's probability of its answers.
      right: whether the answers are right.
      explained: names of the classes whose maps are shown.
      gradcam: two `[H, W]` in [0, 1], or None.
      ig: two `[H, W, C]`, signed.
      moved: by method ('gradcam', 'ig') what to say under the attacked map.
    """

    caption: str
    images: tuple[Any, Any]
    answers: tuple[str, str]
    confidences: tuple[float, float]
    right: tuple[bool, bool]
    explained: tuple[str, str]
    gradcam: tuple[Any, Any] | None
    ig: tuple[Any, Any]
    moved: Mapping[str, str]


def load_explanations(path: str | Path, *, title: str, class_names: Sequence[str] = ()) -> list[Explanation]:
    """The examples that `experiments.explain` kept.

    Args:
      path: `explanations.npz`.
      title: of the model, for the captions.
      class_names: by label; where empty those that the file holds, else numbers.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it is damaged; names the path.
    """
    arrays = read_npz(path)
    names = [str(name) for name in (class_names if len(class_names) else arrays['class_names'])]
    eps = eps_text(float(arrays['eps']), str(arrays['norm']))
    about = f'{title}, {arrays["attack"]}, eps {eps}'
    return [_example(arrays, row, names, about) for row in range(len(arrays['index']))]


def _example(arrays: Mapping[str, np.ndarray], row: int, names: Sequence[str], about: str) -> Explanation:
    def call(label: Any) -> str:
        return names[int(label)] if len(names) > int(label) else f'class {int(label)}'

    def pair(name: str) -> tuple[Any, Any]:
        return arrays[f'clean/{name}'][row], arrays[f'attacked/{name}'][row]

    target, leading = arrays['target'][row], pair('prediction')
    several = target.ndim == 1
    there = ', '.join(map(call, np.flatnonzero(target) if several else [target])) or 'none'
    became = 'stays' if leading[0] == leading[1] else f'goes from {call(leading[0])} to'
    caption = (f'{about}, image {arrays["index"][row]}; {"findings" if several else "truth"}: {there}. '
               f'The {"strongest finding" if several else "answer"} {became} {call(leading[1])}')
    maps = {method: (arrays[f'{method}/clean'][row], arrays[f'{method}/attacked'][row])
            for method in EXPLANATIONS if f'{method}/clean' in arrays}
    answers, sure = [call(label) for label in leading], [float(chance) for chance in pair('confidence')]
    right = [bool(target[label] if several else target == label) for label in leading]
    for number, chance in enumerate(sure if several else []):
        if chance <= .5:  # the strongest finding is not found: the answer is that it is absent
            answers[number], sure[number], right[number] = f'no {answers[number]}', 1 - chance, not right[number]
    explained = [call(label) for label in pair('class')]
    return Explanation(
        caption + _kept_share(arrays, maps, row), (arrays['clean'][row], arrays['attacked'][row]),
        (answers[0], answers[1]), (sure[0], sure[1]), (right[0], right[1]), (explained[0], explained[1]),
        maps.get('gradcam'), maps['ig'], {method: _said(arrays, method, row) for method in maps})


def _kept_share(arrays: Mapping[str, np.ndarray], methods: Iterable[str], row: int) -> str:
    """In words, how much of the most important pixels is left; nothing of maps that point nowhere."""
    shares = {EXPLANATIONS[method]: float(arrays[f'{method}_top_overlap/attacked'][row]) for method in methods}
    parts = [f'{100 * share:.0f} % ({name})' for name, share in shares.items() if not np.isnan(share)]
    return f'; the most important tenths of the pixels overlap by {" and ".join(parts)}.' if parts else '.'


def _said(arrays: Mapping[str, np.ndarray], method: str, row: int) -> str:
    rank, overlap = (float(arrays[f'{method}_{measure}/attacked'][row])
                     for measure in ('rank_correlation', 'top_overlap'))
    return 'points nowhere' if np.isnan(overlap) else f'rank corr. {rank:.2f}\noverlap {100 * overlap:.0f} %'


def explanation_figure(explanation: Explanation) -> Figure:
    """Clean image, its Grad-CAM, attacked image, its Grad-CAM, integrated gradients of both; with the answers.

    Grad-CAM lies over the image in gray: the brighter, the more the region speaks for the class. Integrated
    gradients are orange where a pixel speaks for the class, purple where it speaks against it. Each map is scaled
    to its own largest value.

    Raises:
      ValueError: the images are not [H, W, C], differ in shape, or leave [0, 1].
    """
    images = checked_images(*explanation.images, explanation.caption)
    height, width = images[0].shape[:2]
    count = 6 if explanation.gradcam is not None else 4
    with matplotlib.rc_context({**STYLE, 'axes.grid': False, 'axes.titlesize': 9, 'axes.labelsize': 8}):
        figure = Figure(figsize=(8.4, min(8.4 / count * height / width + .9, 9.5)), layout='constrained')
        axes = iter(figure.subplots(1, count))
        for number, name in enumerate(('clean', 'attacked')):
            place = next(axes)
            draw_image(place, images[number])
            place.set_title(f'{name}:\nimage')
            _draw_answer(place, explanation, number)
            if explanation.gradcam is not None:
                place = next(axes)
                _draw_heat(place, images[number], np.asarray(explanation.gradcam[number], float))
                _label(place, explanation, 'gradcam', number)
        for number in range(2):
            place = next(axes)
            _draw_signed(place, images[number], np.asarray(explanation.ig[number], float))
            _label(place, explanation, 'ig', number)
    return figure


def _draw_answer(axes: Axes, explanation: Explanation, number: int) -> None:
    right = explanation.right[number]
    axes.set_xlabel(f'{textwrap.fill(explanation.answers[number], _LETTERS)}\n{"right" if right else "wrong"}, '
                    f'{100 * explanation.confidences[number]:.0f} % sure', color=RIGHT if right else WRONG,
                    fontweight='bold')


def _label(axes: Axes, explanation: Explanation, method: str, number: int) -> None:
    axes.set_title(f'{"attacked" if number else "clean"}:\n{_METHODS[method]}')
    said = f'\n{explanation.moved[method]}' if number else ''
    axes.set_xlabel(textwrap.fill(f'for {explanation.explained[number]}', _LETTERS) + said)


def _draw_heat(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    """A map in [0, 1] in colors over the image in gray, the more opaque the larger."""
    draw_image(axes, _gray(image))
    axes.imshow(heat, cmap=_HEAT, vmin=0, vmax=1, alpha=np.clip(.15 + .75 * heat, 0, 1) * (heat.max() > 0))


def _draw_signed(axes: Axes, image: np.ndarray, values: np.ndarray) -> None:
    """Signed values, summed over channels, in colors over a pale image; the largest hundredth is saturated."""
    total = values.sum(axis=-1)
    scale = float(np.quantile(abs(total), .99)) or float(abs(total).max()) or 1.
    draw_image(axes, .6 + .4 * _gray(image))
    axes.imshow(total, cmap=_SIGNED, vmin=-scale, vmax=scale, alpha=np.clip(abs(total) / scale, 0, 1) ** .7,
                interpolation='nearest')


def _gray(image: np.ndarray) -> np.ndarray:
    return image.mean(axis=-1, keepdims=True) if image.shape[-1] == 3 else image[..., :1]
