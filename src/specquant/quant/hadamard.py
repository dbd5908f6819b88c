"""Hadamard rotations: orthogonal matrices that spread an outlier over all channels (QuaRot, arXiv 2404.00456)."""

import numpy as np
import scipy.linalg
import torch

from specquant.errors import SpecquantError

SIGN_SEED = 0
BASES = (1, 12, 20)


def hadamard(size: int) -> np.ndarray:
    """A Hadamard matrix [size, size] of +1 and -1: size 2^n, 12 * 2^n or 20 * 2^n.

    Powers of two by Sylvester's construction, 12 and 20 by Paley's, products by Kronecker's. Raises SpecquantError for
    other sizes.
    """
    for base in BASES:
        if _is_power_of_2_times(size, base):
            small = np.ones((1, 1), dtype=int) if base == 1 else paley(base - 1)
            return np.kron(small, scipy.linalg.hadamard(size // base))
    raise SpecquantError(
        f"a hidden size of {size} has no Hadamard rotation here (2^n, 12 * 2^n and 20 * 2^n have): use a scheme "
        "that does not rotate"
    )


def has_hadamard(size: int) -> bool:
    """Whether `hadamard` has a matrix of that size."""
    return any(_is_power_of_2_times(size, base) for base in BASES)


def _is_power_of_2_times(size: int, base: int) -> bool:
    power, remainder = divmod(size, base)
    return remainder == 0 and power > 0 and power & (power - 1) == 0


def paley(prime: int) -> np.ndarray:
    """Paley's first construction: a Hadamard matrix of size prime + 1, for a prime that is 3 modulo 4."""
    squares = {i * i % prime for i in range(1, prime)}
    character = np.array([0] + [1 if i in squares else -1 for i in range(1, prime)])
    matrix = np.ones((prime + 1, prime + 1), dtype=int)
    matrix[1:, 0] = -1
    matrix[1:, 1:] = scipy.linalg.circulant(character) + np.eye(prime, dtype=int)
    return matrix


def random_hadamard(size: int) -> torch.Tensor:
    """The rotation that is used for a residual stream of that size: float64 [size, size], orthogonal.

    A Hadamard matrix with random signs of its rows, the same ones always: random signs keep a channel of equal values
    from ending up in a single one.
    """
    signs = np.random.default_rng(SIGN_SEED).integers(0, 2, size) * 2 - 1
    return torch.from_numpy(signs[:, None] * hadamard(size) / np.sqrt(size))
