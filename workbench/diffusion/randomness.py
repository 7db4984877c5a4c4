"""Addressed random numbers: (seed, stream, index) determines a sequence, independent of earlier draws.

A counter-based generator (Philox) is a keyed function of a counter, so a sequence can start anywhere at no cost. The
key is a hash of the seed and the name of the stream ("noise", "times", ...). The index (of a sample in sampling, of a
step in training) is the high half of the counter, so every index has 2**128 blocks of its own.

Sample 17 is therefore the same alone or in a batch of 256, with one process or eight, and after an interruption at 16:
no generator state has to be replayed, skipped or saved. With a sequential generator, each draw depends on all draws
before it, and so on the batch size, the number of processes and the point of resuming.

Within a stream, `generator`, `normal`, `uniform` and `permutation` use disjoint counters, so they are independent even
with the same seed, stream and index. Results are reproducible for one version of NumPy.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Integer
from torch import Tensor

# The top word of the counter distinguishes the functions of this module.
_GENERATOR, _NORMAL, _UNIFORM, _PERMUTATION = range(4)

_UNIFORM_BITS = 23  # one bit less than float32's mantissa, so that the midpoint of each cell is exact


def _key(seed: int, stream: str) -> int:
    # Python's hash() is salted differently in each process.
    return int.from_bytes(hashlib.blake2b(f"{seed}:{stream}".encode(), digest_size=16).digest(), "little")


def _philox(key: int, index: int, purpose: int) -> np.random.Philox:
    if not 0 <= index < 2**64:
        raise ValueError(f"index must lie in [0, 2**64), got {index}")
    return np.random.Philox(key=key, counter=(purpose << 192) | (index << 128))


def generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """NumPy generator at the address (seed, stream, index); different addresses never share numbers.

    Raises ValueError for an index outside [0, 2**64).
    """
    return np.random.Generator(_philox(_key(seed, stream), index, _GENERATOR))


def normal(
    seed: int, stream: str, indices: Sequence[int] | Integer[np.ndarray, "b"], shape: tuple[int, ...]
) -> Float32[Tensor, "b ..."]:
    """Standard normal float32 rows of `shape`; row i depends only on (seed, stream, indices[i]).

    Raises ValueError for an index outside [0, 2**64).
    """
    key = _key(seed, stream)
    rows = np.empty((len(indices), *shape), dtype=np.float32)
    for row, index in zip(rows, map(int, indices), strict=True):
        np.random.Generator(_philox(key, index, _NORMAL)).standard_normal(out=row, dtype=np.float32)
    return torch.from_numpy(rows)


def uniform(
    seed: int, stream: str, indices: Sequence[int] | Integer[np.ndarray, "b"], columns: int
) -> Float[Tensor, "b {columns}"]:
    """Uniform float32 rows strictly inside (0, 1); row i depends only on (seed, stream, indices[i]).

    Values are the midpoints of 2**23 equal cells: 0 and 1 never occur, so a quantile function stays finite, and the
    distribution is exactly symmetric about 1/2. Raises ValueError for an index outside [0, 2**64).
    """
    key = _key(seed, stream)
    bits = np.empty((len(indices), columns), dtype=np.uint64)
    for row, index in zip(bits, map(int, indices), strict=True):
        row[:] = _philox(key, index, _UNIFORM).random_raw(columns)
    cells = (bits >> np.uint64(64 - _UNIFORM_BITS)).astype(np.float32)
    return torch.from_numpy((cells + np.float32(0.5)) * np.float32(2.0**-_UNIFORM_BITS))


def permutation(seed: int, stream: str, index: int, length: int) -> Integer[np.ndarray, "{length}"]:
    """A random permutation of range(length) at the address (seed, stream, index), e.g. for epoch `index`.

    Raises ValueError for an index outside [0, 2**64).
    """
    return np.random.Generator(_philox(_key(seed, stream), index, _PERMUTATION)).permutation(length)
