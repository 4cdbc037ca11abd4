"""Random numbers of drawn images: each image has a generator of its own.

Contents: `generator_of`.

Example:

    noise = generator_of(seed, stream=0, row=7).standard_normal((32, 32))
"""
import numpy as np


def generator_of(seed: int, stream: int, row: int) -> np.random.Generator:
    """The generator of image `row` of a stream (a split, say); it depends on no other image.

    Counter-based: the three numbers are the key of a Philox generator.

    Args:
      seed: >= 0.
      stream: 0 to 2^24 - 1.
      row: 0 to 2^40 - 1.
    """
    return np.random.Generator(np.random.Philox(key=np.array([seed, (stream << 40) + row], dtype=np.uint64)))
