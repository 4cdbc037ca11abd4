"""The same PGD on the same weights and images, by this project and by others.

Contents: `Problem`, `make_problem`, `Contender`, `CONTENDERS`.

Every contender makes `num_steps` forward and backward passes per image. `jax_blocks` adds a forward
pass, because an evaluation looks at its last iterate too; ART adds some to judge its own success.

Example:

    problem = make_problem(model='resnet18', stem='large', image_size=64, num_channels=3, batch_size=64,
                           num_steps=20, eps=None, block_width=8, seed=0)
    contender = CONTENDERS['jax_loop'](problem)
    adversarial = contender.images(contender.attack(problem.eps))
"""
import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torchattacks
from art.attacks.evasion import ProjectedGradientDescent
from art.estimators.classification import PyTorchClassifier

from benchmarks import torch_attacks, torch_resnet
from medrobust_jax.attacks.pgd import pgd
from medrobust_jax.attacks.run import perturb
from medrobust_jax.core import balls, rng
from medrobust_jax.evaluate.programs import ModelForward, in_chunks, make_attack, make_layout, victim_of
from medrobust_jax.models.forward import apply_model, init_variables
from medrobust_jax.models.registry import create_model
from medrobust_jax.parallel.mesh import data_mesh
from medrobust_jax.tasks.classification import classification

NUM_CLASSES = 4
RELATIVE_STEP_SIZE = 0.25  # step / eps


class Problem(NamedTuple):
    """What is attacked, and how.

    Attributes:
      forward: ours, `(variables, images, keys) -> logits`.
      variables: `(params, model_state)`.
      peer: the PyTorch twin with the same weights.
      images: `[B, H, W, C]` float32 in [0, 1].
      labels: `[B]` int32, the clean predictions.
      keys: `[B]`.
      eps: the ball's radius (Linf).
      num_steps: of PGD.
      block_width: of the evaluation's blocks.
      seed: of everything.
      traces: a list that grows whenever `forward` is traced.
    """

    forward: ModelForward
    variables: Any
    peer: torch.nn.Module
    images: np.ndarray
    labels: np.ndarray
    keys: jax.Array
    eps: float
    num_steps: int
    block_width: int
    seed: int
    traces: list[tuple[int, ...]]


