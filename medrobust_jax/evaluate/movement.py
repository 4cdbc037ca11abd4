"""How far an attack moves explanations, over a test set, against noise of the same size.

Contents: `make_explain` (the compiled program), `Versions`, `move`, `Moved`, `estimates_of`, `completeness`.

Example:

    explain = make_explain(forward, cut, layout, num_steps=64)
    moved = move(explain, (variables, baseline), keys, versions, chunk=layout.chunk, shown=rows)
    estimates_of(moved, changed, groups)['gradcam_rank_correlation'].value
"""
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from medrobust_jax.core.blocks import in_blocks, on_each_device
from medrobust_jax.core.types import Array, PyTree
from medrobust_jax.evaluate.explanations import grad_cam, heat, integrated_gradients
from medrobust_jax.evaluate.programs import Layout, ModelForward, in_chunks
from medrobust_jax.metrics.attribution import MEASURES
from medrobust_jax.metrics.intervals import Estimate, bootstrap, mean_of

VERSIONS = ('clean', 'attacked', 'noise')


class Versions(NamedTuple):
    """The same examples three times, with the class to explain of each.

    Attributes:
      images: 'clean', 'attacked' and 'noise' to `[N, H, W, C]` in [0, 1].
      classes: the same names to `[N]` int.
    """

    images: Mapping[str, np.ndarray]
    classes: Mapping[str, np.ndarray]


class Moved(NamedTuple):
    """What became of the explanations.

    Attributes:
      values: method and measure, such as 'gradcam_rank_correlation', to `[N]`, between the clean and the attacked
        image; NaN where it has no answer.
      noise: likewise, between the clean image and the one with noise.
      touched: `[N]` bool, whether the attack changed the image at all.
      gap: `[N]`, the size of the completeness gaps of integrated gradients, clean and attacked together.
      rise: `[N]`, the size of the rises in score that they should explain.
      maps: of the rows shown: 'gradcam/clean' `[n, H, W]` and the like, 'ig/clean' `[n, H, W, C]`.
    """

    values: dict[str, np.ndarray]
    noise: dict[str, np.ndarray]
    touched: np.ndarray
    gap: np.ndarray
    rise: np.ndarray
    maps: dict[str, np.ndarray]


def make_explain(forward: ModelForward, cut: Callable[..., Any] | None, layout: Layout, *, num_steps: int,
                 rule: str = 'midpoint') -> Callable[..., dict[str, np.ndarray]]:
    """The program `((variables, baseline), keys [N], images [N, H, W, C], classes [N]) -> explanations`.

    Args:
      forward: `(variables, images, keys) -> logits [B, L]`.
      cut: `(variables, images) -> (maps, head)`, see `grad_cam`; None leaves Grad-CAM out.
      layout: block width, chunk and devices.
      num_steps: of integrated gradients.
      rule: likewise.

    Returns:
      The program, which gives NumPy arrays: 'ig' `[N, H, W, C]`, 'rise' and 'gap' `[N]` and, with `cut`, 'gradcam'
      `[N, H, W]`.
    """
    def explain(shared: PyTree, keys: Array, images: Array, classes: Array) -> dict[str, Array]:
        variables, baseline = shared

        def block(k: Array, x: Array, c: Array) -> dict[str, Array]:
            ig = integrated_gradients(lambda z: forward(variables, z, k), x, c, baseline=baseline,
                                      num_steps=num_steps, rule=rule)
            found = {'ig': ig.values, 'rise': ig.rise, 'gap': ig.gap}
            if cut is not None:
                found['gradcam'] = grad_cam(partial(cut, variables), x, c)
            return found

        return in_blocks(block, width=layout.width)(keys, images, classes)

    return in_chunks(jax.jit(on_each_device(explain, layout.mesh, num_shared=1)), layout)


