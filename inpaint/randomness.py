"""Counter-based randomness: a pure function of (seed, purpose, position), never of history.

So nothing about randomness is saved in a checkpoint, and a sample's crop, hole, timestep and noise
do not depend on the number of workers, on the batch it came in, or on what was drawn before it.
Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (Philox).
"""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, position: int) -> np.random.Generator:
    """The generator of one purpose (`"hole"`, `"noise"`, ...) for the sample at `position` of a run with `seed`."""
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    key = np.frombuffer(digest, dtype=np.uint64)
    # The counter's high word carries the position; the low words count the draws (2^192 of them per sample).
    counter = np.array([0, 0, 0, position], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))
