"""A batch's pass over n tokens each is one over n tokens times the batch, and no wider than what was measured."""

import pandas as pd
import pytest

from specquant.decoding.method import Plan
from specquant.errors import SpecquantError
from specquant.planning.acceptance import Chances
from specquant.planning.batches import in_batch, speedups_in_batches
from specquant.planning.costs import LevelCosts
from specquant.planning.planner import Planner
from tests.planning.conftest import BOTH

PASSES = pd.Series({1: 10.0, 2: 10.0, 4: 11.0, 8: 12.0, 16: 16.0, 32: 20.0})
COSTS = LevelCosts(PASSES, pd.Series({3: 3.0}), other_ms=0.5)
STATISTICS = BOTH.statistics(Chances(head=[0.9, 0.6], inner_head=[0.8], agreement=0.85))


@pytest.mark.parametrize(("batch", "tokens", "time_ms"), [(1, 8, 12.0), (2, 8, 16.0), (4, 4, 16.0), (4, 1, 11.0)])
def test_a_pass_reads_the_weights_once_for_all(batch, tokens, time_ms):
    assert in_batch(COSTS, batch).verify(tokens) == time_ms


def test_what_was_not_measured_is_not_predicted():
    with pytest.raises(SpecquantError, match="a pass over 3 tokens was not measured: choose a batch of 1, 2, 4"):
        in_batch(COSTS, 3)
    with pytest.raises(SpecquantError, match=r"only over 1\.0 to 8\.0"):
        in_batch(COSTS, 4).verify(9)


def test_speedups_are_over_decoding_one_by_one_in_the_same_batch():
    table = speedups_in_batches(Planner(COSTS, COSTS), STATISTICS, (1, 4))
    assert table.loc[4, "autoregressive"].tokens_per_s == pytest.approx(1e3 / 11.5)
    assert (table.speedup.xs("autoregressive", level="method") == 1).all()
    alone = Planner(in_batch(COSTS, 4)).predict(Plan("eagle2", 7, 3), STATISTICS)
    assert alone["verify_ms"] == pytest.approx(19.0)  # 28 tokens, between 16 and 32
    assert table.loc[4, "eagle2"].speedup == pytest.approx(alone["tokens_per_s"] / (1e3 / 11.5))


def test_wider_batches_gain_less_where_passes_grow():
    speedups = speedups_in_batches(Planner(COSTS, COSTS), STATISTICS, (1, 2, 4)).speedup.xs("eagle2", level="method")
    assert speedups.is_monotonic_decreasing
