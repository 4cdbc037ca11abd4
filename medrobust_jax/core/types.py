"""The records that every part of the project hangs on.

Contents: `Batch`, `Victim`, `AttackState`, `Attack`, `AttackResult`, `Task`,
`Defense`. They hold arrays and pure functions, never configuration or names.

Conventions that hold everywhere:

* images are floating point in [0, 1], shaped `[batch, *spatial, channels]`;
  `eps` is in these units;
* a loss is positive when it is worse for the model; attacks **maximize** it and
  training minimizes it;
* losses and verdicts are per example, `[batch]`; the caller reduces;
* randomness comes from one typed key per example, so that an example's draws do
  not depend on the batch it travels in.

Example, one attack on one batch:

    victim = Victim(forward, loss=task.loss, acceptable=task.acceptable)
    keys = rng.example_keys(seed, batch['index'])
    result = run(pgd(num_steps=20), victim, keys, batch['image'], batch['label'], eps=8 / 255)
    robust_accuracy = result.acceptable.mean()
"""
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Array = jax.Array
PyTree = Any
Outputs = PyTree  # what a model returns: logits [B, C], or a tree of arrays with leading axis B
Targets = PyTree  # what a task calls the truth: labels [B], or a tree of arrays with leading axis B

# A mapping with 'image' [B, *spatial, C] in [0, 1]; the task's targets ('label' [B] int32 for
# classification); 'mask' [B] bool, False on padding; 'index' [B] int32, the row in the data set,
# equal to the number of training examples on padding (never -1: JAX wraps negative indices). In
# semi-supervised training also 'unlabeled' [B, *spatial, C], images without targets, none of them
# padding; row i of it has nothing to do with row i of 'image'.
Batch = Mapping[str, Array]

# Per-example values that are data and never closed over, each [B]: 'eps' always; an attack may
# name more. Being data, a new value costs no compilation.
Knobs = Mapping[str, Array]


