"""Seeds of what is drawn after the first."""

import pytest
import torch

from specquant.measure.checks import later_seed


@pytest.mark.parametrize(
    ("seed", "later"), [(0, 2), (7, 9), (-(2**63), 2 - 2**63), (2**64 - 3, 2**64 - 1), (2**64 - 2, 0), (2**64 - 1, 1)]
)
def test_every_seed_that_may_be_given_has_others_behind_it(seed, later):
    assert later_seed(seed, 2) == later
    torch.Generator().manual_seed(later)
