"""Random generators from seeds, under the names of gem-llm. Environments have :attr:`gem.core.Env.rng` instead."""

from __future__ import annotations

import random

import numpy as np

from gem.seeds import check_seed

RNG = RandomNumberGenerator = np.random.Generator


def np_random(seed: int | None = None) -> tuple[np.random.Generator, int]:
    """Return a generator of numpy, and the seed that makes it again.

    Raises:
        TypeError: the seed is not an integer.
        ValueError: it is negative.
    """
    sequence = np.random.SeedSequence(check_seed(seed))
    entropy = sequence.entropy
    assert isinstance(entropy, int)
    return np.random.Generator(np.random.PCG64(sequence)), entropy


def set_seed(seed: int | None = None) -> None:
    """Seed the global generators, ``random`` and ``numpy.random``. No environment of this package uses them."""
    seed = check_seed(seed)
    random.seed(seed)
    np.random.seed(None if seed is None else seed % 2**32)