class Victim(NamedTuple):
    """All that an attack may see of a model.

    Attributes:
      forward: `(images [B, *spatial, C], keys [B]) -> outputs`. Deterministic models ignore the
        keys; randomized ones derive all randomness from them.
      loss: `(outputs, targets) -> [B]`, positive = worse for the model; attacks maximize it.
      acceptable: `(outputs, targets) -> [B] bool`, whether the output still meets the task's
        criterion (for classification: the predicted class is right).
    """

    forward: Callable[[Array, Array], Outputs]
    loss: Callable[[Outputs, Targets], Array]
    acceptable: Callable[[Outputs, Targets], Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttackState:
    """The state of an attack in flight; every field has the leading axis B.

    Attributes:
      images: current iterates `[B, *spatial, C]`, inside the ball and the box.
      best_images: the best iterate looked at so far (a fooled image beats an unfooled one, then
        the higher loss wins).
      best_loss: `[B]`, the loss at `best_images`; -inf before the first look.
      acceptable: `[B]` bool, whether every look so far met the criterion.
      first_fooled: `[B]` int32, the first look at which the criterion failed; -1 if none.
      looks_acceptable: `[B]` int32, the number of looks that met the criterion (GAIRAT's kappa).
      done: `[B]` bool; a done example's images and records no longer change.
      step: `[B]` int32, the number of looks taken.
      key: `[B]` typed keys, one per example.
      knobs: per-example settings, see `Knobs`.
      inner: the attack's own arrays (momentum, previous outputs, ...), a tree with leading axis B.
    """

    images: Array
    best_images: Array
    best_loss: Array
    acceptable: Array
    first_fooled: Array
    looks_acceptable: Array
    done: Array
    step: Array
    key: Array
    knobs: Knobs
    inner: PyTree

    def replace(self, **changes: Any) -> 'AttackState':
        """A copy with some fields replaced."""
        return dataclasses.replace(self, **changes)


class Attack(NamedTuple):
    """An iterative attack, as pure functions in the shape of an optax optimizer.

    Attributes:
      init: `(victim, keys [B], images, targets, clean_outputs, knobs) -> AttackState`; makes no
        model pass. `clean_outputs` is None unless the caller has them.
      step: `(victim, images, targets, state) -> AttackState`; looks at the current iterate
        (evaluates and records it), then moves.
      num_steps: how many moves the attack makes; a runner adds one last look.
      adapt: `Victim -> Victim`, applied once by the runner before `init`: how wrappers replace the
        loss, aim at a target or average over transforms.
    """

    init: Callable[[Victim, Array, Array, Targets, Outputs | None, Knobs], AttackState]
    step: Callable[[Victim, Array, Targets, AttackState], AttackState]
    num_steps: int
    adapt: Callable[[Victim], Victim] = lambda victim: victim


class AttackResult(NamedTuple):
    """What an attack found, on the device or, in an evaluation, on the host.

    Attributes:
      images: `[B, *spatial, C]`, the strongest image found per example.
      loss: `[B]`, the victim's loss there.
      acceptable: `[B]` bool, whether the model withstood every image looked at.
      first_fooled: `[B]` int32, the first look that fooled the model; -1 if none did.
    """

    images: Array | np.ndarray
    loss: Array | np.ndarray
    acceptable: Array | np.ndarray
    first_fooled: Array | np.ndarray


class Task(NamedTuple):
    """What a task asks of a model's outputs.

    Attributes:
      name: the task's name, as configs spell it.
      num_outputs: the size of the model's last axis.
      target_names: the batch keys that make up the targets, e.g. `('label',)`.
      targets: `(batch) -> Targets`, picks the targets out of a batch.
      loss: `(outputs, targets) -> [B]`, positive = worse.
      acceptable: `(outputs, targets) -> [B] bool`, the criterion.
      divergence: `(reference, outputs) -> [B]`, how far `outputs` are from `reference`; zero when
        equal. TRADES and SMIA's stabilization term use it. For classification
        `KL(softmax(reference) || softmax(outputs))`.
      predict: `outputs -> [B]`, the decision that a user acts on (a class, a grade), or a small tree with
        leading axis B (a label map, points, a fixed number of boxes).
      metrics: `(outputs, targets, groups) -> {name: Estimate}` on gathered NumPy arrays, with 95 %
        intervals; `groups` [N] are patient ids or None. May use scores.
      verdict_metrics: `(predictions, targets, groups) -> {name: Estimate}`, from decisions alone:
        what can be said of attacked images, whose scores the attack chose.
      check_targets: `(targets) -> None`, raises ValueError naming the offending row.
      quality: `(outputs, targets) -> [B]` or `[B, k]`, the numbers that the criterion compares with its k
        thresholds, higher is better; None where the criterion has none (the class is right).
      margin: `(outputs, targets) -> [B]`, positive exactly where the criterion fails, with a gradient to climb:
        what an ensemble attacks besides the loss; None where the task has none.
      threshold_of: `(qualities [N] or [N, k] of a clean-trained model) -> k thresholds`, see `calibrate`.
    """

    name: str
    num_outputs: int
    target_names: tuple[str, ...]
    targets: Callable[[Batch], Targets]
    loss: Callable[[Outputs, Targets], Array]
    acceptable: Callable[[Outputs, Targets], Array]
    divergence: Callable[[Outputs, Outputs], Array]
    predict: Callable[[Outputs], PyTree]
    metrics: Callable[..., dict[str, Any]]
    verdict_metrics: Callable[..., dict[str, Any]]
    check_targets: Callable[[Targets], None]
    quality: Callable[[Outputs, Targets], Array] | None = None
    threshold_of: Callable[[np.ndarray], tuple[float, ...]] | None = None
    margin: Callable[[Outputs, Targets], Array] | None = None


# The model as training sees it:
#   (params, model_state, images [B, *spatial, C], batch_norm=...) -> (outputs, model_state)
# with batch_norm 'train' (batch statistics, updated), 'batch_stats' (batch statistics, not
# updated) or 'eval' (running statistics). There is no default: the mode decides results.
Forward = Callable[..., tuple[Outputs, PyTree]]


class Defense(NamedTuple):
    """A training objective in two stages: craft what is trained on, then score it.

    The stages are apart because their gradients are: `craft` differentiates with respect to
    images only and its results are constants to `loss`, so nothing accumulates over attack steps.

    Attributes:
      init: `(num_train, example_outputs, key) -> state`, a tree of arrays kept in the train state
        (per-example margins, moving averages); `()` for most.
      craft: `(forward, params, model_state, state, batch, step, keys [B]) -> crafted`, a tree of
        arrays with leading axis B (adversarial images, weights, ...).
      loss: `(forward, params, model_state, state, batch, crafted, step, keys [B]) ->
        (losses [B], (model_state, metrics))`; `metrics` maps names to [B] arrays.
      update: `(state, batch, crafted, metrics) -> state`, after every step, with what `loss` reported: what its
        pass has seen need not be looked at twice.
      end_epoch: `(state, epoch) -> state`; the identity except for adaptive margins.
      start: `(state, params, model_state, image_shape) -> state`, once, after `init`: for defenses that keep
        weights (a teacher) or images of their own.
      follow: `(state, params, model_state, step) -> state`, after `update` in every step, with the weights that
        the step ends with: for a teacher that follows them.
    """

    init: Callable[..., PyTree]
    craft: Callable[..., PyTree]
    loss: Callable[..., tuple[Array, tuple[PyTree, dict[str, Array]]]]
    update: Callable[..., PyTree]
    end_epoch: Callable[..., PyTree]
    start: Callable[..., PyTree] = lambda state, params, model_state, image_shape: state
    follow: Callable[..., PyTree] = lambda state, params, model_state, step: state
