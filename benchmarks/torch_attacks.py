"""The plain PyTorch loop that everything is compared with, and a measure of what fools a network.

Contents: `pgd`, `median_margin`.

Example:

    adversarial = pgd(model, images, labels, start=noise, eps=8 / 255, step_size=1 / 255, num_steps=20)
"""
import torch
from torch import Tensor, nn
from torch.nn import functional


def pgd(model: nn.Module, images: Tensor, labels: Tensor, *, start: Tensor, eps: float, step_size: float,
        num_steps: int, norm: str = 'linf') -> Tensor:
    """Projected gradient ascent of the cross-entropy, the loop that most papers' code contains.

    Args:
      model: `[B, C, H, W]` to logits.
      images: clean, in [0, 1].
      labels: `[B]`.
      start: the first perturbation, shaped as the images.
      eps: the ball's radius.
      step_size: in pixels for 'linf', in L2 norm for 'l2'.
      num_steps: gradient steps.
      norm: 'linf' or 'l2'.

    Returns:
      The last iterate.
    """
    adversarial = (images + start).clamp(0, 1)
    for _ in range(num_steps):
        adversarial.requires_grad_()
        loss = functional.cross_entropy(model(adversarial), labels, reduction='sum')
        gradient, = torch.autograd.grad(loss, adversarial)
        if norm == 'linf':
            delta = (adversarial.detach() + step_size * gradient.sign() - images).clamp(-eps, eps)
        else:
            direction = gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
            delta = adversarial.detach() + step_size * direction - images
            size = delta.flatten(1).norm(dim=1)[:, None, None, None]
            delta = delta * (eps / size).clamp(max=1)
        adversarial = (images + delta).clamp(0, 1)
    return adversarial.detach()


def median_margin(model: nn.Module, images: Tensor) -> float:
    """The Linf distance at which, by a linear estimate, half of the images change their class.

    `median (z_first - z_second) / ||grad (z_first - z_second)||_1`, over the images.
    """
    images = images.clone().requires_grad_()
    first, second = model(images).topk(2, dim=1).values.T
    gradient, = torch.autograd.grad((first - second).sum(), images)
    return float(((first - second).detach() / gradient.abs().sum((1, 2, 3))).median())