def smooth_images(shape: tuple[int, int, int, int], *, seed: int) -> np.ndarray:
    """Random images `[B, H, W, C]` of coarse squares with a little noise."""
    draws = np.random.default_rng(seed)
    batch, height, width, channels = shape
    coarse = draws.uniform(0.1, 0.9, (batch, -(-height // 8), -(-width // 8), channels))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return np.clip(fine + draws.normal(0, 0.05, shape), 0, 1).astype(np.float32)


def make_problem(*, model: str, stem: str, image_size: int, num_channels: int, batch_size: int, num_steps: int,
                 eps: float | None, block_width: int, seed: int) -> Problem:
    """Random weights with the images' BatchNorm statistics, carried over to PyTorch.

    With `eps` None the radius is the one at which about half of the images fall (`median_margin`), so
    that comparing robust accuracies can tell attacks apart.

    Raises:
      RuntimeError: if the two networks disagree by more than 1e-4 of the largest logit.
    """
    module = create_model(model, num_outputs=NUM_CLASSES, stem=stem)
    images = smooth_images((batch_size, image_size, image_size, num_channels), seed=seed)
    params, model_state = init_variables(module, jax.random.key(seed), images.shape[1:])
    train_pass = jax.jit(partial(apply_model(module), batch_norm='train'))
    for _ in range(30):  # .9^30: what is left of the initial statistics is 4 %
        _, model_state = train_pass(params, model_state, images[:32])
    peer = torch_resnet.ResNet(num_outputs=NUM_CLASSES, num_channels=num_channels,
                               stage_sizes=module.stage_sizes, width=module.width, stem=stem)
    peer = torch_resnet.carry_over(peer, params, model_state)
    traces: list[tuple[int, ...]] = []

    def forward(variables: Any, images: jax.Array, keys: jax.Array) -> jax.Array:
        traces.append(images.shape)
        return apply_model(module)(*variables, images, batch_norm='eval')[0]

    logits = np.asarray(jax.jit(forward)((params, model_state), images, None))
    theirs = peer(torch_resnet.to_torch(images)).numpy()
    difference = np.abs(logits - theirs).max() / np.abs(theirs).max()
    if not difference < 1e-4:
        raise RuntimeError(f'the PyTorch twin differs by {difference:.1e} of the largest logit')
    eps = torch_attacks.median_margin(peer, torch_resnet.to_torch(images)) if eps is None else eps
    return Problem(forward, (params, model_state), peer, images, logits.argmax(axis=1).astype(np.int32),
                   rng.example_keys(seed, np.arange(batch_size)), eps, num_steps, block_width, seed, traces)


class Contender(NamedTuple):
    """One implementation.

    Attributes:
      attack: `(eps) -> result`, returns when the result is there.
      images: `result -> [B, H, W, C]`.
      attack_part: the same on the first images only, as on the last batch of a data set; or None.
    """

    attack: Callable[[float], Any]
    images: Callable[[Any], np.ndarray]
    attack_part: Callable[[int], Any] | None = None


def _ours(problem: Problem) -> Any:
    return pgd(num_steps=problem.num_steps, relative_step_size=RELATIVE_STEP_SIZE)


def jax_loop(problem: Problem) -> Contender:
    """The whole batch in one compiled loop, as adversarial training crafts it."""
    task = classification(NUM_CLASSES)

    @jax.jit
    def program(variables: Any, keys: jax.Array, images: jax.Array, labels: jax.Array,
                eps: jax.Array) -> jax.Array:
        victim = victim_of(problem.forward, variables, task)
        return perturb(_ours(problem), victim, keys, images, labels, eps=eps)

    rows = jax.device_put((problem.keys, problem.images, problem.labels))
    return Contender(lambda eps: program(problem.variables, *rows, np.float32(eps)).block_until_ready(),
                     np.asarray)


def jax_blocks(problem: Problem) -> Contender:
    """The evaluation's own program: fixed blocks, verdicts recorded, the last iterate looked at."""
    layout = make_layout(data_mesh(), width=problem.block_width, chunk=len(problem.images))
    task = classification(NUM_CLASSES)
    program = in_chunks(make_attack(problem.forward, task, _ours(problem), layout, stop=False), layout)

    def attack(eps: float, size: int) -> Any:
        return program(problem.variables, problem.keys[:size], problem.images[:size], problem.labels[:size],
                       np.full(size, eps, np.float32))

    return Contender(lambda eps: attack(eps, len(problem.images)), lambda result: result.images,
                     lambda size: attack(problem.eps, size))


def _torch_twin(problem: Problem, memory_format: torch.memory_format) -> tuple[torch.nn.Module, Any, Any]:
    """The network, the images and the labels, in a layout."""
    model = copy.deepcopy(problem.peer).to(memory_format=memory_format)
    images = torch_resnet.to_torch(problem.images).contiguous(memory_format=memory_format)
    return model, images, torch.from_numpy(problem.labels).long()


def torch_loop(problem: Problem, *, memory_format: torch.memory_format) -> Contender:
    """A plain PyTorch loop that starts from the same noise as ours."""
    model, images, labels = _torch_twin(problem, memory_format)
    radius = np.full(len(problem.images), problem.eps, np.float32)
    noise = torch_resnet.to_torch(balls.random_start(problem.keys, problem.images, radius, norm='linf'))
    noise = noise.contiguous(memory_format=memory_format)

    def attack(eps: float) -> torch.Tensor:
        return torch_attacks.pgd(model, images, labels, start=noise, eps=eps, num_steps=problem.num_steps,
                                 step_size=RELATIVE_STEP_SIZE * eps)

    return Contender(attack, torch_resnet.to_numpy)


def torchattacks_pgd(problem: Problem) -> Contender:
    """torchattacks' PGD, channels last, its own noise."""
    model, images, labels = _torch_twin(problem, torch.channels_last)

    def attack(eps: float) -> torch.Tensor:
        torch.manual_seed(problem.seed)
        return torchattacks.PGD(model, eps=eps, alpha=RELATIVE_STEP_SIZE * eps,
                                steps=problem.num_steps)(images, labels)

    return Contender(attack, torch_resnet.to_numpy)


def art_pgd(problem: Problem) -> Contender:
    """The Adversarial Robustness Toolbox's PGD, channels last, its own noise; NumPy in and out."""
    logging.getLogger('art').setLevel(logging.WARNING)
    model, _, _ = _torch_twin(problem, torch.channels_last)
    shape = problem.images.shape
    classifier = PyTorchClassifier(model, torch.nn.CrossEntropyLoss(), (shape[3], *shape[1:3]), NUM_CLASSES,
                                   clip_values=(0.0, 1.0), device_type='cpu')
    images = np.ascontiguousarray(problem.images.transpose(0, 3, 1, 2))

    def attack(eps: float) -> np.ndarray:
        np.random.seed(problem.seed)
        torch.manual_seed(problem.seed)
        method = ProjectedGradientDescent(
            classifier, eps=eps, eps_step=RELATIVE_STEP_SIZE * eps, max_iter=problem.num_steps, num_random_init=1,
            batch_size=len(images), verbose=False)
        return method.generate(images, problem.labels)

    return Contender(attack, lambda adversarial: adversarial.transpose(0, 2, 3, 1))


REFERENCE = 'torch_channels_last'
CONTENDERS: dict[str, Callable[[Problem], Contender]] = {
    'jax_loop': jax_loop,
    'jax_blocks': jax_blocks,
    REFERENCE: partial(torch_loop, memory_format=torch.channels_last),
    'torch_nchw': partial(torch_loop, memory_format=torch.contiguous_format),
    'torchattacks': torchattacks_pgd,
    'art': art_pgd,
}
