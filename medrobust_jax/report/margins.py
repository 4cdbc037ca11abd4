"""How the radii of adversarial training with adaptive margins grew, and where they ended.

Contents: `Margins`, `margin_figure`.

Example:

    state = load_defense_state('runs/acdc/amat/0')
    figure = margin_figure(Margins('AMAT', state['margins'], state['history'], norm='l2'))
"""
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from medrobust_jax.report.drawing import COLORS, STYLE

_NORMS = {'linf': 'L∞', 'l2': 'L2', 'l1': 'L1'}


class Margins(NamedTuple):
    """Margins of one training run.

    Attributes:
      caption: which run.
      last: `[N]`, one margin per training example, in the norm's units.
      history: `[T + 1, Q]`, quantiles 0, 1 / (Q - 1), ..., 1 of the margins at the start and at the end of every
        epoch, NaN for epochs that were not reached; None where none was kept.
      norm: of the margins, or ''.
    """

    caption: str
    last: Any
    history: Any = None
    norm: str = ''


def margin_figure(margins: Margins) -> Figure:
    """Quantiles over epochs as bands, and the histogram of the last margins.

    Args:
      margins: of one run; without a history the histogram stands alone.

    Returns:
      The figure, 7 inches wide at most.

    Raises:
      ValueError: no margins, or a history without quantiles.
    """
    last = np.asarray(margins.last, float)
    history = np.empty((0, 2)) if margins.history is None else np.asarray(margins.history, float)
    if last.ndim != 1 or not last.size or history.ndim != 2 or history.shape[1] < 2:
        raise ValueError(f'margins need one number per example and quantiles per epoch, got shapes {last.shape} '
                         f'and {history.shape}')
    history = history[~np.isnan(history).any(axis=1)]
    unit = f'margin ({_NORMS.get(margins.norm, margins.norm)})' if margins.norm else 'margin'
    with matplotlib.rc_context(STYLE):
        both = len(history) > 1
        figure = Figure(figsize=(7.0 if both else 4.0, 2.7), layout='constrained')
        axes = list(figure.subplots(1, 2, squeeze=False)[0]) if both else [figure.subplots()]
        if both:
            _draw_history(axes[0], history)
            axes[0].set(xlabel='epoch', ylabel=unit, title='over the training')
        # Margins lie on a grid of steps; more bins than that would show gaps that mean nothing.
        axes[-1].hist(last, bins=min(30, max(5, len(np.unique(last)))), color=COLORS[0], alpha=0.85)
        axes[-1].axvline(float(np.median(last)), color=COLORS[1], linewidth=1.4, label='median')
        axes[-1].set(xlabel=unit, ylabel='training examples',
                     title=f'after epoch {len(history) - 1}' if both else 'last')
        axes[-1].set_xlim(left=min(0, last.min()))
        axes[-1].legend(frameon=False)
    return figure


def _draw_history(axes: Any, history: np.ndarray) -> None:
    epochs, levels = np.arange(len(history)), np.linspace(0, 1, history.shape[1])

    def at(level: float) -> np.ndarray:
        return np.array([np.interp(level, levels, row) for row in history])

    for outer, alpha, label in ((0, 0.12, 'all'), (0.05, 0.2, '5 to 95 %'), (0.25, 0.35, '25 to 75 %')):
        axes.fill_between(epochs, at(outer), at(1 - outer), color=COLORS[0], alpha=alpha, linewidth=0, label=label)
    axes.plot(epochs, at(0.5), color=COLORS[1], linewidth=1.6, label='median')
    axes.set_xlim(0, epochs[-1])
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, fontsize=8, loc='upper left')
