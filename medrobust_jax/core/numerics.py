"""Whether this machine computes right, asked at the start of every program.

Several jaxlib versions compute some CPU reductions wrong without a compiler flag, silently.
`configure_xla` sets the flag where a version is known to need it, and must run before JAX starts
its backend; `canary` computes two small sums that are known to go wrong and stops the program
with the cure. `prepare` does both, and belongs first in every program.

Example:

    from medrobust_jax.core import numerics
    numerics.prepare()
"""
import os
import re
from importlib import metadata

import numpy as np

_FLAG = '--xla_cpu_experimental_ynn_fusion_type='


def _needed_fusion_types(version: str) -> str | None:
    """The fusion types to switch off for a jaxlib version; None where the flag is unknown or not needed."""
    major, minor, patch = (int(part) for part in re.findall(r'\d+', version)[:3])
    if (major, minor, patch) == (0, 10, 2):
        return '-reduce,-individual_convolution'  # the second one is about speed alone
    return '-reduce' if (major, minor) >= (0, 11) else None


def configure_xla() -> None:
    """Adds to `XLA_FLAGS` what the installed jaxlib needs in order to compute right on CPU.

    Has no effect once JAX has started its backend, and leaves a flag alone that is already set.
    """
    types = _needed_fusion_types(metadata.version('jaxlib'))
    flags = os.environ.get('XLA_FLAGS', '')
    if types is not None and _FLAG not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {_FLAG}{types}'.strip()


def canary() -> None:
    """Compares two compiled computations with NumPy.

    Raises:
      RuntimeError: where one is wrong, with the cure. (A version with a crash instead of a wrong
        result ends the process.)
    """
    import jax
    import jax.numpy as jnp

    generator = np.random.default_rng(0)
    a, b, c = (generator.normal(size=(4, 8, 8, 16)).astype(np.float32) for _ in range(3))
    narrow = [jnp.asarray(v, jnp.bfloat16) for v in (a, b, c)]
    relu_mean = jax.jit(lambda a, b, c: jax.nn.relu(jax.nn.relu(a + c) + b + c).mean())(*narrow)
    wide = [np.asarray(v, np.float32) for v in narrow]
    relu_truth = np.maximum(np.maximum(wide[0] + wide[2], 0) + wide[1] + wide[2], 0).mean()

    rows = np.stack([np.arange(32769)] + 2 * [np.ones(32769)], axis=1).astype(np.float32)
    identity = np.eye(3, dtype=np.float32)
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((identity @ row) ** 2)))(rows)
    squares_truth = (rows.astype(np.float64) ** 2).sum(axis=1)

    checks = {'a bfloat16 mean': (relu_mean, relu_truth, 0.05),
              'a batched product and sum': (squares, squares_truth, 1e-5)}
    wrong = [name for name, (got, truth, tolerance) in checks.items()
             if not np.allclose(np.asarray(got, np.float64), truth, rtol=tolerance)]
    if wrong:
        version = metadata.version('jaxlib')
        raise RuntimeError(f'jaxlib {version} computes {" and ".join(wrong)} wrong on {jax.default_backend()}. '
                           f'Start again with XLA_FLAGS="{_FLAG}-reduce" in the environment, '
                           f'or install another jaxlib.')


def prepare() -> None:
    """`configure_xla`, then `canary`: the first call of every program."""
    configure_xla()
    canary()