def move(explain: Callable[..., dict[str, np.ndarray]], shared: PyTree, keys: Array, versions: Versions, *,
         chunk: int, shown: np.ndarray) -> Moved:
    """Explains every image three times and measures how far the maps are apart.

    Args:
      explain: from `make_explain`.
      shared: `(variables, baseline)`.
      keys: `[N]` typed keys of the examples.
      versions: the images.
      chunk: how many are explained at a time; only the maps of `shown` are kept.
      shown: positions whose maps are wanted.
    """
    parts, count, ordered = [], len(versions.images['clean']), np.sort(shown)
    for start in range(0, count, chunk):
        here = slice(start, start + chunk)
        found = {name: explain(shared, keys[here], versions.images[name][here], versions.classes[name][here])
                 for name in VERSIONS}
        parts.append(_measured(found, ordered[(ordered >= start) & (ordered < start + chunk)] - start))
    joined = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    maps = {name: own[np.searchsorted(ordered, shown)] for name, own in joined.pop('maps').items()}
    change = (versions.images['clean'] != versions.images['attacked']).reshape(count, -1).any(axis=1)
    return Moved(**joined, touched=change, maps=maps)


def _measured(found: Mapping[str, dict[str, np.ndarray]], rows: np.ndarray) -> dict[str, Any]:
    """The fields of `Moved` but `touched`, of one chunk."""
    methods = [name for name in ('gradcam', 'ig') if name in found['clean']]
    heats = {(method, version): np.asarray(heat(maps[method]) if method == 'ig' else maps[method])
             for version, maps in found.items() for method in methods}
    measured = {version: {f'{method}_{name}': measure(heats[method, 'clean'], heats[method, version])
                          for method in methods for name, measure in MEASURES.items()}
                for version in ('attacked', 'noise')}
    sizes = {name: abs(found['clean'][name]) + abs(found['attacked'][name]) for name in ('gap', 'rise')}
    maps = {f'{method}/{version}': found[version][method][rows] for method in methods
            for version in ('clean', 'attacked')}
    return {'values': measured['attacked'], 'noise': measured['noise'], **sizes, 'maps': maps}


def estimates_of(moved: Moved, changed: np.ndarray, groups: np.ndarray | None = None) -> dict[str, Estimate]:
    """Means over images with 95 % intervals, over patients where there are groups.

    Args:
      moved: from `move`.
      changed: `[N]` bool, whether the attack changed the model's answer.
      groups: `[N]` patient ids, or None.

    Returns:
      For every measure, such as 'gradcam_rank_correlation': between clean and attacked; with '/noise' between
      clean and noise; with '/beyond_noise' the former minus the latter, paired; with '/changed' and '/unchanged'
      the former where the answer changed and where it did not, if there are such images. Images that the attack
      left as they were are left out, and so are those with a map that points nowhere; `method` counts both.
    """
    touched, changed, estimates = moved.touched, np.asarray(changed, bool), {}
    count = int((~touched).sum())
    remark = f'{count} images left out that the attack did not change' if count else ''
    for name, values in moved.values.items():
        noise = moved.noise[name]
        for suffix, of in (('', values), ('/noise', noise), ('/beyond_noise', values - noise)):
            estimates[name + suffix] = _mean(of, touched, groups, remark=remark)
        for suffix, among in (('/changed', touched & changed), ('/unchanged', touched & ~changed)):
            if among.any():
                estimates[name + suffix] = _mean(values, among, groups)
    return estimates


def completeness(moved: Moved, groups: np.ndarray | None = None) -> Estimate:
    """The share of the rises in score that integrated gradients do not account for: sum |gap| / sum |rise|."""
    def ratio(gap: np.ndarray, rise: np.ndarray, weights: np.ndarray | None = None) -> Any:
        totals = [each.sum() if weights is None else weights @ each for each in (gap, rise)]
        return totals[0] / np.where(totals[1] > 0, totals[1], np.nan)

    return bootstrap(ratio, (moved.gap, moved.rise), groups=groups, weighted=True)


def _mean(values: np.ndarray, among: np.ndarray, groups: np.ndarray | None, *, remark: str = '') -> Estimate:
    known = among & ~np.isnan(values)
    lost = int((among & np.isnan(values)).sum())
    if not known.any():
        reason = 'on every image a map points nowhere' if among.any() else 'the attack changed no image'
        return Estimate(np.nan, np.nan, np.nan, 0, f'undefined ({reason})')
    found = mean_of(values[known], None if groups is None else np.asarray(groups)[known])
    remarks = [remark, f'{lost} images left out where a map points nowhere' if lost else '']
    return found._replace(method=found.method + (f' ({"; ".join(filter(None, remarks))})' if any(remarks) else ''))
