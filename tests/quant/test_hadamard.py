import numpy as np
import pytest
import scipy.linalg
import torch

from specquant.errors import SpecquantError
from specquant.quant.hadamard import hadamard, paley, random_hadamard


@pytest.mark.parametrize("size", [1, 2, 4, 12, 20, 24, 28, 36, 60, 64, 200, 256, 384, 576, 640, 896, 960, 1600])
def test_a_hadamard_matrix_has_orthogonal_rows_of_signs(size):
    matrix = hadamard(size)
    assert matrix.shape == (size, size)
    assert set(np.unique(matrix)) <= {-1, 1}
    assert np.array_equal(matrix @ matrix.T, size * np.eye(size, dtype=int))


@pytest.mark.parametrize("size", [3, 6, 92, 100, 116, 688, 0, -4])
def test_other_sizes_are_refused(size):
    with pytest.raises(SpecquantError, match=f"hidden size of {size} "):
        hadamard(size)


def test_models_that_were_rotated_before_find_their_matrix_again():
    """Powers of two times 1, 12 and 20 were all there was at first, by Paley's first construction."""
    for size, base in ((8, 1), (96, 12), (160, 20)):
        small = np.ones((1, 1)) if base == 1 else paley(base - 1)
        assert np.array_equal(hadamard(size), np.kron(small, scipy.linalg.hadamard(size // base)))


def test_the_rotation_is_orthogonal_and_always_the_same():
    rotation = random_hadamard(384)
    assert torch.allclose(rotation @ rotation.t(), torch.eye(384, dtype=torch.float64), atol=1e-12)
    assert torch.equal(rotation, random_hadamard(384))
    # A model that was rotated once must find its rotation again: the signs are part of the format.
    assert (random_hadamard(16)[:, 0] > 0).int().tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1]


def test_the_rotation_spreads_an_outlier():
    outlier = torch.zeros(384, dtype=torch.float64)
    outlier[17] = 100
    assert (outlier @ random_hadamard(384)).abs().max() < 5.2  # 100 / sqrt(384)
