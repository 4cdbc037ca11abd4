"""A model that is not ours, judged: any forward function and arrays of images, without config or checkpoint.

The forward function may be JAX of any origin, a PyTorch module through `models.torch_bridge.from_torch`, or an
exported artifact through `models.exported.load_exported`.

Contents: `judge_model`, `threats_called`.

Example:

    rows = judge_model(forward, images, labels, workdir='runs/mine', eps_grid=(1/255, 2/255, 4/255))
    # then: python -m experiments.report --workdir=runs/mine --out=report.html
"""
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medrobust_jax.attacks.registry import (
    ATTACKS,
    MINIMUM_NORM,
    TARGETED,
    create_attack,
    norm_of_attack,
)
from medrobust_jax.core import balls, numerics
from medrobust_jax.core.checks import check_eps, check_images, check_labels, did_you_mean
from medrobust_jax.core.types import Array, Outputs, PyTree
from medrobust_jax.evaluate.ensembles import autoattack, medical_ensemble
from medrobust_jax.evaluate.judge import judge
from medrobust_jax.evaluate.programs import Layout, ModelForward, make_layout
from medrobust_jax.evaluate.records import Row
from medrobust_jax.evaluate.resume import digest_of
from medrobust_jax.evaluate.suite import Ensemble, Examples, Threat
from medrobust_jax.evaluate.writing import AnyThreat, Subject
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks.classification import classification

DEFAULT_ATTACKS = ('fgsm', 'pgd', 'ensemble')
DEFAULT_EPS = (1 / 255, 2 / 255, 4 / 255, 8 / 255)
ENSEMBLES = ('ensemble', 'autoattack', 'medical_ensemble')
NUM_TARGETS = 9  # of an attack on one target at a time, as in AutoAttack
_IDENTIFYING = 16  # images whose outputs identify a model that is given without its weights


def judge_model(forward: Callable[..., Outputs], images: Any, labels: Any, *, workdir: str | Path,
                variables: PyTree = None, num_classes: int | None = None,
                attacks: Sequence[str | AnyThreat] = DEFAULT_ATTACKS, eps_grid: Sequence[float] | None = None,
                norm: str = 'linf', groups: Any = None, name: str = 'own model', dataset: str = 'own images',
                split: str = 'test', fingerprint: str = '', seed: int = 0, layout: Layout | None = None,
                **options: Any) -> list[Row]:
    """Attacks a classifier and writes what `judge` writes: rows, verdicts, pictures, ready for a report.

    Call it before anything else has used JAX, where possible: it sets the compiler flag that some jaxlib versions
    need, and checks that sums come out right.

    Args:
      forward: `images [B, *spatial, C] in [0, 1] -> logits [B, num_classes]`; normalization belongs inside. With a
        parameter called `keys` it is given typed keys `[B]`, one per image, for randomized models. A
        row must not depend on its neighbors (batch normalization uses its running statistics).
      images: `[N, *spatial, C]`, floating point in [0, 1]; channels last.
      labels: `[N]` integers.
      workdir: where the results go; made where missing.
      variables: the weights. None where `forward` closes over them; else it is called as
        `forward(variables, images)`, which spares a large model from being compiled into every program.
      num_classes: None reads it off the outputs.
      attacks: names of attacks (`attacks.registry`) and of ensembles, or `Threat`s and `Ensemble`s for settings of
        your own. 'pgd' is 100 steps from 2 starts, 'ensemble' AutoAttack where it is defined (four classes and
        more) and else the medical ensemble. See `threats_called`.
      eps_grid: radii > 0 in units of [0, 1]; None for 1, 2, 4 and 8 over 255, in 'linf' alone.
      norm: of the attacks given by name: 'linf', 'l2' or 'l1'.
      groups: `[N]` patient ids, for intervals over patients.
      name: what tables call the model.
      dataset: what tables call the images.
      split: which part of them these are.
      fingerprint: of the weights, where there is one. Otherwise it is a hash of `variables` or, without
        them, of the outputs on the first 16 images to the last bit; the same model on another device
        then counts as another.
      seed: of the attacks' draws.
      layout: block width, chunk and devices; None for blocks of 8 on all devices.
      **options: of `judge`: stop_when_fooled, order, num_pictures, save_images, progress.

    Returns:
      The rows, which are also in `workdir/results.jsonl`.

    Raises:
      ValueError, TypeError: where images, labels, outputs, attacks or radii break their contract, with what does.

    In the rows 'defense' holds `name`, 'model' is 'own', and the config's fingerprint is empty.
    """
    numerics.prepare()
    examples = _examples(images, labels, groups)
    model = _as_model(forward, has_variables=variables is not None)
    num_classes = _classes_of(model, variables, examples, num_classes)
    check_labels(examples.targets, num_classes)
    if eps_grid is None:
        if norm != 'linf':
            raise ValueError(f"eps_grid must be given for norm '{norm}': the default, 1 to 8 over 255, is a range "
                             f'of pixel values')
        eps_grid = DEFAULT_EPS
    check_eps(eps_grid, field='eps_grid')
    threats = threats_called(attacks, num_classes=num_classes, norm=norm)
    layout = layout or make_layout(data_mesh(), chunk=min(64, len(examples.index)))
    fingerprints = {'config_fingerprint': '', 'dataset_fingerprint': digest_of(examples.images, examples.targets),
                    'checkpoint_fingerprint': fingerprint or _identify(model, variables, examples)}
    identity = {'dataset': dataset, 'split': split, 'model': 'own', 'defense': name, 'seed': 0}
    subject = Subject(model, variables, classification(num_classes), identity, fingerprints)
    Path(workdir).mkdir(parents=True, exist_ok=True)
    return judge(subject, examples, threats, tuple(eps_grid), layout=layout, seed=seed, workdir=workdir, **options)


