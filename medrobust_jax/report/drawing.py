"""What all figures share: style, colors, an image, and what an attack changed in it.

Contents: `COLORS`, `STRUCTURE_COLORS`, `RIGHT`, `WRONG`, `STYLE`, `draw_image`, `draw_perturbation`,
`checked_images`.

The colors are Okabe and Ito's, which the color-blind tell apart.

Example:

    with matplotlib.rc_context(STYLE):
        axes = Figure().subplots()
        draw_perturbation(axes, adversarial - clean)          # around mid-gray, the scale underneath
"""
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from medrobust_jax.report.summary import eps_text

# Okabe, Ito, Color Universal Design, 2008; without its yellow, too pale on white.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
# On images, which are dark or of middle brightness: the bright ones first, with the yellow.
STRUCTURE_COLORS = ('#E69F00', '#56B4E9', '#F0E442', '#009E73', '#CC79A7', '#D55E00', '#0072B2')
RIGHT, WRONG = '#00664B', '#B33F00'
STYLE: dict[Any, Any] = {
    'font.size': 9, 'axes.titlesize': 10, 'axes.labelsize': 9, 'legend.fontsize': 9,
    'xtick.labelsize': 8, 'ytick.labelsize': 8, 'axes.spines.top': False, 'axes.spines.right': False,
    'axes.grid': True, 'grid.color': '#E3E3E3', 'grid.linewidth': 0.6, 'axes.axisbelow': True,
    'axes.edgecolor': '#555555', 'xtick.color': '#333333', 'ytick.color': '#333333',
    'font.family': ['DejaVu Sans'], 'svg.fonttype': 'path', 'svg.hashsalt': 'medrobust_jax',
}


def draw_image(axes: Axes, image: np.ndarray) -> None:
    """An image `[H, W, C]` in [0, 1], not stretched: 3 channels as colors, of others the first in gray."""
    shown = image if image.shape[-1] == 3 else image[..., 0]
    axes.imshow(shown, cmap='gray', vmin=0, vmax=1, interpolation='nearest')
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_perturbation(axes: Axes, delta: np.ndarray) -> None:
    """The change around mid-gray, its largest value at full contrast; the scale is stated."""
    largest = float(np.abs(delta).max())
    shown = 0.5 + delta / (2 * largest) if largest else np.full_like(delta, 0.5)
    draw_image(axes, np.clip(shown, 0, 1))
    axes.set_title('perturbation')
    if not largest:
        axes.set_xlabel('no change')
        return
    axes.set_xlabel(f'±{eps_text(largest, "linf")},\nshown with {0.5 / largest:.3g} times the contrast')


def checked_images(clean: Any, adversarial: Any, caption: str) -> tuple[np.ndarray, np.ndarray]:
    """Both images as floats.

    Raises:
      ValueError: they are not [H, W, C], differ in shape, or leave [0, 1].
    """
    before, after = np.asarray(clean, float), np.asarray(adversarial, float)
    if before.ndim != 3 or before.shape != after.shape:
        raise ValueError(f'a picture needs two images [H, W, C], got {before.shape} and {after.shape}')
    for what, image in (('clean', before), ('adversarial', after)):
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(f'the {what} image of "{caption}" leaves [0, 1]')
    return before, after
