"""Detectors of attacked images, fitted to a trained run and kept beside its checkpoint.

Contents: `Fitted`, `Seen`, `Known`, `fit_rows`, `reads_labels`, `scores_of`, `fitted_detector`.

Example:

    fitted = fitted_detector('gaussian', {}, known, path=workdir / 'detectors' / 'gaussian.npz', origin=origin,
                             false_alarm_rate=.05)
    scores = fitted.detector.score(fitted.state, evidence)
"""
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from medrobust_jax.core.types import PyTree
from medrobust_jax.data.source import Source, read_batch
from medrobust_jax.detectors.detector import Detector, Evidence
from medrobust_jax.detectors.layer_scores import in_chunks
from medrobust_jax.detectors.registry import NEEDS_LABELS, SUPERVISED, create_detector
from medrobust_jax.detectors.threshold import Threshold, calibrate
from medrobust_jax.evaluate.detector_files import load_detector, save_detector
from medrobust_jax.evaluate.files import plain

_ROWS = 0xF17  # keeps the draw of the images that are fitted on apart from others


class Fitted(NamedTuple):
    """A detector with what it was fitted to; `spread` is the standard deviation of held-out clean scores."""

    name: str
    options: dict[str, Any]
    detector: Detector
    state: PyTree
    threshold: Threshold
    spread: float


class Seen(NamedTuple):
    """Some images of a source, and what the model computes of them."""

    batch: dict[str, Any]
    rows: np.ndarray
    evidence: Evidence


@dataclasses.dataclass(frozen=True)
class Known:
    """What detectors may be fitted on; what the model computes of it is computed once for all of them.

    Attributes:
      forward_evidence: `images -> evidence` of the trained model.
      evidence_of: `(images, rows) -> evidence` on the host, in blocks.
      attacked: `(images, labels, rows) -> evidence` of attacked images, for detectors that learn from attacks.
      images: the training images, all of them.
      labeled: those whose labels the model was trained with.
      held_out: validation images.
      seed: of the draws.
      max_fit: training images at most.
    """

    forward_evidence: Callable[..., Evidence]
    evidence_of: Callable[..., Evidence]
    attacked: Callable[..., Evidence]
    images: Source
    labeled: Source
    held_out: Source
    seed: int
    max_fit: int

    @functools.cached_property
    def seen_images(self) -> Seen:
        """Images drawn from the whole training split."""
        return self._seen(self.images, fit_rows(self.images, most=self.max_fit, seed=self.seed))

    @functools.cached_property
    def seen_labeled(self) -> Seen:
        """Images drawn from those with labels."""
        if self.labeled is self.images:
            return self.seen_images
        return self._seen(self.labeled, fit_rows(self.labeled, most=self.max_fit, seed=self.seed))

    @functools.cached_property
    def seen_held_out(self) -> Seen:
        """All validation images."""
        return self._seen(self.held_out, np.arange(len(self.held_out)))

    def _seen(self, source: Source, rows: np.ndarray) -> Seen:
        batch = read_batch(source, rows)
        return Seen(batch, rows, self.evidence_of(batch['image'], rows))


def fit_rows(source: Source, *, most: int, seed: int) -> np.ndarray:
    """At most `most` rows drawn from the whole source, ascending: the first ones may be of one class."""
    draws = np.random.default_rng([seed, _ROWS])
    return np.sort(draws.permutation(len(source))[:most])


def reads_labels(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a detector with these options is fitted with the true classes."""
    return options.get('grouping', 'labels' if name in NEEDS_LABELS else '') == 'labels'


def fitted_detector(name: str, options: dict[str, Any], known: Known, *, path: str | Path,
                    origin: Mapping[str, Any], false_alarm_rate: float) -> Fitted:
    """The detector `name`: read from its file, or fitted, calibrated and saved there.

    It is fitted on training images alone, on those with labels where it reads labels: a model that was trained
    with few labels is not judged beside a detector that knows all. Its threshold is calibrated on validation
    images; a detector that learns from attacks does so on one half of them (of patients, where these are known)
    and is calibrated on the other.

    Args:
      name: a key of `detectors.registry.DETECTORS`.
      options: of the detector.
      known: what it may be fitted on.
      path: of its file; one that was made from another `origin` or with other options is replaced.
      origin: plain values that decide the result: 'checkpoint_fingerprint' and what else the caller fixes.
      false_alarm_rate: of the threshold.

    Raises:
      ValueError: where it cannot be fitted: a class without images, too few of them.
    """
    detector = create_detector(name, forward_evidence=known.forward_evidence, **options)
    if Path(path).is_file():
        saved = load_detector(path)
        asked = (plain(options), false_alarm_rate, dict(origin))
        if saved.threshold and (saved.options, saved.threshold.allowed, saved.provenance.get('origin')) == asked:
            return Fitted(name, options, detector, saved.state, saved.threshold, saved.provenance['spread'])
    state = _fit(detector, known, with_labels=reads_labels(name, options))
    held_out, rows, seen = known.seen_held_out
    if name in SUPERVISED:
        assert detector.fit_adversarial is not None
        half = np.arange(len(rows)) if 'group' not in held_out else np.unique(held_out['group'],
                                                                             return_inverse=True)[1]
        learned, rows = rows[half % 2 == 0], rows[half % 2 == 1]
        attacked = known.attacked(held_out['image'][learned], held_out['label'][learned], learned)
        state = detector.fit_adversarial(state, _take(seen, learned), attacked)
    scores = scores_of(detector, state, _take(seen, rows))
    groups = held_out['group'][rows] if 'group' in held_out else None
    threshold = calibrate(scores, false_alarm_rate=false_alarm_rate, groups=groups)
    spread = max(float(scores.std()), 1e-6)
    save_detector(path, name, options, state, threshold, {**origin, 'origin': dict(origin), 'spread': spread})
    return Fitted(name, options, detector, state, threshold, spread)


def scores_of(detector: Detector, state: PyTree, evidence: Evidence) -> np.ndarray:
    """The scores `[N]` of many images, in blocks."""
    return np.asarray(in_chunks(lambda some: detector.score(state, some))(evidence))


def _fit(detector: Detector, known: Known, *, with_labels: bool) -> PyTree:
    seen = known.seen_labeled if with_labels else known.seen_images
    labels = seen.batch['label'] if with_labels else None
    return detector.fit(seen.evidence, labels, jax.random.key(known.seed))


def _take(tree: PyTree, rows: np.ndarray) -> Any:
    return jax.tree.map(lambda leaf: leaf[rows], tree)
