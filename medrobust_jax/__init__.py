"""medrobust_jax: adversarial robustness of medical-image models in JAX.

Import the part you need, e.g. `from medrobust_jax.attacks.pgd import pgd`. Call
`medrobust_jax.core.numerics.prepare()` first in a program of your own: it sets the compiler flag
that some jaxlib versions need to compute correctly on CPU, and checks that they do.
"""
__version__ = '0.1.0'
