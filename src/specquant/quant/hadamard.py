"""Hadamard rotations: orthogonal matrices that spread an outlier over all channels (QuaRot, arXiv 2404.00456)."""

import numpy as np
import scipy.linalg
import torch

from specquant.errors import SpecquantError

SIGN_SEED = 0
SIZES = "2^n, and 2^n (p + 1) for a prime p that is 3 modulo 4 or twice that for one that is 1 modulo 4"


def hadamard(size: int) -> np.ndarray:
    """A Hadamard matrix [size, size] of +1 and -1: size is 2^n times 1 or a size of Paley's constructions.

    Powers of two by Sylvester's construction, the smallest factor that is left by Paley's (12, 20, 28 and 36 for the
    odd numbers 3, 5, 7 and 9), products by Kronecker's. Raises SpecquantError for other sizes.
    """
    base = _paley_size(size)
    if base is None:
        raise SpecquantError(
            f"a hidden size of {size} has no Hadamard rotation here ({SIZES} have): use a scheme that does not rotate"
        )
    if base == 1:
        small = np.ones((1, 1), dtype=int)
    else:
        small = paley(base - 1) if _is_prime(base - 1) else paley_2(base // 2 - 1)
    return np.kron(small, scipy.linalg.hadamard(size // base))


def has_hadamard(size: int) -> bool:
    """Whether `hadamard` has a matrix of that size."""
    return _paley_size(size) is not None


def _paley_size(size: int) -> int | None:
    """The smallest size of Paley's constructions, or 1, that leaves a power of two of `size`; None where none does."""
    if size < 1:
        return None
    base = size // (size & -size)  # its odd part
    if base == 1:
        return 1
    while (base := 2 * base) <= size:
        # Of a size 4 k, base - 1 is 3 modulo 4; of base / 2 - 1 that is to be seen.
        if base % 4 == 0 and (_is_prime(base - 1) or (base // 2 % 4 == 2 and _is_prime(base // 2 - 1))):
            return base
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def paley(prime: int) -> np.ndarray:
    """Paley's first construction: a Hadamard matrix of size prime + 1, for a prime that is 3 modulo 4."""
    matrix = np.ones((prime + 1, prime + 1), dtype=int)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = scipy.linalg.circulant(_character(prime)) + np.eye(prime, dtype=int)
    return matrix


def paley_2(prime: int) -> np.ndarray:
    """Paley's second construction: a Hadamard matrix of size 2 (prime + 1), for a prime that is 1 modulo 4."""
    conference = np.ones((prime + 1, prime + 1), dtype=int)
    conference[0, 0] = 0
    conference[1:, 1:] = scipy.linalg.circulant(_character(prime))
    signs = np.array([[1, 1], [1, -1]])
    return np.kron(conference, signs) + np.kron(np.eye(prime + 1, dtype=int), np.array([[1, -1], [-1, -1]]))


def _character(prime: int) -> np.ndarray:
    """Of 0 to prime - 1: 1 for squares, -1 for others, 0 for zero."""
    squares = {i * i % prime for i in range(1, prime)}
    return np.array([0] + [1 if i in squares else -1 for i in range(1, prime)])


def random_hadamard(size: int) -> torch.Tensor:
    """The rotation that is used for a residual stream of that size: float64 [size, size], orthogonal.

    A Hadamard matrix with random signs of its rows, the same ones always: random signs keep a channel of equal values
    from ending up in a single one.
    """
    signs = np.random.default_rng(SIGN_SEED).integers(0, 2, size) * 2 - 1
    return torch.from_numpy(signs[:, None] * hadamard(size) / np.sqrt(size))