def threats_called(attacks: Sequence[str | AnyThreat], *, num_classes: int, norm: str = 'linf') -> list[AnyThreat]:
    """Attacks by name, with this project's settings for a first look at a model.

    Args:
      attacks: 'ensemble' (AutoAttack from four classes on, else the medical ensemble), 'autoattack',
        'medical_ensemble', or a name in `attacks.registry.ATTACKS` with that attack's defaults; 'pgd' has 100
        steps and 2 restarts, targeted attacks up to 9 targets. A `Threat` or an `Ensemble` is taken as it is.
      num_classes: of the model.
      norm: of the attacks given by name.

    Returns:
      One threat or ensemble each.

    Raises:
      ValueError: for no or unknown attacks, AutoAttack with fewer than four classes, or an attack that is not
        measured in this norm.
    """
    if norm not in balls.NORMS:
        did_you_mean(norm, balls.NORMS, 'norm')
    if isinstance(attacks, str) or not attacks:
        raise ValueError(f"attacks = {attacks!r} must be a list with at least one name, such as ['pgd']")
    return [_threat(attack, num_classes, norm) if isinstance(attack, str) else attack for attack in attacks]


def _threat(name: str, num_classes: int, norm: str) -> AnyThreat:
    if name in ENSEMBLES:
        return _ensemble(name, num_classes, norm)
    if name not in ATTACKS:
        did_you_mean(name, [*ATTACKS, *ENSEMBLES], 'attack')
    known = inspect.signature(ATTACKS[name]).parameters
    options: dict[str, Any] = {'norm': norm} if 'norm' in known else {}
    if name == 'pgd':
        options['num_steps'] = 100
    if norm_of_attack(name, options) != norm:
        raise ValueError(f"attack '{name}' is measured in '{norm_of_attack(name, options)}', not in '{norm}': "
                         f'judge it in that norm or, where eps is no radius, give a Threat with a grid of its own')
    return Threat(name, create_attack(name, **options), norm, num_restarts=2 if name == 'pgd' else 1,
                  options={'attack': name, **options}, minimum_norm=name in MINIMUM_NORM,
                  num_targets=min(NUM_TARGETS, num_classes - 1) if name in TARGETED else 1)


def _ensemble(name: str, num_classes: int, norm: str) -> Ensemble:
    if name == 'ensemble':
        name = 'autoattack' if num_classes >= 4 else 'medical_ensemble'
    made = (autoattack if name == 'autoattack' else medical_ensemble)(num_classes=num_classes, norm=norm)
    return made._replace(name=name, options={'attack': name, **made.options})


def _examples(images: Any, labels: Any, groups: Any) -> Examples:
    """Arrays as an evaluation wants them, each with its contract checked."""
    images = np.asarray(images)
    check_images(images)
    labels = np.asarray(labels)
    groups = None if groups is None else np.asarray(groups)
    lengths = {'images': len(images), 'labels': len(labels)} | ({} if groups is None else {'groups': len(groups)})
    if len(set(lengths.values())) > 1:
        raise ValueError(f'there must be as many labels (and groups) as images, not {lengths}')
    if np.issubdtype(labels.dtype, np.integer):
        labels = labels.astype(np.int32)
    return Examples(images.astype(np.float32), labels, np.arange(len(images)), groups)


def _as_model(forward: Callable[..., Outputs], *, has_variables: bool) -> ModelForward:
    """`forward` in the form an evaluation calls."""
    try:
        takes_keys = 'keys' in inspect.signature(forward).parameters
    except (TypeError, ValueError):  # some callables have no signature that can be read
        takes_keys = False

    def model(variables: PyTree, images: Array, keys: Array) -> Outputs:
        weights = (variables,) if has_variables else ()
        return forward(*weights, images, **({'keys': keys} if takes_keys else {}))

    return model


def _classes_of(model: ModelForward, variables: PyTree, examples: Examples, num_classes: int | None) -> int:
    """The number of classes, from the shape of the outputs, which is checked."""
    few = jax.ShapeDtypeStruct((2, *examples.images.shape[1:]), np.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    outputs = jax.eval_shape(model, variables, few, keys)
    shape = getattr(outputs, 'shape', None)
    if shape is None or len(shape) != 2 or shape[0] != 2 or shape[1] < 2:
        what = f'of shape {list(shape)}' if shape is not None else f'that are a {type(outputs).__name__}'
        raise ValueError(f'forward returns outputs {what} for images {list(few.shape)}: expected logits '
                         f'[2, num_classes], num_classes >= 2. For one logit z of two classes return '
                         f'jnp.stack([jnp.zeros_like(z), z], axis=-1)')
    if num_classes not in (None, shape[1]):
        raise ValueError(f'num_classes = {num_classes}, but forward returns {shape[1]} logits')
    return shape[1]


def _identify(model: ModelForward, variables: PyTree, examples: Examples) -> str:
    """A hash of the weights or, where there are none to see, of the outputs on the first images."""
    if variables is not None:
        return digest_of(*jax.tree.leaves(variables))
    few = examples.images[:_IDENTIFYING]
    keys = jax.random.split(jax.random.key(0), len(few))
    return digest_of(np.asarray(jax.jit(model)(None, few, keys)))
